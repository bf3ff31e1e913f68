"""The parts of a pre-training step before the loss: photometric augmentation, drop-path noise, and a network's forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Float

from sere_jax.ops import photometric
from sere_jax.ops.photometric import PhotometryParams
from sere_jax.train.crossing import Crossing
from sere_jax.train.optim import at_once, stop_gradients
from sere_jax.types import Outputs, PrototypeOutput, PyTree, Request, Views

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


def make_forward(module: Any, *, moves_from: Callable[[str], int] = at_once, crossing: Crossing | None = None) -> Forward:
    """The `Forward` of a Linen network. No gradient reaches the parameters that never move (`optim.Rules.moves_from`).

    With a `crossing` each device runs the network on its own rows, so that activations cannot travel; only the statistics of BatchNorms
    are means over all devices. The student's parameters are then a copy for each device (`Crossing.spread`), and so are the prototypes in
    its outputs, so that a loss's gradients of them stay on the device.
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
        def run(
            params: PyTree, batch_stats: PyTree, crops: tuple[jax.Array, jax.Array], views: Views, noise: Noise
        ) -> tuple[Outputs, PyTree]:
            variables = {"params": params, "batch_stats": batch_stats}
            outputs, updated = module.apply(variables, *crops, requests, views=views, drop_path_noise=noise, mutable=["batch_stats"])
            # Heads that this side does not run keep their statistics.
            return outputs, {**batch_stats, **updated.get("batch_stats", {})}

        run_it = run if crossing is None else _on_each_device(run, crossing, copies=requests[0].side == "student")
        return run_it(stop_gradients(params, moves_from), batch_stats, (global_views, local_views), views, drop_path_noise)

    return forward


def _on_each_device(
    run: Callable[..., tuple[Outputs, PyTree]], crossing: Crossing, *, copies: bool
) -> Callable[..., tuple[Outputs, PyTree]]:
    """`run` on the rows of each device. With `copies`, parameters and prototypes have an axis 0 over the devices."""
    rows, everywhere = crossing.over_all, PartitionSpec()
    of_parameters = rows if copies else everywhere

    def on_one(params: PyTree, batch_stats: PyTree, *batch: Any) -> tuple[Any, Any, PyTree]:
        outputs, stats = run(jax.tree.map(lambda p: p[0], params) if copies else params, batch_stats, *batch)
        prototypes = {request: output.prototypes for request, output in outputs.items() if isinstance(output, PrototypeOutput)}
        examples = {request: output.bottleneck if request in prototypes else output for request, output in outputs.items()}
        return examples, jax.tree.map(lambda p: p[None], prototypes) if copies else prototypes, stats

    cut = jax.shard_map(
        on_one,
        mesh=crossing.mesh,
        in_specs=(of_parameters, everywhere, rows, rows, rows),
        out_specs=(rows, of_parameters, everywhere),
        check_vma=False,  # means over the devices are the same everywhere, which cannot be inferred of Flax's variables
    )

    def joined(*arguments: Any) -> tuple[Outputs, PyTree]:
        examples, prototypes, stats = cut(*arguments)
        return examples | {request: PrototypeOutput(examples[request], rows) for request, rows in prototypes.items()}, stats

    return joined


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
