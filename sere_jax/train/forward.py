"""The parts of a pre-training step before the loss: photometric augmentation, drop-path noise, and a network's forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
from jax.sharding import NamedSharding
from jaxtyping import Float

from sere_jax.ops import photometric
from sere_jax.ops.photometric import PhotometryParams
from sere_jax.train.optim import at_once, stop_gradients
from sere_jax.types import Outputs, PyTree, Request, Views

Noise = tuple[Float[jax.Array, "b v k 2"], Float[jax.Array, "b l k 2"]] | None
Augment = Callable[[Views, jax.Array], tuple[jax.Array, jax.Array]]  # (views, one key an example) -> (global, local) float crops


@runtime_checkable
class Forward(Protocol):
    """One side's network: parameters, its running statistics and normalised crops -> outputs and new running statistics.

    Both sides see the same `views`: masks (which hide patches from the student alone) and the geometry of the crops.
    """

    def __call__(
        self,
        params: PyTree,
        batch_stats: PyTree,
        global_views: jax.Array,
        local_views: jax.Array,
        requests: tuple[Request, ...],
        *,
        views: Views,
        drop_path_noise: Noise,
    ) -> tuple[Outputs, PyTree]: ...


def make_forward(module: Any, *, moves_from: Callable[[str], int] = at_once, gathered: NamedSharding | None = None) -> Forward:
    """The `Forward` of a Linen network. No gradient reaches the parameters that never move (`optim.Rules.moves_from`).

    With a sharding in `gathered`, split parameters are gathered before the network runs. Otherwise the compiler may split
    activations along their channels, and activations, heads and logits would travel between devices in every block.
    """

    def forward(
        params: PyTree,
        batch_stats: PyTree,
        global_views: jax.Array,
        local_views: jax.Array,
        requests: tuple[Request, ...],
        *,
        views: Views,
        drop_path_noise: Noise,
    ) -> tuple[Outputs, PyTree]:
        params = stop_gradients(params, moves_from)
        whole = params if gathered is None else jax.lax.with_sharding_constraint(params, gathered)
        variables = {"params": whole, "batch_stats": batch_stats}
        outputs, updated = module.apply(
            variables, global_views, local_views, requests, views=views, drop_path_noise=drop_path_noise, mutable=["batch_stats"]
        )
        # Heads that this side does not run keep their statistics.
        return outputs, {**batch_stats, **updated.get("batch_stats", {})}

    return forward


def make_augment(global_kinds: Sequence[PhotometryParams], local_kind: PhotometryParams) -> Augment:
    """The photometric part of the augmentation: uint8 views and one key an example -> normalised float32 crops.

    `global_kinds` has an entry for each global crop, or more; all local crops share one kind.
    """

    def augment(views: Views, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        first_local, local_count = views.global_views.shape[1], views.local_views.shape[1]
        return (
            photometric.augment(views.global_views, keys, global_kinds[:first_local]),
            photometric.augment(views.local_views, keys, [local_kind] * local_count, first_view=first_local),
        )

    return augment


def make_drop_path_noise(*, rate: float, depth: int) -> Callable[[jax.Array, Views], Noise]:
    """Uniform noise for each crop, block and branch of the student's `depth` blocks; None where the rate is 0."""

    def noise(keys: jax.Array, views: Views) -> Noise:
        if not rate:
            return None
        counts = views.global_views.shape[1], views.local_views.shape[1]
        draw = jax.vmap(lambda key: jax.random.uniform(key, (sum(counts), depth, 2)))(keys)
        return draw[:, : counts[0]], draw[:, counts[0] :]

    return noise
