"""The evaluations of an ablation's rows: which images a protocol reads, where its report of a row lies, and the row's values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from sere_jax.buckets import Location
from sere_jax.commands import evaluate, identity
from sere_jax.config import check as rules
from sere_jax.config.names import flatten
from sere_jax.evals import protocols
from sere_jax.train import checkpoint


class Evaluation(NamedTuple):
    """A protocol and the images that it reads."""

    config: ConfigDict
    images: dict[str, str]  # key of the config that names a source -> digest of its listing


def read_images(config: ConfigDict) -> Evaluation:
    """The evaluation of a protocol's config. Raises SourceError where its images cannot be opened."""
    return Evaluation(config, identity.digests(rules.sources(config)))


def values(workdir: Location, name: str, evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """The columns of a table for the run in `workdir`, which reports call `name`."""
    columns: dict[str, float] = {}
    for evaluation in evaluations:
        columns |= protocols.protocol(evaluation.config.protocol).columns(_evaluated(workdir, name, evaluation))
    return columns


def report(workdir: Location, evaluation: Evaluation) -> Location:
    """Where a protocol with these settings and images writes its report of the run at its newest step."""
    try:
        step = checkpoint.find_step(workdir)[1]
    except checkpoint.CheckpointError:
        step = -1
    settings = {key: value for key, value in flatten(evaluation.config).items() if key not in rules.SOURCE_KEYS}
    facts = json.dumps([settings, evaluation.images, step], sort_keys=True)
    key = hashlib.sha256(facts.encode()).hexdigest()[:10]
    return workdir / "evaluations" / key / "eval" / f"{evaluation.config.protocol}.json"


def _evaluated(workdir: Location, name: str, evaluation: Evaluation) -> dict[str, Any]:
    """The report of a protocol on this run. The protocol runs unless it has run with the same settings and images before."""
    path = report(workdir, evaluation)
    if not path.is_file():
        network = evaluate.load(str(workdir))._replace(name=name)  # the directory's name is a digest
        evaluate.run(evaluation.config, [network], path.parent.parent)
    return json.loads(path.read_text()) if path.is_file() else {}
