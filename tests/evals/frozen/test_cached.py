"""Features of the last blocks: against the network called block by block, and what the files keep."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.open import open_source
from sere_jax.evals.frozen import cached
from sere_jax.evals.frozen.classification import image_set
from sere_jax.evals.network import EvalError
from sere_jax.types import Features
from tests.evals import micro_network

WIDTH = micro_network.VIT.width


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = micro_network.photographs(tmp_path_factory.mktemp("photographs"), count=6, classes=2)
    (directory / "class1" / "photo9.png").write_bytes(b"no image")
    return f"folder:{directory}"


def part(folder, network=None, blocks=2, directory=None, reads=None):
    source = open_source(folder)
    images = image_set("train", source, batch_size=4, reading=ImageReading(), workers=0)
    if reads is not None:
        images = images._replace(batches=lambda *sides, batches=images.batches: [reads.append(sides), *batches(*sides)][1:])
    network = network or micro_network.network()
    return cached.extract(
        network, source, images, blocks=blocks, sides=(network.size, network.resize), reading=ImageReading(), directory=directory
    )


def layer_norm(tokens: np.ndarray, params) -> np.ndarray:
    centred = tokens - tokens.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * params["scale"] + params["bias"]


def test_every_kind_is_the_tokens_that_its_name_says(folder):
    found = part(folder)
    (batch,) = image_set("train", open_source(folder), batch_size=8, reading=ImageReading(), workers=0).batches(16, 18)
    images = (batch.images[batch.valid].astype(np.float32) / 255 - micro_network.MEAN) / micro_network.STD
    network = micro_network.network()
    raw = jax.jit(functools.partial(network.apply, layers=(0, 1)))(network.params, jnp.asarray(images, jnp.float32))
    cls = [layer_norm(np.asarray(layer[:, 0]), network.params["norm"]) for layer in raw.layers]
    mean = np.asarray(raw.patches).mean((1, 2))
    kinds = cached.columns(WIDTH, (1, 2), cached.POOLING)
    expected = {
        "cls of 1 block": [cls[1]],
        "cls of 1 block + mean patch": [cls[1], mean],
        "cls of 2 blocks": cls,
        "cls of 2 blocks + mean patch": [*cls, mean],
    }
    assert list(kinds) == list(expected)
    for kind, parts in expected.items():
        # The network is compiled twice, and the LayerNorm is done once more by NumPy.
        np.testing.assert_allclose(found.features[:, slice(*kinds[kind])], np.concatenate(parts, 1), atol=1e-5)
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1] and found.positions.tolist() == list(range(6)) and found.unreadable.tolist() == [6]


def test_files_give_back_what_was_computed_without_reading_an_image(folder, tmp_path):
    reads: list = []
    first = part(folder, directory=tmp_path, reads=reads)
    again = part(folder, directory=tmp_path, reads=reads)
    assert len(reads) == 1 and len(list(tmp_path.iterdir())) == 1
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def test_other_weights_blocks_and_images_are_computed_anew(folder, tmp_path):
    reads: list = []
    part(folder, directory=tmp_path, reads=reads)
    part(folder, micro_network.network(seed=4), directory=tmp_path, reads=reads)
    part(folder, blocks=1, directory=tmp_path, reads=reads)
    other = micro_network.photographs(tmp_path / "photographs", count=4, classes=2)
    part(f"folder:{other}", directory=tmp_path, reads=reads)
    assert len(reads) == 4


def test_damaged_files_are_named(folder, tmp_path):
    part(folder, directory=tmp_path)
    (file,) = tmp_path.glob("*/features-00000.parquet")
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(EvalError, match=r"cannot be read .*delete it"):
        part(folder, directory=tmp_path)


def test_more_blocks_than_there_are_and_a_network_without_layers(folder):
    with pytest.raises(EvalError, match="blocks: found 3, expected at most 2: micro has 2 blocks"):
        part(folder, blocks=3)

    def resnet(params, images):
        return Features(images[:, 0, 0], images[:, :2, :2], images[:, :2, :2])

    network = micro_network.network()._replace(apply=resnet, depth=0)
    found = part(folder, network, blocks=1)
    assert found.features.shape == (6, 6)  # three channels of the cls, three of the mean patch
    with pytest.raises(EvalError, match="is no ViT"):
        part(folder, network, blocks=2)


def test_the_held_out_share_is_that_of_every_class():
    labels = np.repeat([0, 1, 2], [50, 10, 1])
    chosen = cached.held_out(labels, 0.1, seed=1)
    assert np.bincount(labels[chosen], minlength=3).tolist() == [5, 1, 0]
    np.testing.assert_array_equal(chosen, cached.held_out(labels, 0.1, seed=1))
    assert not np.array_equal(chosen, cached.held_out(labels, 0.1, seed=2))
