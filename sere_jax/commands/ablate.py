"""Run an ablation table of the paper on any images: python -m sere_jax ablate --table=8 --data=folder:PHOTOS --steps=300 --workdir=DIR

It trains every row of the table as `train.py` would and evaluates each by the same protocols. After each row it prints and
saves the table so far: the measurements, beside the paper's figures, which come from other data and another protocol.
After a stop, the same command continues. Finished rows are not run again, and a row that several tables share is run once (DIR/rows).
Images that have changed since a row was begun are refused; other images to evaluate on are evaluated anew.
`--shard=I/N` on each of N machines runs every N-th run (a row with a seed) and writes no table. `--table_only` makes the tables of what is
trained and evaluated, and says what is missing. It computes nothing: a machine without accelerators will do, also while others train.

Exit code 0: all rows are finished, or a signal stopped a training, which was saved. 1: a row ended badly, as the table says, and the others
were run; or the disk failed or a bucket did not answer, and the other rows were not run; with --table_only, a row is not finished.
2: the command cannot be carried out. 130, 143: Ctrl-C or SIGTERM outside of a training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from sere_jax.buckets import Location, path_of
from sere_jax.build import pretraining
from sere_jax.commands import ablation_evaluations, ablation_rows, ablation_table, exit_codes, identity
from sere_jax.commands.ablation_evaluations import Evaluation
from sere_jax.commands.ablation_files import Refused, default_protocols, read_module, read_protocol
from sere_jax.commands.ablation_rows import Run
from sere_jax.commands.ablation_table import Measured
from sere_jax.commands.compiled import keep_compiled
from sere_jax.config import check as rules
from sere_jax.config import lengths, unread
from sere_jax.config.arguments import said_keys, shard
from sere_jax.config.keys import KEYS, MACHINE_KEYS
from sere_jax.config.launch import Launch
from sere_jax.config.names import flatten
from sere_jax.data.sources.open import open_source
from sere_jax.train import checkpoint
from sere_jax.train.fit import Stopped
from sere_jax.writing import WriteError, destination, writing_to


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    logging.set_verbosity(logging.WARNING)  # Orbax logs every file that it opens
    options = _parser().parse_args(argv)
    keep_compiled()
    try:
        if options.shard and options.table_only:
            raise Refused(
                f"--shard: found {options.shard!r} with --table_only, which makes the tables of all runs; expected one of the two"
            )
        tables = read_module("--config", options.config, ("TABLES", "PROTOCOL", "get_config"))
        configs = [read_protocol(spec) for spec in options.protocol or default_protocols(options)]
        runs = _share([run for table in options.table for run in _runs(tables, table, options)], options.shard)
        _check(runs, configs, _never_read(tables, options), devices=0 if options.table_only else jax.device_count())
        evaluations = [ablation_evaluations.read_images(config) for config in configs]
        _check_images(runs, options.data)
        with writing_to(options.workdir):
            return int(_run_tables(tables, runs, evaluations, options))
    except Stopped as stopped:
        where = "" if options.shard else f"finished rows are in {options.workdir}/table*.md; "
        print(f"{stopped}\n{where}the same command goes on")
        return 0
    except (*exit_codes.EXPECTED, Refused) as error:
        print(error, file=sys.stderr)
        return exit_codes.of(error)


def _run_tables(tables: ModuleType, runs: Sequence[Run], evaluations: Sequence[Evaluation], options: argparse.Namespace) -> bool:
    """Run the rows of every table, and publish the table after each; whether a row ended badly. With --table_only only publish."""
    measure = ablation_rows.so_far if options.table_only else ablation_rows.measured
    known: dict[str, Measured] = {}  # by workdir: a row that ended badly is not tried again for another table
    for table in options.table:
        rows = [run for run in runs if run.table == table]
        measured: list[Measured] = []
        for run in rows:
            finished_before = all(ablation_evaluations.report(run.workdir, evaluation).is_file() for evaluation in evaluations)
            workdir = str(run.workdir)
            known[workdir] = known[workdir] if workdir in known else measure(run, evaluations)
            measured.append(known[workdir]._replace(row=run.row, seed=run.seed))
            if options.shard:
                print(f"table {table}, row {run.row}, seed {run.seed}: {measured[-1].error or 'finished'}", flush=True)
            elif run is rows[-1] or not (finished_before or options.table_only):
                ablation_table.publish(
                    tables.TABLES[table],
                    table,
                    measured,
                    note=tables.PROTOCOL,
                    directory=path_of(options.workdir),
                    about=_about(options),
                )
    return any(row.error for row in known.values())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sere_jax ablate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--table", required=True, type=_numbers, metavar="N[,N]", help="tables of the paper: 7, 8, 10 to 16")
    add("--rows", default=[], type=lambda text: text.split(","), metavar="ROW[,ROW]", help="some of the rows (default: all)")
    add("--data", required=True, metavar="SOURCE", help="images to train on, as in data.source (docs/data.md)")
    add("--workdir", required=True, type=_workdir, metavar="DIR", help="directory of the runs and of the tables")
    add("--steps", type=int, default=0, help="steps of each row; warm-ups keep their share of the run (default: the row's own epochs)")
    add("--shard", default="", metavar="I/N", help="run every N-th run from the I-th on, I from 0, and write no table (docs/pods.md)")
    add("--table_only", action="store_true", help="write the tables of what is trained and evaluated; train and evaluate nothing")
    add("--size", default="paper", help="paper, or small for a CPU (default: paper)")
    add("--set", default="", metavar="KEY=VALUE[,...]", help="keys for all rows that read them, after everything else")
    add("--seeds", default=[0], type=_numbers, metavar="N[,N]", help="run each row with these seeds; the table has mean and deviation")
    add("--evaluate", default="", metavar="SOURCE", help="images for retrieval and relation differences (default: those of --data)")
    add("--gallery", default="", metavar="SOURCE", help="labelled images that vote, for k-NN in place of retrieval; with --query")
    add("--query", default="", metavar="SOURCE", help="labelled images that k-NN classifies; with --gallery")
    add("--protocol", action="append", metavar="FILE[:ARGUMENT]", help="evaluation in place of the default ones; may be repeated")
    add("--config", default="configs/ablation.py", metavar="FILE", help="file with the tables (default: configs/ablation.py)")
    return parser


def _workdir(text: str) -> Location:
    try:
        return destination(text)
    except WriteError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _runs(tables: ModuleType, table: int, options: argparse.Namespace) -> Iterator[Run]:
    """The runs of a table's rows, in the table's order, a row's seeds together."""
    if table not in tables.TABLES:
        raise Refused(f"--table: found {table}, expected one of {', '.join(map(str, tables.TABLES))}")
    known = tables.TABLES[table].rows
    if unknown := [row for row in options.rows if row not in known]:
        raise Refused(f"--rows: found {', '.join(unknown)}, expected some of {', '.join(known)} of table {table}")
    images = None
    for row in options.rows or known:
        for seed in options.seeds:
            argument = ",".join(part for part in (f"table={table},row={row},size={options.size},seed={seed}", options.set) if part)
            try:
                config = tables.get_config(argument)
            except ValueError as error:
                raise Refused(f"table {table}, row {row}: {error}") from error
            launch = Launch(frozenset({"data.source"}), file=f"{options.config}:{argument}", values=flatten(config))
            config.data.source = options.data
            _leave_unread(config, options.set)
            if options.steps and (config.schedule.epochs or config.schedule.total_steps):
                images = images or len(open_source(options.data))
                _shorten(config, options.steps, pretraining.steps(config, images))
            yield Run(table, row, seed, config, path_of(options.workdir) / "rows" / _key(config), launch)


def _share(runs: list[Run], text: str) -> list[Run]:
    """The runs of one machine. What tables share is one run, so the workdirs are dealt out, a seed each."""
    if not text:
        return runs
    try:
        number, of = shard(text)
    except ValueError as error:
        raise Refused(str(error)) from error
    mine = list(dict.fromkeys(str(run.workdir) for run in runs))[number::of]
    if not mine:
        print(f"--shard={text}: nothing to do, because there are fewer than {number + 1} runs")
    return [run for run in runs if str(run.workdir) in mine]


def _leave_unread(config: ConfigDict, changes: str) -> None:
    """Reset the keys of `--set` that this row never reads to their defaults. `_check` refuses keys that no row reads."""
    values = flatten(config)
    ignored = unread.changed(values)
    config.update_from_flattened_dict({key: KEYS[key].default for key in said_keys(changes, values) if key in ignored})


def _shorten(config: ConfigDict, steps: int, whole: pretraining.Steps) -> None:
    """Give the run that many steps. Warm-ups and other durations keep their share of the run, in whole epochs and at least one."""
    lengths.shorten(config, steps / whole.total, per_epoch=whole.per_epoch, total=steps)
    config.schedule.total_steps = steps


def _key(config: ConfigDict) -> str:
    """A name for what a run learns: its recipe, and a digest of all keys that change the result.

    Where the images lie does not count. That they are the same is compared with the checkpoint.
    """
    learning = {key: value for key, value in flatten(config).items() if key not in MACHINE_KEYS | {"data.source"}}
    return f"{config.recipe}-{hashlib.sha256(json.dumps(learning, sort_keys=True).encode()).hexdigest()[:10]}"


def _never_read(tables: ModuleType, options: argparse.Namespace) -> list[str]:
    """The mistakes of keys in `--set` that no row of any table reads."""
    keys = said_keys(options.set, KEYS)
    for number, table in tables.TABLES.items() if keys else ():
        for row in table.rows:
            config = tables.get_config(f"table={number},row={row},size={options.size},{options.set}")
            if config.schedule.epochs or config.schedule.total_steps:  # a row that trains nothing reads nothing
                ignored = unread.unread(flatten(config))
                keys = [key for key in keys if key in ignored]
    return [f"--set: found {key}, which no row of any table reads" for key in keys]


def _check(runs: Sequence[Run], evaluations: Sequence[ConfigDict], never_read: Sequence[str], *, devices: int) -> None:
    """Raise ConfigError with the mistakes of all rows, before the first is trained. 0 devices: any number will do."""
    lines = list(never_read)
    for run in runs:
        mistakes = rules.mistakes(run.config, devices=devices, processes=jax.process_count())
        lines += [f"table {run.table}, row {run.row}: {line}" for line in mistakes]
    if len({config.protocol for config in evaluations}) < len(evaluations):
        lines.append("--protocol: the same protocol twice; its results would overwrite each other")
    if lines:
        raise rules.ConfigError(list(dict.fromkeys(lines)))


def _check_images(runs: Sequence[Run], source: str) -> None:
    """Compare the images with those of the rows that earlier starts began or finished. Raises ConfigError where they have changed."""
    data = identity.read_data(open_source(source))
    for run in runs:
        try:
            lines = identity.check_step(
                run.config, data, *checkpoint.find_step(run.workdir), run.workdir, "--set=run.accept_changed_data=True"
            )
        except checkpoint.CheckpointError:
            continue  # not begun, or damaged: training sets it aside
        for line in lines:
            print(f"table {run.table}, row {run.row}, seed {run.seed}: {line}")


def _about(options: argparse.Namespace) -> dict[str, Any]:
    """The command line, which the table repeats."""
    words = ["python -m sere_jax ablate"]
    for key, value in vars(options).items():
        if key == "protocol":
            words += [f"--protocol={spec}" for spec in value or ()]
        elif value:
            words.append(f"--{key}" if value is True else f"--{key}={_text(value)}")
    return {"command": " ".join(words)}


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
