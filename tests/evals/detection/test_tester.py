"""A detector that sees the objects' colours is tested on one and on several devices: the boxes of the colours are found."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sere_jax.data.annotations.placement import WholeImage
from sere_jax.evals.detection import tester
from sere_jax.types import Detections
from tests.data.annotations.painted import Painted


def detect(params, running, images, sizes):
    """The box around the pixels of each channel, with a mask of ones; `params` is the least level of a pixel that counts."""
    inside = (jnp.arange(images.shape[1])[:, None] < sizes[:, 0, None, None]) & (jnp.arange(images.shape[2]) < sizes[:, 1, None, None])
    painted = (images >= params) & inside[..., None]  # [b, H, W, 3]
    sides = []
    for axis in (1, 2):  # rows, then columns
        seen = painted.any(axis=3 - axis)
        first, last = jnp.argmax(seen, axis=1), seen.shape[1] - jnp.argmax(seen[:, ::-1], axis=1)
        sides.append((first, last))
    (top, bottom), (left, right) = sides
    boxes = jnp.stack([left, top, right, bottom], axis=-1).astype(jnp.float32)
    valid = painted.any(axis=(1, 2))
    labels = jnp.broadcast_to(jnp.arange(3), valid.shape)
    return Detections(boxes, 0.9 * valid, labels, valid, jnp.ones((*valid.shape, 4, 4)))


def on_painted(**options):
    values = {"placing": WholeImage(64, 96), "batch_size": 3, "multiple": 16}
    return tester.Tester(detect, Painted(crowds=(2,), **options), **values)


def test_what_the_detector_sees_is_found_and_judged():
    ours = on_painted(damaged=(4,))
    judged = ours(jnp.uint8(128), {})
    scores = judged.scores()
    assert scores["box_ap50"] == 1.0 and scores["box_ap"] > 0.8 and 0.2 < scores["mask_ap50"] <= 1.0
    assert ours.images().read == 11 and ours.images().left_out == ["4.png"]
    assert [result["image_id"] for result in judged.results] == sorted(result["image_id"] for result in judged.results)
    assert len(judged.results) == 33
    assert ours(jnp.uint8(255), {}).scores()["box_ap"] < scores["box_ap"]  # sees no pixels at the edges
    drawn = ours.draw(judged, 2)
    assert [entry[0] for entry in drawn._images] == ["0.png", "1.png"] and all(len(entry[4]) == 3 for entry in drawn._images)


def test_batches_are_whole_on_any_number_of_devices(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", functools.partial(lambda devices: devices, jax.local_devices()[:2]))
    ours = on_painted(count=3)
    assert ours._batch_size % len(jax.local_devices()) == 0 and ours._batch_size >= 3
    scores = ours(jnp.uint8(128), {}).scores()
    assert scores["box_ap50"] == 1.0
    assert np.isfinite(list(scores.values())).all()
