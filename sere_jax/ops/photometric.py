"""Augmentation of pixels on the device: uint8 crops from the host in, normalised float32 views out.

The definitions are those of DINO's recipe as Pillow and torchvision carry it out: colour jitter in random order, grey,
Gaussian blur, solarise, normalise. As in Pillow, every operation ends with rounding to 8-bit levels. iBOT and SERE use the
same. Until they are normalised, pixels are float32 that hold whole numbers 0..255.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key, UInt8

from sere_jax.ops.blur import blur_rows
from sere_jax.ops.colours import Colours, brightness_contrast, color_jitter, grey, packed, solarize, unpacked_rows
from sere_jax.types import Array


class _Draws(NamedTuple):
    """The random numbers of one view, uniform in [0, 1). All are always drawn, so that switching off an operation changes no other."""

    jitter: jax.Array
    order: jax.Array  # [4]: sorting them gives the order of brightness, contrast, saturation, hue
    factors: jax.Array  # [3]: brightness, contrast, saturation
    hue: jax.Array
    gray: jax.Array
    blur: jax.Array
    sigma: jax.Array
    solarize: jax.Array


@dataclass(frozen=True)
class PhotometryParams:
    """Probabilities and strengths for one kind of view (SPEC 1.6; the defaults are those of the first global crop).

    `brightness`, `contrast`, `saturation` a: the factor is uniform in [max(0, 1 - a), 1 + a]. `hue` h: the shift is
    uniform in [-h, h] turns, h <= 0.5. `blur_sigma`: range of the blur's standard deviation in pixels.
    `solarize_threshold`: levels at or above it are inverted. `mean`, `std`: per channel, for pixels in [0, 1].
    """

    jitter_prob: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    gray_prob: float = 0.2
    blur_prob: float = 1.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_prob: float = 0.0
    solarize_threshold: int = 128
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


def augment(
    views: UInt8[Array, "b v H W c"],
    keys: Key[jax.Array, "b"],
    kinds: Sequence[PhotometryParams],
    *,
    first_view: int = 0,
) -> Float[jax.Array, "b v H W c"]:
    """Augments and normalises every view of every example.

    `keys` holds one typed PRNG key per example, `kinds` one entry per view. The draws of a view depend on its example's
    key and on `first_view` + its position alone: neither on the other examples nor on how many views there are. Pass the
    number of global crops as `first_view` for the local ones. All views are worked on together, and an operation whose
    probability is 0 in each of them is not compiled.

    Brightness, contrast, blur and solarisation are defined for any number of channels (contrast is then each channel's own, see
    `brightness_contrast`); saturation, hue and grey for red, green and blue alone.

    Raises:
      ValueError: another number of kinds than views, or operations for three channels asked of images with others.
    """
    b, v, height, width, channels = views.shape
    _check(v, channels, kinds)
    if v == 0:
        return jnp.zeros((b, 0, height, width, channels), jnp.float32)

    def needed(name: str) -> bool:
        return any(getattr(kind, name) > 0 for kind in kinds)

    compiled = _Compiled(
        jitter=needed("jitter_prob"),
        gray=needed("gray_prob"),
        blur=needed("blur_prob"),
        solarize=needed("solarize_prob"),
        hue=needed("hue"),
        max_sigma=max(kind.blur_sigma[1] for kind in kinds),
    )
    one_view = jax.vmap(functools.partial(_augment_image, compiled=compiled))
    draws = _draw(keys, first_view + jnp.arange(v))
    return jax.vmap(one_view, in_axes=(0, 0, None))(jnp.asarray(views), draws, _strengths(kinds))


class _Compiled(NamedTuple):
    """The operations that some view needs, and the widest blur."""

    jitter: bool
    gray: bool
    blur: bool
    solarize: bool
    hue: bool
    max_sigma: float


class _Strengths(NamedTuple):
    """The numbers of one kind of view; [v, ...] for all of them. A range is its lower end and its length."""

    jitter_prob: jax.Array
    gray_prob: jax.Array
    blur_prob: jax.Array
    solarize_prob: jax.Array
    factors: jax.Array  # [3, 2]: the ranges of brightness, contrast, saturation
    hue: jax.Array  # [2]
    sigma: jax.Array  # [2]
    solarize_threshold: jax.Array
    mean: jax.Array  # [c]
    std: jax.Array  # [c]


def _strengths(kinds: Sequence[PhotometryParams]) -> _Strengths:
    def of_kind(kind: PhotometryParams) -> tuple[Any, ...]:
        lowest = [max(0.0, 1.0 - a) for a in (kind.brightness, kind.contrast, kind.saturation)]
        highest = [1.0 + a for a in (kind.brightness, kind.contrast, kind.saturation)]
        probabilities = (kind.jitter_prob, kind.gray_prob, kind.blur_prob, kind.solarize_prob)
        factors = [_range(low, high) for low, high in zip(lowest, highest, strict=True)]
        ranges = (factors, _range(-kind.hue, kind.hue), _range(*kind.blur_sigma))
        return (*probabilities, *ranges, kind.solarize_threshold, kind.mean, kind.std)

    return _Strengths(*(jnp.array(column, jnp.float32) for column in zip(*map(of_kind, kinds), strict=True)))


def _range(low: float, high: float) -> tuple[float, float]:
    return low, high - low


def _check(views: int, channels: int, kinds: Sequence[PhotometryParams]) -> None:
    if len(kinds) != views:
        raise ValueError(f"photometry: {len(kinds)} kinds for {views} views; expected one per view")
    for kind in kinds:
        if channels != 3 and (kind.saturation > 0 or kind.hue > 0 or kind.gray_prob > 0):
            raise ValueError(
                f"photometry: images have {channels} channels, but saturation, hue and grey need 3; set saturation, hue and gray_prob to 0"
            )
        if not len(kind.mean) == len(kind.std) == channels:
            raise ValueError(f"photometry: mean has {len(kind.mean)} and std {len(kind.std)} values; expected {channels}, one per channel")


def _draw(keys: jax.Array, positions: jax.Array) -> _Draws:
    """The draws of all views, [b, v] each: one call of the generator, because generators compile slowly."""

    def of_view(key: jax.Array, position: jax.Array) -> _Draws:
        u = jax.random.uniform(
            jax.random.fold_in(key, position), (16,)
        )  # more than needed, so that a new operation does not change the draws of the others
        return _Draws(u[0], u[1:5], u[5:8], u[8], u[9], u[10], u[11], u[12])

    return jax.vmap(jax.vmap(of_view, in_axes=(None, 0)), in_axes=(0, None))(keys, positions)


def _augment_image(image: jax.Array, u: _Draws, kind: _Strengths, compiled: _Compiled) -> jax.Array:
    """The whole chain for one uint8 image [H, W, c]. Rows are [H, c, W], as the blur's products take them without a copy."""
    rows = _coloured_rows(image, u, kind, compiled)
    if compiled.blur:
        # A blur of width 0 is the identity, so there is no need for a second copy of the image to choose from.
        sigma = jnp.where(u.blur < kind.blur_prob, _drawn(u.sigma, kind.sigma), 0.0)
        rows = blur_rows(rows, sigma, compiled.max_sigma)
    image = jnp.swapaxes(rows, 1, 2)
    if compiled.solarize:
        image = jnp.where(u.solarize < kind.solarize_prob, solarize(image, kind.solarize_threshold), image)
    return (image / 255.0 - kind.mean) / kind.std


def _coloured_rows(image: jax.Array, u: _Draws, kind: _Strengths, compiled: _Compiled) -> jax.Array:
    """Jitter and grey: [H, W, c] uint8 -> [H, c, W] float32."""
    jittered = u.jitter < kind.jitter_prob
    factors = jnp.where(jittered, _drawn(u.factors, kind.factors), 1.0)
    if image.shape[-1] != 3:
        image = image.astype(jnp.float32)
        image = brightness_contrast(image, u.order[1] < u.order[0], factors[:2]) if compiled.jitter else image
        return jnp.swapaxes(image, 1, 2)
    if not (compiled.jitter or compiled.gray):
        return jnp.swapaxes(image.astype(jnp.float32), 1, 2)
    colours = Colours(*(image[..., i].astype(jnp.float32) for i in range(3)))
    if compiled.jitter:
        shift = _drawn(u.hue, kind.hue) if compiled.hue else None
        colours = color_jitter(colours, jnp.argsort(u.order), factors, shift, turns_hue=jittered & (kind.hue[1] > 0))
    if compiled.gray:
        gray = u.gray < kind.gray_prob
        level = grey(colours)
        colours = colours.map(lambda x: jnp.where(gray, level, x))
    return unpacked_rows(packed(colours))


def _drawn(u: jax.Array, between: jax.Array) -> jax.Array:
    """Uniform in a range of `_Strengths`."""
    return between[..., 0] + between[..., 1] * u
