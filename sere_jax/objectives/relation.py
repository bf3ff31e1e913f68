"""SERE: the student predicts the teacher's spatial and channel self-relation of another view. Source: TPAMI section 3.

Terms: teacher's global view i against the student's other global view j (2), and against every local crop (2 l); all terms
weigh the same, L = sum / (2 + 2 l).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from sere_jax.losses.relation import Scale, channel_relation, relation_cross_entropy, relation_targets, spatial_relation
from sere_jax.objectives.base import stateless
from sere_jax.ops.geometry import Padding, Points, Sampling, SamplingImpl, overlap_points, sample
from sere_jax.types import Metrics, Objective, Outputs, Request, Views

Norm = Literal["post", "pre"]


class Temperatures(NamedTuple):
    """Softmax temperatures. The authors' code sharpens the teacher (0.5 spatial, 0.1 channel) and leaves the student at 1."""

    teacher: float
    student: float


@dataclass(frozen=True)
class SpatialSettings:
    """The settings of spatial self-relation, apart from its requests.

    `disjoint` decides about pairs of crops without overlap. `count` keeps their constant ln(points) in the mean, as in the authors'
    code; `skip` leaves them out, as in TPAMI's footnote. `global_points` and `local_points` are the overlap points along a side.
    """

    temperatures: Temperatures
    heads: int
    scale: Scale
    sampling: Sampling
    padding: Padding
    sampling_impl: SamplingImpl
    disjoint: Literal["count", "skip"]
    global_points: int
    local_points: int


def relation_requests(
    head: str,
    *,
    norm: Norm,
    local_count: int,
    local_heads: Literal["separate", "shared"],
    student_tokens: Literal["masked", "unmasked"] = "masked",
) -> tuple[Request, ...]:
    """Student's and teacher's relation features of global crops, and the student's of local crops if there are any.

    Local crops have `separate` heads (the authors' code), or share those of global crops. Where a method masks the student's crops,
    `unmasked` requests the whole crops, which costs one more forward pass.
    """
    student, teacher = (Request(head, "global", "patches", norm, side) for side in ("student", "teacher"))
    requests = [student._replace(whole=student_tokens == "unmasked"), teacher]
    if local_count:
        requests.append(Request(head if local_heads == "shared" else f"{head}_local", "local", "patches", norm, "student"))
    return tuple(requests)


def spatial(settings: SpatialSettings, requests: tuple[Request, ...], *, local_count: int) -> Objective:
    """Spatial self-relation on the overlap of each pair of crops (section 3.2). `requests` are those of `relation_requests`.

    Features are sampled at the overlap points and related afterwards. Sampling is linear, so this equals sampling the
    relation along keys and queries, at a fraction of the cost.
    """
    pair_loss = functools.partial(_pair_loss, settings=settings)
    global_points, local_points = settings.global_points, settings.local_points

    def points(views: Views, i: int, j: int, size: int) -> tuple[Points, Points]:
        boxes, flips = jnp.asarray(views.boxes), jnp.asarray(views.flips)
        return overlap_points(boxes[:, i], flips[:, i], boxes[:, j], flips[:, j], size=size, sampling=settings.sampling)

    def local_terms(teacher: jax.Array, local: jax.Array, views: Views, i: int) -> jax.Array:
        """Sum over the local crops of their loss against teacher view i; one computation, vectorised over the crops."""
        pairs = [points(views, i, 2 + j, local_points) for j in range(local_count)]
        points_t, points_s = (Points(*(jnp.stack(axis) for axis in zip(*side, strict=True))) for side in zip(*pairs, strict=True))
        return jnp.sum(jax.vmap(pair_loss, in_axes=(None, 1, 0, 0))(teacher[:, i], local, points_t, points_s))

    def loss(outputs: Outputs, views: Views, step: jax.Array) -> tuple[jax.Array, Metrics]:
        student, teacher = outputs[requests[0]], outputs[requests[1]]
        global_sum = sum(pair_loss(teacher[:, i], student[:, j], *points(views, i, j, global_points)) for i, j in ((0, 1), (1, 0)))
        local_sum = None
        if local_count:
            local_sum = sum((local_terms(teacher, outputs[requests[2]], views, i) for i in (0, 1)), jnp.float32(0))
        return _averaged("spatial", jnp.asarray(global_sum), local_sum, local_count)

    return stateless(requests, loss, _references("spatial", math.log(global_points**2), math.log(local_points**2), local_count))


def _pair_loss(
    teacher: jax.Array,
    student: jax.Array,
    points_t: Points,
    points_s: Points,
    *,
    settings: SpatialSettings,
) -> jax.Array:
    """The cross-entropy of one pair of views: maps [b, h, w, d] of teacher and student, and the overlap points in either."""
    heads, scale, temperatures = settings.heads, settings.scale, settings.temperatures
    sampled_t = sample(teacher, points_t, padding=settings.padding, impl=settings.sampling_impl)
    sampled_s = sample(student, points_s, padding=settings.padding, impl=settings.sampling_impl)
    targets = relation_targets(spatial_relation(sampled_t, heads=heads, scale=scale), temperatures.teacher)
    relation = spatial_relation(sampled_s, heads=heads, scale=scale)
    counted = points_t.valid if settings.disjoint == "skip" else None
    return relation_cross_entropy(targets, relation, temperatures.student, counted)


def channel(temperatures: Temperatures, requests: tuple[Request, ...], *, width: int, local_count: int) -> Objective:
    """Channel self-relation of whole views (section 3.3); channels need no alignment. `width` is the number of channels d."""

    def relation(features: jax.Array) -> jax.Array:
        return channel_relation(rearrange(features, "b v h w d -> b v (h w) d"))

    def cross_entropy(targets: jax.Array, student: jax.Array) -> jax.Array:
        return relation_cross_entropy(targets, student, temperatures.student)

    def loss(outputs: Outputs, views: Views, step: jax.Array) -> tuple[jax.Array, Metrics]:
        targets = relation_targets(relation(outputs[requests[1]]), temperatures.teacher)
        student = relation(outputs[requests[0]])
        # Each student view meets the other global view. Reversing the targets would copy them.
        global_sum = cross_entropy(targets[:, 0], student[:, 1]) + cross_entropy(targets[:, 1], student[:, 0])
        local_sum = None
        if local_count:
            # The cross-entropy is linear in its targets: a local crop meets the sum of both teachers' at once.
            both = jnp.sum(targets, axis=1, keepdims=True)
            local_sum = local_count * cross_entropy(both, relation(outputs[requests[2]]))
        return _averaged("channel", global_sum, local_sum, local_count)

    return stateless(requests, loss, _references("channel", math.log(width), math.log(width), local_count))


def _averaged(name: str, global_sum: jax.Array, local_sum: jax.Array | None, local_count: int) -> tuple[jax.Array, Metrics]:
    """The mean over all 2 + 2 l terms, and the means of the two kinds as metrics."""
    metrics = {f"{name}_global": global_sum / 2}
    total = global_sum
    if local_sum is not None:
        metrics[f"{name}_local"] = local_sum / (2 * local_count)
        total = total + local_sum
    loss = total / (2 + 2 * local_count)
    return loss, {name: loss, **metrics}


def _references(name: str, global_value: float, local_value: float, local_count: int) -> dict[str, float]:
    references = {name: (global_value + local_count * local_value) / (1 + local_count), f"{name}_global": global_value}
    return references | ({f"{name}_local": local_value} if local_count else {})
