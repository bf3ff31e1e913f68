"""The losses of a detector's answer, each by its name: `losses.detection` on what `models.dense.detector` returns."""

from __future__ import annotations

from sere_jax.losses import detection
from sere_jax.models.dense.cascade import STAGES
from sere_jax.models.dense.detector import TrainingOutput
from sere_jax.types import Metrics


def losses(output: TrainingOutput) -> Metrics:
    """Every part of the loss, times its weight: their sum is trained. A stage's weight is on its masks too.

    Names: `anchors/objectness`, `anchors/boxes`, and for each stage i `stage_i/classes`, `stage_i/boxes` and, with masks, `stage_i/masks`.
    """
    targets = output.anchors.targets
    parts = {
        "anchors/objectness": detection.objectness_loss(output.anchors.objectness, targets.positive, targets.valid),
        "anchors/boxes": detection.code_loss(output.anchors.codes, targets.codes, targets.positive, targets.valid),
    }
    for i, (stage, answer) in enumerate(zip(STAGES, output.stages, strict=True), 1):
        regions = answer.regions
        parts[f"stage_{i}/classes"] = stage.weight * detection.class_loss(answer.logits, regions.labels, regions.valid)
        parts[f"stage_{i}/boxes"] = stage.weight * detection.box_loss(answer.boxes, regions.targets, regions.positive, regions.valid)
        if answer.masks is not None:
            parts[f"stage_{i}/masks"] = stage.weight * detection.mask_loss(*answer.masks)
    return parts
