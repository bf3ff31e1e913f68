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
from sere_jax.evals.network import EvalError, digest
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


def test_a_file_read_with_other_heads_or_colours_is_another_network():
    """The parameters are the same; the features are not."""
    network = micro_network.network()._replace(module=micro_network.VIT)
    assert digest(network) == digest(micro_network.network()._replace(module=micro_network.VIT.clone(), name="other", about={}))
    others = [network._replace(module=micro_network.VIT.clone(heads=1)), network._replace(mean=(0.1, 0.2, 0.3)), network._replace(size=20)]
    others.append(network._replace(params=jax.tree.map(lambda x: x * 2, network.params)))
    assert len({digest(other) for other in [network, *others]}) == 5


def test_files_give_back_what_was_computed_without_reading_an_image(folder, tmp_path):
    reads: list = []
    first = part(folder, directory=tmp_path, reads=reads)
    again = part(folder, directory=tmp_path, reads=reads)
    assert len(reads) == 1 and len(list(tmp_path.iterdir())) == 1
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def test_features_that_lack_an_image_are_computed_again_when_it_can_be_read(tmp_path):
    """A disk that is away for a while leaves images out; their names and sizes are the same when it is back."""
    directory = micro_network.photographs(tmp_path / "photographs", count=4, classes=2)
    lost = sorted(directory.glob("class1/*"))[0]
    whole = lost.read_bytes()
    lost.write_bytes(bytes(len(whole)))
    reads: list = []
    first = [part(f"folder:{directory}", directory=tmp_path / "features", reads=reads) for _ in range(2)]
    assert len(reads) == 1 and [len(one.unreadable) for one in first] == [1, 1]
    lost.write_bytes(whole)
    again = [part(f"folder:{directory}", directory=tmp_path / "features", reads=reads) for _ in range(2)]
    assert len(reads) == 2 and [len(one.labels) for one in again] == [4, 4]


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
    small = np.repeat(np.arange(20), 5)  # 1 % of CIFAR-100 is five images a class
    assert np.bincount(small[cached.held_out(small, 0.1, seed=1)], minlength=20).tolist() == [1, 0] * 10
    alone = np.concatenate([np.arange(50), np.full(20, 50)])  # fifty classes of one image each keep it
    assert alone[cached.split(alone, 0.1, seed=1)].tolist() == [50, 50]
    with pytest.raises(EvalError, match=r"0\.1 of the classes that have an image to spare is none; .* larger held_out"):
        cached.split(np.arange(9), 0.1, seed=1)
    np.testing.assert_array_equal(chosen, cached.held_out(labels, 0.1, seed=1))
    assert not np.array_equal(chosen, cached.held_out(labels, 0.1, seed=2))


def test_an_image_without_a_class_is_left_out_and_named(tmp_path, caplog):
    """Test splits of TFDS mark what has no label by -1, which as a position would be the last class."""
    source = open_source(f"folder:{micro_network.photographs(tmp_path, count=4, classes=2)}")
    read = type(source).__getitem__

    class Unlabelled(type(source)):
        def __getitem__(self, index):
            example = read(self, index)
            return example._replace(label=-1) if index == 2 else example

    source.__class__ = Unlabelled
    images = image_set("train", source, batch_size=4, reading=ImageReading(), workers=0, numbers=np.array([5, 7]))
    (batch,) = images.batches(16, 18)
    assert batch.valid.tolist() == [True, True, False, True] and batch.labels.tolist() == [5, 5, -1, 7]
    list(images.batches(16, 18))
    assert caplog.text.count("class1/photo1.png has no class and is left out") == 1
