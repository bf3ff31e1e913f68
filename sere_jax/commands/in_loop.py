"""From a training config to the evaluations that run in its loop."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sere_jax import distributed
from sere_jax.build import pretraining
from sere_jax.data.sources.open import open_source
from sere_jax.evals.network import Network
from sere_jax.evals.protocol import Evaluation, Protocol
from sere_jax.evals.protocols import PROTOCOLS
from sere_jax.models.norm import join_statistics, split_statistics
from sere_jax.models.vit import ViT
from sere_jax.types import Features, PyTree
from sere_jax.weights import read


def evaluations(config: ConfigDict) -> dict[str, Evaluation]:
    """What protocols run in the training loop, by their names; none without a cadence, a gallery and a query set.

    Raises EvalError or SourceError where the images cannot be used, and OtherProcessError where processes see different ones, before
    training starts.
    """
    if not (config.run.eval_every_steps or config.run.eval_every_epochs):
        return {}
    specs = {"eval.gallery": config.eval.gallery, "eval.query": config.eval.query}
    with distributed.together():
        digests = {key: open_source(spec).fingerprint().digest if all(specs.values()) else "" for key, spec in specs.items()}
    distributed.assert_equal(digests, "the processes of this run see different images (digests of their listings), nothing was started")
    if not all(specs.values()):
        return {}
    network = _network(config)
    return {entry.name: entry.periodic(network, _settings(config, entry)) for entry in PROTOCOLS if entry.periodic}


def _network(config: ConfigDict) -> Network:
    """The backbone that is trained, with the preparation of its images and without parameters."""
    module, prepare = pretraining.backbone(config, running_statistics=True), read.preprocess(config)

    def apply(params: PyTree, images: jax.Array) -> Features:
        return module.apply(split_statistics(params), images)  # type: ignore[return-value]  # Linen types its answer as anything

    def init(seed: int) -> PyTree:
        images = jnp.zeros((1, module.image_size, module.image_size, module.in_channels))
        variables = jax.jit(module.init)(jax.random.key(seed), images)
        return join_statistics(variables["params"], variables.get("batch_stats", {}))

    sizes = (prepare.size, prepare.resize, module.patch_size, prepare.mean, prepare.std)
    return Network("training", apply, None, *sizes, init, value_range=prepare.value_range, whole_patches=isinstance(module, ViT))


def _settings(config: ConfigDict, protocol: Protocol) -> Any:
    """The protocol's settings from the config's group `eval`; what that group lacks is as in the protocol's own config."""
    settings: Any = protocol.settings
    values = {
        **config.eval,
        "tokens": (config.eval.tokens,),
        "workers": 0,
        "reading": pretraining.image_reading(config),
        "baselines": False,
        "seed": config.seed,
    }
    return settings(**{key: values[key] for key in settings._fields})
