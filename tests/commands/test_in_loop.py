"""The evaluations of a training loop come from the protocols that have one."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from configs.eval import patch_knn
from sere_jax.build import pretraining
from sere_jax.commands import evaluate, in_loop
from sere_jax.data.batches.whole_images import resize_and_centre_crop
from sere_jax.data.sources.open import open_source
from sere_jax.evals.frozen import classification
from sere_jax.evals.network import Network
from sere_jax.evals.pictures import LeftOut, read_pictures
from tests import micro
from tests.evals import micro_network
from tests.evals.segmentation import micro_masks

_NEIGHBOURS = {"neighbours": (1,), "batch_size": 4}


def test_a_config_with_a_cadence_and_images_runs_the_knn(tmp_path: Any):
    folder = f"folder:{micro_network.photographs(tmp_path, count=6, classes=2)}"
    images = {"gallery": folder, "query": folder, **_NEIGHBOURS}
    config = micro.config({"run": {"eval_every_steps": 3}, "eval": images})
    evaluations = in_loop.evaluations(config)
    assert set(evaluations) == {"knn"}
    params = micro.random_like(pretraining.abstract_state(config, micro.LENGTH).params)
    scores = dict(evaluations["knn"].run(params["backbone"]))
    # Queries that are the gallery leave no image to fit the probe to.
    names = {"knn/k1/top1", "rank/rankme", "rank/lidar"}
    assert set(scores) == names | {f"{name}/random" for name in names} and 0 <= scores["knn/k1/top1"] <= 1
    other = micro.random_like(pretraining.abstract_state(config, micro.LENGTH).params, seed=1)
    again = dict(evaluations["knn"].run(other["backbone"]))
    assert {name: again[f"{name}/random"] for name in names} == {name: scores[f"{name}/random"] for name in names}
    assert in_loop.evaluations(micro.config({"run": {"eval_every_steps": 0}, "eval": images})) == {}
    assert in_loop.evaluations(micro.config({"run": {"eval_every_epochs": 1}, "eval": {"gallery": "", "query": ""}})) == {}


def test_scores_are_compared_while_settings_and_images_stay(tmp_path: Any):
    """A path does not count; other neighbours, other sizes and other images do, for the evaluation that reads them."""
    folder = micro_network.photographs(tmp_path / "a", count=6, classes=2)
    train = micro_masks.masked(tmp_path / "train", 4)

    def measured(place: Any = folder, **changed: Any) -> dict[str, str]:
        images = {"gallery": f"folder:{place}", "query": f"folder:{place}", "patch_train": train, "patch_test": train, **_NEIGHBOURS}
        evaluations = in_loop.evaluations(micro.config({"run": {"eval_every_steps": 3}, "eval": images | changed}))
        return {name: evaluation.measured for name, evaluation in evaluations.items()}

    before, moved = measured(), shutil.copytree(folder, tmp_path / "b")
    assert set(before) == {"knn", "patch_knn"} and measured(moved, attention_images=2) == before
    others = [measured(neighbours=(2,)), measured(patch_neighbours=(7,)), measured(resize=48)]
    next(moved.glob("*/*.png")).unlink()
    others.append(measured(moved))
    changes = [{name for name, digest in other.items() if digest != before[name]} for other in others]
    assert changes == [{"knn"}, {"patch_knn"}, {"knn", "patch_knn"}, {"knn"}]


def test_patches_are_scored_as_the_protocol_scores_them(tmp_path: Any):
    train, test = micro_masks.masked(tmp_path / "train", 4), micro_masks.masked(tmp_path / "test", 2, seed=1)
    patches = {"patch_train": train, "patch_test": test, "patch_neighbours": (3, 1), "batch_size": 4}
    config = micro.config({"run": {"eval_every_steps": 3}, "eval": patches})
    evaluations = in_loop.evaluations(config)
    assert set(evaluations) == {"patch_knn"}  # no gallery: no k-NN of images
    params = micro.random_like(pretraining.abstract_state(config, micro.LENGTH).params)["backbone"]
    scores = dict(evaluations["patch_knn"].run(params))
    names = {f"patch_knn/k{k}/{name}" for k in (1, 3) for name in ("miou", "macc", "pixel_accuracy")}
    assert set(scores) == names | {f"{name}/random" for name in names}

    alone = patch_knn.get_config()
    alone.update(
        {"train": train, "test": test, "neighbours": (3,), "distances": ("cosine",), "batch_size": 4, "panels": 0, "baselines": False}
    )
    network = micro_network.network()._replace(params=params, mean=config.photometry.mean, std=config.photometry.std)
    evaluate.run(alone, [network], tmp_path)
    (row,) = json.loads((tmp_path / "eval" / "patch_knn.json").read_text())["results"]
    for name in ("miou", "macc", "pixel_accuracy"):
        assert scores[f"patch_knn/k3/{name}"] == pytest.approx(row["scores"][name], abs=1e-9)
    again = dict(evaluations["patch_knn"].run(params))
    assert again == scores  # the random network is scored once, and stands beside every later score


def test_attention_goes_to_tensorboard_at_each_evaluation(tmp_path: Any):
    folder = f"folder:{micro_network.photographs(tmp_path / 'images', count=3)}"
    config = micro.config({"run": {"eval_every_steps": 3}, "eval": {"gallery": folder, "query": folder, "attention_images": 2}})
    params = micro.random_like(pretraining.abstract_state(config, micro.LENGTH).params)["backbone"]
    draw = in_loop.attention(config, tmp_path / "attention")
    assert draw is not None and [list(draw(params, step)) for step in (3, 6)] == [[], []]
    (file,) = (tmp_path / "attention").iterdir()
    events = [Event.FromString(record) for record in _records(file.read_bytes())]
    pictures = [(event.step, value.tag, value.image) for event in events for value in event.summary.value]
    assert [(step, tag) for step, tag, _ in pictures] == [(3, "attention"), (6, "attention")]
    image = pictures[0][2]
    pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    # Two rows of panels of 7 x 16 pixels: the image, all heads, three heads.
    assert pixels.shape == (image.height, image.width, 3) == (2 * 112, 5 * 112, 3)
    (first, second) = read_pictures(open_source(folder), (0, 1), LeftOut())
    for row, picture in enumerate((first, second)):
        small = resize_and_centre_crop(picture.pixels, 16 * 256 // 224, 16)
        panels = pixels[112 * row : 112 * (row + 1)].reshape(112, 5, 112, 3).swapaxes(0, 1)
        np.testing.assert_array_equal(panels[0][::7, ::7], small)
        normal = (small / 255 - np.array(config.photometry.mean)) / np.array(config.photometry.std)
        attention = micro_network.VIT.apply({"params": params}, jnp.asarray(normal[None], jnp.float32), attention=True).attention
        for head in range(3):
            tokens = np.asarray(attention)[0, head, 0, 1:].reshape(4, 4)
            assert np.unravel_index(panels[2 + head][::28, ::28, 0].argmax(), (4, 4)) == np.unravel_index(tokens.argmax(), (4, 4))
    assert in_loop.attention(micro.config({"run": {"eval_every_steps": 3}}), tmp_path) is None


def _records(data: bytes) -> Iterator[bytes]:
    """The records of an event file: length (8 bytes), its checksum (4), the record, its checksum (4)."""
    while data:
        length = int.from_bytes(data[:8], "little")
        yield data[12 : 12 + length]
        data = data[16 + length :]


def test_a_protocol_of_the_tuple_gets_the_network_and_its_settings(tmp_path: Any, monkeypatch: Any):
    """Nothing but the tuple names the k-NN: another protocol with `periodic` runs beside it, and one without does not."""

    folder = f"folder:{micro_network.photographs(tmp_path, count=2, classes=2)}"

    def periodic(network: Network, settings: classification.Settings) -> Any:
        assert network.params is None and settings.gallery == folder and settings.tokens == ("patches",)
        return lambda params: [("toy/size", float(network.size))]

    toy = classification.PROTOCOL._replace(name="toy", periodic=periodic)
    monkeypatch.setattr(in_loop, "PROTOCOLS", (toy, toy._replace(name="silent", periodic=None)))
    images = {"gallery": folder, "query": folder, "tokens": "patches", "size": 16}
    evaluations = in_loop.evaluations(micro.config({"run": {"eval_every_epochs": 1}, "eval": images}))
    assert {name: list(evaluation.run({})) for name, evaluation in evaluations.items()} == {"toy": [("toy/size", 16.0)]}
