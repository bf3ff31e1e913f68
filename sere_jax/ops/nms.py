"""Non-maximum suppression with static shapes, equal to the greedy algorithm at every threshold."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from sere_jax.ops.boxes import iou


def nms(
    boxes: Float[jax.Array, "n 4"],
    scores: Float[jax.Array, "n"],
    threshold: float,
    *,
    valid: Bool[jax.Array, "n"] | None = None,
    groups: Int[jax.Array, "n"] | None = None,
) -> Bool[jax.Array, "n"]:
    """Which boxes greedy suppression keeps: by falling score, each that overlaps no kept box by more than `threshold` IoU.

    Equal scores count in the order of the input. Boxes that are not `valid` (padding) are neither kept nor suppress others. Boxes of
    different `groups` (classes, pyramid levels) do not see each other. n^2 overlaps are held at once.

    Box i is kept if no earlier kept box overlaps it. Starting from "all", this rule is applied to all boxes at once until nothing
    changes. After k turns the first k boxes are as greedy suppression has them, so the fixed point is its result. The number of turns is
    the longest chain of boxes that suppress each other, a few in practice.

    >>> corners = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.0], [9.0, 9.0, 12.0, 12.0]])
    >>> nms(corners, jnp.array([0.5, 0.9, 0.1]), 0.5).tolist()
    [False, True, True]
    """
    n = boxes.shape[0]
    valid = jnp.ones(n, jnp.bool_) if valid is None else valid
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    boxes, valid_in_order = boxes[order], valid[order]
    suppresses = (iou(boxes[:, None], boxes[None]) > threshold) & jnp.tri(n, k=-1, dtype=jnp.bool_).T
    if groups is not None:
        suppresses &= groups[order][:, None] == groups[order][None]

    def turn(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        kept, _ = carry
        after = valid_in_order & ~jnp.any(suppresses & kept[:, None], axis=0)
        return after, jnp.any(after != kept)

    kept, _ = jax.lax.while_loop(lambda carry: carry[1], turn, (valid_in_order, jnp.bool_(True)))
    return jnp.zeros(n, jnp.bool_).at[order].set(kept)
