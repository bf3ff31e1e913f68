"""A network as a segmenter that is trained: modules for training and evaluation, first weights, loss, and logits of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from sere_jax.evals.features import normalise
from sere_jax.evals.network import EvalError, Network, size_mistake
from sere_jax.evals.trained.segmentation_settings import Settings
from sere_jax.losses.segmentation import pixel_cross_entropy
from sere_jax.models.dense.segmenter import AUXILIARY, PYRAMID, Keep, Segmenter
from sere_jax.models.norm import split_statistics
from sere_jax.ops.photometric import PhotometryParams, augment
from sere_jax.ops.pooling import resize_bilinear
from sere_jax.train.update import LossOutput
from sere_jax.types import PyTree

# ImageNet-S: ColorJitter(.8, .8, .8, .2) with probability .8, grey .2, blur .5.
_COLOURS = PhotometryParams(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur_prob=0.5)


class Batch(NamedTuple):
    """This process's rows of a global batch."""

    images: UInt8[np.ndarray, "b S S c"]
    targets: Int[np.ndarray, "b S S"]  # classes; below 0: ignored
    replaced: Bool[np.ndarray, " b"]  # rows that stand in for an example that cannot be read


class Model:
    """A network as a segmenter. Raises EvalError where the head or the sizes do not suit it."""

    def __init__(self, network: Network, settings: Settings, classes: int) -> None:
        if network.module is None:
            raise EvalError(f"{network.name}: has no module, expected a network that can be trained")
        is_vit = bool(network.module.heads)
        _check(network, settings)
        self._network, self._settings = network, settings
        self._dtype = jnp.dtype(settings.dtype)
        rate = settings.drop_path if is_vit else 0.0
        kinds: tuple[dict[str, Any], ...] = ({"drop_path": rate}, {})
        if not is_vit:
            kinds = tuple({"running_statistics": running, "dilated_stages": settings.dilated_stages} for running in (False, True))
        if settings.frozen:  # a frozen network is used as it is evaluated
            kinds, rate = (kinds[1], kinds[1]), 0.0
        backbones = [network.module.clone(**kind, dtype=self._dtype, parent=None, name=None) for kind in kinds]
        shared: dict[str, Any] = {
            "classes": classes,
            "head": settings.head,
            "taps": settings.blocks if is_vit and settings.head != "tokens" else (),
            "channels": settings.channels,
            "frozen": settings.frozen,
            "dtype": self._dtype,
        }
        self.training = Segmenter(backbones[0], running=False, **shared)
        self.evaluation = Segmenter(backbones[1], running=True, **shared)
        self.depth = network.module.depth if is_vit else 0
        self.stages = () if is_vit else tuple(network.module.stages)
        self._drop_path = rate

    def init(self) -> tuple[PyTree, PyTree]:
        """The network's own weights under a fresh head, whose LayerNorm may be a fine-tuned one; running statistics apart."""
        images = jnp.zeros((1, self._settings.size, self._settings.size, self._network.channels))
        fresh = jax.jit(self.evaluation.init)(jax.random.key(self._settings.seed), images)
        trained = split_statistics(self._network.params)
        params, running = (
            {name: jax.tree.map(np.asarray, leaf) for name, leaf in fresh.get(kind, {}).items() if name != "backbone"}
            for kind in ("params", "batch_stats")
        )
        params["backbone"] = jax.tree.map(np.asarray, trained["params"])
        if norm := self.fine_tuned_norm():
            params["head"] = {**params["head"], "fc_norm": jax.tree.map(np.asarray, norm)}
        if trained["batch_stats"]:
            running["backbone"] = jax.tree.map(np.asarray, trained["batch_stats"])
        return params, running

    def fine_tuned_norm(self) -> dict[str, Any]:
        """The LayerNorm that a `tokens` head on a fine-tuned ViT starts with; {} for others. Source: ImageNet-S."""
        is_wanted = self._settings.head == "tokens" and self._network.module.heads
        return self._network.fc_norm() if is_wanted and self._network.fc_norm else {}

    def loss(self, params: PyTree, running: PyTree, batch: Batch, keys: jax.Array) -> tuple[jax.Array, LossOutput]:
        """Cross-entropy of the pixels, and the auxiliary head's times its weight."""
        settings = self._settings
        path_keys, drop_keys = jax.vmap(lambda key: jax.random.split(key, 2), out_axes=1)(keys)
        noise = jax.vmap(lambda key: jax.random.uniform(key, (self.depth, 2)))(path_keys) if self._drop_path else None
        colour_keys = jax.vmap(lambda key: jax.random.fold_in(key, 2))(keys)
        images, targets = self._images(batch, colour_keys), batch.targets[:, :: settings.target_stride, :: settings.target_stride]
        variables = {"params": params, "batch_stats": running}
        logits, updated = self.training.apply(variables, images, drop_path_noise=noise, keep=self._keep(drop_keys), mutable=["batch_stats"])
        main = pixel_cross_entropy(logits.main, targets, settings.average)
        metrics, total = {"pixels": main}, main
        if logits.auxiliary is not None:
            metrics["auxiliary"] = pixel_cross_entropy(logits.auxiliary, targets, settings.average)
            total = main + settings.auxiliary_weight * metrics["auxiliary"]
        return total, LossOutput({**running, **updated.get("batch_stats", {})}, metrics)

    def _images(self, batch: Batch, keys: jax.Array) -> jax.Array:
        """Normalised; crops that were not distorted on the host get ImageNet-S's colours."""
        mean, std = self._network.mean, self._network.std
        if self._settings.crops == "scale" or not self._settings.distortion:
            return normalise(batch.images, mean, std)
        kind = dataclasses.replace(_COLOURS, mean=mean, std=std)
        return augment(batch.images[:, None], keys, [kind])[:, 0]

    def _keep(self, keys: jax.Array) -> Keep | None:
        rate = self._settings.dropout
        if not rate:
            return None
        width = self._settings.channels
        if self._settings.head == "linear":
            width = self._network.module.width * max(1, len(self.training.taps))
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (width + AUXILIARY,)))(keys)
        factors = (uniform >= rate) / (1.0 - rate)
        return Keep(factors[:, :width], factors[:, width:])

    def of_images(self, *, to_pixels: bool) -> Callable[[PyTree, PyTree, jax.Array], jax.Array]:
        """(params, running, uint8 images) -> logits as evaluated: on the head's grid, or interpolated to the pixels."""

        def logits(params: PyTree, running: PyTree, images: jax.Array) -> Float[jax.Array, "n h w k"]:
            normal = normalise(images, self._network.mean, self._network.std)
            main = self.evaluation.apply({"params": params, "batch_stats": running}, normal).main  # type: ignore[union-attr]
            return resize_bilinear(main, (images.shape[1], images.shape[2])) if to_pixels else main

        return logits


def _check(network: Network, settings: Settings) -> None:
    module, name = network.module, network.name
    if module.heads:
        if settings.head != "tokens" and max(settings.blocks) >= network.depth:
            raise EvalError(f"blocks: found {max(settings.blocks)}, expected at most {network.depth - 1}: {name} has {network.depth}")
        if mistake := size_mistake(settings.size, network.patch):
            raise EvalError(f"size of {name}: {mistake}")
        if settings.head == "upernet" and settings.size < 2 * network.patch:
            least = 2 * network.patch
            raise EvalError(
                f"size of {name}: found {settings.size}, expected at least {least}: UperNet's smallest map has half the patches"
            )
        if settings.dilated_stages:
            raise EvalError(f"dilated_stages: found {settings.dilated_stages}, and {name} is a ViT without stages; expected 0")
        return
    if settings.head == "upernet" and len(module.stages) != PYRAMID:
        raise EvalError(f"head: found upernet, and {name} has {len(module.stages)} stages; expected {PYRAMID}, or linear")
    if settings.dilated_stages >= len(module.stages):
        most = len(module.stages) - 1
        raise EvalError(f"dilated_stages: found {settings.dilated_stages}, expected at most {most}: {name} has {most + 1} stages")
