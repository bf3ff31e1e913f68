"""From a training config to the evaluations that run in its loop."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sere_jax import distributed
from sere_jax.buckets import Location
from sere_jax.build import pretraining
from sere_jax.commands import identity
from sere_jax.config.check import SOURCE_KEYS
from sere_jax.data.sources.open import open_source
from sere_jax.evals.network import Network
from sere_jax.evals.protocol import Evaluation, Protocol
from sere_jax.evals.protocols import PROTOCOLS
from sere_jax.models.norm import join_statistics, split_statistics
from sere_jax.models.vit import ViT
from sere_jax.types import Features, PyTree
from sere_jax.weights import read

Draw = Callable[[PyTree, int], Iterable[tuple[str, float]]]  # parameters of the backbone, step -> scores

# Nothing is chosen in the loop, so no training image is held out.
_PATCHES: dict[str, Any] = {"train_images": 0, "classes": 0, "absent": "skip", "select": "test", "held_out": 0.1, "distances": ("cosine",)}
_PATCHES |= {"save_predictions": False, "panels": 0}


class InLoop(NamedTuple):
    """An evaluation of the training loop. Scores are compared while `measured` stays the same.

    Attributes:
      run: parameters of the backbone -> scores.
      measured: digest of its settings and of the listings of its images; the paths of the images do not count.
    """

    run: Evaluation
    measured: str = ""


def evaluations(config: ConfigDict) -> dict[str, InLoop]:
    """What protocols run in the training loop, by their names; none without a cadence, and each only with its images.

    Raises EvalError or SourceError where the images cannot be used, and OtherProcessError where processes see different ones, before
    training starts.
    """
    if not (config.run.eval_every_steps or config.run.eval_every_epochs):
        return {}
    entries = [(one, one.periodic) for one in PROTOCOLS if one.periodic and all(config.eval[key] for key in _image_keys(one))]
    with distributed.together():
        digests = identity.digests({f"eval.{key}": config.eval[key] for entry, _ in entries for key in _image_keys(entry)})
    distributed.assert_equal(digests, "the processes of this run see different images (digests of their listings), nothing was started")
    if not entries:
        return {}
    network, in_loop = _network(config), {}
    for entry, periodic in entries:
        settings = _settings(config, entry)
        images = [digests[f"eval.{key}"] for key in _image_keys(entry)]
        others = {key: value for key, value in settings._asdict().items() if key not in SOURCE_KEYS}
        measured = hashlib.sha256(repr((images, others, read.preprocess(config))).encode()).hexdigest()[:16]
        in_loop[entry.name] = InLoop(periodic(network, settings), measured)
    return in_loop


def attention(config: ConfigDict, directory: Location) -> Draw | None:
    """(Parameters of the backbone, step) -> nothing but a picture of attention in `directory`; None where the config asks for none.

    Raises EvalError or SourceError where the images cannot be used, before training starts.
    """
    count = config.eval.attention_images
    if not count or not (config.run.eval_every_steps or config.run.eval_every_epochs):
        return None
    from sere_jax.evals.figures import in_training  # imports matplotlib, which other runs do not need

    source, reading = open_source(config.eval.query), pretraining.image_reading(config)
    return in_training.periodic(
        _network(config), source, count, directory, size=config.eval.size, resize=config.eval.resize, reading=reading
    )


def _image_keys(protocol: Protocol) -> tuple[str, str]:
    """The keys of the group `eval` that name the images of a protocol in the loop."""
    return ("patch_train", "patch_test") if protocol.name == "patch_knn" else ("gallery", "query")


def _network(config: ConfigDict) -> Network:
    """The backbone that is trained, with the preparation of its images and without parameters."""
    module, prepare = pretraining.backbone(config, running_statistics=True), read.preprocess(config)

    def apply(params: PyTree, images: jax.Array, *, attention: bool = False) -> Features:
        return module.apply(split_statistics(params), images, attention=attention)  # type: ignore[return-value]  # Linen types its answer as anything

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
    if protocol.name == "patch_knn":
        values |= {key: config.eval[f"patch_{key}"] for key in ("train", "test", "neighbours", "ignore", "zero_ignored")} | _PATCHES
    return settings(**{key: values[key] for key in settings._fields})
