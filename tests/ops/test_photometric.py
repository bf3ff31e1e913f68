"""Augmentation on the device against Pillow, on real photographs, and its probabilities and independence."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_image

from sere_jax.build import pretraining
from sere_jax.data.sources import bundled
from sere_jax.ops import colours, photometric
from sere_jax.ops.blur import blur_rows, blur_taps
from sere_jax.ops.colours import Colours
from sere_jax.ops.photometric import PhotometryParams
from tests import micro
from tests.oracles import photometric as pillow

augment = jax.jit(photometric.augment, static_argnums=2, static_argnames="first_view", compiler_options=micro.FAST_COMPILE)

GLOBAL_1 = PhotometryParams(blur_prob=1.0, solarize_prob=0.0)
GLOBAL_2 = PhotometryParams(blur_prob=0.1, solarize_prob=0.2)
LOCAL = PhotometryParams(blur_prob=0.5, solarize_prob=0.0)
PLAIN = {"jitter_prob": 0.0, "gray_prob": 0.0, "blur_prob": 0.0, "solarize_prob": 0.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}
# Not square, and of one shape: each operation is compiled once for all.
PHOTOGRAPHS = {
    "astronaut": skimage.data.astronaut()[60:156, 160:272],
    "chelsea": skimage.data.chelsea()[80:176, 100:212],
    "flower": load_sample_image("flower.jpg")[150:246, 250:362],
}


@pytest.fixture(params=sorted(PHOTOGRAPHS))
def photograph(request) -> np.ndarray:
    return np.ascontiguousarray(PHOTOGRAPHS[request.param])


compiled = functools.cache(jax.jit)  # one compilation for all strengths and photographs


def apply(operation, image: np.ndarray, value: float) -> np.ndarray:
    return np.asarray(compiled(operation)(image.astype(np.float32), jnp.float32(value)))


def of_image(operation, *arguments):
    """An operation on the three channels as one on [H, W, 3]."""

    def whole(image: jax.Array, *more: jax.Array) -> jax.Array:
        return jnp.stack(operation(Colours(*jnp.moveaxis(image, -1, 0)), *arguments, *more), axis=-1)

    return whole


hue = of_image(colours.shift_hue)
color_jitter = of_image(colours.color_jitter)
grey = of_image(lambda channels: [colours.grey(channels)] * 3)


def mean_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """In levels of 255. The issue allows 2; almost everything here is held to far less."""
    return float(np.abs(np.asarray(ours, np.float64) - theirs.astype(np.float64)).mean())


@functools.cache
def blend_of_jitter(which: int):
    """Brightness, contrast or saturation (0, 1, 2) by a factor, as the jitter makes them: the others have factor 1."""

    def operation(image: jax.Array, factor: jax.Array) -> jax.Array:
        return color_jitter(image, jnp.arange(4), jnp.ones(3).at[which].set(factor), None)

    return operation


# Pillow computes a blend in float32 as we do: only a fused multiply-add may tip a level over the edge of a whole number.
@pytest.mark.parametrize("factor", [0.0, 0.61, 1.0, 1.37])
def test_blends_equal_pillow(photograph, factor):
    for which, theirs in enumerate((pillow.brightness, pillow.contrast, pillow.saturation)):
        assert mean_difference(apply(blend_of_jitter(which), photograph, factor), theirs(photograph, factor)) < 0.01


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.037, 0.1])
def test_hue_equals_pillow(photograph, shift):
    # float32 against Pillow's mix of float and double: a cut may fall one of 256 hues off, which is seldom
    assert mean_difference(apply(hue, photograph, shift), pillow.hue(photograph, shift)) < 0.05


def test_hue_of_every_kind_of_pixel():
    levels = np.array([0, 1, 100, 254, 255], np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(25, 5, 3)
    assert mean_difference(apply(hue, cube, 0.08), pillow.hue(cube, 0.08)) < 0.2


def test_grey_and_solarize_are_exactly_pillows(photograph):
    np.testing.assert_array_equal(grey(jnp.asarray(photograph, jnp.float32)), pillow.grey(photograph))
    ours = colours.solarize(jnp.asarray(photograph, jnp.float32), 128)
    np.testing.assert_array_equal(ours, pillow.solarize(photograph, 128))


def blur(image: jax.Array, sigma: jax.Array) -> jax.Array:
    return jnp.swapaxes(blur_rows(jnp.swapaxes(image, 1, 2), sigma, 2.0), 1, 2)


# Pillow rounds to 8 bits after each of its six passes, we once: about half a level, at most three. At the border it repeats
# the edge in each pass, we once: only there may a pixel differ more.
@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.5, 1.0, 1.63, 2.0])
def test_blur_is_near_pillow(photograph, sigma):
    ours = apply(blur, photograph, sigma)
    assert mean_difference(ours, pillow.blur(photograph, sigma)) < 0.8
    assert np.abs(ours - pillow.blur(photograph, sigma))[6:-6, 6:-6].max() <= 3


BY_PILLOW = {
    "brightness": (blend_of_jitter(0), pillow.brightness, (0.6, 0.87, 1.13, 1.4)),
    "contrast": (blend_of_jitter(1), pillow.contrast, (0.6, 0.87, 1.13, 1.4)),
    "saturation": (blend_of_jitter(2), pillow.saturation, (0.8, 0.93, 1.07, 1.2)),
    "hue": (hue, pillow.hue, (-0.1, -0.04, 0.03, 0.1)),
    "grey": (lambda x, _: grey(x), lambda x, _: pillow.grey(x), (0.0,)),
    "blur": (blur, pillow.blur, (0.1, 0.7, 1.3, 2.0)),
    "solarize": (lambda x, _: colours.solarize(x, 128), lambda x, _: pillow.solarize(x, 128), (128,)),
}


@functools.cache
def bundled_photographs() -> np.ndarray:
    """The middle 224 pixels of every bundled photograph, all sizes of the recipe's global crops."""
    middles = []
    for photograph in bundled.PHOTOGRAPHS:
        with Image.open(bundled.photograph_file(photograph)) as image:
            pixels = np.asarray(image.convert("RGB"))
        top, left = ((side - 224) // 2 for side in pixels.shape[:2])
        middles.append(pixels[top : top + 224, left : left + 224])
    return np.stack(middles)


@pytest.mark.parametrize("name", BY_PILLOW)
def test_every_operation_on_every_bundled_photograph(name, deviation):
    """Strengths of DINO's recipe, its ends among them; mean absolute error in levels of 255."""
    ours, theirs, values = BY_PILLOW[name]
    photographs = bundled_photographs()
    many = jax.jit(jax.vmap(ours, in_axes=(0, None)))
    for value in values:
        found = np.asarray(many(photographs.astype(np.float32), jnp.float32(value)))
        for photograph, one, image in zip(bundled.PHOTOGRAPHS, found, photographs, strict=True):
            worst = mean_difference(one, theirs(image, value))
            deviation("augmentation, levels of 255", f"{name} by {value:g} of {photograph.name}", worst, 2.0)


def test_the_whole_chain_is_pillows(deviation):
    """Jitter, grey, blur, solarise, normalise, in this order: the same draws carried out by Pillow, view by view."""
    half = PhotometryParams(jitter_prob=0.7, gray_prob=0.4, blur_prob=0.6, solarize_prob=0.5)
    batch = np.ascontiguousarray(bundled_photographs()[:, None, 64:128, 64:128])
    found = np.asarray(augment(batch, keys(len(batch)), (half,)))[:, 0]
    draws = jax.tree.map(lambda u: np.asarray(u[:, 0]), photometric._draw(keys(len(batch)), jnp.arange(1)))
    for i, image in enumerate(batch[:, 0]):
        expected = by_pillow(image, photometric._Draws(*(u[i] for u in draws)), half)
        levels = (found[i] * np.array(half.std) + np.array(half.mean)) * 255
        deviation("augmentation, levels of 255", f"whole chain on {bundled.PHOTOGRAPHS[i].name}", mean_difference(levels, expected), 2.0)


def by_pillow(image: np.ndarray, u: photometric._Draws, kind: PhotometryParams) -> np.ndarray:
    """One view by Pillow with these draws."""
    strengths = (kind.brightness, kind.contrast, kind.saturation)
    factors = [1 - a + 2 * a * u.factors[i] for i, a in enumerate(strengths)]
    jitter = [
        lambda x: pillow.brightness(x, factors[0]),
        lambda x: pillow.contrast(x, factors[1]),
        lambda x: pillow.saturation(x, factors[2]),
        lambda x: pillow.hue(x, kind.hue * (2 * u.hue - 1)),
    ]
    for which in np.argsort(u.order) if u.jitter < kind.jitter_prob else ():
        image = jitter[which](image)
    image = pillow.grey(image) if u.gray < kind.gray_prob else image
    low, high = kind.blur_sigma
    image = pillow.blur(image, float(low + (high - low) * u.sigma)) if u.blur < kind.blur_prob else image
    return pillow.solarize(image, kind.solarize_threshold) if u.solarize < kind.solarize_prob else image


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.7, 1.9])
def test_blur_taps_have_the_gaussians_variance(sigma):
    taps = np.asarray(blur_taps(jnp.float32(sigma), 2.0), np.float64)
    offset = np.arange(len(taps)) - len(taps) // 2
    assert math.isclose(taps.sum(), 1.0, rel_tol=1e-5)
    assert math.isclose((taps * offset**2).sum(), sigma**2, rel_tol=1e-4, abs_tol=1e-6)


def test_color_jitter_in_each_of_the_24_orders():
    image = np.ascontiguousarray(PHOTOGRAPHS["chelsea"][::3, ::3])
    factors, shift = (1.31, 0.72, 1.18), 0.06
    operations = [
        lambda x: pillow.brightness(x, factors[0]),
        lambda x: pillow.contrast(x, factors[1]),
        lambda x: pillow.saturation(x, factors[2]),
        lambda x: pillow.hue(x, shift),
    ]
    orders = list(itertools.permutations(range(4)))
    jitter = jax.jit(jax.vmap(color_jitter, in_axes=(None, 0, None, None)))
    ours = jitter(image.astype(np.float32), jnp.array(orders), jnp.array(factors), jnp.float32(shift))
    expected = []
    for order in orders:
        image_so_far = image
        for which in order:
            image_so_far = operations[which](image_so_far)
        expected.append(image_so_far)
    assert len(np.unique(np.stack(expected), axis=0)) > 12, "the orders must differ, or this test shows nothing"
    for one, reference in zip(np.asarray(ours), expected, strict=True):
        assert mean_difference(one, reference) < 0.1


def keys(n: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), n)


def many(kind: PhotometryParams, n: int = 600) -> np.ndarray:
    """The same two-coloured 8 x 8 image n times, augmented with n keys."""
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, :4], image[:, 4:] = (200, 60, 20), (30, 90, 170)
    return np.asarray(augment(np.broadcast_to(image, (n, 1, 8, 8, 3)), keys(n), (kind,)))[:, 0]


def within(count: int, n: int, probability: float) -> bool:
    """Four standard deviations of a binomial count; the seed is fixed, so this never flickers."""
    return abs(count - n * probability) <= 4 * math.sqrt(n * probability * (1 - probability)) + 1e-9


@pytest.mark.parametrize("kind", [GLOBAL_1, GLOBAL_2, LOCAL], ids=["global 1", "global 2", "local"])
def test_probabilities_of_each_kind_of_view(kind):
    n = 600
    unchanged = many(PhotometryParams(**PLAIN), 1)[0]

    def changed(**on) -> int:
        return int((np.abs(many(PhotometryParams(**{**PLAIN, **on}), n) - unchanged).max(axis=(1, 2, 3)) > 0).sum())

    # a jitter that leaves every level as it is would go uncounted; with these colours it is too rare to matter
    assert within(changed(jitter_prob=kind.jitter_prob), n, 0.8)
    assert within(changed(gray_prob=kind.gray_prob), n, 0.2)
    assert within(changed(solarize_prob=kind.solarize_prob), n, kind.solarize_prob)
    # a blur below about 0.15 pixels changes no level: sigma is uniform, so count a fixed one
    assert within(changed(blur_prob=kind.blur_prob, blur_sigma=(1.0, 1.0)), n, kind.blur_prob)


def test_each_view_of_a_config_gets_its_probabilities():
    """Through the config: blur 1, .1 and .5, solarise 0, .2 and 0 for global 1, global 2 and local crops (SPEC 1.6)."""
    config, n = micro.config(local_count=2), 400
    config.photometry.update(
        blur_prob=(1.0, 0.1, 0.5), solarize_prob=(0.0, 0.2, 0.0), blur_sigma=(1.0, 1.0), mean=(0.0,) * 3, std=(1.0,) * 3
    )
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 4:] = 200  # blur changes the middle, solarise the far edge, and nothing else changes anything
    crops = np.broadcast_to(image, (n, 2, 8, 8, 3))
    views = micro.views(config, batch=n)._replace(global_views=crops, local_views=crops)
    found = np.concatenate(jax.jit(pretraining.augment(config))(views, keys(n)), axis=1) * 255
    blurred = np.abs(found[:, :, 4, 3:5, 0] - found[:, :, 4, [0, 7], 0]).max(axis=-1) > 1
    solarized = found[:, :, 4, 7, 0] < 150
    for view, (blur, solarize) in enumerate([(1.0, 0.0), (0.1, 0.2), (0.5, 0.0), (0.5, 0.0)]):
        assert within(int(blurred[:, view].sum()), n, blur) and within(int(solarized[:, view].sum()), n, solarize)


def test_strengths_are_uniform_in_their_ranges():
    only = {**PLAIN, "jitter_prob": 1.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    grey = np.full((600, 1, 2, 2, 3), 100, np.uint8)
    factors = np.asarray(augment(grey, keys(600), (PhotometryParams(**only),)))[:, 0, 0, 0, 0] * 255 / 100
    assert 0.6 <= factors.min() < 0.62 and 1.38 < factors.max() <= 1.4
    assert abs(factors.mean() - 1.0) < 4 * 0.8 / math.sqrt(12 * 600) + 0.005  # a cut level is half a level low


def test_order_of_operations_is_random():
    draws = photometric._draw(keys(600), jnp.arange(1))
    seen, counts = np.unique(np.argsort(draws.order[:, 0], axis=-1), axis=0, return_counts=True)
    assert len(seen) == 24 and all(within(int(count), 600, 1 / 24) for count in counts)


def views(b: int, v: int, size: int = 24) -> np.ndarray:
    rng = np.random.default_rng(3)
    photograph = PHOTOGRAPHS["astronaut"]
    corners = rng.integers(0, 96 - size, (b, v, 2))
    return np.stack([np.stack([photograph[y : y + size, x : x + size] for y, x in row]) for row in corners])


def test_an_example_does_not_depend_on_its_neighbours():
    batch, kinds = views(6, 2), (GLOBAL_1, GLOBAL_2)
    together = augment(batch, keys(6), kinds)
    for i in range(6):  # beside copies of itself in place of its neighbours
        alone = augment(batch[[i] * 6], keys(6)[np.array([i] * 6)], kinds)
        np.testing.assert_array_equal(together[i : i + 1], alone[i : i + 1])


def test_a_view_does_not_depend_on_the_number_of_views():
    batch = views(4, 3)
    three = augment(batch, keys(4), (LOCAL,) * 3, first_view=2)
    np.testing.assert_array_equal(augment(batch[:, :2], keys(4), (LOCAL,) * 2, first_view=2), three[:, :2])
    first = augment(batch[:, :1], keys(4), (LOCAL,), first_view=0)
    assert np.abs(np.asarray(first) - np.asarray(three[:, :1])).max() > 0.1, "global 1 and local 1 must draw differently"


def test_switching_one_operation_off_leaves_the_draws_of_the_others():
    batch = views(4, 1)
    plain = PhotometryParams(**{**PLAIN, "jitter_prob": 1.0})
    with_a_blur_of_nothing = PhotometryParams(**{**PLAIN, "jitter_prob": 1.0, "blur_prob": 1.0, "blur_sigma": (0.0, 0.0)})
    np.testing.assert_array_equal(augment(batch, keys(4), (plain,)), augment(batch, keys(4), (with_a_blur_of_nothing,)))


def test_normalisation_and_views_without_augmentation():
    batch = views(2, 1)
    kind = PhotometryParams(**{**PLAIN, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)})
    expected = (batch / 255.0 - np.array(kind.mean)) / np.array(kind.std)
    np.testing.assert_allclose(augment(batch, keys(2), (kind,)), expected, atol=1e-6)  # float32 against float64


def test_no_views_give_no_views():
    assert augment(np.zeros((3, 0, 8, 8, 3), np.uint8), keys(3), ()).shape == (3, 0, 8, 8, 3)


OTHER = {"saturation": 0.0, "hue": 0.0, "gray_prob": 0.0}


@pytest.mark.parametrize("contrast_first", [False, True])
def test_brightness_and_contrast_of_one_channel_are_pillows_of_a_grey_image(photograph, contrast_first):
    grey = pillow.grey(photograph)[..., 0]
    factors = (1.3, 0.7)
    steps = [(pillow.brightness, 1.3), (pillow.contrast, 0.7)]
    expected = grey
    for operation, factor in reversed(steps) if contrast_first else steps:
        expected = operation(expected, factor)
    ours = colours.brightness_contrast(jnp.asarray(grey[..., None], jnp.float32), jnp.asarray(contrast_first), jnp.asarray(factors))
    assert mean_difference(ours[..., 0], expected) < 0.01


def test_channels_that_are_no_colours_are_changed_alike_and_each_by_itself():
    """Five bands give what each band gives alone: the same draws, and a mean level of its own."""
    bands = np.random.default_rng(0).integers(0, 256, (6, 2, 12, 10, 5), dtype=np.uint8) // np.array([1, 2, 3, 4, 5], np.uint8)
    kind = PhotometryParams(blur_prob=0.5, solarize_prob=0.5, mean=(0.5,) * 5, std=(0.2,) * 5, **OTHER)
    one = dataclasses.replace(kind, mean=(0.5,), std=(0.2,))
    found = np.asarray(augment(bands, keys(6), (kind,) * 2))
    for c in range(5):
        # A level may tip at the edge of a whole number, where products are fused otherwise: 1 / (255 x .2).
        np.testing.assert_allclose(found[..., c : c + 1], augment(bands[..., c : c + 1], keys(6), (one,) * 2), atol=0.0197)
    plain = (bands / 255 - 0.5) / 0.2
    assert np.abs(found - plain).mean() > 0.1


def test_colour_operations_need_three_channels():
    five = np.zeros((2, 1, 8, 8, 5), np.uint8)
    with pytest.raises(ValueError, match="5 channels, but saturation, hue and grey need 3"):
        augment(five, keys(2), (GLOBAL_1,))


def test_an_operation_of_probability_zero_is_not_compiled():
    def text(kind: PhotometryParams) -> str:
        return jax.jit(photometric.augment, static_argnums=2).lower(views(2, 1), keys(2), (kind,)).as_text()

    assert "dot_general" in text(PhotometryParams(**{**PLAIN, "blur_prob": 0.5}))
    assert "dot_general" not in text(PhotometryParams(**PLAIN))


def test_few_passes_over_the_pixels():
    """By XLA's count for a CPU. It counts the body of a loop once, so it is only true without loops over pixels."""
    side = 64
    batch = views(2, 2, side)
    compiled = augment.lower(batch, keys(2), (GLOBAL_1, GLOBAL_2)).compile()
    carried = [line.partition(" while(")[0] for line in compiled.as_text().splitlines() if " while(" in line]
    sizes = [math.prod(map(int, shape.split(","))) for line in carried for shape in re.findall(r"\[([\d,]+)\]", line)]
    assert max(sizes, default=0) < side * side, "a loop carries pixels"
    assert compiled.cost_analysis()["bytes accessed"] < 25 * 4 * batch.size


def test_wrong_number_of_kinds_is_an_error():
    with pytest.raises(ValueError, match="1 kinds for 2 views"):
        augment(views(1, 2), keys(1), (LOCAL,))


def test_colours_and_mirroring_commute():
    """MoCo v3 mirrors after the colours, DINO before: the same views, but for a level where a blur's sum rounds the other way."""
    rng = np.random.default_rng(5)
    crops = rng.integers(0, 256, (4, 1, 12, 12, 3), dtype=np.uint8)
    kind = PhotometryParams(jitter_prob=1.0, gray_prob=0.3, blur_prob=1.0, solarize_prob=0.5)
    keys = jax.random.split(jax.random.key(2), 4)
    mirrored_last = augment(crops, keys, (kind,))[:, :, :, ::-1]
    difference = np.abs(np.asarray(augment(np.ascontiguousarray(crops[:, :, :, ::-1]), keys, (kind,))) - mirrored_last)
    assert difference.max() <= 1.01 / 255 / 0.224 and np.mean(difference > 1e-5) < 0.01
