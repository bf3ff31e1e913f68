"""DINO: the student predicts the teacher's prototype assignment of another view. Source: Caron et al. 2021, section 3."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from einops import rearrange

from sere_jax.losses.distillation import distillation_loss, entropy, teacher_probabilities, update_center
from sere_jax.objectives.base import Applied
from sere_jax.types import Objective, Outputs, PrototypeOutput, PyTree, Request, Schedule, Views

STUDENT_GLOBAL = Request("dino", "global", "cls", "post", "student")
STUDENT_LOCAL = Request("dino", "local", "cls", "post", "student")
TEACHER_GLOBAL = Request("dino", "global", "cls", "post", "teacher")


def requests(*, local_count: int) -> tuple[Request, ...]:
    """Student and teacher on global crops, and the student on local crops where there are any."""
    return (STUDENT_GLOBAL, TEACHER_GLOBAL, *((STUDENT_LOCAL,) if local_count else ()))


def dino(*, prototypes: int, student_temp: float, teacher_temp: Schedule, center_momentum: float, local_count: int) -> Objective:
    """Self-distillation on the cls token. `teacher_temp` is a function of the step; the state is the center [1, K].

    The metric `center_norm` is the norm of the center that the loss subtracted, before this step updates it.
    """

    def apply(outputs: Outputs, views: Views, state: PyTree, step: jax.Array) -> Applied:
        teacher = outputs[TEACHER_GLOBAL]
        targets = teacher_probabilities(logits(teacher), state["center"], teacher_temp(step))
        student = logits(outputs[STUDENT_GLOBAL])
        local = logits(outputs[STUDENT_LOCAL]) if local_count else student[:, :0]
        loss = distillation_loss(targets, student, local, student_temp)
        metrics = {"dino": loss, "teacher_entropy": entropy(targets), "center_norm": jnp.linalg.norm(state["center"])}
        return loss, {"mean_logits": mean_logits(teacher)}, metrics

    def update(state: PyTree, statistics: PyTree) -> PyTree:
        return {"center": update_center(state["center"], statistics["mean_logits"], center_momentum)}

    references = {"dino": math.log(prototypes), "teacher_entropy": math.log(prototypes)}
    return Objective(requests(local_count=local_count), functools.partial(zero_center, prototypes), apply, update, references)


def zero_center(prototypes: int) -> PyTree:
    """The state of an objective with a center, at its start: {"center": [1, K]}."""
    return {"center": jnp.zeros((1, prototypes), jnp.float32)}


def logits(output: PrototypeOutput) -> jax.Array:
    """Prototype logits in float32: bottleneck @ prototypes.T. Where each device has a copy of the prototypes, its rows take that one."""
    if output.prototypes.ndim == 3:
        rows = rearrange(output.bottleneck, "(r b) ... e -> r b ... e", r=output.prototypes.shape[0])
        return rearrange(jnp.einsum("rb...e,rke->rb...k", rows, output.prototypes, precision="highest"), "r b ... k -> (r b) ... k")
    return jnp.einsum("...e,ke->...k", output.bottleneck, output.prototypes, precision="highest")


def mean_logits(output: PrototypeOutput) -> jax.Array:
    """Mean of the logits over the global batch and its views; linear, so the mean is taken on the narrow side (256, not K)."""
    return jnp.einsum("e,ke->k", jnp.mean(output.bottleneck, axis=(0, 1)), output.prototypes, precision="highest")
