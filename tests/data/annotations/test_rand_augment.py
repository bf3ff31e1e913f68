"""RandAugment: each operation against its statement in NumPy, and which operations are drawn at which magnitudes."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from PIL import Image

from sere_jax.data.annotations import rand_augment
from sere_jax.data.annotations.rand_augment import AugmentedCrop, RandAugment
from sere_jax.data.annotations.transforms import RandomCrop
from tests.oracles import rand_augment as oracle

FILL = (10, 120, 240)


def photograph(height: int = 40, width: int = 56) -> np.ndarray:
    """Smooth coloured noise of limited contrast with some grain, so that every operation changes it."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 200, (6, 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(smooth.astype(int) + rng.integers(-12, 13, smooth.shape), 5, 240).astype(np.uint8)


@pytest.mark.parametrize("magnitude", [2.3, 9.0, 10.0])
@pytest.mark.parametrize("name", list(rand_augment.OPERATIONS))
def test_each_operation_is_its_statement(name: str, magnitude: float):
    image = photograph()
    for sign in (1, -1) if name in rand_augment.DIRECTED else (1,):
        found = rand_augment.apply(name, image, sign * magnitude, FILL).astype(float)
        expected = oracle.apply(name, image, sign * magnitude, FILL)
        difference = np.abs(found - expected)
        # Pillow rounds or cuts to whole levels, some operations twice. On the very edge of an image that is moved, its fixed-point
        # coordinates decide otherwise for a few pixels whether they lie inside.
        assert np.quantile(difference, 0.99) <= 2, (sign, difference.max())
        assert (difference > 2).mean() <= (0.01 if name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y") else 0)
        assert np.abs(found - image).mean() > 0.5  # the operation does something


def test_fifteen_operations_of_which_nine_have_a_direction():
    assert len(rand_augment.OPERATIONS) == 15 and len(rand_augment.DIRECTED) == 9
    assert set(rand_augment.OPERATIONS) > rand_augment.DIRECTED


def test_strengths_at_magnitude_nine(monkeypatch):
    """Rotation by 27 degrees, solarisation from level 26, shear by .27, one bit of each level."""
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    assert (rand_augment.apply("solarize", levels, 9.0, (0,)).ravel() != levels.ravel()).nonzero()[0].min() == 26
    assert set(np.unique(rand_augment.apply("posterize", levels, 9.0, (0,)))) == {0, 128}
    assert (rand_augment.apply("solarize_add", levels, 9.0, (0,)).astype(int) - levels)[0, 0, 0] == 99
    angles, matrices = [], []
    monkeypatch.setattr(Image.Image, "rotate", lambda self, angle, **_: angles.append(angle) or self)
    monkeypatch.setattr(Image.Image, "transform", lambda self, size, kind, matrix, **_: matrices.append(matrix) or self)
    rand_augment.apply("rotate", levels, -9.0, (0,))
    rand_augment.apply("shear_x", levels, 9.0, (0,))
    assert angles == [-27] and matrices[0][1] == pytest.approx(0.27)


def test_operations_and_magnitudes_have_the_stated_distribution(monkeypatch):
    applied: list[tuple[str, float]] = []
    recorders = {
        name: lambda image, magnitude, fill, name=name: applied.append((name, magnitude)) or image for name in rand_augment.OPERATIONS
    }
    monkeypatch.setattr(rand_augment, "OPERATIONS", recorders)
    rng, image, images = np.random.default_rng(1), np.zeros((2, 2, 3), np.uint8), 3000
    for _ in range(images):
        RandAugment()(image, rng)
    # Two draws an image, each applied with probability 1/2: 3,000 of 6,000, standard deviation 39.
    assert abs(len(applied) - images) < 4 * 39
    counts = collections.Counter(name for name, _ in applied)
    assert set(counts) == set(recorders) and max(abs(count - 200) for count in counts.values()) < 4 * 14
    sizes = np.abs([magnitude for _, magnitude in applied])
    # N(9, .5) clipped at 10: 2.3 % of it lies beyond.
    assert np.median(sizes) == pytest.approx(9.0, abs=0.03) and np.std(sizes) == pytest.approx(0.485, abs=0.02)
    assert sizes.max() == 10.0 and np.mean(sizes == 10.0) == pytest.approx(0.0228, abs=0.011)
    directed = np.array([magnitude for name, magnitude in applied if name in rand_augment.DIRECTED])
    assert np.mean(directed < 0) == pytest.approx(0.5, abs=0.05)
    assert all(magnitude >= 0 for name, magnitude in applied if name not in rand_augment.DIRECTED)


def test_the_crop_is_augmented_by_its_own_random_numbers():
    image, crop = photograph(), RandomCrop(size=16, backend="pil")
    plain, first, again, off = (np.empty((16, 16, 3), np.uint8) for _ in range(4))
    always = RandAugment(prob=1.0)
    crop(image, None, np.random.default_rng(7), plain, None)
    AugmentedCrop(crop, always)(image, None, np.random.default_rng(7), first, None)
    AugmentedCrop(crop, always)(image, None, np.random.default_rng(7), again, None)
    AugmentedCrop(crop, None)(image, None, np.random.default_rng(7), off, None)
    assert (off == plain).all() and (first == again).all() and (first != plain).any()
    assert AugmentedCrop(crop).shape == (16, 16)


def test_grey_images_keep_one_channel_and_others_are_refused():
    grey = photograph()[..., :1]
    rng = np.random.default_rng(0)
    assert all(RandAugment(fill=(120,), prob=1.0)(grey, rng).shape == grey.shape for _ in range(30))
    with pytest.raises(ValueError, match="found images of 4 channels, expected 1 or 3"):
        RandAugment()(np.zeros((4, 4, 4), np.uint8), rng)
