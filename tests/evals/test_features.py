"""Extraction keeps the source's order, drops padding, and splits a batch over the devices it finds."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.evals import features
from sere_jax.evals.frozen import knn
from sere_jax.evals.network import EvalError
from sere_jax.types import Features


class Batch(NamedTuple):
    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    valid: np.ndarray


MEAN, STD = (0.5, 0.25, 0.0), (0.5, 0.25, 1.0)


def fake_apply(params, images):
    """A backbone of patch 4 whose patch tokens are mean colours and whose cls token is params times the first pixel."""
    b, h, w, c = images.shape
    patches = images.reshape(b, h // 4, 4, w // 4, 4, c).mean((2, 4))
    return Features(images[:, 0, 0] * params["scale"], patches, patches)


def make_batches(n: int, batch: int, seed: int = 0) -> list[Batch]:
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8), rng.integers(0, 3, n).astype(np.int32)
    out = []
    for start in range(0, n, batch):
        rows = np.minimum(np.arange(start, start + batch), n - 1)
        valid = np.arange(start, start + batch) < n
        out.append(Batch(images[rows], np.where(valid, labels[rows], -1).astype(np.int32), rows.astype(np.int32), valid))
    return out


def _expected(batches: list[Batch]) -> np.ndarray:
    images = np.concatenate([b.images[b.valid] for b in batches]).astype(np.float64)
    return (images / 255 - np.array(MEAN)) / np.array(STD)


@pytest.mark.parametrize("batch", [1, 3, 4, 7])
def test_padding_is_dropped_and_tokens_are_what_they_say(batch):
    batches = make_batches(7, batch)
    extractor = features.Extractor(fake_apply, mean=MEAN, std=STD, tokens=("cls", "patches", "cls+patches"))
    found = extractor({"scale": jnp.float32(2)}, batches)
    images = _expected(batches)
    # Pixels normalised and averaged in float32.
    np.testing.assert_allclose(found.features["cls"], 2 * images[:, 0, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.features["patches"], images.mean((1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.features["cls+patches"], np.concatenate([found.features["cls"], found.features["patches"]], 1))
    np.testing.assert_array_equal(found.labels, np.concatenate([b.labels[b.valid] for b in batches]))
    assert found.positions.tolist() == list(range(7))


def test_rows_come_back_in_the_order_of_the_source():
    batches = make_batches(6, 3)
    forward, _ = features.extract(fake_apply, {"scale": 1.0}, batches, mean=MEAN, std=STD)
    backward, _ = features.extract(fake_apply, {"scale": 1.0}, batches[::-1], mean=MEAN, std=STD)
    np.testing.assert_array_equal(forward, backward)


def test_traced_once_for_all_batches_and_calls():
    traces = []

    def counting(params, images):
        traces.append(images.shape)
        return fake_apply(params, images)

    extractor = features.Extractor(counting, mean=MEAN, std=STD)
    for scale in (1.0, 2.0):
        extractor({"scale": jnp.float32(scale)}, make_batches(9, 4))
    assert len(traces) == 1


def test_nothing_to_read_and_unknown_tokens_are_said():
    with pytest.raises(EvalError, match="found none"):
        features.extract(fake_apply, {"scale": 1.0}, [], mean=MEAN, std=STD)
    with pytest.raises(EvalError, match="'clz'; expected one of cls, patches"):
        features.Extractor(fake_apply, mean=MEAN, std=STD, tokens=("clz",))


def test_sharded_parameters_come_to_the_host_whole():
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    leaf = jax.device_put(jnp.arange(8.0 * jax.device_count()), spec)
    np.testing.assert_array_equal(features.to_host({"a": leaf})["a"], np.arange(8.0 * jax.device_count()))


def test_periodic_knn_decodes_once_and_follows_the_parameters():
    reads = []

    def gallery():
        reads.append("gallery")
        return iter(make_batches(12, 5))

    run = knn.KnnEvaluation(fake_apply, gallery, lambda: iter(make_batches(12, 5)), mean=MEAN, std=STD, neighbours=(1,))
    assert dict(run({"scale": jnp.float32(1)})) == {"knn/k1/top1": 1.0}  # every image is in the gallery
    broken = dict(run({"scale": jnp.float32(0)}))  # all features equal: every query gets the first image's class
    assert broken["knn/k1/top1"] < 1 and reads == ["gallery"]


def test_clipped_neighbours_are_told_once_a_run(caplog):
    def images():
        return iter(make_batches(6, 3))

    run = knn.KnnEvaluation(fake_apply, images, images, mean=MEAN, std=STD, neighbours=(1, 50))
    for _ in range(2):
        assert set(dict(run({"scale": jnp.float32(1)}))) == {"knn/k1/top1", "knn/k6/top1"}
    assert caplog.text.count("k = 50") == 1


def test_images_beyond_the_cache_are_decoded_again():
    reads = []

    def gallery():
        reads.append("gallery")
        return iter(make_batches(12, 5))

    run = knn.KnnEvaluation(fake_apply, gallery, gallery, mean=MEAN, std=STD, neighbours=(1,), cache_bytes=100)
    for _ in range(2):
        assert dict(run({"scale": jnp.float32(1)}))["knn/k1/top1"] == 1
    assert len(reads) == 4


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_turns_keep_the_order_and_drop_their_padding(size):
    images, seen = np.arange(5 * 2 * 2, dtype=np.uint8).reshape(5, 2, 2, 1), []

    def corners(part):
        seen.append(len(part))
        return {"first": part[:, 0, 0], "last": part[:, 1, 1, 0]}

    answer = features.in_turns(corners, images, size)
    assert set(seen) == {min(size, 5)}
    np.testing.assert_array_equal(answer["first"], [[0], [4], [8], [12], [16]])
    np.testing.assert_array_equal(answer["last"], [3, 7, 11, 15, 19])


def test_one_cpu_takes_turns_and_finds_what_eight_devices_find(monkeypatch):
    params, sizes = {"scale": jnp.float32(2)}, set()

    def watched(params, images):
        sizes.add(len(images))
        return fake_apply(params, images)

    def extracted():
        return features.Extractor(watched, mean=MEAN, std=STD, tokens=("cls+patches",))(params, make_batches(19, 8))

    whole = extracted()
    assert sizes == {8}
    devices = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(features, "_TURN_PIXELS", 3 * 8 * 8)
    alone = extracted()
    assert sizes == {8, 3}
    # One image's sums may be added in another order in another number of rows.
    np.testing.assert_allclose(alone.features["cls+patches"], whole.features["cls+patches"], rtol=1e-6)
    np.testing.assert_array_equal(alone.labels, whole.labels)
