"""Average precision is pycocotools', with crowds, ties and classes without objects; result files and pasted masks are COCO's."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sere_jax.data.annotations.regions import decode_region
from sere_jax.data.sources.annotation import Annotation, Instance
from sere_jax.evals.detection.results import paste, results_of
from sere_jax.evals.detection.scores import KINDS, precision, truth_of
from sere_jax.evals.network import EvalError
from sere_jax.types import Detections
from tests.data.annotations.painted import Painted
from tests.evals.detection.jittered import coco_scores, results_near

pytest.importorskip("pycocotools")
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def painted_truth():
    """12 images, a crowd in three of them, a fourth class without objects."""
    source = Painted(crowds=(1, 4, 7))
    return truth_of((source[index].annotation for index in range(12)), ("one", "two", "three", "none"), (3, 5, 9, 20))


def check(table, results, kind):
    """All precisions and the summary; a range of areas without objects is -1 there and missing here."""
    expected, summary = coco_scores(table, results, kind)
    found = precision(table, results, kind)
    np.testing.assert_allclose(np.where(np.isnan(found.values), -1, found.values), expected, rtol=0, atol=1e-9)
    scores = found.scores()
    for name, value in zip(NAMES, summary, strict=True):
        assert scores.get(name, -1.0) == pytest.approx(value, abs=1e-9)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_are_those_of_pycocotools(kind, seed, capsys):
    truth = painted_truth()
    assert truth.masks and truth.class_ids == (3, 5, 9, 20) and truth.image_ids == tuple(range(100, 112))
    found = check(truth.table, results_near(truth.table, seed), kind)
    scores = found.scores()
    assert 0.05 < scores["ap"] < 0.9 and scores["ap50"] > scores["ap75"]
    of_classes = found.of_classes()
    assert np.isnan(of_classes[3]).all() and np.nanmean(of_classes[:, 0]) == pytest.approx(scores["ap"])
    assert found.curves()[0].mean() == pytest.approx(scores["ap50"])


@pytest.mark.slow
@pytest.mark.skipif("SERE_JAX_COCO100" not in os.environ, reason="SERE_JAX_COCO100 is no directory of instances.json")
@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_photographs_are_those_of_pycocotools(kind, capsys):
    table = json.loads((Path(os.environ["SERE_JAX_COCO100"]) / "instances.json").read_text())
    for entry in table["annotations"][::20]:
        entry["iscrowd"] = 1
    check(table, results_near(table, 0), kind)


def test_without_results_all_scores_are_zero_and_unknown_ones_are_refused():
    truth = painted_truth()
    assert set(precision(truth.table, [], "bbox").scores().values()) == {0.0}
    [result, *_] = results_near(truth.table, 0)
    with pytest.raises(EvalError, match="found the image_id 7, which is none of the 12 images"):
        precision(truth.table, [result | {"image_id": 7}], "bbox")
    with pytest.raises(EvalError, match="found the category_id 4, which is none of the 4 categories"):
        precision(truth.table, [result | {"category_id": 4}], "bbox")


def test_the_truth_itself_has_the_precision_one():
    truth = painted_truth()
    results = [entry | {"score": 0.5} for entry in truth.table["annotations"] if not entry["iscrowd"]]
    for kind in KINDS:
        assert all(score == 1.0 for score in precision(truth.table, results, kind).scores().values())


def test_what_cannot_be_judged_is_refused():
    box = Instance(0, (1.0, 1.0, 5.0, 5.0))
    with pytest.raises(EvalError, match="test image 1: found no objects in pixels"):
        truth_of([Annotation(None, (box,), (9, 9)), Annotation(None, (Instance(0, (0.1, 0.0, 0.5, 1.0)),), (1, 1))], ("one",))
    with pytest.raises(EvalError, match="found 1 images with the number of another"):
        truth_of([Annotation(None, (box,), (9, 9), 4)] * 2, ("one",))
    with pytest.raises(EvalError, match="found no object"):
        truth_of([Annotation(None, (box._replace(is_crowd=True),), (9, 9))], ("one",))
    truth = truth_of([Annotation(None, (box,), (9, 9)), Annotation(None, (), (9, 9))], ("one", "two"))
    assert truth.image_ids == (0, 1) and truth.class_ids == (1, 2) and not truth.masks
    assert truth.table["annotations"][0]["area"] == 16 and truth.table["annotations"][0]["id"] == 1
    pixel = truth_of([Annotation(None, (Instance(0, (0.0, 0.0, 1.0, 1.0)),), (1, 1))], ("one",))  # an image of 1 x 1, no shares
    assert pixel.table["annotations"][0]["bbox"] == [0, 0, 1, 1]


def bilinear(mask, box, height, width):
    """The probability at the centre of every pixel, by a loop; cells outside the grid count as 0."""
    cells = mask.shape[0]
    padded = np.pad(mask, 1)
    result = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            place = [(y + 0.5 - box[1]) / (box[3] - box[1]) * cells + 0.5, (x + 0.5 - box[0]) / (box[2] - box[0]) * cells + 0.5]
            if not all(0 <= one < cells + 1 for one in place):
                continue
            (i, j), (a, b) = (np.floor(place).astype(int), np.asarray(place) % 1)
            corner = padded[i : i + 2, j : j + 2]
            result[y, x] = np.array([1 - a, a]) @ corner @ np.array([1 - b, b])
    return result


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), cells=st.sampled_from([1, 2, 7]))
def test_pasted_masks_are_those_of_a_loop_over_pixels(seed, cells):
    rng = np.random.default_rng(seed)
    mask = rng.random((cells, cells))
    left, top = rng.uniform(-5, 20, 2)
    box = np.array([left, top, left + rng.uniform(0.3, 20), top + rng.uniform(0.3, 20)])
    expected = bilinear(mask, box, 13, 17)
    sure = np.abs(expected - 0.5) > 1e-9
    np.testing.assert_array_equal(paste(mask, box, (13, 17))[sure], (expected >= 0.5)[sure])
    assert not paste(mask, np.array([3.0, 3.0, 3.0, 9.0]), (13, 17)).any()


def test_results_are_in_pixels_of_the_annotated_image():
    masks = np.zeros((3, 4, 4), np.float32)
    masks[1, :2] = 0.9
    detections = Detections(
        boxes=np.array([[0, 0, 20, 10], [10, 10, 30, 50], [0, 0, 0, 0]], np.float32),
        scores=np.array([0.75, 0.5, 0], np.float32),
        labels=np.array([1, 0, 0]),
        valid=np.array([True, True, False]),
        masks=masks,
    )
    first, second = results_of(detections, (40, 60), image_id=7, frame=(20, 30), class_ids=(1, 90))
    assert first["image_id"] == 7 and first["category_id"] == 90 and first["bbox"] == [0, 0, 10, 5] and first["score"] == 0.75
    assert second["bbox"] == [5, 5, 10, 15]  # the lower edge is the image's
    mask = decode_region(second["segmentation"], 20, 30)
    assert mask[6:12, 6:14].all() and not mask[13:].any() and not mask[:, :5].any()  # corners are below one half
    assert "segmentation" not in results_of(detections._replace(masks=None), (40, 60), image_id=7, frame=(20, 30), class_ids=(1, 90))[0]
    assert json.dumps([first, second])
