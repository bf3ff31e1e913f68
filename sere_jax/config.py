"""The rules of a pre-training config: every mistake is found, and all are told at once, before anything compiles.

`RULES` says for each key of `configs/common.py` what its value must be; `config_cross.CROSS_RULES` says what values
must keep among each other. A mistake is one line: key, what was found, what was expected and, where there is one, the nearest
choice. Also here: which keys may differ when a run is resumed, and the config's JSON form.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ml_collections import ConfigDict

from sere_jax.config_cross import CROSS_RULES, EPOCH_KEYS
from sere_jax.config_keys import flatten, nearest, unknown_key
from sere_jax.models.vit import VARIANTS
from sere_jax.objectives.recipes import RECIPES

# Keys that only concern the running; every other key of a checkpoint's config must be the same on resume.
RUN_ONLY_KEYS = ("data.workers", "data.prefetch", "data.max_bad_fraction", "run.*", "eval.*")


class ConfigError(ValueError):
    """The config cannot run. The message lists every mistake, one a line."""

    def __init__(self, mistakes: Iterable[str]):
        self.mistakes = list(mistakes)
        count = f"{len(self.mistakes)} mistake{'s' if len(self.mistakes) != 1 else ''}"
        super().__init__(f"{count} in the config:\n" + "\n".join("  " + line for line in self.mistakes))


@dataclass(frozen=True)
class Rule:
    """What one value must be: of type `kind`, between `low` and `high`, one of `choices`; `length` values where it is not 0."""

    kind: type
    low: int | float = -math.inf
    high: int | float = math.inf
    above: bool = False  # True: `low` itself is refused
    choices: tuple[str, ...] = ()
    length: int | None = None  # None: one value; 0: a tuple of one or more; n: a tuple of n
    ordered: bool = False  # a tuple whose values must not fall

    def expected(self) -> str:
        """What the rule asks for, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        one = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[self.kind]
        if self.length is not None:
            many = {0: "one or more"}.get(self.length, str(self.length))
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
        if not isinstance(value, tuple) or not value or (self.length and len(value) != self.length):
            return False
        return all(map(self._accepts_one, value)) and (not self.ordered or list(value) == sorted(value))

    def _accepts_one(self, value: Any) -> bool:
        types = (int, float) if self.kind is float else (self.kind,)
        if type(value) not in types:
            return False
        if self.kind in (bool, str):
            return not self.choices or value in self.choices
        return math.isfinite(value) and self.low <= value <= self.high and not (self.above and value == self.low)


def _count(low: int = 0) -> Rule:
    return Rule(int, low=low)


def _number(low: int | float = 0, high: int | float = math.inf, above: bool = False) -> Rule:
    return Rule(float, low=low, high=high, above=above)


def _choice(*choices: str) -> Rule:
    return Rule(str, choices=choices)


def _range(high: int | float = math.inf) -> Rule:
    return Rule(float, low=0.0, high=high, above=True, length=2, ordered=True)


_SHARE = _number(0.0, 1.0)
_TEMPERATURE = _number(above=True)
_SOURCE = Rule(str)
_BOOL = Rule(bool)

RULES: Mapping[str, Rule] = {
    "seed": Rule(int, low=0, high=2**32 - 1),
    "recipe": _choice(*RECIPES),
    "data.source": _SOURCE,
    "data.batch_size": _count(1),
    "data.backend": _choice("fast", "pil"),
    "data.workers": _count(),
    "data.prefetch": _count(1),
    "data.max_bad_fraction": _SHARE,
    "data.max_pixels": _count(1),
    "views.global_size": _count(1),
    "views.global_scale": _range(1.0),
    "views.local_count": _count(),
    "views.local_size": _count(1),
    "views.local_scale": _range(1.0),
    "views.aspect": _range(),
    "views.flip_prob": _SHARE,
    "photometry.jitter_prob": _SHARE,
    "photometry.brightness": _SHARE,
    "photometry.contrast": _SHARE,
    "photometry.saturation": _SHARE,
    "photometry.hue": _number(0.0, 0.5),
    "photometry.gray_prob": _SHARE,
    "photometry.blur_prob": Rule(float, low=0.0, high=1.0, length=3),
    "photometry.blur_sigma": _range(),
    "photometry.solarize_prob": Rule(float, low=0.0, high=1.0, length=3),
    "photometry.solarize_threshold": Rule(int, low=0, high=256),
    "photometry.mean": Rule(float, length=0),
    "photometry.std": Rule(float, low=0.0, above=True, length=0),
    "masking.kind": _choice("none", "block", "random"),
    "masking.ratio": Rule(float, low=0.0, high=1.0, length=2),
    "masking.ratio_var": Rule(float, low=0.0, high=1.0, length=2),
    "masking.prob": _SHARE,
    "model.name": _choice("vit"),
    "model.variant": _choice(*VARIANTS, "custom"),
    "model.width": _count(),
    "model.depth": _count(),
    "model.heads": _count(),
    "model.patch_size": _count(1),
    "model.in_channels": _count(1),
    "model.drop_path": _number(0.0, 0.99),
    "model.dtype": _choice("float32", "bfloat16"),
    "model.scan_blocks": _BOOL,
    "model.remat": _choice("none", "dots", "full"),
    "head.prototypes": _count(2),
    "head.hidden": _count(1),
    "head.bottleneck": _count(1),
    "head.layers": _count(1),
    "head.norm_last_layer": _BOOL,
    "dino.student_temp": _TEMPERATURE,
    "dino.teacher_temp": _TEMPERATURE,
    "dino.warmup_teacher_temp": _TEMPERATURE,
    "dino.warmup_teacher_temp_epochs": _count(),
    "dino.center_momentum": _SHARE,
    "relation.alpha": _number(),
    "relation.beta": _number(),
    "relation.teacher_temp_spatial": _TEMPERATURE,
    "relation.teacher_temp_channel": _TEMPERATURE,
    "relation.student_temp": _TEMPERATURE,
    "relation.temperature_side": _choice("teacher", "student"),
    "relation.sampling": _choice("endpoints", "centers"),
    "relation.padding": _choice("zeros", "border"),
    "relation.sampling_impl": _choice("map_coordinates", "separable"),
    "relation.disjoint": _choice("count", "skip"),
    "relation.scale": _choice("head", "width"),
    "relation.heads": _count(),
    "relation.tokens": _choice("pre", "post"),
    "relation.student_tokens": _choice("masked", "unmasked"),
    "relation.local_heads": _choice("separate", "shared"),
    "relation.symmetric": _BOOL,
    "relation.image_weight": _choice("code", "paper"),
    "relation.global_points": _count(2),
    "relation.local_points": _count(2),
    "optimizer.name": _choice("adamw"),
    "optimizer.base_lr": _number(above=True),
    "optimizer.min_lr": _number(),
    "optimizer.warmup_epochs": _count(),
    "optimizer.weight_decay": _number(),
    "optimizer.weight_decay_end": _number(),
    "optimizer.clip_grad": _number(),
    "optimizer.freeze_last_layer_epochs": _count(),
    "optimizer.decay_bias": _BOOL,
    "optimizer.accumulate_steps": _count(1),
    "teacher.ema_momentum": _SHARE,
    "teacher.ema_momentum_end": _SHARE,
    "schedule.epochs": _count(1),
    "schedule.total_steps": _count(),
    "run.log_every_steps": _count(1),
    "run.eval_every_steps": _count(),
    "run.checkpoint_every_steps": _count(1),
    "run.keep_checkpoints": _count(1),
    "run.keep_every_steps": _count(),
    "run.max_bad_steps": _count(),
    "run.fsdp": _count(1),
    "eval.gallery": _SOURCE,
    "eval.query": _SOURCE,
    "eval.neighbours": Rule(int, low=1, length=0),
    "eval.temperature": _TEMPERATURE,
    "eval.tokens": _choice("cls", "patches"),
    "eval.size": _count(),
    "eval.resize": _count(),
    "eval.batch_size": _count(1),
}


def validate(config: ConfigDict, *, devices: int, processes: int) -> None:
    """Refuse a config that cannot run on `devices` devices of `processes` processes in all.

    Raises ConfigError with every mistake. What only the data can tell (a data set smaller than a batch, a warm-up
    longer than `schedule.total_steps`) is found when it is opened: `length_mistakes`.
    """
    found = mistakes(config, devices=devices, processes=processes)
    if found:
        raise ConfigError(found)


def mistakes(config: ConfigDict, *, devices: int, processes: int) -> list[str]:
    """The mistakes of `validate`, as lines."""
    values = flatten(config)
    lines = check(values, RULES)
    wrong = {line.partition(":")[0] for line in lines}
    for keys, rule in CROSS_RULES:
        # A rule among values says something only where each value is right by itself.
        if not wrong & set(keys):
            lines += rule({key: values[key] for key in keys}, devices, processes)
    return lines


def check(values: Mapping[str, Any], rules: Mapping[str, Rule]) -> list[str]:
    """The lines of the mistakes that flat `values` make against `rules`: unknown, missing and refused ones."""
    lines = [f"{key}: {unknown_key(key, rules)}" for key in values if key not in rules]
    for key, rule in rules.items():
        if key not in values:
            lines.append(f"{key}: missing, expected {rule.expected()}")
        elif not rule.accepts(values[key]):
            lines.append(f"{key}: found {values[key]!r}, expected {rule.expected()}{nearest(values[key], rule.choices)}")
    return lines


def length_mistakes(config: ConfigDict, *, per_epoch: int, total: int) -> list[str]:
    """Warm-ups that do not fit into a run of `total` steps, `per_epoch` to an epoch: known once the data is open."""
    values = flatten(config)
    return [
        f"{key}: found {values[key]} ({values[key] * per_epoch} steps), expected at most the {total} steps of the run"
        for key in EPOCH_KEYS
        if values[key] * per_epoch > total
    ]


def differences(saved: Mapping[str, Any] | ConfigDict, current: Mapping[str, Any] | ConfigDict) -> list[str]:
    """Lines `key: saved ..., now ...` where a checkpoint's config and this one differ, but for `RUN_ONLY_KEYS`."""
    old, new = flatten(saved), flatten(current)
    lines = []
    for key in sorted(old.keys() | new.keys()):
        if any(fnmatchcase(key, pattern) for pattern in RUN_ONLY_KEYS):
            continue
        was, now = (repr(side[key]) if key in side else "no such key" for side in (old, new))
        if was != now and (key not in old or key not in new or old[key] != new[key]):
            lines.append(f"{key}: saved {was}, now {now}")
    return lines


def to_json(config: ConfigDict) -> str:
    """The config as JSON text; tuples are written as lists and read back as tuples by `from_json`."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True, allow_nan=False)


def from_json(text: str) -> ConfigDict:
    """The config that `to_json` wrote: equal to it, tuples and all. Raises ValueError on text that is not JSON."""
    return ConfigDict(from_json_tree(json.loads(text)))


def from_json_tree(value: Any) -> Any:
    """What JSON made of a config, with its lists turned back into tuples; `checkpoint.read_config` returns such a tree."""
    if isinstance(value, dict):
        return {key: from_json_tree(inner) for key, inner in value.items()}
    return tuple(from_json_tree(inner) for inner in value) if isinstance(value, list) else value
