"""Run an ablation table of the paper on any images: python -m sere_jax ablate --table=8 --data=folder:PHOTOS --steps=300 --workdir=DIR

Trains every row of the table as `train.py` would, evaluates each by the same protocols, and prints and saves one table: what was
measured here beside the paper's figures, which come from other data and another protocol. The same command goes on where it was
stopped: rows that are done are kept, and a row that several tables share is run once (DIR/rows).

--table       7, 8, 10 to 16, several with commas        --rows    some of its rows; default all
--size        paper | small: for a CPU (configs/ablation.py) --set  key=value,... for all rows, after everything else
--steps       of each row; warm-ups keep their share. 0: the row's own epochs
--seeds       0,1,2: a row's mean and standard deviation over several runs
--evaluate    images for retrieval and relation differences; default those of --data
--gallery, --query   labelled images: k-NN in place of retrieval
--protocol    another evaluation instead: configs/eval/NAME.py[:key=value,...]; may be given several times

Exit code 2: the command cannot be carried out; 1: a row ended badly, which the table tells; the others were run.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
from absl import logging
from ml_collections import ConfigDict

from sere_jax.build import pretraining
from sere_jax.commands import ablation_table, evaluate, pretrain
from sere_jax.commands.ablation_table import Measured
from sere_jax.config import check as rules
from sere_jax.config import evaluation
from sere_jax.config.cross import EPOCH_KEYS
from sere_jax.config.keys import MACHINE_KEYS
from sere_jax.config.names import flatten
from sere_jax.data.batches.pipeline import UnreadableData
from sere_jax.data.images.decode import BadImage
from sere_jax.data.sources.open import SourceError, open_source
from sere_jax.evals.network import EvalError
from sere_jax.train import checkpoint
from sere_jax.train.fit import Stopped
from sere_jax.train.lock import WorkdirError
from sere_jax.train.meter import TooManyBadImages, TooManyBadSteps

_BAD_RUN = (TooManyBadSteps, TooManyBadImages, UnreadableData, BadImage)


class Run(NamedTuple):
    """One training of one row."""

    table: int
    row: str
    seed: int
    config: ConfigDict
    place: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    logging.set_verbosity(logging.WARNING)  # Orbax tells every file it opens
    given = _parser().parse_args(argv)
    try:
        tables = _module(given.config)
        protocols = [_protocol(spec) for spec in given.protocol or _default_protocols(given)]
        runs = [run for table in given.table for run in _runs(tables, table, given)]
        _check(runs, protocols)
        failed = False
        for table in given.table:
            mine = [run for run in runs if run.table == table]
            found = [_measured(run, protocols) for run in mine]
            failed |= any(one.error for one in found)
            ablation_table.publish(
                tables.TABLES[table], table, found, note=tables.PROTOCOL, directory=Path(given.workdir), about=_about(given)
            )
    except Stopped as stopped:
        print(stopped)
        return 0
    except (rules.ConfigError, SourceError, EvalError, checkpoint.CheckpointError, WorkdirError, _Refused) as error:
        print(error, file=sys.stderr)
        return 2
    return int(failed)


class _Refused(ValueError):
    """The command line cannot be carried out; the message names the flag."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sere_jax ablate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", required=True, type=lambda text: [int(number) for number in text.split(",")])
    parser.add_argument("--rows", default=[], type=lambda text: text.split(","))
    parser.add_argument("--data", required=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--size", default="paper")
    parser.add_argument("--set", default="")
    parser.add_argument("--seeds", default=[0], type=lambda text: [int(number) for number in text.split(",")])
    parser.add_argument("--evaluate", default="")
    parser.add_argument("--gallery", default="")
    parser.add_argument("--query", default="")
    parser.add_argument("--protocol", action="append")
    parser.add_argument("--config", default="configs/ablation.py", help="the file with the tables")
    return parser


def _module(path: str) -> ModuleType:
    """A Python file of the checkout, as `--config` of the other programs reads one."""
    spec = importlib.util.spec_from_file_location("ablation_config", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise _Refused(f"--config: found {path!r}, expected a Python file (the program is run from the checkout)")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, "")
    spec.loader.exec_module(module)
    return module


def _default_protocols(given: argparse.Namespace) -> list[str]:
    """k-NN where there are labelled images, else retrieval; and the relation differences on views that are the same for all rows."""
    images = given.evaluate or given.data
    near = "configs/eval/retrieval.py:baselines=false,tokens=('cls','patches'),source=" + images
    if given.gallery or given.query:
        near = f"configs/eval/knn.py:tokens=('cls','patches'),gallery={given.gallery},query={given.query}"
    relations = (
        "configs/eval/relations.py:views_of=config,random=false,tokens=('post',),spatial_temperatures=(1.0,),channel_temperatures=(1.0,)"
    )
    return [near, f"{relations},source={images}"]


def _protocol(spec: str) -> ConfigDict:
    path, _, argument = spec.partition(":")
    try:
        config = _module(path).get_config(argument)
    except ValueError as error:
        raise _Refused(f"--protocol={spec}: {error}") from error
    if mistakes := evaluation.mistakes(config, processes=jax.process_count()):
        raise rules.ConfigError([f"--protocol={spec}: {line}" for line in mistakes])
    return config


def _runs(tables: ModuleType, table: int, given: argparse.Namespace) -> Iterator[Run]:
    """The runs of a table's rows, in the table's order, a row's seeds together."""
    if table not in tables.TABLES:
        raise _Refused(f"--table: found {table}, expected one of {', '.join(map(str, tables.TABLES))}")
    known = tables.TABLES[table].rows
    if unknown := [row for row in given.rows if row not in known]:
        raise _Refused(f"--rows: found {', '.join(unknown)}, expected some of {', '.join(known)} of table {table}")
    per_epoch = None
    for row in given.rows or known:
        for seed in given.seeds:
            argument = ",".join(part for part in (f"table={table},row={row},size={given.size},seed={seed}", given.set) if part)
            try:
                config = tables.get_config(argument)
            except ValueError as error:
                raise _Refused(f"table {table}, row {row}: {error}") from error
            config.data.source = given.data
            if given.steps and config.schedule.epochs:
                per_epoch = per_epoch or len(open_source(given.data))
                _shorten(config, given.steps, pretraining.steps(config, per_epoch).per_epoch)
            yield Run(table, row, seed, config, Path(given.workdir) / "rows" / _key(config))


def _shorten(config: ConfigDict, steps: int, per_epoch: int) -> None:
    """Give the run that many steps; what lasts some epochs of the whole run lasts the same share of it."""
    share = steps / (config.schedule.epochs * per_epoch)
    found = flatten(config)
    config.update_from_flattened_dict({key: round(found[key] * share) for key in (*EPOCH_KEYS, "masking.start_epoch")})
    config.schedule.total_steps = steps


def _key(config: ConfigDict) -> str:
    """A name for what a run computes: the recipe, and a digest of all that is not mere running."""
    learning = {key: value for key, value in flatten(config).items() if key not in MACHINE_KEYS}
    return f"{config.recipe}-{hashlib.sha256(json.dumps(learning, sort_keys=True).encode()).hexdigest()[:10]}"


def _check(runs: Sequence[Run], protocols: Sequence[ConfigDict]) -> None:
    """Every mistake of every row before the first is trained."""
    lines = []
    for run in runs:
        found = rules.mistakes(run.config, devices=jax.device_count(), processes=jax.process_count())
        lines += [f"table {run.table}, row {run.row}: {line}" for line in found]
    if len({config.protocol for config in protocols}) < len(protocols):
        lines.append("--protocol: the same protocol twice; its results would overwrite each other")
    if lines:
        raise rules.ConfigError(list(dict.fromkeys(lines)))


def _measured(run: Run, protocols: Sequence[ConfigDict]) -> Measured:
    """Train the run unless that is done, evaluate it unless that is done."""
    length = pretraining.steps(run.config, len(open_source(run.config.data.source)))
    about = (run.row, run.seed, str(run.place), length.total, pretraining.effective_epochs(run.config, length))
    try:
        if not _trained(run.place, length.total):
            print(f"table {run.table}, row {run.row}, seed {run.seed}: training in {run.place}", flush=True)
            pretrain.train(run.config, str(run.place))
        values: dict[str, float] = {}
        for config in protocols:
            values |= ablation_table.columns(config.protocol, _evaluated(run, config))
        return Measured(*about, values)
    except _BAD_RUN as error:
        print(f"table {run.table}, row {run.row}, seed {run.seed}: {error}", file=sys.stderr)
        return Measured(*about, {}, str(error))


def _trained(place: Path, total: int) -> bool:
    try:
        return checkpoint.find_step(place)[1] >= total
    except checkpoint.CheckpointError:
        return False


def _evaluated(run: Run, config: ConfigDict) -> dict[str, Any]:
    """What a protocol wrote of this run; run now unless the same settings have been run before."""
    settings = rules.to_json(config)
    place = run.place / "evaluations" / hashlib.sha256(settings.encode()).hexdigest()[:10]
    report = place / "eval" / f"{config.protocol}.json"
    if not report.is_file():
        network = evaluate.load(str(run.place))._replace(name=f"row {run.row}, seed {run.seed}")  # the directory's name is a digest
        evaluate.run(config, [network], place)
    return json.loads(report.read_text()) if report.is_file() else {}


def _about(given: argparse.Namespace) -> dict[str, Any]:
    return {"command": "python -m sere_jax ablate " + " ".join(f"--{key}={_text(value)}" for key, value in vars(given).items() if value)}


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
