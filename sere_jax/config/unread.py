"""Which keys a run never reads, and why: relation.alpha with recipe=dino, optimizer.momentum with AdamW.

A value that nothing reads is most often a slip: the launch says one thing and the run does another. So a key that is
never read and differs from its default is a mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from sere_jax.config.keys import GROUPS, KEYS
from sere_jax.config.names import flatten
from sere_jax.objectives.recipes import RECIPES, Recipe

Values = Mapping[str, Any]


class Reader(NamedTuple):
    """Keys that are read only where `reads(values)` holds; `why` says of the others why they are not, as a format of the values."""

    keys: tuple[str, ...]
    reads: Callable[[Values], bool]
    why: str


def _recipe(v: Values) -> Recipe:
    return RECIPES[v["recipe"]]


def _adds(*losses: str) -> Callable[[Values], bool]:
    """Whether one of the losses is in the recipe."""
    return lambda v: bool(set(losses) & set(_recipe(v).losses))


def _group(name: str, *but: str) -> tuple[str, ...]:
    """All keys of a group, but for some."""
    [keys] = [group.keys for group in GROUPS if group.name == name]
    return tuple(f"{name}.{key}" for key in keys if key not in but)


def _of(group: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{group}.{name}" for name in names)


def _vit(v: Values) -> bool:
    return v["model.name"] == "vit"


_NO_LOSS = "no loss of recipe = {recipe} reads it"
_NO_LOCAL = "views.local_count is 0"
_NOT_THE_MODELS = "model.name = {model.name} has nothing of the kind"
_NOT_THE_OPTIMIZERS = "optimizer.name = {optimizer.name} never reads it"
_SELF_RELATION = _adds("spatial", "channel")
_PROTOTYPES = _adds("dino")

# A key may have several readers; it is read where all of them hold.
READERS: tuple[Reader, ...] = (
    Reader((*_group("dino"), *_group("head"), "optimizer.freeze_last_layer_epochs"), _PROTOTYPES, _NO_LOSS),
    Reader(_group("patch"), _adds("patch", "aligned"), _NO_LOSS),
    Reader(
        ("dino.warmup_teacher_temp", "patch.warmup_teacher_patch_temp"),
        lambda v: v["dino.warmup_teacher_temp_epochs"] > 0,
        "dino.warmup_teacher_temp_epochs is 0",
    ),
    Reader(_group("barlow"), _adds("batch"), _NO_LOSS),
    Reader(("barlow.projector_width",), lambda v: v["barlow.projector"] == "mlp", "barlow.projector is not mlp"),
    Reader(_group("mocov3"), _adds("mocov3"), _NO_LOSS),
    Reader(_group("mae"), _adds("mae"), _NO_LOSS),
    Reader(_of("relation", "alpha", "teacher_temp_spatial", "disjoint", "scale", "heads"), _adds("spatial"), _NO_LOSS),
    Reader(_of("relation", "beta", "teacher_temp_channel"), _adds("channel"), _NO_LOSS),
    Reader(_of("relation", "student_temp", "temperature_side", "symmetric", "student_tokens", "image_weight"), _SELF_RELATION, _NO_LOSS),
    Reader(_of("relation", "sampling", "padding", "sampling_impl", "global_points"), _adds("spatial", "aligned"), _NO_LOSS),
    Reader(("relation.tokens",), _adds("spatial", "channel", "batch"), _NO_LOSS),
    Reader(("relation.local_points",), _adds("spatial"), _NO_LOSS),
    Reader(("relation.local_heads",), _SELF_RELATION, _NO_LOSS),
    Reader(_of("relation", "local_points", "local_heads"), lambda v: v["views.local_count"] > 0, _NO_LOCAL),
    Reader(("relation.student_tokens",), _adds("patch"), "recipe = {recipe} masks no view"),
    Reader(("relation.image_weight",), lambda v: bool(_recipe(v).image), "recipe = {recipe} has no image loss"),
    Reader(_group("teacher"), lambda v: _recipe(v).ema_timing != "none", "recipe = {recipe} has no teacher"),
    Reader(_of("views", "local_size", "local_width", "local_scale"), lambda v: v["views.local_count"] > 0, _NO_LOCAL),
    Reader(("masking.kind",), _adds("patch", "mae"), "no loss of recipe = {recipe} learns from masked patches"),
    Reader(_group("masking", "kind"), lambda v: v["masking.kind"] != "none", "masking.kind is none"),
    Reader(_of("model", "heads", "patch_size", "init", "positions", "freeze_patch_embed", "scan_blocks"), _vit, _NOT_THE_MODELS),
    Reader(("model.zero_init_residual",), lambda v: not _vit(v), _NOT_THE_MODELS),
    Reader(("optimizer.beta2",), lambda v: v["optimizer.name"] == "adamw", _NOT_THE_OPTIMIZERS),
    Reader(
        ("optimizer.momentum",),
        lambda v: v["optimizer.name"] != "adamw",
        f"{_NOT_THE_OPTIMIZERS}; the teacher's momentum is teacher.ema_momentum",
    ),
    Reader(("optimizer.trust_coefficient",), lambda v: v["optimizer.name"] == "lars", _NOT_THE_OPTIMIZERS),
    Reader(("optimizer.warmup",), lambda v: v["optimizer.warmup_epochs"] > 0, "optimizer.warmup_epochs is 0"),
    Reader(
        _of("optimizer", "decay_bias", "decay_scale"),
        lambda v: v["optimizer.weight_decay"] > 0 or v["optimizer.weight_decay_end"] > 0,
        "there is no weight decay",
    ),
    Reader(("init_heads", "init_resize", "init_ignore"), lambda v: bool(v["init_from"]), "init_from is empty"),
    Reader(_of("photometry", "brightness", "contrast"), lambda v: v["photometry.jitter_prob"] > 0, "photometry.jitter_prob is 0"),
    # Where images are not of three channels, these must be 0 whatever the probability.
    Reader(
        _of("photometry", "saturation", "hue"),
        lambda v: v["photometry.jitter_prob"] > 0 or v["model.in_channels"] != 3,
        "photometry.jitter_prob is 0",
    ),
    Reader(("photometry.blur_sigma",), lambda v: any(v["photometry.blur_prob"]), "photometry.blur_prob is 0"),
    Reader(("photometry.solarize_threshold",), lambda v: any(v["photometry.solarize_prob"]), "photometry.solarize_prob is 0"),
    # eval.size and eval.resize stay with the checkpoint, for later evaluations.
    Reader(
        _group("eval", "size", "resize"),
        lambda v: v["run.eval_every_steps"] > 0 or v["run.eval_every_epochs"] > 0,
        "run.eval_every_steps is 0: nothing is evaluated",
    ),
    Reader(
        _of("eval", "neighbours", "temperature", "tokens"),
        lambda v: bool(v["eval.gallery"]) or not v["eval.patch_train"],
        "eval.gallery is empty",
    ),
    Reader(
        _of("eval", "patch_neighbours", "patch_ignore", "patch_zero_ignored"),
        lambda v: bool(v["eval.patch_train"]),
        "eval.patch_train is empty",
    ),
    Reader(("eval.attention_images",), _vit, _NOT_THE_MODELS),
)

# The keys that decide what is read. Nothing is said of unread keys while one of them is wrong.
SWITCHES = frozenset(
    {
        *("recipe", "init_from", "views.local_count", "masking.kind", "barlow.projector", "dino.warmup_teacher_temp_epochs"),
        *("model.name", "model.in_channels", "optimizer.name", "optimizer.warmup_epochs", "optimizer.weight_decay"),
        *("optimizer.weight_decay_end", "photometry.jitter_prob", "photometry.blur_prob", "photometry.solarize_prob"),
        *("run.eval_every_steps", "run.eval_every_epochs", "schedule.epochs", "schedule.total_steps", "eval.gallery", "eval.patch_train"),
    }
)


def unread(values: Values) -> dict[str, str]:
    """The keys that a run with these flat values never reads -> why. A run that trains nothing has none.

    Example:
      >>> from sere_jax.config.keys import KEYS
      >>> values = {path: key.default for path, key in KEYS.items()} | {"recipe": "dino"}
      >>> unread(values)["relation.alpha"]
      'no loss of recipe = dino reads it'
    """
    if not (values["schedule.epochs"] or values["schedule.total_steps"]):
        return {}
    reasons: dict[str, str] = {}
    for reader in READERS:
        if not reader.reads(values):
            why = reader.why
            for switch in ("recipe", "model.name", "optimizer.name"):
                why = why.replace("{" + switch + "}", str(values[switch]))
            reasons = dict.fromkeys(reader.keys, why) | reasons  # the first reason stays
    return reasons


def reset(config: ConfigDict, known: Collection[str], but: Collection[str] = ()) -> None:
    """Give keys that are not read any more their defaults again: those that are unread now, and not in `known`, which were unread before.

    Keys of `but` stay. Does nothing while a key that decides what is read breaks its rule.
    """
    for _ in SWITCHES:  # a switch that goes back may leave more behind it
        values = flatten(config)
        if not readable(values):
            return
        left = {key: KEYS[key].default for key in changed(values) if key not in known and key not in but}
        if not left:
            return
        config.update_from_flattened_dict(left)


def readable(values: Values) -> bool:
    """Whether the keys that decide what is read are there and keep their rules."""
    return all(key in values and KEYS[key].rule.accepts(values[key]) for key in SWITCHES)


def changed(values: Values) -> dict[str, str]:
    """Those of the `unread` keys whose value is not the default."""
    return {key: why for key, why in unread(values).items() if values[key] != KEYS[key].default}
