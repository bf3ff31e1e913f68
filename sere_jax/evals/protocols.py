"""All evaluations, and the mistakes in the config of one."""

from __future__ import annotations

from ml_collections import ConfigDict

from sere_jax.config.check import check
from sere_jax.config.names import flatten, nearest
from sere_jax.config.rule import Rule
from sere_jax.evals.figures import protocol as figures
from sere_jax.evals.frozen import classification, norms, patches, probes, relations, retrieval
from sere_jax.evals.protocol import Protocol
from sere_jax.evals.trained import detection, fine_tune, linear, segmentation

PROTOCOLS: tuple[Protocol, ...] = (
    classification.PROTOCOL,
    linear.PROTOCOL,
    probes.LOGISTIC,
    probes.LEAST_SQUARES,
    patches.PATCH_KNN,
    patches.PATCH_LOGISTIC,
    segmentation.LINEAR,
    segmentation.UPERNET,
    segmentation.IMAGENET_S,
    detection.PROTOCOL,
    fine_tune.FINE_TUNE,
    fine_tune.SEMI,
    fine_tune.TRANSFER,
    retrieval.PROTOCOL,
    relations.PROTOCOL,
    norms.PROTOCOL,
    figures.PROTOCOL,
)


def protocol(name: str) -> Protocol:
    """The protocol of that name. Raises KeyError where there is none; `mistakes` says so in a sentence."""
    return {entry.name: entry for entry in PROTOCOLS}[name]


def mistakes(config: ConfigDict, *, processes: int = 1) -> list[str]:
    """The lines of everything that is wrong with an evaluation's config, on so many processes."""
    name, names = config.get("protocol"), [entry.name for entry in PROTOCOLS]
    if name not in names:
        return [f"protocol: found {name!r}, expected one of {', '.join(names)}{nearest(name, names)}"]
    entry, values = protocol(name), flatten(config)
    lines = check(values, {"protocol": Rule(str), **entry.rules})
    wrong = {line.partition(":")[0] for line in lines}
    return lines + entry.among(values, wrong, processes)
