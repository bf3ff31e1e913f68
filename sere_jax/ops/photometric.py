"""Augmentation of pixels on the device: uint8 crops from the host in, normalised float32 views out.

The definitions are those of DINO's recipe as Pillow and torchvision carry it out: colour jitter in random order, grey,
Gaussian blur, solarise, normalise. As in Pillow, every operation ends with rounding to 8-bit levels. iBOT and SERE use the
same. Inside this file pixels are float32 that hold whole numbers 0..255.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Key, UInt8

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
    compiled = _Compiled(
        *(any(getattr(kind, f"{name}_prob") > 0 for kind in kinds) for name in ("jitter", "gray", "blur", "solarize")),
        hue=any(kind.hue > 0 for kind in kinds),
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
    def of_kind(kind: PhotometryParams) -> tuple[object, ...]:
        lowest = [max(0.0, 1.0 - a) for a in (kind.brightness, kind.contrast, kind.saturation)]
        lengths = [1.0 + a - low for a, low in zip((kind.brightness, kind.contrast, kind.saturation), lowest, strict=True)]
        low, high = kind.blur_sigma
        return (
            *(kind.jitter_prob, kind.gray_prob, kind.blur_prob, kind.solarize_prob, list(zip(lowest, lengths, strict=True))),
            *((-kind.hue, 2 * kind.hue), (low, high - low), kind.solarize_threshold, kind.mean, kind.std),
        )

    return _Strengths(*(np.array(column, np.float32) for column in zip(*map(of_kind, kinds), strict=True)))


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
        rows = _blur_rows(rows, sigma, compiled.max_sigma)
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
        colours = color_jitter(colours, jnp.argsort(u.order), factors, shift, jittered & (kind.hue[1] > 0))
    if compiled.gray:
        gray = u.gray < kind.gray_prob
        level = grey(colours)
        colours = colours.map(lambda x: jnp.where(gray, level, x))
    return _unpacked_rows(_once(_packed(colours)))


def _drawn(u: jax.Array, between: jax.Array) -> jax.Array:
    return between[..., 0] + between[..., 1] * u


class Colours(NamedTuple):
    """An image as three arrays [H, W] of whole numbers 0..255."""

    red: Float[jax.Array, "H W"]
    green: Float[jax.Array, "H W"]
    blue: Float[jax.Array, "H W"]

    def map(self, function: Callable[[jax.Array], jax.Array]) -> Colours:
        return Colours(*map(function, self))


def _packed(colours: Colours) -> jax.Array:
    """One integer a pixel: a loop that makes one array computes a pixel once, one that makes three may compute it three times."""
    red, green, blue = (x.astype(jnp.int32) for x in colours)
    return red | (green << 8) | (blue << 16)


def _unpacked(packed: jax.Array) -> Colours:
    return Colours(*(((packed >> shift) & 255).astype(jnp.float32) for shift in (0, 8, 16)))


def _unpacked_rows(packed: jax.Array) -> jax.Array:
    shifts = jnp.array([0, 8, 16], jnp.int32)[:, None]
    return ((packed[:, None, :] >> shifts) & 255).astype(jnp.float32)


def _once(x: jax.Array) -> jax.Array:
    return jax.lax.optimization_barrier(x)


def color_jitter(
    colours: Colours, order: Int[jax.Array, "4"], factors: Float[jax.Array, "3"], shift: Float[jax.Array, ""] | None, turns_hue: Bool[jax.Array, ""]
) -> Colours:
    """Brightness, contrast, saturation (0, 1, 2, with their `factors`) and hue (3, by `shift`; None leaves it out), in `order`.

    Under vmap a choice between operations computes all of them, and hue is the most expensive. So hue is computed once, between
    three blends before it and three after it. A blend that is not active has factor 1, which changes nothing.
    """
    hue_at, contrast_at = jnp.argmax(order == 3), jnp.argmax(order == 1)

    def blends(colours: Colours, active: Sequence[tuple[int, jax.Array]], mean: jax.Array | float) -> Colours:
        for turn, on in active:
            which = order[turn]
            reference = jnp.where(which == 0, 0.0, jnp.where(which == 1, mean, grey(colours)))
            factor = jnp.where(on, factors[jnp.minimum(which, 2)], 1.0)
            colours = colours.map(lambda x, r=reference, f=factor: blend(r, x, f))
        return colours

    mean = _mean_level(grey(blends(colours, [(t, (t < hue_at) & (t < contrast_at)) for t in (0, 1)], 0.0)))
    colours = _unpacked(_once(_packed(blends(colours, [(t, t < hue_at) for t in (0, 1, 2)], mean))))
    if shift is not None:
        turned = shift_hue(colours, shift)
        colours = Colours(*(jnp.where(turns_hue, a, b) for a, b in zip(turned, colours, strict=True)))
    colours = _unpacked(_once(_packed(blends(colours, [(t, (t > hue_at) & (t < contrast_at)) for t in (1, 2)], 0.0))))
    return blends(colours, [(t, (t > hue_at) & (t >= contrast_at)) for t in (1, 2, 3)], _mean_level(grey(colours)))


def brightness_contrast(
    image: Float[jax.Array, "H W c"], contrast_first: Bool[jax.Array, ""], factors: Float[jax.Array, "2"]
) -> Float[jax.Array, "H W c"]:
    """Brightness and contrast (with their `factors`) in either order, for any number of channels.

    Brightness blends with 0, contrast blends each channel with its own mean, because the bands of an instrument share no grey level.
    For one channel both are Pillow's enhancers of a grey image.
    """

    def turn(i: jax.Array, image: jax.Array) -> jax.Array:
        contrast = (i == 0) == contrast_first
        level = jnp.floor(jnp.mean(image, axis=(0, 1), keepdims=True) + 0.5)
        return blend(jnp.where(contrast, level, 0.0), image, jnp.where(contrast, factors[1], factors[0]))

    return jax.lax.fori_loop(0, 2, turn, image)


def blend(
    reference: Float[jax.Array, "#H #W #c"], image: Float[jax.Array, "H W c"], factor: Float[jax.Array, ""]
) -> Float[jax.Array, "H W c"]:
    """reference + factor (image - reference), clipped to 0..255 and cut to a whole level, as Pillow's `Image.blend` does.

    Pillow's enhancers are this: against black (brightness), the mean grey level (contrast), the grey pixel (saturation).
    """
    return jnp.floor(jnp.clip(reference + factor * (image - reference), 0.0, 255.0))


def grey(colours: Colours) -> Float[jax.Array, "H W"]:
    """ITU-R 601-2 luma in Pillow's fixed point: (19595 R + 38470 G + 7471 B + 32768) >> 16.

    Written as sums, not as a matrix product, which an accelerator may round: every number here stays exact below 2^24.
    """
    return jnp.floor((19595.0 * colours.red + 38470.0 * colours.green + 7471.0 * colours.blue + 32768.0) / 65536.0)


def _mean_level(level: jax.Array) -> jax.Array:
    """The mean grey level, rounded half up, as Pillow's contrast enhancer takes it."""
    return jnp.floor(jnp.mean(level) + 0.5)


def shift_hue(colours: Colours, shift: Float[jax.Array, ""]) -> Colours:
    """Turns the hue by `shift` in [-0.5, 0.5] (1 is the whole circle), through 8-bit HSV as torchvision does with Pillow.

    Hue and saturation are cut to 256 levels on the way; the shift is cut to whole levels towards 0 and wraps at 256.
    Remainders are written as differences, which are exact here and cheaper.
    """
    highest, lowest = functools.reduce(jnp.maximum, colours), functools.reduce(jnp.minimum, colours)
    chroma = highest - lowest
    is_red, is_green = colours.red == highest, colours.green == highest
    added = jnp.where(is_red, colours.blue, jnp.where(is_green, colours.red, colours.green))
    taken = jnp.where(is_red, colours.green, jnp.where(is_green, colours.blue, colours.red))
    divisor = jnp.where(chroma > 0, chroma, 1.0)
    first = jnp.where(is_red, 0.0, jnp.where(is_green, 2.0, 4.0))
    sextant = first + (highest - added) / divisor - (highest - taken) / divisor
    turn = sextant / 6.0 + 1.0
    hue = jnp.where(chroma > 0, jnp.floor((turn - jnp.floor(turn)) * 255.0), 0.0) + jnp.trunc(shift * 255.0)
    hue = hue - 256.0 * jnp.floor(hue / 256.0)
    saturation = jnp.floor(chroma / jnp.where(highest > 0, highest, 1.0) * 255.0) / 255.0

    def channel(first: float) -> jax.Array:
        """Each channel is a trapezium over the hue circle: full for two sextants, falling or rising for one each."""
        around = hue * (6.0 / 255.0) + first
        around = jnp.where(around < 6.0, around, around - 6.0)
        depth = jnp.clip(jnp.minimum(around, 4.0 - around), 0.0, 1.0)
        return jnp.floor(highest * (1.0 - saturation * depth) + 0.5)

    return Colours(channel(5.0), channel(3.0), channel(1.0))


def solarize(image: Float[jax.Array, "H W c"], threshold: int) -> Float[jax.Array, "H W c"]:
    """Inverts every level at or above `threshold`."""
    return jnp.where(image < threshold, image, 255.0 - image)


def gaussian_blur(image: Float[jax.Array, "H W c"], sigma: Float[jax.Array, ""], *, max_sigma: float) -> Float[jax.Array, "H W c"]:
    """Blur of standard deviation `sigma` <= `max_sigma` pixels, border pixels repeated outwards, rounded to whole levels.

    As two small matrix products K_y X K_x^T with banded matrices, which suits matrix units and needs no gather. The
    taps are those of Pillow's `GaussianBlur` (`blur_taps`). Pillow rounds between its passes, which makes a level or two, and
    repeats the border anew in each, which makes up to a dozen within six pixels of a corner.
    """
    return jnp.swapaxes(_blur_rows(jnp.swapaxes(image, 1, 2), sigma, max_sigma), 1, 2)


def _blur_rows(rows: jax.Array, sigma: jax.Array, max_sigma: float) -> jax.Array:
    """`gaussian_blur` of rows [H, c, W]."""
    taps = blur_taps(sigma, max_sigma)
    highest = jax.lax.Precision.HIGHEST  # the default of some accelerators would round the weights to 8 bits
    rows = jnp.einsum("yh,hcw->ycw", _band(taps, rows.shape[0]), rows, precision=highest)
    rows = jnp.einsum("ycw,xw->ycx", rows, _band(taps, rows.shape[2]), precision=highest)
    return jnp.floor(jnp.clip(rows, 0.0, 255.0) + 0.5)


def _band(taps: jax.Array, size: int) -> jax.Array:
    """The matrix [size, size] whose product with a line is its correlation with the taps; beyond its ends the line repeats them."""
    radius = taps.shape[0] // 2
    column = jnp.arange(size)
    band = jnp.zeros((size, size))
    for tap, offset in enumerate(range(-radius, radius + 1)):
        band += jnp.where(jnp.clip(column + offset, 0, size - 1)[:, None] == column[None, :], taps[tap], 0.0)
    return band


def blur_taps(sigma: Float[jax.Array, ""], max_sigma: float) -> Float[jax.Array, "taps"]:
    """The weights of Pillow's Gaussian: three passes of an extended box filter with the Gaussian's variance.

    Source: Gwosdek et al., Theoretical foundations of Gaussian convolution by extended box filtering (2011). One box has
    weight 1 at |o| <= l and a at |o| = l + 1, over 2 (l + a) + 1. With s = sigma^2 / 3 in each pass:
    l = floor((sqrt(12 s + 1) - 1) / 2), a = (2 l + 1) (l (l + 1) - 3 s) / (6 (s - (l + 1)^2)).
    """
    variance = sigma * sigma / 3.0
    whole = jnp.floor((jnp.sqrt(12.0 * variance + 1.0) - 1.0) / 2.0)
    part = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance) / (6.0 * (variance - (whole + 1.0) ** 2))
    half = math.floor((math.sqrt(4.0 * max_sigma * max_sigma + 1.0) - 1.0) / 2.0) + 1
    offset = jnp.abs(jnp.arange(-half, half + 1, dtype=jnp.float32))
    box = jnp.where(offset <= whole, 1.0, jnp.where(offset == whole + 1.0, part, 0.0)) / (2.0 * (whole + part) + 1.0)
    return jnp.convolve(jnp.convolve(box, box, precision="highest"), box, precision="highest")
