"""The outcome of a classification: scores against hand-made cases and scikit-learn, and what the files hold."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from tensorboardX.proto.event_pb2 import Event

from sere_jax.evals import outcome
from sere_jax.evals.network import EvalError
from sere_jax.evals.outcome import Images, Outcome, Predictions

CLASSES = ("apple", "pear", "caf\udce9")  # the last is a folder's name that is not UTF-8


@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_scores_and_counts_are_scikit_learn_s(seed, classes, images):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(images, classes)).astype(np.float32), rng.integers(0, classes, images)
    found, predicted = outcome.score(logits, labels), logits.argmax(1)
    assert found["top1"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    recalls = metrics.recall_score(labels, predicted, average=None, labels=np.unique(labels), zero_division=0)
    assert found["per_class"] == pytest.approx(recalls.mean())
    assert ("top5" in found) == (classes > 5)
    if classes > 5:
        assert found["top5"] == pytest.approx(metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(classes)))
    np.testing.assert_array_equal(outcome.confusion(logits, labels), metrics.confusion_matrix(labels, predicted, labels=range(classes)))


def test_logits_below_zero_count_and_logits_that_are_not_numbers_are_refused():
    assert outcome.score(np.array([[-1.0, -2.0]]), np.array([0]))["top1"] == 1
    assert outcome.score(np.array([[-1.0, -1.0]]), np.array([1]))["top1"] == 0  # equal: the lower class is predicted
    with pytest.raises(EvalError, match="1 of 2 images"):
        outcome.score(np.array([[np.nan, 0.0], [0.0, 1.0]]), np.array([0, 1]))
    with pytest.raises(EvalError, match="-1 to 0; expected 0 to 1"):
        outcome.score(np.zeros((2, 2)), np.array([-1, 0]))
    with pytest.raises(EvalError, match="no images"):
        outcome.score(np.zeros((0, 2)), np.zeros(0, int))


def _published(directory, save_predictions=True):
    labels, positions = np.array([0, 0, 1, 2]), np.array([0, 1, 3, 4])
    logits = np.array([[3, 1, 0], [0, 2, 1], [0, 2, 1], [1, 0, 0]], np.float32)
    about = {"checkpoint": "runs/a", "network": "teacher", "step": 7}
    rows = [
        outcome.row("random init", Predictions(np.zeros((4, 3)), labels, positions), about={"seed": 3}, baseline=True),
        outcome.row("ViT S", Predictions(logits, labels, positions), head={"C": 0.1}, about=about, extra={"last_top1": 0.25}),
    ]
    images = {"train": Images("folder:train", 9), "test": Images("folder:test", 4, ["broken.png"])}
    made = Outcome("logistic", "logistic regression", {"C": (0.1, 1.0), "seed": 3}, images, CLASSES, rows)
    outcome.publish(made, directory, save_predictions=save_predictions)
    return logits, labels


def test_the_table_tells_scores_protocol_images_baseline_and_origin(tmp_path, capsys):
    _published(tmp_path)
    printed = capsys.readouterr().out
    for text in (
        "protocol logistic: C=(0.1, 1.0), seed=3",
        "train: 9 images of folder:train",
        "1 of 5 test images cannot be read and is left out: broken.png",
        "ViT S: checkpoint runs/a, network teacher, step 7",
        "ViT S: 0.0 points above the best baseline, random init",
        "4 test images: a top-1 accuracy of 50.0 % has a standard error of 25.0 points",
    ):
        assert text in printed
    report = json.loads((tmp_path / "eval" / "logistic.json").read_text())
    # Two of four images; of the classes one half, all and none.
    assert report["results"][1]["scores"] == {"top1": 0.5, "per_class": 0.5, "last_top1": 0.25}
    assert report["images"]["test"] == {"source": "folder:test", "read": 4, "left_out": ["broken.png"]}
    assert outcome.columns(report) == {"logistic top-1": 50.0}


def test_files_hold_predictions_confusion_and_scalars(tmp_path):
    logits, labels = _published(tmp_path)
    with np.load(tmp_path / "eval" / "logistic-vit-s-predictions.npz") as saved:
        np.testing.assert_array_equal(saved["logits"], logits)
        np.testing.assert_array_equal(saved["labels"], labels)
        assert saved["positions"].tolist() == [0, 1, 3, 4] and tuple(saved["classes"]) == CLASSES
    assert (tmp_path / "eval" / "logistic-random-init-predictions.npz").exists()
    with (tmp_path / "eval" / "logistic-vit-s-classes.csv").open(encoding="utf-8") as file:
        lines = list(csv.reader(file))
    assert lines[1:] == [
        ["apple", "2", "1", "0.5", "pear", "1"],
        ["pear", "1", "1", "1.0", "", "0"],
        [r"caf\udce9", "1", "0", "0.0", "apple", "1"],
    ]
    with (tmp_path / "eval" / "logistic-vit-s-confusion.csv").open(encoding="utf-8") as file:
        assert [line[1:] for line in csv.reader(file)][1:] == [["1", "1", "0"], ["0", "1", "0"], ["1", "0", "0"]]
    assert (tmp_path / "figures" / "logistic-vit-s.png").read_bytes().startswith(b"\x89PNG")
    (events,) = (tmp_path / "eval" / "tensorboard" / "vit-s").iterdir()
    assert {(step, tag): value for step, tag, value in _scalars(events)}[7, "logistic/top1"] == 0.5


def _scalars(path):
    """(step, tag, value) of a TensorBoard file: 8 bytes of length, 4 of checksum, the event, 4 of checksum."""
    data = path.read_bytes()
    while data:
        length = int.from_bytes(data[:8], "little")
        event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
        yield from ((event.step, value.tag, value.simple_value) for value in event.summary.value)


def test_predictions_are_saved_only_on_request(tmp_path):
    _published(tmp_path, save_predictions=False)
    assert not list(tmp_path.rglob("*.npz"))


def test_the_figure_of_many_classes_has_no_names(tmp_path):
    from sere_jax.evals.figures import confusion

    counts = np.diag(np.arange(120))
    assert confusion.draw(tmp_path / "many.png", counts, [f"class {i} $x" for i in range(120)], "many").exists()
