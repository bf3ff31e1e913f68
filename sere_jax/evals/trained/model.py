"""A network as a classifier that is fine-tuned: modules for training and evaluation, first weights, loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sere_jax.data.batches.labelled import LabelledBatch
from sere_jax.evals.features import normalise
from sere_jax.evals.network import EvalError, Network, prepared
from sere_jax.evals.trained.settings import Settings
from sere_jax.losses.supervised import smoothed_targets, soft_cross_entropy
from sere_jax.models.classifier import Classifier
from sere_jax.models.norm import split_statistics
from sere_jax.ops.erasing import erase
from sere_jax.ops.mixing import Mixing, mix
from sere_jax.train.update import LossOutput
from sere_jax.types import PyTree

# What tells the sizes of a network -> the module's attribute that says it.
_SHARED_SIZES = {"image_size": "image_size", "in_channels": "in_channels"}
_VIT_SIZES = {name: name for name in ("width", "depth", "heads", "patch_size", "norm_eps")} | _SHARED_SIZES
_RESNET_SIZES = {"width": "stem", "stages": "stages"} | _SHARED_SIZES


class Model:
    """A network as a classifier: its modules for training and evaluation, its first weights, and its loss."""

    def __init__(self, network: Network, settings: Settings, classes: int) -> None:
        if network.module is None:
            raise EvalError(f"{network.name}: has no module, expected a network that can be trained")
        self.sides = prepared(network, settings.size, settings.resize)
        self._network, self._settings, self._classes = network, settings, classes
        self._projection = network.projection() if settings.head_layer and network.projection else {}
        if settings.head_layer and not self._projection and network.name != "random init":
            raise EvalError(f"head_layer: found 1, and {network.name} holds no projection head; expected 0")
        dtype = jnp.dtype(settings.dtype)
        is_vit = bool(network.module.heads)
        kinds: tuple[dict[str, Any], ...] = ({}, {})
        if is_vit:
            kinds = ({"drop_path": settings.drop_path}, {})
        else:
            kinds = ({"running_statistics": False}, {"running_statistics": True})
        backbones = (network.module.clone(**kind, dtype=dtype, parent=None, name=None) for kind in kinds)
        hidden = int(self._projection["kernel"].shape[1]) if self._projection else 0
        shared: dict[str, Any] = {
            "classes": classes,
            "pool": settings.pool,
            "head_std": settings.head_std,
            "hidden": hidden,
            "norm_eps": network.module.norm_eps if is_vit else 1e-6,
            "fc_norm": is_vit,
        }
        self.training, self.evaluation = (Classifier(backbone, **shared) for backbone in backbones)
        self.depth = network.module.depth if is_vit else 0
        self.stages = () if is_vit else tuple(network.module.stages)

    def init(self) -> tuple[PyTree, PyTree]:
        """The network's own weights under a fresh head; running statistics apart."""
        side = self.sides[0]
        images = jnp.zeros((1, side, side, self._network.channels))

        def fresh(key: jax.Array) -> PyTree:
            params = self.evaluation.init(key, images)["params"]
            return {name: leaf for name, leaf in params.items() if name != "backbone"}  # the backbone's are not even drawn

        variables = split_statistics(self._network.params)
        params = jax.tree.map(np.asarray, jax.jit(fresh)(jax.random.key(self._settings.seed)))
        params["backbone"] = jax.tree.map(np.asarray, variables["params"])
        if self._projection:
            params["projection"] = dict(self._projection)
        running = {"backbone": jax.tree.map(np.asarray, variables["batch_stats"])} if variables["batch_stats"] else {}
        return params, running

    def description(self, classes: Sequence[str]) -> dict[str, Any]:
        """What reading the trained weights needs: sizes of the network, preparation of its images, names of the classes, origin."""
        network = self._network
        names = _VIT_SIZES if self.depth else _RESNET_SIZES
        sizes = {name: getattr(network.module, attribute) for name, attribute in names.items()}
        size, resize = self.sides
        prepare = {"size": size, "resize": resize, "mean": network.mean, "std": network.std, "value_range": network.value_range}
        origin = network.about.get("checkpoint", "") if network.name != "random init" else ""
        return {"architecture": sizes, "preprocess": prepare, "classes": list(classes), "started_from": origin}

    def logits(self, params: PyTree, running: PyTree, images: jax.Array) -> jax.Array:
        """Logits of normalised images, as evaluated."""
        return self.evaluation.apply({"params": params, "batch_stats": running}, images)  # type: ignore[return-value]

    def loss(self, params: PyTree, running: PyTree, batch: LabelledBatch, keys: jax.Array) -> tuple[jax.Array, LossOutput]:
        """Cross-entropy of an augmented batch: normalised, erased, mixed; targets smoothed and mixed alike."""
        settings = self._settings
        erase_keys, mix_keys, path_keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
        images = erase(normalise(batch.images, self._network.mean, self._network.std), erase_keys, settings.erase_prob)
        targets = smoothed_targets(batch.labels, self._classes, settings.smoothing)
        mixing = Mixing(settings.mixup, settings.cutmix, settings.switch_prob, settings.mix_prob)
        images, targets = mix(images, targets, mix_keys[0], mixing)
        noise = None
        if self.depth and settings.drop_path:
            noise = jax.vmap(lambda key: jax.random.uniform(key, (self.depth, 2)))(path_keys)
        variables = {"params": params, "batch_stats": running}
        logits, updated = self.training.apply(variables, images, drop_path_noise=noise, mutable=["batch_stats"])
        return soft_cross_entropy(logits, targets), LossOutput({**running, **updated.get("batch_stats", {})}, {})
