"""What the value of one key must be: its type, its bounds or its choices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

ANY = -1  # `Rule.length` of a tuple that may be empty


@dataclass(frozen=True)
class Rule:
    """What one value must be: of type `kind`, between `low` and `high`, one of `choices`; or a tuple of such values."""

    kind: type
    low: int | float = -math.inf
    high: int | float = math.inf
    above: bool = False  # True: `low` itself is refused
    choices: tuple[str, ...] = ()
    length: int | None = None  # None: one value; ANY: a tuple, which may be empty; 0: a tuple of one or more; n: a tuple of n
    ordered: bool = False  # a tuple whose values must not fall

    def expected(self) -> str:
        """What the rule asks for, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        one = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[self.kind]
        if self.length is not None:
            many = {ANY: "any number of", 0: "one or more"}.get(self.length, str(self.length))
            one = f"{many} values{' in rising order' if self.ordered else ''}, each {one}"
        if math.isfinite(self.low):
            one += f" {'above' if self.above else 'of at least'} {self.low:g}"
        if math.isfinite(self.high):
            one += f"{' and' if math.isfinite(self.low) else ' of'} at most {self.high:g}"
        return one

    def accepts(self, value: Any) -> bool:
        """Whether `value` keeps the rule."""
        if self.length is None:
            return self._accepts_one(value)
        if not isinstance(value, tuple) or (self.length > 0 and len(value) != self.length) or (self.length == 0 and not value):
            return False
        return all(map(self._accepts_one, value)) and (not self.ordered or list(value) == sorted(value))

    def _accepts_one(self, value: Any) -> bool:
        types = (int, float) if self.kind is float else (self.kind,)
        if type(value) not in types:
            return False
        if self.kind in (bool, str):
            return not self.choices or value in self.choices
        return math.isfinite(value) and self.low <= value <= self.high and not (self.above and value == self.low)


def count(low: int = 0) -> Rule:
    """A whole number of at least `low`."""
    return Rule(int, low=low)


def number(low: int | float = 0, high: int | float = math.inf, above: bool = False) -> Rule:
    """A number between `low` and `high`; with `above`, `low` itself is refused."""
    return Rule(float, low=low, high=high, above=above)


def choice(*choices: str) -> Rule:
    """One of these texts."""
    return Rule(str, choices=choices)


def interval(high: int | float = math.inf) -> Rule:
    """Two numbers above 0 in rising order, at most `high`."""
    return Rule(float, low=0.0, high=high, above=True, length=2, ordered=True)


SHARE = number(0.0, 1.0)
POSITIVE = number(above=True)
TEXT = Rule(str)
BOOL = Rule(bool)
