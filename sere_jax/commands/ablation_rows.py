"""The rows of an ablation: one training of one row, its measurements, and how far it has come."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from sere_jax.buckets import Location
from sere_jax.build import pretraining
from sere_jax.commands import ablation_evaluations, pretrain
from sere_jax.commands.ablation_evaluations import Evaluation
from sere_jax.commands.ablation_table import Measured
from sere_jax.config.launch import Launch
from sere_jax.data.batches.maker import BatchError
from sere_jax.data.images.decode import BadImage
from sere_jax.data.sources.open import open_source
from sere_jax.train import checkpoint
from sere_jax.train.meter import TooManyBadImages, TooManyBadSteps

# These end a row, and the others are run; a full disk or a bucket that does not answer would end each of them.
_BAD_ROW = (TooManyBadSteps, TooManyBadImages, BatchError, BadImage, checkpoint.UnsoundState)


class Run(NamedTuple):
    """One training of one row."""

    table: int
    row: str
    seed: int
    config: ConfigDict
    workdir: Location
    launch: Launch  # what the row's config was before --data and --steps changed it


def measured(run: Run, evaluations: Sequence[Evaluation]) -> Measured:
    """Train and evaluate a run, as far as an earlier start has not done it."""
    unmeasured, name = _unmeasured(run), f"row {run.row}, seed {run.seed}"
    title = f"table {run.table}, {name}"
    try:
        if _missing(run.workdir, unmeasured.steps):
            print(f"{title}: training in {run.workdir}", flush=True)
            pretrain.train(run.config, str(run.workdir), launch=run.launch)
        try:
            return unmeasured._replace(values=ablation_evaluations.values(run.workdir, name, evaluations))
        except checkpoint.DamagedCheckpoint as error:
            print(f"{title}: {error}; going on from the checkpoint before it", flush=True)
            pretrain.train(run.config, str(run.workdir), launch=run.launch)  # sets it aside
            return unmeasured._replace(values=ablation_evaluations.values(run.workdir, name, evaluations))
    except _BAD_ROW as error:
        print(f"{title}: {error}", file=sys.stderr)
        return unmeasured._replace(error=str(error))


def so_far(run: Run, evaluations: Sequence[Evaluation]) -> Measured:
    """What is measured of a run already. The error says what its training or its evaluations still lack."""
    unmeasured = _unmeasured(run)
    if missing := _missing(run.workdir, unmeasured.steps):
        return unmeasured._replace(error=missing)
    reported = [evaluation for evaluation in evaluations if ablation_evaluations.report(run.workdir, evaluation).is_file()]
    lacking = [evaluation.config.protocol for evaluation in evaluations if evaluation not in reported]
    values = ablation_evaluations.values(run.workdir, run.row, reported)
    return unmeasured._replace(values=values, error=f"trained, but not evaluated: {', '.join(lacking)}" if lacking else "")


def _unmeasured(run: Run) -> Measured:
    length = pretraining.steps(run.config, len(open_source(run.config.data.source)))
    return Measured(run.row, run.seed, str(run.workdir), length.total, pretraining.effective_epochs(run.config, length), {})


def _missing(workdir: Location, total: int) -> str:
    """How far a run is from its end, in words; '' where it has ended. Raises CheckpointError where its workdir cannot be read."""
    try:
        step = checkpoint.find_step(workdir)[1]
    except checkpoint.DamagedCheckpoint as error:
        return f"not trained to its end: {error}"
    except checkpoint.CheckpointError as error:
        if error.__cause__ is not None:  # the file system or the bucket refused
            raise
        return "not trained to its end: begun, but without a checkpoint" if workdir.exists() else "not begun"
    return "" if step >= total else f"not trained to its end: step {step:,} of {total:,}"
