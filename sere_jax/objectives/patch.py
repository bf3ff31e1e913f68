"""What iBOT and DINO+ add to DINO: the student predicts the teacher's prototype assignment of single patches.

Both use DINO's own head for patches too (iBOT's shared head), with a center of their own. Their cls loss is `objectives.dino`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sere_jax.losses.dense import patch_cross_entropy
from sere_jax.losses.distillation import entropy, teacher_probabilities, update_center
from sere_jax.objectives.base import Applied
from sere_jax.objectives.dino import logits, mean_logits
from sere_jax.ops.geometry import overlap
from sere_jax.ops.patches import gather_patches
from sere_jax.types import Array, Objective, Outputs, PrototypeOutput, PyTree, Request, Schedule, Views

STUDENT_MASKED = Request("dino", "global", "masked", "post", "student")
TEACHER_PATCHES = Request("dino", "global", "patches", "post", "teacher")
STUDENT_ALIGNED, TEACHER_ALIGNED = (Request("dino", "global", "aligned", "post", side) for side in ("student", "teacher"))


def patch(*, prototypes: int, student_temp: float, teacher_temp: Schedule, center_momentum: float) -> Objective:
    """iBOT's masked image modelling: hidden patches of a view against the teacher's patches of the same view.

    Averaged over a view's hidden patches, then over views and batch; a view where nothing is hidden counts as 0. The state is
    the patch center [1, K], from the teacher's logits of all patches. Source: Zhou et al. 2022 (iBOT), equation 2.
    """

    def apply(outputs: Outputs, views: Views, state: PyTree, step: jax.Array) -> Applied:
        teacher, indices = jax.lax.stop_gradient(outputs[TEACHER_PATCHES]), _indices(views)
        b, v, h, w, e = teacher.bottleneck.shape
        hidden = PrototypeOutput(gather_patches(teacher.bottleneck, indices), teacher.prototypes)
        counted = jnp.asarray(indices) >= 0
        targets = teacher_probabilities(logits(hidden), state["center"], teacher_temp(step))
        per_view = patch_cross_entropy(targets, logits(outputs[STUDENT_MASKED]), counted, student_temp)
        # Linear: the mean logits are the mean bottleneck's logits, so no logits of all patches are made.
        everything = PrototypeOutput(teacher.bottleneck.reshape(b, v * h * w, e), teacher.prototypes)
        center = update_center(state["center"], mean_logits(everything), center_momentum)
        loss = jnp.mean(per_view)
        metrics = {
            "patch": loss,
            "patch_masked": _mean_where(jnp.any(counted, axis=-1), per_view),
            "masked_share": jnp.sum(counted) / (b * v * h * w),
            "patch_center_norm": jnp.linalg.norm(center),
        }
        return loss, {"center": center}, metrics

    # Of the mean with its zeros nothing can be said beforehand: how many views have hidden patches is drawn.
    references = {"patch_masked": math.log(prototypes)}
    return Objective((STUDENT_MASKED, TEACHER_PATCHES), _center_of(prototypes), apply, references)


def aligned(*, prototypes: int, student_temp: float, teacher_temp: Schedule, center_momentum: float) -> Objective:
    """DINO+'s clustering of patches: both crops' features at the same source points, student's view j against teacher's i != j.

    Averaged over the points of the crops' overlap and over the examples whose crops overlap. The state is the patch center
    [1, K] from the same points. Source: TPAMI Table 10, which says no more than "clustering loss on patch embeddings".
    """

    def apply(outputs: Outputs, views: Views, state: PyTree, step: jax.Array) -> Applied:
        teacher, boxes = jax.lax.stop_gradient(outputs[TEACHER_ALIGNED]), jnp.asarray(views.boxes)
        valid = overlap(boxes[:, 0], boxes[:, 1]).valid
        targets = teacher_probabilities(logits(teacher), state["center"], teacher_temp(step))
        counted = jnp.broadcast_to(valid[:, None, None], targets.shape[:-1])
        per_view = patch_cross_entropy(targets[:, ::-1], logits(outputs[STUDENT_ALIGNED]), counted, student_temp)
        loss = _mean_where(counted[..., 0], per_view)
        # Scaled so that the mean over all examples is the mean over those that overlap.
        share = valid.astype(jnp.float32) / jnp.maximum(jnp.mean(valid.astype(jnp.float32)), 1.0 / valid.shape[0])
        weighted = PrototypeOutput(jnp.mean(teacher.bottleneck, axis=2) * share[:, None, None], teacher.prototypes)
        center = update_center(state["center"], mean_logits(weighted), center_momentum)
        metrics = {"aligned": loss, "aligned_entropy": entropy(targets), "aligned_center_norm": jnp.linalg.norm(center)}
        return loss, {"center": center}, metrics

    references = {"aligned": math.log(prototypes), "aligned_entropy": math.log(prototypes)}
    return Objective((STUDENT_ALIGNED, TEACHER_ALIGNED), _center_of(prototypes), apply, references)


def _center_of(prototypes: int) -> Callable[[], PyTree]:
    return lambda: {"center": jnp.zeros((1, prototypes), jnp.float32)}


def _indices(views: Views) -> Array:
    if views.mask_indices is None:
        raise ValueError("the patch loss needs masks; the views have no mask_indices")
    return views.mask_indices


def _mean_where(counted: jax.Array, values: jax.Array) -> jax.Array:
    """The mean of the values that count; 0 where none does."""
    return jnp.sum(jnp.where(counted, values, 0.0)) / jnp.maximum(jnp.sum(counted), 1)
