"""A network as a detector that is trained: modules for training and for the test, first weights, loss, and detections of images."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from sere_jax.evals.features import normalise
from sere_jax.evals.network import EvalError, Network
from sere_jax.evals.trained.detection_losses import losses
from sere_jax.evals.trained.detection_settings import Settings
from sere_jax.models.dense.detector import Counts, Detector
from sere_jax.models.norm import split_statistics
from sere_jax.train.update import LossOutput
from sere_jax.types import Array, DetectionBatch, Detections, PyTree


class Model:
    """A network as a detector of `classes`, with a mask head if `masks`. Raises EvalError where it does not suit a detector."""

    def __init__(self, network: Network, settings: Settings, classes: int, *, masks: bool) -> None:
        if network.module is None:
            raise EvalError(f"{network.name}: has no module, expected a network that can be trained")
        is_vit = bool(network.module.heads)
        if is_vit and max(settings.blocks) >= network.depth:
            raise EvalError(
                f"blocks: found {max(settings.blocks)}, expected at most {network.depth - 1}: {network.name} has {network.depth}"
            )
        if is_vit and network.patch % 4:
            raise EvalError(
                f"{network.name}: found patches of {network.patch} pixels, expected a multiple of 4: the finest map has a quarter"
            )
        if not is_vit and len(network.module.stages) != 4:
            raise EvalError(f"{network.name}: found {len(network.module.stages)} stages, expected four, one for each level of the pyramid")
        self._network, self._settings = network, settings
        self._drop_path = settings.drop_path if is_vit else 0.0
        dtype = jnp.dtype(settings.dtype)
        # A ResNet keeps its running statistics: a few large images in a batch say too little about them.
        kinds: tuple[dict[str, Any], ...] = ({"drop_path": self._drop_path}, {}) if is_vit else ({"running_statistics": True},) * 2
        backbones = [network.module.clone(**kind, dtype=dtype, parent=None, name=None) for kind in kinds]
        shared: dict[str, Any] = {
            "classes": classes,
            "taps": settings.blocks if is_vit else (),
            "masks": masks,
            "channels": settings.channels,
            "hidden": settings.hidden,
            "counts": _counts(settings),
            "dtype": dtype,
        }
        self.training = Detector(backbones[0], running=False, **shared)
        self.evaluation = Detector(backbones[1], running=True, **shared)
        self.depth = network.module.depth if is_vit else 0
        self.stages = () if is_vit else tuple(network.module.stages)

    @property
    def multiple(self) -> int:
        """What the sides of padded images must be multiples of, in pixels."""
        return self.training.multiple

    def init(self) -> tuple[PyTree, PyTree]:
        """The network's own weights under fresh heads; running statistics apart."""
        images = jnp.zeros((1, self.multiple, self.multiple, self._network.channels))

        def fresh(key: jax.Array) -> PyTree:
            """The variables of the heads; the backbone's are not even drawn."""
            variables = self.evaluation.init(key, images, method="touch")
            return {kind: {name: leaf for name, leaf in tree.items() if name != "backbone"} for kind, tree in variables.items()}

        drawn = jax.tree.map(np.asarray, jax.jit(fresh)(jax.random.key(self._settings.seed)))
        trained = split_statistics(self._network.params)
        params = {**drawn["params"], "backbone": jax.tree.map(np.asarray, trained["params"])}
        running = dict(drawn["batch_stats"])
        if trained["batch_stats"]:
            running["backbone"] = jax.tree.map(np.asarray, trained["batch_stats"])
        return params, running

    def loss(self, params: PyTree, running: PyTree, batch: DetectionBatch, keys: jax.Array) -> tuple[jax.Array, LossOutput]:
        """The sum of all parts of `detection_losses.losses`, which are the metrics."""
        sample_keys, path_keys = jax.vmap(lambda key: jax.random.split(key, 2), out_axes=1)(keys)
        noise = jax.vmap(lambda key: jax.random.uniform(key, (self.depth, 2)))(path_keys) if self._drop_path else None
        sizes = jnp.asarray(batch.sizes)
        output, updated = self.training.apply(
            {"params": params, "batch_stats": running},
            self._images(batch.images, sizes),
            sizes,
            batch.objects,
            sample_keys,
            drop_path_noise=noise,
            mutable=["batch_stats"],
        )
        parts = losses(output)
        return jnp.sum(jnp.stack(list(parts.values()))), LossOutput({**running, **updated.get("batch_stats", {})}, parts)

    def detections(self, params: PyTree, running: PyTree, images: UInt8[Array, "b H W c"], sizes: Int[Array, "b 2"]) -> Detections:
        """What the trained detector finds in padded images."""
        variables, sizes = {"params": params, "batch_stats": running}, jnp.asarray(sizes)
        return self.evaluation.apply(variables, self._images(images, sizes), sizes, method="detect")  # type: ignore[return-value]

    def _images(self, images: UInt8[Array, "b H W c"], sizes: Int[jax.Array, "b 2"]) -> Float[jax.Array, "b H W c"]:
        """Normalised images; the padding is 0, the mean colour."""
        normal = normalise(jnp.asarray(images), self._network.mean, self._network.std)
        rows, columns = (jnp.arange(side) for side in images.shape[1:3])
        inside = (rows[:, None] < sizes[:, 0, None, None]) & (columns < sizes[:, 1, None, None])
        return jnp.where(inside[..., None], normal, 0.0)


def _counts(settings: Settings) -> Counts:
    return Counts(
        anchors=settings.anchors,
        per_level=settings.proposals,
        proposals=settings.proposals,
        test_per_level=settings.test_proposals,
        test_proposals=settings.test_proposals,
        regions=settings.regions,
        detections=settings.detections,
    )
