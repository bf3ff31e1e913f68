"""What the keys of a model must keep among each other: sizes of a ViT or a ResNet, patches, and what a ResNet does not have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from sere_jax.config.names import divisors, multiples
from sere_jax.models.variants import RESNETS, VARIANTS, WIDTH_OF_STEM
from sere_jax.objectives.recipes import RECIPES

Values = Mapping[str, Any]
Rule: TypeAlias = Callable[[Values, int, int], list[str]]  # values, devices, processes -> lines


_STRIDE = 32  # of a ResNet's last map, pixels


def _patches(v: Values, devices: int, processes: int) -> list[str]:
    patch, expected = v["model.patch_size"], f"expected a multiple of model.patch_size = {v['model.patch_size']}"
    if v["model.name"] == "resnet":
        # Its convolutions are padded, so any size will do; but points of an overlap lie right only where the map spans the view.
        if not {"spatial", "aligned"} & set(RECIPES[v["recipe"]].losses):
            return []
        patch, expected = (
            _STRIDE,
            f"expected a multiple of {_STRIDE}: {v['recipe']} compares places in the map of a ResNet, whose stride it is",
        )
    kinds = ["global"] + (["local"] if v["views.local_count"] else [])
    keys = [f"views.{kind}_{side}" for kind in kinds for side in ("size", "width")]  # a width of 0 is a multiple
    return [f"{key}: found {v[key]}, {expected}{multiples(v[key], patch)}" for key in keys if v[key] % patch]


def _architecture(v: Values, devices: int, processes: int) -> list[str]:
    name, variant = v["model.name"], v["model.variant"]
    variants = list(VARIANTS if name == "vit" else RESNETS)
    if variant not in (*variants, "custom"):
        return [f"model.variant: found {variant!r}, expected one of {', '.join((*variants, 'custom'))} with model.name = {name}"]
    return _resnet(v) if name == "resnet" else _vit(v)


def _vit(v: Values) -> list[str]:
    names, variant = ("width", "depth", "heads"), v["model.variant"]
    sizes = {name: v[f"model.{name}"] for name in names}
    if variant != "custom":
        table = dict(zip(names, VARIANTS[variant], strict=True))
        lines = [
            f"model.{name}: found {sizes[name]}, expected 0 (or {table[name]}, the {name} of {variant}); others need model.variant = custom"
            for name in ("width", "depth")
            if sizes[name] not in (0, table[name])
        ]
        sizes = table | {"heads": sizes["heads"] or table["heads"]}  # MoCo v3's ViT-S has 12 heads of 32 dimensions
    else:
        lines = [f"model.{name}: found 0, expected a number of at least 1 with model.variant = custom" for name in names if not sizes[name]]
    if lines:
        return lines
    if sizes["width"] % sizes["heads"]:
        lines.append(f"model.width: found {sizes['width']}, expected a multiple of model.heads = {sizes['heads']}")
    if v["model.positions"] != "learned" and sizes["width"] % 4:
        lines.append(f"model.positions: found {v['model.positions']!r}, expected learned: the width {sizes['width']} has no quarters")
    return lines + _relation_heads(v, sizes["width"])


def _relation_heads(v: Values, width: int) -> list[str]:
    heads = v["relation.heads"]
    if heads and width % heads and "spatial" in RECIPES[v["recipe"]].relations:
        return [f"relation.heads: found {heads}, expected a divisor of the model's width {width}{divisors(heads, width)}"]
    return []


def _resnet(v: Values) -> list[str]:
    width, depth = v["model.width"], v["model.depth"]
    if v["model.variant"] in RESNETS:
        stages, stem = RESNETS[v["model.variant"]]
        preset = {"width": stem * WIDTH_OF_STEM, "depth": sum(stages)}
        lines = [
            f"model.{name}: found {v[f'model.{name}']}, expected 0; others need model.variant = custom"
            for name in preset
            if v[f"model.{name}"] not in (0, preset[name])
        ]
        width = preset["width"]
    else:
        lines = [] if depth else ["model.depth: found 0, expected a number of blocks in each of the four stages of a custom ResNet"]
        if not width or width % WIDTH_OF_STEM:
            expected = f"expected channels of the last map, a multiple of {WIDTH_OF_STEM}"
            lines.append(f"model.width: found {width}, {expected}{multiples(width, WIDTH_OF_STEM)}")
    relations = RECIPES[v["recipe"]].relations
    if "spatial" in relations and not v["relation.heads"]:
        lines.append("relation.heads: found 0 (the ViT's), expected a divisor of the width: a ResNet has no attention heads")
    return lines or _relation_heads(v, width)


def _only_for_vits(v: Values, devices: int, processes: int) -> list[str]:
    """What a ResNet cannot do and no default avoids; other keys of a ViT are reported as unread."""
    if v["model.name"] != "resnet":
        return []
    lines = []
    if v["model.drop_path"]:
        lines.append(f"model.drop_path: found {v['model.drop_path']!r}, expected 0.0: a ResNet has no drop path")
    if needs_masks(v["recipe"]):
        able = ", ".join(name for name in RECIPES if not needs_masks(name))
        why = "it learns from masked patches, and a ResNet has no patch tokens to mask"
        lines.append(f"recipe: found {v['recipe']!r}, expected one of {able}: {why}")
    return lines


def needs_masks(recipe: str) -> bool:
    """Whether the recipe learns from masked patches."""
    return bool({"patch", "mae"} & set(RECIPES[recipe].losses))


def _square(v: Values, devices: int, processes: int) -> list[str]:
    """Fixed tables of positions, and MAE's decoder, know square grids alone; learned positions are resized to any grid."""
    height, width = v["views.global_size"], v["views.global_width"]
    if width in (0, height) or v["model.name"] == "resnet":
        return []
    line = f"views.global_width: found {width} beside global_size = {height}, expected 0 (square crops)"
    why = "mae's decoder knows" if "mae" in RECIPES[v["recipe"]].losses else f"model.positions = {v['model.positions']} knows"
    return [f"{line}: {why} square grids alone"] if "mae" in why or v["model.positions"] != "learned" else []


_COLOURS = ("photometry.saturation", "photometry.hue", "photometry.gray_prob")


def _channels(v: Values, devices: int, processes: int) -> list[str]:
    channels = v["model.in_channels"]
    keys = [key for key in ("photometry.mean", "photometry.std") if len(v[key]) != channels]
    lines = [f"{key}: found {len(v[key])} values, expected one for each of model.in_channels = {channels}" for key in keys]
    if channels != 3:
        lines += [f"{key}: found {v[key]}, expected 0.0: it needs red, green and blue" for key in _COLOURS if v[key]]
    return lines


_SIDES = ("views.global_size", "views.global_width", "views.local_size", "views.local_width")
_SIZES = ("recipe", "model.name", "model.variant", "model.width", "model.depth", "model.heads", "model.positions", "relation.heads")

# The keys that a rule reads, and the rule.
MODEL_RULES: tuple[tuple[tuple[str, ...], Rule], ...] = (
    (("recipe", "model.name", "model.patch_size", "views.local_count", *_SIDES), _patches),
    (("recipe", "model.name", "model.positions", "views.global_size", "views.global_width"), _square),
    (_SIZES, _architecture),
    (("recipe", "model.name", "model.drop_path"), _only_for_vits),
    (("model.in_channels", "photometry.mean", "photometry.std", *_COLOURS), _channels),
)
