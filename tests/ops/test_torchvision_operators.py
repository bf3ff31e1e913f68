"""Boxes, suppression, RoIAlign, anchors, matching, coding and mask targets against what torchvision's operators answered.

The answers are in tests/golden/torchvision_operators.json, made by the script beside it.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.data.annotations.placement import WholeImage, place_objects
from sere_jax.ops import boxes as box_ops
from sere_jax.ops.matching import BACKGROUND, IGNORED, mask_targets, match
from sere_jax.ops.nms import nms
from sere_jax.ops.roi_align import level_of, roi_align
from tests import micro
from tests.data.annotations.painted import instance

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "torchvision_operators.json").read_text())
DEVIATIONS = (0.1, 0.1, 0.2, 0.2)
_nms = micro.jit(nms, static_argnums=2)


def floats(part: str, key: str) -> jnp.ndarray:
    return jnp.asarray(GOLDEN[part][key], jnp.float32)


def test_overlaps_areas_and_clipping() -> None:
    a, b = floats("boxes", "a"), floats("boxes", "b")
    np.testing.assert_allclose(box_ops.areas(a), floats("boxes", "areas"), rtol=1e-6)
    np.testing.assert_allclose(box_ops.iou(a[:, None], b[None]), floats("boxes", "iou"), atol=1e-6)
    np.testing.assert_allclose(box_ops.giou(a[:, None], b[None]), floats("boxes", "giou"), atol=1e-6)
    np.testing.assert_array_equal(box_ops.clip(a - 8, 32, 48), floats("boxes", "clipped"))


@pytest.mark.parametrize("threshold", ["0.3", "0.5", "0.7"])
def test_suppression_with_ties(threshold: str) -> None:
    boxes, scores, groups = floats("suppression", "boxes"), floats("suppression", "scores"), jnp.asarray(GOLDEN["suppression"]["groups"])
    kept = _nms(boxes, scores, float(threshold))
    assert np.flatnonzero(kept).tolist() == GOLDEN["suppression"]["kept"][threshold]
    kept = _nms(boxes, scores, float(threshold), groups=groups)
    assert np.flatnonzero(kept).tolist() == GOLDEN["suppression"]["kept_of_groups"][threshold]


def test_aligned_regions() -> None:
    aligned = roi_align(floats("alignment", "features"), floats("alignment", "boxes"), 3, 8.0)
    np.testing.assert_allclose(aligned, floats("alignment", "aligned"), atol=1e-5)  # features up to 8, in float32


def test_levels_of_regions() -> None:
    sides = floats("alignment", "sides")
    boxes = jnp.stack([jnp.zeros_like(sides)] * 2 + [sides, sides], axis=1)
    assert level_of(boxes, 4).tolist() == GOLDEN["alignment"]["levels"]


def test_anchors_but_for_torchvisions_rounding() -> None:
    """torchvision rounds the corners of an anchor to whole pixels; MMDetection does not."""
    levels = [box_ops.anchors(rows, columns, stride, size).reshape(-1, 4) for rows, columns, stride, size in GOLDEN["anchors"]["levels"]]
    np.testing.assert_array_equal(np.round(np.concatenate(levels)), floats("anchors", "anchors"))


def test_matching_of_anchors_and_of_a_stages_regions() -> None:
    """The scene has a good box for each object, so that MMDetection's least IoU of 0.3 for an object's best box does not matter."""
    boxes, objects = floats("matching", "boxes"), floats("matching", "objects")
    assert {BACKGROUND, IGNORED, 0, 1, 2} == set(GOLDEN["matching"]["anchors"])
    everything = {"valid_boxes": jnp.ones(len(boxes), bool), "valid_objects": jnp.ones(len(objects), bool)}
    anchors = match(boxes, objects, **everything, positive=0.7, negative=0.3, lowest=0.3)
    assert anchors.tolist() == GOLDEN["matching"]["anchors"]
    stage = match(boxes, objects, **everything, positive=0.5, negative=0.5)
    assert stage.tolist() == GOLDEN["matching"]["stage"]


def test_coding_and_decoding() -> None:
    boxes, references = floats("coding", "boxes"), floats("coding", "references")
    np.testing.assert_allclose(box_ops.encode(boxes, references, DEVIATIONS), floats("coding", "encoded"), atol=1e-5)
    decoded = box_ops.decode(floats("coding", "codes"), references, DEVIATIONS)
    # Sides of up to 62.5 times 40 pixels, in float32.
    np.testing.assert_allclose(decoded, floats("coding", "decoded"), rtol=1e-5, atol=1e-4)


def test_mask_targets_are_aligned_masks_from_one_half() -> None:
    cells = np.array([[int(cell) for cell in one] for one in GOLDEN["masks"]["cells"]], bool).reshape(-1, 16, 16)
    shares = np.asarray(floats("masks", "shares"))
    drawn = np.asarray(mask_targets(jnp.asarray(cells), floats("masks", "objects"), floats("masks", "regions"), shares.shape[-1]))
    sure = np.abs(shares - 0.5) > 1e-4  # elsewhere float32 may round to the other side
    assert sure.mean() > 0.9 and drawn.any() and not drawn.all()
    np.testing.assert_array_equal(drawn[sure], (shares >= 0.5)[sure])


def test_a_masks_way_through_its_112_cells_costs_little() -> None:
    """Targets from a placed mask, which has 112 x 112 cells over its box, against those from the mask's pixels."""
    rows, columns = np.mgrid[:120, :160]
    ellipse = ((columns + 0.5 - 80) / 60) ** 2 + ((rows + 0.5 - 60) / 40) ** 2 < 1
    placement = WholeImage(120, 160)((120, 160))
    placed = place_objects((instance(ellipse, 0),), (120, 160), (120, 160), placement, count=1, masks=True)
    expected = np.array([[int(cell) for cell in one] for one in GOLDEN["masks"]["ellipse"]], bool).reshape(-1, 28, 28)
    regions = floats("masks", "ellipse_regions")
    masks, boxes = (jnp.repeat(jnp.asarray(array), len(regions), axis=0) for array in (placed.masks, placed.boxes))
    drawn = mask_targets(masks, boxes, regions, 28)
    assert 0.2 < expected.mean() < 0.9
    assert (drawn == expected).mean() > 0.99  # cells on the border alone may differ
