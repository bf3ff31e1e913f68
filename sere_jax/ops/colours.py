"""Colour operations as Pillow and torchvision carry them out, on float32 pixels that hold whole numbers 0..255.

An image is three arrays, so that whatever is done to a pixel between two means of the image is one loop over the pixels. At the end of
such a loop a pixel is one integer (`packed`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

_SHIFTS = (0, 8, 16)  # of red, green and blue in a packed pixel


class Colours(NamedTuple):
    """The channels of an image, [H, W] each."""

    red: jax.Array
    green: jax.Array
    blue: jax.Array

    def map(self, function: Callable[[jax.Array], jax.Array]) -> Colours:
        return Colours(*map(function, self))


def packed(colours: Colours) -> Int[jax.Array, "H W"]:
    """All channels in one array: a loop with one result computes a pixel once, three results may be three loops that each compute all.

    On an accelerator this array has a third of the bytes of three float32 channels.
    """
    pixels = _computed_once(colours.red + 256.0 * colours.green + 65536.0 * colours.blue)
    return jax.lax.optimization_barrier(pixels.astype(jnp.int32))


def _computed_once(x: jax.Array) -> jax.Array:
    """x, below 2^24, itself; on a CPU operations that read it do not compute it again.

    XLA for a CPU (jaxlib 0.10.2) fuses across optimization barriers here, but does not compute a division for each of its readers. So x is
    divided by a 1 that XLA does not know.
    """
    return jax.lax.platform_dependent(x, cpu=lambda x: x / jnp.where(x < 2.0**24, 1.0, 2.0), default=lambda x: x)


def unpacked(pixels: Int[jax.Array, "H W"]) -> Colours:
    """The channels of packed pixels."""
    return Colours(*(((pixels >> shift) & 255).astype(jnp.float32) for shift in _SHIFTS))


def unpacked_rows(pixels: Int[jax.Array, "H W"]) -> Float[jax.Array, "H 3 W"]:
    """Channels between rows and columns."""
    return ((pixels[:, None, :] >> jnp.array(_SHIFTS)[:, None]) & 255).astype(jnp.float32)


def color_jitter(
    colours: Colours,
    order: Int[jax.Array, "4"],
    factors: Float[jax.Array, "3"],
    shift: Float[jax.Array, ""] | None,
    *,
    turns_hue: Bool[jax.Array, ""] | bool = True,
) -> Colours:
    """Brightness, contrast, saturation (0, 1, 2, with their `factors`) and hue (3, by `shift`; None leaves it out), in `order`.

    Under vmap a choice between operations computes all of them, and hue is the most expensive. So hue is computed once, between
    blends before it and blends after it. A blend that is not active has factor 1, which changes nothing; neither does hue without
    `turns_hue`. Contrast needs the mean of what comes before it. So the blends before contrast stand in a loop of their own: before hue,
    where they are computed twice, and after it.
    """
    hue_at, contrast_at = jnp.argmax(order == 3), jnp.argmax(order == 1)

    def blends(colours: Colours, active: Sequence[tuple[int, jax.Array]], mean: jax.Array | float = 0.0) -> Colours:
        for turn, is_active in active:
            which = order[turn]
            reference = jnp.where(which == 0, 0.0, jnp.where(which == 1, mean, grey(colours)))
            factor = jnp.where(is_active, factors[jnp.minimum(which, 2)], 1.0)
            colours = colours.map(functools.partial(blend, reference, factor=factor))
        return colours

    mean = _mean_level(grey(blends(colours, [(turn, (turn < hue_at) & (turn < contrast_at)) for turn in (0, 1)])))
    colours = unpacked(packed(blends(colours, [(turn, turn < hue_at) for turn in (0, 1, 2)], mean)))
    if shift is not None:
        turned = shift_hue(colours, shift)
        colours = Colours(*(jnp.where(turns_hue, new, old) for new, old in zip(turned, colours, strict=True)))
    colours = unpacked(packed(blends(colours, [(turn, (turn > hue_at) & (turn < contrast_at)) for turn in (1, 2)])))
    return blends(colours, [(turn, (turn > hue_at) & (turn >= contrast_at)) for turn in (1, 2, 3)], _mean_level(grey(colours)))


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
    reference: Float[jax.Array, "*#pixels"], image: Float[jax.Array, "*pixels"], factor: Float[jax.Array, ""]
) -> Float[jax.Array, "*pixels"]:
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
    return jnp.floor(jnp.mean(_computed_once(level)) + 0.5)


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


def solarize(image: Float[jax.Array, "H W c"], threshold: Float[jax.Array, ""] | int) -> Float[jax.Array, "H W c"]:
    """Inverts every level at or above `threshold`."""
    return jnp.where(image < threshold, image, 255.0 - image)
