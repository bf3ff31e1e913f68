"""Segmentation with frozen patches: votes to the patch against a loop, and both protocols whole on images of coloured rectangles."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from configs.eval import patch_knn, patch_logistic
from sere_jax.commands import evaluate
from sere_jax.config.launch import Launch
from sere_jax.config.names import flatten
from sere_jax.data.annotations.maps import decode_label_map
from sere_jax.evals.frozen import knn, patch_data
from sere_jax.evals.frozen.patch_votes import Gallery
from sere_jax.evals.network import EvalError
from sere_jax.evals.pictures import LeftOut
from sere_jax.evals.segmentation.images import patch_classes, read_masked
from sere_jax.evals.segmentation.labelling import labelling, open_masked
from sere_jax.evals.segmentation.pictures import PictureFiles, encode_map, panels
from tests.data.annotations.pngs import png
from tests.evals import micro_network
from tests.evals.segmentation import micro_masks


def test_votes_are_those_of_a_loop_over_all_pairs(monkeypatch):
    monkeypatch.setattr(knn.nearest, "__kwdefaults__", {"query_chunk": 5, "gallery_chunk": 16})
    rng = np.random.default_rng(0)
    gallery = (3 + rng.normal(size=(41, 6))).astype(np.float32)
    queries, labels = (3 + rng.normal(size=(13, 6))).astype(np.float32), rng.integers(0, 4, 41)
    for distance in ("cosine", "l2"):
        found = Gallery(gallery, labels, 4).votes(queries, distance, (1, 7, 100))
        for row, query in enumerate(queries.astype(np.float64)):
            if distance == "l2":
                away = [float(((query - other) ** 2).sum()) for other in gallery]
            else:
                away = [-float(query @ other / np.linalg.norm(query) / np.linalg.norm(other)) for other in gallery]
            order = np.argsort(away)
            for k in (1, 7, 100):
                expected = [np.mean(labels[order[:k]] == number) for number in range(4)]
                assert found[k][row].tolist() == pytest.approx(expected), (distance, k, row)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 5))
def test_a_patch_has_the_class_of_most_of_its_pixels(seed, down, across):
    truth = np.random.default_rng(seed).integers(-1, 3, (down * 3, across * 2)).astype(np.int32)
    found = patch_classes(truth, (down, across), 3)
    for row in range(down):
        for column in range(across):
            inside = truth[row * 3 : row * 3 + 3, column * 2 : column * 2 + 2].ravel()
            counts = [(inside == number).sum() for number in range(3)]
            assert found[row, column] == (int(np.argmax(counts)) if any(counts) else -1)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> tuple[str, str]:
    directory = tmp_path_factory.mktemp("masked")
    return micro_masks.masked(directory / "train", 6), micro_masks.masked(directory / "test", 3, seed=1)


@pytest.mark.parametrize("protocol", [patch_knn, patch_logistic])
def test_a_protocol_segments_coloured_rectangles(protocol, sources, tmp_path):
    config = protocol.get_config()
    train, test = sources
    config.update({"train": train, "test": test, "size": 32, "batch_size": 4, "save_predictions": True, "panels": 2, "held_out": 0.3})
    if "cs" in config:
        config.cs = (0.01, 1.0)
    launch = Launch(frozenset({"size"}), file="configs/eval/x.py:a=1", values=flatten(config) | {"size": 0})
    evaluate.run(config, [micro_network.network()], tmp_path, launch)
    assert json.loads((tmp_path / "eval" / "launches" / f"{config.protocol}.json").read_text()) == {
        "config_file": "configs/eval/x.py:a=1",
        "changed": {"size": {"file": 0, "run": 32, "by": "command line"}},
    }
    report = json.loads((tmp_path / "eval" / f"{config.protocol}.json").read_text())
    raw, random, network = report["results"]
    assert (raw["name"], random["name"], network["name"]) == ("raw pixels", "random init", "micro")
    assert raw["scores"]["miou"] > 0.6  # patches of 4 of 32 pixels are cut by edges: some error is left
    assert set(network["selection_miou"]) == (
        {"0.01", "1.0"} if "cs" in config else {f"{k} {d}" for k in (1, 3, 10, 30) for d in config.distances}
    )
    assert report["images"]["train"]["read"] == 6 and report["images"]["test"]["read"] == 3
    assert set(network["scores"]) >= {"miou", "macc", "pixel_accuracy", "f", "object_iou", "background_iou"}

    folder = tmp_path / "eval" / f"{config.protocol}-micro-predictions"
    counts = np.zeros((3, 3), int)
    for number in range(3):
        truth = np.asarray(Image.open(tmp_path_of(test) / f"{number:02}.png"))
        predicted = decode_label_map((folder / f"{number:02}.png").read_bytes())
        assert predicted.shape == (40, 60)
        for row in range(3):
            counts[row] += [(predicted[truth == row] == column).sum() for column in range(3)]
    iou = counts.diagonal() / (counts.sum(0) + counts.sum(1) - counts.diagonal())
    assert network["scores"]["miou"] == pytest.approx(iou.mean())
    with open(tmp_path / "eval" / f"{config.protocol}-micro-classes.csv") as file:
        lines = list(csv.DictReader(file))
    assert [line["class"] for line in lines] == list(micro_masks.CLASSES)
    assert [float(line["iou"]) for line in lines] == pytest.approx(iou.tolist(), abs=1e-6)
    assert (tmp_path / "figures" / f"{config.protocol}-micro.png").stat().st_size > 1000


def tmp_path_of(spec: str) -> Path:
    """The directory of the label maps of a source."""
    return Path(spec.split(":")[1])


def test_mistakes_in_sources_are_told_before_anything_runs(sources, tmp_path):
    def settings_of(**changes):
        config = patch_knn.get_config()
        config.update({"train": sources[0], "test": sources[1]} | changes)
        return patch_data.PatchSettings(*(getattr(evaluate.settings(config, []), name) for name in patch_data.PatchSettings._fields))

    with pytest.raises(EvalError, match="train: found nothing, expected masks:DIR"):
        patch_data.open_sources(settings_of(train=""))
    with pytest.raises(EvalError, match="has no label maps, expected masks:DIR"):
        patch_data.open_sources(settings_of(test=f"folder:{tmp_path_of(sources[1])}"))
    with pytest.raises(EvalError, match="classes: found 5, expected 0 or 3"):
        patch_data.open_sources(settings_of(classes=5))
    opened = patch_data.open_sources(settings_of(test=sources[0], train_images=4))
    assert len(opened.positions) == 4 and len(opened.selecting) == 1 and opened.in_both == 4


def test_large_numbers_are_written_as_red_and_green():
    numbers = np.array([[3, 919]], np.uint16)
    assert decode_label_map(encode_map(numbers), coding="red_green").tolist() == [[3, 919]]


@pytest.mark.parametrize(
    ("palette", "shown"),
    [
        ([1, 2, 3, 200, 100, 50, 0, 90, 180], [[1, 2, 3], [200, 100, 50], [0, 90, 180]]),
        ([7, 7, 7] * 256, [[0, 0, 0], [128, 0, 0], [0, 128, 0]]),  # tells no classes apart: PASCAL VOC's
        ([1, 2, 3, 200, 100, 50], [[0, 0, 0], [128, 0, 0], [0, 128, 0]]),  # lacks a class
    ],
)
def test_predictions_have_the_colours_of_the_set_s_own_label_maps(tmp_path, palette, shown):
    """In the files and in the panels."""
    spec = micro_masks.masked(tmp_path, 1)
    path = tmp_path / "masks" / "00.png"
    with Image.open(path) as grey:
        numbers = np.asarray(grey)
    path.write_bytes(png(numbers, 8, 3, palette=bytes(palette)))
    source = open_masked("test", spec)
    classes = labelling(source)
    (picture,) = read_masked(source, [0], classes, LeftOut())
    np.testing.assert_array_equal(picture.truth, np.where(numbers == 255, -1, numbers.astype(int)))
    files = PictureFiles(classes, directory=tmp_path / "out", count=1)
    predicted = np.maximum(picture.truth, 0)
    files.add(picture, predicted)
    with Image.open(tmp_path / "out" / "00.png") as written:
        np.testing.assert_array_equal(np.asarray(written), predicted)
        in_file = np.asarray(written.convert("RGB"))
    _, truth, prediction, _ = panels(picture, predicted, classes)
    for pixels in (in_file, prediction, truth):
        for number in range(3):
            assert np.unique(pixels[picture.truth == number], axis=0).tolist() == [shown[number]]
