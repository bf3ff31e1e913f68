"""Augmentation of pixels on the device: uint8 crops from the host in, normalised float32 views out.

The definitions are those of DINO's recipe as Pillow and torchvision carry it out: colour jitter in random order, grey,
Gaussian blur, solarise, normalise. As in Pillow, every operation ends with rounding to 8-bit levels. iBOT and SERE use the
same. Inside this file pixels are float32 that hold whole numbers 0..255.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
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
    number of global crops as `first_view` for the local ones. Views of the same kind are worked on together, and an
    operation whose probability is 0 is not compiled.

    Brightness, contrast, blur and solarisation are defined for any number of channels (contrast is then each channel's own, see
    `brightness_contrast`); saturation, hue and grey for red, green and blue alone.

    Raises:
      ValueError: another number of kinds than views, or operations for three channels asked of images with others.
    """
    b, v, height, width, channels = views.shape
    _check(v, channels, kinds)
    if v == 0:
        return jnp.zeros((b, 0, height, width, channels), jnp.float32)
    pixels, draws = jnp.asarray(views), _draw(keys, first_view + jnp.arange(v))
    groups, start = [], 0
    for kind, members in itertools.groupby(kinds):
        group = slice(start, start + len(list(members)))
        one_image = functools.partial(_augment_image, kind=kind)
        groups.append(jax.vmap(jax.vmap(one_image))(pixels[:, group], jax.tree.map(lambda u, group=group: u[:, group], draws)))
        start = group.stop
    return groups[0] if len(groups) == 1 else jnp.concatenate(groups, axis=1)


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


def _augment_image(image: jax.Array, u: _Draws, kind: PhotometryParams) -> jax.Array:
    """The whole chain for one uint8 image [H, W, c]."""
    image = image.astype(jnp.float32)
    if kind.jitter_prob > 0:
        image = jnp.where(u.jitter < kind.jitter_prob, _random_jitter(image, u, kind), image)
    if kind.gray_prob > 0:
        image = jnp.where(u.gray < kind.gray_prob, grey(image), image)
    if kind.blur_prob > 0:
        # A blur of width 0 is the identity, so there is no need for a second copy of the image to choose from.
        sigma = jnp.where(u.blur < kind.blur_prob, _between(u.sigma, *kind.blur_sigma), 0.0)
        image = gaussian_blur(image, sigma, max_sigma=kind.blur_sigma[1])
    if kind.solarize_prob > 0:
        image = jnp.where(u.solarize < kind.solarize_prob, solarize(image, kind.solarize_threshold), image)
    return (image / 255.0 - jnp.asarray(kind.mean, jnp.float32)) / jnp.asarray(kind.std, jnp.float32)


def _random_jitter(image: jax.Array, u: _Draws, kind: PhotometryParams) -> jax.Array:
    strengths = (kind.brightness, kind.contrast, kind.saturation)
    factors = jnp.stack([_between(u.factors[i], max(0.0, 1.0 - a), 1.0 + a) for i, a in enumerate(strengths)])
    if image.shape[-1] != 3:
        return brightness_contrast(image, u.order[1] < u.order[0], factors[:2])
    shift = _between(u.hue, -kind.hue, kind.hue) if kind.hue > 0 else None
    return color_jitter(image, jnp.argsort(u.order), factors, shift)


def _between(u: jax.Array, low: float, high: float) -> jax.Array:
    return low + (high - low) * u


def color_jitter(
    image: Float[jax.Array, "H W 3"], order: Int[jax.Array, "4"], factors: Float[jax.Array, "3"], shift: Float[jax.Array, ""] | None
) -> Float[jax.Array, "H W 3"]:
    """Brightness, contrast, saturation (0, 1, 2, with their `factors`) and hue (3, by `shift`; None leaves it out), in `order`.

    Under vmap a choice between operations computes all of them, and hue is the most expensive. So hue is computed once, between
    three blends before it and three after it. A blend that is not active has factor 1, which changes nothing.
    """
    hue_at = jnp.argmax(order == 3)

    def blend_at(turn: jax.Array, image: jax.Array, active: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
        which = order[turn]
        level = grey(image)[..., :1]
        reference = jnp.where(which == 0, 0.0, jnp.where(which == 1, _mean_level(level), level))
        return blend(reference, image, jnp.where(active(turn, hue_at), factors[jnp.minimum(which, 2)], 1.0))

    # Loops, not six blends in a row: XLA would fuse those, and take seconds longer to compile.
    image = jax.lax.fori_loop(0, 3, functools.partial(blend_at, active=jnp.less), image)
    image = image if shift is None else shift_hue(image, shift)
    return jax.lax.fori_loop(1, 4, functools.partial(blend_at, active=jnp.greater), image)


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


def grey(image: Float[jax.Array, "H W 3"]) -> Float[jax.Array, "H W 3"]:
    """ITU-R 601-2 luma in Pillow's fixed point: (19595 R + 38470 G + 7471 B + 32768) >> 16, in all three channels.

    Written as sums, not as a matrix product, which an accelerator may round: every number here stays exact below 2^24.
    """
    weighted = 19595.0 * image[..., 0] + 38470.0 * image[..., 1] + 7471.0 * image[..., 2] + 32768.0
    level = jnp.floor(weighted / 65536.0)
    return jnp.broadcast_to(level[..., None], image.shape)


def _mean_level(level: jax.Array) -> jax.Array:
    """The mean grey level, rounded half up, as Pillow's contrast enhancer takes it."""
    return jnp.floor(jnp.mean(level) + 0.5)


def shift_hue(image: Float[jax.Array, "H W 3"], shift: Float[jax.Array, ""]) -> Float[jax.Array, "H W 3"]:
    """Turns the hue by `shift` in [-0.5, 0.5] (1 is the whole circle), through 8-bit HSV as torchvision does with Pillow.

    Hue and saturation are cut to 256 levels on the way; the shift is cut to whole levels towards 0 and wraps at 256.
    """
    highest, lowest = image.max(-1), image.min(-1)
    chroma = highest - lowest
    distance = (highest[..., None] - image) / jnp.where(chroma > 0, chroma, 1.0)[..., None]
    red, green, blue = distance[..., 0], distance[..., 1], distance[..., 2]
    sextant = jnp.where(image[..., 0] == highest, blue - green, jnp.where(image[..., 1] == highest, 2.0 + red - blue, 4.0 + green - red))
    hue = jnp.floor(jnp.mod(sextant / 6.0 + 1.0, 1.0) * 255.0)
    hue = jnp.mod(jnp.where(chroma > 0, hue, 0.0) + jnp.trunc(shift * 255.0), 256.0)
    saturation = jnp.floor(chroma / jnp.where(highest > 0, highest, 1.0) * 255.0) / 255.0
    # Each channel is a trapezium over the hue circle: full for two sextants, falling or rising for one each.
    around = jnp.mod(hue[..., None] * (6.0 / 255.0) + jnp.array([5.0, 3.0, 1.0]), 6.0)
    depth = jnp.clip(jnp.minimum(around, 4.0 - around), 0.0, 1.0)
    return jnp.floor(highest[..., None] * (1.0 - saturation[..., None] * depth) + 0.5)


def solarize(image: Float[jax.Array, "H W c"], threshold: int) -> Float[jax.Array, "H W c"]:
    """Inverts every level at or above `threshold`."""
    return jnp.where(image < threshold, image, 255.0 - image)


def gaussian_blur(image: Float[jax.Array, "H W c"], sigma: Float[jax.Array, ""], *, max_sigma: float) -> Float[jax.Array, "H W c"]:
    """Blur of standard deviation `sigma` <= `max_sigma` pixels, border pixels repeated outwards, rounded to whole levels.

    As two small matrix products K_y X K_x^T with banded matrices, which suits matrix units and needs no gather. The
    taps are those of Pillow's `GaussianBlur` (`blur_taps`). Pillow rounds between its passes, which makes a level or two, and
    repeats the border anew in each, which makes up to a dozen within six pixels of a corner.
    """
    height, width, _ = image.shape
    taps = blur_taps(sigma, max_sigma)
    radius = taps.shape[0] // 2
    padded = jnp.pad(image, ((radius, radius), (radius, radius), (0, 0)), mode="edge")
    highest = jax.lax.Precision.HIGHEST  # the default of some accelerators would round the weights to 8 bits
    rows = jnp.einsum("yh,hwc->ywc", _band(taps, height), padded, precision=highest)
    both = jnp.einsum("xw,ywc->yxc", _band(taps, width), rows, precision=highest)
    return jnp.floor(jnp.clip(both, 0.0, 255.0) + 0.5)


def _band(taps: jax.Array, size: int) -> jax.Array:
    """The matrix [size, size + 2 radius] whose product with a padded line is its correlation with the taps."""
    offset = jnp.arange(size + taps.shape[0] - 1)[None, :] - jnp.arange(size)[:, None]
    inside = (offset >= 0) & (offset < taps.shape[0])
    return jnp.where(inside, taps[jnp.clip(offset, 0, taps.shape[0] - 1)], 0.0)


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
