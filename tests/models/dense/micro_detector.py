"""A detector small enough to test, and a scene: two images of 64 x 64 pixels, of which the second is padded, with three objects."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sere_jax.models.dense.detector import Counts, Detector
from sere_jax.models.vit import ViT
from sere_jax.types import Objects
from tests import micro

CLASSES = 3
COUNTS = Counts(anchors=16, per_level=8, proposals=8, test_per_level=8, test_proposals=8, regions=12, detections=5)
VIT = ViT(width=16, depth=2, heads=2, patch_size=16, image_size=32)
DETECTOR = Detector(VIT, CLASSES, taps=(0, 0, 1, 1), channels=8, hidden=16, counts=COUNTS)
SIZES = jnp.array([[64, 64], [40, 56]])
OBJECTS = Objects(
    jnp.array([[[4, 6, 40, 38], [30, 20, 60, 60], [0, 0, 0, 0]], [[8, 2, 50, 36], [0, 0, 0, 0], [0, 0, 0, 0]]], jnp.float32),
    jnp.array([[1, 0, 0], [2, 0, 0]]),
    jnp.array([[True, True, False], [True, False, False]]),
    jnp.asarray(np.random.default_rng(0).random((2, 3, 8, 8)) < 0.6),
)
KEYS = jax.random.split(jax.random.key(5), 2)


def images() -> jax.Array:
    """Noise; the padding is 0."""
    pixels = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
    return pixels.at[1, 40:].set(0).at[1, :, 56:].set(0)


@functools.cache
def variables() -> dict:
    """Noise as parameters and running means, so that boxes move and scores differ; running variances of 1 and more."""
    shapes = jax.eval_shape(lambda: DETECTOR.init(jax.random.key(0), images(), method="touch"))
    noise = micro.random_like(shapes, 3, scale=0.1)
    stats = jax.tree_util.tree_map_with_path(lambda path, x: 1 + jnp.abs(x) if path[-1].key == "var" else x, noise["batch_stats"])
    return {"params": noise["params"], "batch_stats": stats}
