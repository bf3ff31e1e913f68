"""Test images in batches of one bucket, and the results of all of them; files and figures of the outcome."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sere_jax.commands import prepare
from sere_jax.data.annotations.placement import WholeImage
from sere_jax.data.batches.detection import buckets
from sere_jax.data.images.decode import decode
from sere_jax.evals.detection import outcome
from sere_jax.evals.detection.data import open_objects, open_sets, read_truth
from sere_jax.evals.detection.images import of_all_processes, placed_images, results_of_images
from sere_jax.evals.detection.outcome import Outcome, Row, judge, publish, unjudged_masks
from sere_jax.evals.detection.pictures import DrawnImages
from sere_jax.evals.network import EvalError
from sere_jax.evals.outcome import Images
from sere_jax.evals.pictures import LeftOut
from sere_jax.types import Detections
from tests.data.annotations.painted import Painted
from tests.data.prepare import layouts
from tests.evals.detection.jittered import results_near

CLASSES = ("one", "two", "three")
SHAPES = buckets(64, 96)


def truth_and_source(**options):
    source = Painted(crowds=(1, 4), **options)
    return read_truth(source), source


def test_every_image_is_in_one_batch_of_the_smallest_bucket():
    _, source = truth_and_source(damaged=(3,))
    left_out, placing = LeftOut(), WholeImage(64, 96)
    batches = list(placed_images(source, range(12), left_out, placing=placing, shapes=SHAPES, batch_size=2))
    assert list(left_out) == [3]
    positions = [int(position) for batch in batches for position in batch.positions if position >= 0]
    assert sorted(positions) == [i for i in range(12) if i != 3]
    for batch in batches:
        assert batch.images.shape[0] == 2
        for image, size, position in zip(batch.images, batch.sizes, batch.positions, strict=True):
            if position < 0:
                assert not image.any() and size.tolist() == [1, 1]
                continue
            placement = placing(tuple(map(int, source.shape(position))))
            assert placement.size == tuple(size) and min(size) == 64
            np.testing.assert_array_equal(image[: size[0], : size[1]], placement.image(decode(source[position].data)))
            assert batch.images.shape[1:3] in ((64, 96), (96, 64))  # upright or lying, never the square of both


def test_a_detector_that_answers_with_the_truth_has_the_precision_one():
    """Boxes go to the placed image and come back; whole boxes stand for masks, so that these are worse."""
    truth, source = truth_and_source()

    def detect(batch):
        boxes, scores = np.zeros((len(batch.positions), 5, 4), np.float32), np.zeros((len(batch.positions), 5), np.float32)
        labels, masks = np.zeros((len(batch.positions), 5), np.int32), np.ones((len(batch.positions), 5, 4, 4), np.float32)
        for row, position in enumerate(batch.positions):
            used = [one for one in source[position].annotation.instances if not one.is_crowd] if position >= 0 else []
            for place, one in enumerate(used):
                scale = batch.sizes[row] / source.shape(position)
                boxes[row, place] = np.array(one.box) * [scale[1], scale[0], scale[1], scale[0]]
                scores[row, place], labels[row, place] = 0.5 + 0.01 * place, one.label
        return Detections(*map(jnp.asarray, (boxes, scores, labels, scores > 0, masks)))

    batches = placed_images(source, range(12), LeftOut(), placing=WholeImage(64, 96), shapes=SHAPES, batch_size=3)
    results = of_all_processes(results_of_images(batches, detect, truth))
    assert [result["image_id"] for result in results] == sorted(result["image_id"] for result in results)
    scores = judge(truth, results).scores()
    assert scores["box_ap"] == pytest.approx(1.0) and 0.1 < scores["mask_ap"] < 0.9


def test_files_and_figures_of_an_outcome(tmp_path, capsys):
    truth, source = truth_and_source()
    results = results_near(truth.table, 0)
    judged = judge(truth, results)
    drawn = DrawnImages(2, dict(zip(truth.class_ids, CLASSES, strict=True)), least_score=0.3)
    for index in range(3):
        image_id = truth.image_ids[index]
        parts = [[one for one in entries if one["image_id"] == image_id] for entries in (truth.table["annotations"], results)]
        drawn.add(f"{index}.png", decode(source[index].data), source.shape(index), *parts)
    row = Row("A net", judged.scores(), judged, {}, {"step": 7}, False, drawn=drawn)
    baseline = Row("random init", {"box_ap": 0.01}, None, {}, {}, True)
    images = {"test": Images("painted", 12)}
    publish(Outcome("detection", "detection: 12 images", {"size": 64}, images, CLASSES, truth, [baseline, row]), Path(tmp_path))
    printed = capsys.readouterr().out
    assert "box AP50" in printed and "points of box AP above the best baseline" in printed and "2 crowds that count neither way" in printed
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*") if "tensorboard" not in str(path))
    assert files == [
        "eval/detection-a-net-bbox.json",
        "eval/detection-a-net-classes.csv",
        "eval/detection-a-net-segm.json",
        "eval/detection.json",
        "figures/detection-a-net-images.png",
        "figures/detection-a-net.png",
    ]
    boxes, masks = (json.loads((tmp_path / "eval" / f"detection-a-net-{kind}.json").read_text()) for kind in ("bbox", "segm"))
    assert set(boxes[0]) == {"image_id", "category_id", "bbox", "score"} and len(boxes) == len(masks) == len(results)
    assert set(masks[0]) == {"image_id", "category_id", "segmentation", "score"}
    heading, *lines = csv.reader((tmp_path / "eval" / "detection-a-net-classes.csv").read_text().splitlines())
    assert heading == ["class", "objects", "box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75"]
    assert sum(int(line[1]) for line in lines) == sum(not entry["iscrowd"] for entry in truth.table["annotations"])
    assert np.mean([float(line[2]) for line in lines]) == pytest.approx(judged.scores()["box_ap"], abs=1e-6)
    for name in ("detection-a-net", "detection-a-net-images"):
        assert np.asarray(Image.open(tmp_path / "figures" / f"{name}.png").convert("L")).std() > 10
    report = json.loads((tmp_path / "eval" / "detection.json").read_text())
    assert outcome.columns(report) == {
        "detection box AP": pytest.approx(100 * judged.scores()["box_ap"]),
        "detection mask AP": pytest.approx(100 * judged.scores()["mask_ap"]),
    }


def test_objects_of_images_that_cannot_be_read_are_not_missed():
    truth, _ = truth_and_source()
    results = [entry | {"score": 0.9} for entry in truth.table["annotations"] if not entry["iscrowd"] and entry["image_id"] != 103]
    assert judge(truth, results).scores()["box_ap"] < 0.99
    assert judge(truth, results, left_out=[3]).scores()["box_ap"] == 1.0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two prepared sets of COCO's layout: three images of which one has no object; and the same with another name for a class."""
    specs = []
    for name in ("person", "pedestrian"):
        root = tmp_path_factory.mktemp(name)
        layouts.coco(root / "in")
        path = root / "in" / "annotations" / "instances_train2017.json"
        path.write_text(path.read_text().replace("person", name))
        assert prepare.main([f"--source=coco:{root / 'in'}", f"--output={root / 'out'}", "--workers=1"]) == 0
        specs.append(f"tfds:{root / 'out'}:train")
    return specs


def test_a_prepared_set_is_trained_and_tested_on(prepared, caplog):
    train, test = open_sets(prepared[0], prepared[0])
    assert len(train) == 2 and len(test) == 3 and train.masks and train.object_ids == (1, 90)
    assert train.frames.tolist() == [[24, 40], [24, 40]]
    assert "1 of 3 images have no object to train on and are left out" in caplog.text
    assert "1 objects are not trained on: crowds, difficult ones and empty boxes" in caplog.text
    caplog.clear()
    open_sets(prepared[0], prepared[0])
    assert "reading the objects of 3 examples, once" not in caplog.text  # they lie beside the data
    truth = read_truth(test)
    assert truth.image_ids == (3, 5, 7) and truth.class_ids == (1, 90) and truth.masks
    assert [entry["iscrowd"] for entry in truth.table["annotations"]] == [0, 1, 0]


def test_sets_that_do_not_fit_are_refused(prepared, tmp_path):
    with pytest.raises(EvalError, match=r"test: .* has other classes than .* \(pedestrian, person\), expected the same"):
        open_sets(*prepared)
    with pytest.raises(EvalError, match="train: found nothing, expected a prepared set with objects"):
        open_objects("train", "")
    with pytest.raises(EvalError, match="test: 'bundled' has no objects with named classes"):
        open_objects("test", "bundled")


def test_boxes_alone_have_no_scores_of_masks():
    truth, _ = truth_and_source(boxes_alone=tuple(range(12)))
    assert not truth.masks
    results = [entry | {"score": 0.9} for entry in truth.table["annotations"] if not entry["iscrowd"]]
    assert {name.partition("_")[0] for name in judge(truth, results).scores()} == {"box"}
    assert list(unjudged_masks(truth, masks=False)) == []
    few, _ = truth_and_source(boxes_alone=(4,))  # three objects and a crowd
    assert set(judge(few, results_near(few.table, 0, masks=False)).scores()) >= {"box_ap"} and not few.masks
    assert list(unjudged_masks(few, masks=True)) == [
        "masks are not judged: 4 of 38 test objects, crowds included, have no region",
    ]
