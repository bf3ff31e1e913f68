"""The patch losses of iBOT and DINO+: the student predicts the teacher's prototype assignment of single patches.

Both share DINO's head between cls token and patches, and keep a separate center for patches. Their cls loss is `objectives.dino`.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from sere_jax.losses.dense import mean_of_counted, token_cross_entropy
from sere_jax.losses.distillation import teacher_probabilities, token_entropy, update_center
from sere_jax.objectives.base import Applied
from sere_jax.objectives.dino import logits, mean_logits, zero_center
from sere_jax.ops.geometry import overlaps
from sere_jax.ops.patches import gather_patches
from sere_jax.types import Array, Objective, Outputs, PrototypeOutput, PyTree, Request, Schedule, Views

STUDENT_MASKED = Request("dino", "global", "masked", "post", "student")
TEACHER_PATCHES = Request("dino", "global", "patches", "post", "teacher")
STUDENT_ALIGNED, TEACHER_ALIGNED = (Request("dino", "global", "aligned", "post", side) for side in ("student", "teacher"))
PATCH_REQUESTS, ALIGNED_REQUESTS = (STUDENT_MASKED, TEACHER_PATCHES), (STUDENT_ALIGNED, TEACHER_ALIGNED)


# The most bytes of one side's logits on a device at a time.
MAX_BYTES_OF_LOGITS = 2**28


class Compared(NamedTuple):
    """Of each token, [b, v, t]: the student's cross-entropy against the teacher, and the entropy of the teacher's assignment."""

    cross_entropy: jax.Array
    target_entropy: jax.Array


def compare(
    teacher: PrototypeOutput, student: PrototypeOutput, center: jax.Array, teacher_temp: jax.Array, student_temp: float
) -> Compared:
    """Compare tokens [b, v, t, e] of both sides by their prototype assignments.

    Where the logits of all tokens need more than `MAX_BYTES_OF_LOGITS` on a device, the tokens of a view take turns, and the backward
    pass computes the logits of a turn again: the memory then depends neither on the number of tokens nor on that of prototypes.
    """

    def of_turn(bottlenecks: tuple[Array, Array]) -> Compared:
        ours, theirs = (logits(side._replace(bottleneck=part)) for side, part in zip((student, teacher), bottlenecks, strict=True))
        targets = teacher_probabilities(theirs, center, teacher_temp)
        return Compared(token_cross_entropy(targets, ours, student_temp), token_entropy(targets))

    tokens = student.bottleneck.shape[2]
    turns = _turns(student)
    if turns == 1:
        return of_turn((student.bottleneck, teacher.bottleneck))
    missing = -tokens % turns

    def cut(bottleneck: Array) -> jax.Array:
        padded = jnp.pad(bottleneck, ((0, 0), (0, 0), (0, missing), (0, 0)))
        return rearrange(padded, "b v (turns t) e -> turns b v t e", turns=turns)

    compared = jax.lax.map(jax.checkpoint(of_turn), (cut(student.bottleneck), cut(teacher.bottleneck)))
    return Compared(*(rearrange(part, "turns b v t -> b v (turns t)")[..., :tokens] for part in compared))


def _turns(student: PrototypeOutput) -> int:
    """In how many turns the tokens of a view are compared; prototypes [r, k, e] are the copies of r devices."""
    b, v, t, _ = student.bottleneck.shape
    devices = student.prototypes.shape[0] if student.prototypes.ndim == 3 else 1
    of_a_token = 4 * student.prototypes.shape[-2] * b * v // devices
    return max(1, min(t, math.ceil(t * of_a_token / MAX_BYTES_OF_LOGITS)))


def patch(*, prototypes: int, student_temp: float, teacher_temp: Schedule, center_momentum: float) -> Objective:
    """iBOT's masked image modelling: hidden patches of a view against the teacher's patches of the same view.

    Averaged over a view's hidden patches, then over views and batch; a view where nothing is hidden counts as 0. The state is
    the patch center [1, K], from the teacher's logits of all patches. Source: Zhou et al. 2022 (iBOT), equation 2.
    """

    def apply(outputs: Outputs, views: Views, state: PyTree, step: jax.Array) -> Applied:
        teacher, indices = outputs[TEACHER_PATCHES], _indices(views)
        b, v, h, w, _ = teacher.bottleneck.shape
        hidden = PrototypeOutput(gather_patches(teacher.bottleneck, indices), teacher.prototypes)
        counted = jnp.asarray(indices) >= 0
        compared = compare(hidden, outputs[STUDENT_MASKED], state["center"], teacher_temp(step), student_temp)
        per_view = mean_of_counted(compared.cross_entropy, counted)
        # Linear: the mean logits are the mean bottleneck's logits, so no logits of all patches are made.
        everything = PrototypeOutput(rearrange(teacher.bottleneck, "b v h w e -> b (v h w) e"), teacher.prototypes)
        loss = jnp.mean(per_view)
        hidden_views = jnp.any(counted, axis=-1)
        metrics = {
            "patch": loss,
            "patch_masked": _mean_where(hidden_views, per_view),
            "patch_entropy": _mean_where(hidden_views, mean_of_counted(compared.target_entropy, counted)),
            "masked_share": jnp.sum(counted) / (b * v * h * w),
            "patch_center_norm": jnp.linalg.norm(state["center"]),
        }
        return loss, {"mean_logits": mean_logits(everything)}, metrics

    def update(state: PyTree, statistics: PyTree) -> PyTree:
        return {"center": update_center(state["center"], statistics["mean_logits"], center_momentum)}

    # `patch` has no reference: views without hidden patches count as 0, and their number is random.
    references = {"patch_masked": math.log(prototypes), "patch_entropy": math.log(prototypes)}
    return Objective(PATCH_REQUESTS, functools.partial(zero_center, prototypes), apply, update, references)


def aligned(*, prototypes: int, student_temp: float, teacher_temp: Schedule, center_momentum: float) -> Objective:
    """DINO+'s clustering of patches: both crops' features at the same source points, student's view j against teacher's i != j.

    Averaged over the points of the crops' overlap and over the examples whose crops overlap. The state is the patch center
    [1, K] from the same points. Source: TPAMI Table 10, which only says "clustering loss on patch embeddings".
    """

    def apply(outputs: Outputs, views: Views, state: PyTree, step: jax.Array) -> Applied:
        teacher, boxes = outputs[TEACHER_ALIGNED], jnp.asarray(views.boxes)
        valid = overlaps(boxes[:, 0], boxes[:, 1])
        crossed = teacher._replace(bottleneck=teacher.bottleneck[:, ::-1])
        compared = compare(crossed, outputs[STUDENT_ALIGNED], state["center"], teacher_temp(step), student_temp)
        counted = jnp.broadcast_to(valid[:, None, None], compared.cross_entropy.shape)
        per_view = mean_of_counted(compared.cross_entropy, counted)
        loss = _mean_where(counted[..., 0], per_view)
        share = jnp.mean(valid, dtype=jnp.float32)
        overlapping = PrototypeOutput(jnp.mean(teacher.bottleneck, axis=2) * valid[:, None, None], teacher.prototypes)
        metrics = {
            "aligned": loss,
            "aligned_entropy": jnp.mean(compared.target_entropy),
            "aligned_center_norm": jnp.linalg.norm(state["center"]),
        }
        return loss, {"sum_logits": mean_logits(overlapping), "share": share}, metrics

    def update(state: PyTree, statistics: PyTree) -> PyTree:
        """Move the center by the mean over the window's overlapping examples; without any it stays."""
        share = statistics["share"]
        moved = update_center(state["center"], statistics["sum_logits"] / jnp.where(share > 0, share, 1.0), center_momentum)
        return {"center": jnp.where(share > 0, moved, state["center"])}

    references = {"aligned": math.log(prototypes), "aligned_entropy": math.log(prototypes)}
    return Objective(ALIGNED_REQUESTS, functools.partial(zero_center, prototypes), apply, update, references)


def _indices(views: Views) -> Array:
    if views.mask_indices is None:
        raise ValueError("the patch loss needs masks; the views have no mask_indices")
    return views.mask_indices


def _mean_where(counted: jax.Array, values: jax.Array) -> jax.Array:
    """The mean of the values that count; 0 where none does."""
    return jnp.sum(jnp.where(counted, values, 0.0)) / jnp.maximum(jnp.sum(counted), 1)
