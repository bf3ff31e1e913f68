"""Scores of segmentations against hand-made cases, scikit-learn and loops; label maps of VOC, ADE20K and ImageNet-S."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from torch.nn import functional as F

from sere_jax.data.annotations.maps import NO_MAP, decode_label_map
from sere_jax.evals.network import EvalError
from sere_jax.evals.segmentation import scores
from sere_jax.evals.segmentation.labelling import NONE, Labelling
from sere_jax.evals.segmentation.outcome import Tally
from sere_jax.evals.segmentation.stretch import stretched_classes, stretched_to_limit
from tests.data.annotations.pngs import png


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_scores_are_scikit_learns(seed, classes):
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(-1, classes, (7, 9)), rng.integers(0, classes, (7, 9))
    truth[0, 0] = 0
    counts = scores.confusion(truth, predicted, classes)
    counted = truth >= 0
    t, p = truth[counted], predicted[counted]
    assert (counts == metrics.confusion_matrix(t, p, labels=range(classes))).all()
    labels = np.union1d(t, p)
    found = scores.score(counts)
    assert found["miou"] == pytest.approx(metrics.jaccard_score(t, p, labels=labels, average="macro"))
    assert found["macc"] == pytest.approx(metrics.recall_score(t, p, labels=np.unique(t), average="macro", zero_division=0))
    assert found["pixel_accuracy"] == pytest.approx(metrics.accuracy_score(t, p))
    f = metrics.fbeta_score(t > 0, p > 0, beta=np.sqrt(0.3), zero_division=0)
    assert scores.f_measure(counts) == pytest.approx(f)
    binary = scores.binary(counts)
    assert binary.object_iou == pytest.approx(metrics.jaccard_score(t > 0, p > 0, zero_division=0))
    assert binary.background_iou == pytest.approx(metrics.jaccard_score(t == 0, p == 0, zero_division=0)) and binary.f == pytest.approx(f)


def test_an_absent_class_is_skipped_or_counts_as_zero():
    counts = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]])  # class 1 is predicted but nowhere, class 2 is neither
    assert scores.score(counts)["miou"] == pytest.approx((0.75 + 0) / 2)
    assert scores.score(counts, "zero")["miou"] == pytest.approx(0.75 / 3)
    assert scores.score(counts)["macc"] == 0.75 and scores.score(counts, "zero")["macc"] == 0.25
    assert np.isnan(scores.class_iou(counts)[2])


def test_nothing_predicted_has_f_zero_and_nothing_counted_is_an_error():
    assert scores.f_measure(np.array([[4, 0], [3, 0]])) == 0.0
    with pytest.raises(EvalError, match="no pixel that counts"):
        scores.score(np.zeros((2, 2), int))


def test_an_image_whose_pixels_are_all_ignored_counts_as_f_zero_in_the_mean_alone():
    """ImageNet-S divides by the number of all images."""
    tally = Tally(2)
    truth = np.array([[0, 1], [0, 1]])
    tally.add(truth, truth)
    tally.add(np.full((2, 2), NONE), truth)
    found = tally.scores(objects=True)
    assert tally.images == 2 and found["f"] == 0.5
    assert found["miou"] == found["object_iou"] == found["f_of_all_pixels"] == pytest.approx(1.0)


def test_numbers_of_the_data_sets_become_classes():
    voc = Labelling(tuple("abc"))
    assert voc.targets(np.array([[0, 2, 255]], np.uint16)).tolist() == [[0, 2, NONE]]
    ade = Labelling(tuple("abc"), zero_ignored=True)
    targets = ade.targets(np.array([[0, 1, 3, 255]], np.uint16))
    assert targets.tolist() == [[NONE, 0, 2, NONE]]
    assert ade.numbers(targets[:, 1:3]).tolist() == [[1, 3]]
    with pytest.raises(EvalError, match=r"x.jpg: found 3 in the label map, expected 0 to 2 or an ignored number, 255"):
        voc.targets(np.array([[3]], np.uint16), "x.jpg")
    with pytest.raises(EvalError, match="no label map"):
        voc.targets(np.full((2, 2), NO_MAP, np.uint16))


def test_imagenet_s_maps_are_red_and_green_with_1000_ignored():
    numbers = np.array([[0, 919], [1000, 151 + 256 * 3]])
    decoded = decode_label_map(png(np.stack([numbers % 256, numbers // 256, np.zeros_like(numbers)], -1), 8, 2), coding="red_green")
    targets = Labelling(tuple(map(str, range(920))), ignored=(1000,)).targets(decoded)
    assert targets.tolist() == [[0, 919], [NONE, 919]]


@given(st.integers(0, 10_000), st.sampled_from([(3, 5), (9, 6), (1, 1), (13, 4)]), st.sampled_from([1, 3, 17, 40]))
def test_logits_are_stretched_as_torch_does(seed, shape, classes):
    logits = np.random.default_rng(seed).normal(size=(3, 4, classes)).astype(np.float32)
    large = F.interpolate(torch.tensor(logits).permute(2, 0, 1)[None].double(), shape, mode="bilinear", align_corners=False)[0]
    found = stretched_classes(logits, shape)
    # float32 against float64: another class may win only by a rounding error
    taken = np.take_along_axis(large.numpy(), found[None], axis=0)[0]
    np.testing.assert_allclose(taken, large.numpy().max(axis=0), atol=1e-5)


def test_large_images_are_stretched_to_1000_and_then_by_the_nearest():
    logits = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
    assert (stretched_to_limit(logits, (20, 30)) == stretched_classes(logits, (20, 30))).all()
    large = stretched_to_limit(logits, (1000, 2000), most=1_000_000)
    small = stretched_classes(logits, (500, 1000))
    assert large.shape == (1000, 2000) and (large[::2, ::2] == small).all() and (large[1::2, 1::2] == small).all()
