"""What the value of each key of a pre-training config must be: its type, its bounds or its choices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sere_jax.models.init import INITS
from sere_jax.models.resnet import RESNETS
from sere_jax.models.vit import VARIANTS
from sere_jax.objectives.recipes import RECIPES


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
    "init_from": Rule(str),
    "init_heads": _BOOL,
    "init_resize": _BOOL,
    "data.source": _SOURCE,
    "data.batch_size": _count(1),
    "data.backend": _choice("fast", "pil"),
    "data.workers": _count(),
    "data.prefetch": _count(1),
    "data.max_bad_fraction": _SHARE,
    "data.max_pixels": _count(1),
    "data.value_range": Rule(float, length=2, ordered=True),
    "views.global_count": Rule(int, low=1, high=2),
    "views.global_size": _count(1),
    "views.global_width": _count(),
    "views.global_scale": _range(1.0),
    "views.local_count": _count(),
    "views.local_size": _count(1),
    "views.local_width": _count(),
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
    "masking.start_epoch": _count(),
    "masking.ratio": Rule(float, low=0.0, high=1.0, length=2),
    "masking.ratio_var": Rule(float, low=0.0, high=1.0, length=2),
    "masking.prob": _SHARE,
    "model.name": _choice("vit", "resnet"),
    "model.variant": _choice(*VARIANTS, *RESNETS, "custom"),
    "model.width": _count(),
    "model.depth": _count(),
    "model.heads": _count(),
    "model.patch_size": _count(1),
    "model.in_channels": _count(1),
    "model.init": _choice(*INITS),
    "model.positions": _choice("learned", "sincos_rows", "sincos_columns"),
    "model.freeze_patch_embed": _BOOL,
    "model.zero_init_residual": _BOOL,
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
    "patch.patch_weight": _number(),
    "patch.teacher_patch_temp": _TEMPERATURE,
    "patch.warmup_teacher_patch_temp": _TEMPERATURE,
    "patch.patch_center_momentum": _SHARE,
    "barlow.barlow_weight": _number(),
    "barlow.off_diagonal": _number(),
    "barlow.embedding": _choice("patches", "cls"),
    "barlow.projector": _choice("relation", "mlp"),
    "barlow.projector_width": _count(1),
    "mocov3.temperature": _TEMPERATURE,
    "mocov3.projector_layers": _count(1),
    "mocov3.hidden": _count(1),
    "mocov3.width": _count(1),
    "mocov3.predictor_last_norm": _BOOL,
    "mae.decoder_width": _count(1),
    "mae.decoder_depth": _count(1),
    "mae.decoder_heads": _count(1),
    "mae.normalise_pixels": _BOOL,
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
    "optimizer.name": _choice("adamw", "sgd", "lars"),
    "optimizer.beta2": _number(0.0, 0.9999),
    "optimizer.momentum": _number(0.0, 0.9999),
    "optimizer.trust_coefficient": _number(above=True),
    "optimizer.base_lr": _number(above=True),
    "optimizer.min_lr": _number(),
    "optimizer.warmup_epochs": _count(),
    "optimizer.warmup": _choice("inclusive", "exclusive"),
    "optimizer.weight_decay": _number(),
    "optimizer.weight_decay_end": _number(),
    "optimizer.clip_grad": _number(),
    "optimizer.freeze_last_layer_epochs": _count(),
    "optimizer.freeze_backbone_epochs": _count(),
    "optimizer.decay_bias": _BOOL,
    "optimizer.decay_scale": _BOOL,
    "optimizer.accumulate_steps": _count(1),
    "teacher.ema_momentum": _SHARE,
    "teacher.ema_momentum_end": _SHARE,
    "schedule.epochs": _count(),
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
