"""One table of an ablation: the measurements, and the paper's figures beside them. Written by `ablate`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from sere_jax.buckets import Location
from sere_jax.reporting import screen
from sere_jax.reporting.table import write
from sere_jax.writing import replacing


@runtime_checkable
class PaperRow(Protocol):
    """A row of `configs/ablation.py`."""

    recipe: str
    paper: tuple[float, ...]
    changes: dict[str, Any]


@runtime_checkable
class PaperTable(Protocol):
    """A table of `configs/ablation.py`."""

    title: str
    columns: tuple[str, ...]
    rows: dict[str, PaperRow]


class Measured(NamedTuple):
    """The measurements of one run of a row. `error` says why there are none."""

    row: str
    seed: int
    run: str
    steps: int
    effective_epochs: float
    values: dict[str, float]
    error: str = ""


def publish(table: PaperTable, number: int, runs: Sequence[Measured], *, note: str, directory: Location, about: Mapping[str, Any]) -> None:
    """Print the table, and write directory/tableN.json and tableN.md. `note` names the paper's own protocol."""
    if jax.process_index() != 0:
        return
    rows = list(dict.fromkeys(run.row for run in runs))
    measures = list(dict.fromkeys(name for run in runs for name in run.values))
    heads = ["row", "steps", "effective epochs", *measures, *(f"paper: {name}" for name in table.columns)]
    cells = [_cells(table.rows[row], [run for run in runs if run.row == row], measures) for row in rows]
    title = f"Table {number}: {table.title}"
    notes = [f"paper: {note}. Not comparable with the columns before.", *_errors(runs)]
    text = _markdown(title, heads, cells, [*notes, f"`{about['command']}`"])
    screen.stdout().print(text, markup=False, highlight=False, soft_wrap=True)  # wider than most screens: a table would lose columns
    with replacing(directory / f"table{number}.md") as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # the command may name files of any bytes
    content = [_json(table.rows[row], row, table.columns, [run for run in runs if run.row == row]) for row in rows]
    write(directory / f"table{number}.json", {"table": number, "title": table.title, "paper": note, **about, "rows": content})


def _cells(row: PaperRow, runs: Sequence[Measured], measures: Sequence[str]) -> list[str]:
    shown = [_spread([run.values[name] for run in runs if name in run.values], 3 if "ratio" in name else 1) for name in measures]
    return [runs[0].row, str(runs[0].steps), f"{runs[0].effective_epochs:.3g}", *shown, *(f"{value:g}" for value in row.paper)]


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ±{statistics.stdev(values):.{digits}f}"


def _errors(runs: Sequence[Measured]) -> list[str]:
    return [f"{run.row}, seed {run.seed}: {run.error}" for run in runs if run.error]


def _markdown(title: str, heads: Sequence[str], cells: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    rule = ["---", *["---:"] * (len(heads) - 1)]
    lines = ["| " + " | ".join(row) + " |" for row in (heads, rule, *cells)]
    return "\n".join([f"**{title}**", "", *lines, "", *[line + "  " for line in notes]]) + "\n"


def _json(row: PaperRow, name: str, columns: Sequence[str], runs: Sequence[Measured]) -> dict[str, Any]:
    return {
        "row": name,
        "recipe": row.recipe,
        "changes": row.changes,
        "paper": dict(zip(columns, row.paper, strict=True)),
        "runs": [{key: value for key, value in run._asdict().items() if key != "row"} for run in runs],
    }
