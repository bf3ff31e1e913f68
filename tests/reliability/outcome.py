"""What a campaign reports: a row of the table in docs/reliability.md."""

from __future__ import annotations

import collections
from typing import NamedTuple


class Row(NamedTuple):
    """One campaign: how many trials of what, how they ended, and every trial that did not end as it should."""

    what: str
    trials: int
    ended: str
    failures: list[str]


def row(what: str, outcomes: list[str], failures: list[str]) -> Row:
    """The row of trials that ended in these words."""
    counts = collections.Counter(outcomes)
    return Row(what, len(outcomes), ", ".join(f"{count:,} {word}" for word, count in counts.most_common()), failures)


def table(rows: list[Row]) -> str:
    """The rows as Markdown, and below it the failures."""
    lines = ["| Trial | Trials | How they ended | Failures |", "|---|---|---|---|"]
    lines += [f"| {one.what} | {one.trials:,} | {one.ended} | {len(one.failures)} |" for one in rows]
    return "\n".join([*lines, *(f"\n{one.what}: {text}" for one in rows for text in one.failures)])
