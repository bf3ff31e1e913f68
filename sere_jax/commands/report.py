"""One HTML page of runs: python -m sere_jax report --workdir=DIR[,DIR...] [--output=FILE]

The page needs no network: what differs from the config files and from the defaults, curves beside their values when nothing is
learned, speed, tables of all evaluations, figures. A DIR is the workdir of a run, or a directory that eval.py wrote to; gs://BUCKET/NAME
too. Files that cannot be read are named in the page. Exit code 2: a DIR holds nothing to report.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sere_jax.buckets import Location, address_mistake
from sere_jax.commands.report_settings import launch_note, settings
from sere_jax.reporting import chart, page, remote, screen
from sere_jax.reporting.kinds import kind_of
from sere_jax.reporting.workdir import Run, state
from sere_jax.writing import WriteError, place, replacing, writing_to

LIMIT = 5_000_000  # bytes of a page
_KINDS = (
    ("loss", "Losses"),
    ("accuracy", "Accuracies while training"),
    ("entropy", "Entropies"),
    ("rank", "Ranks"),
    ("norm", "Norms"),
    ("schedule", "Schedules"),
    ("share", "Shares"),
    ("fault", "Faults"),
    ("unknown", "Others"),
    ("speed", "Throughput and waiting for data"),
)
_ABOUT = ("checkpoint", "network", "step", "seed", "name", "baseline", "tokens", "head", "training")
_FIGURES = {
    "attention": "attention of the cls token in the last block, for each head",
    "relations": "how one point relates to every patch in two views of an image",
    "pca": "three principal components of the patch features as colours",
    "channels": "the relation of channels and some of their maps",
    "crops": "the first images of training with their crops",
}
_PANELS = "image, true and predicted classes, and errors of some test images"
_FIGURES_OF = {  # by protocol; the name of a network follows
    **dict.fromkeys(("logistic", "linear", "finetune", "semi", "transfer"), "which classes are taken for which, and the accuracy of each"),
    **dict.fromkeys(("patch_knn", "patch_logistic", "segmentation_linear", "upernet", "imagenet_s"), _PANELS),
    "detection": "precision over recall, or test images with true and found objects",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sere_jax report", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="workdirs, separated by commas")
    parser.add_argument("--output", default="", metavar="FILE", help="the page; by default report.html in the first workdir")
    flags = parser.parse_args(arguments)
    for option, path in (("--workdir", flags.workdir), ("--output", flags.output)):
        if mistake := next(filter(None, map(address_mistake, path.split(","))), ""):
            print(f"{option}: found {path}, {mistake}", file=sys.stderr)
            return 2
    directories = [place(text) for text in flags.workdir.split(",") if text]
    try:
        runs = read_runs(directories)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    output = place(flags.output) if flags.output else directories[0] / "report.html"
    runs, nothing_learned = _with_references(runs)
    print("".join(f"cannot be read: {line}\n" for run in runs for line in run.unreadable), end="", file=sys.stderr)
    text = report(runs, nothing_learned)
    try:
        with writing_to(output.parent), replacing(output) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    except WriteError as error:
        print(error, file=sys.stderr)
        return 2
    screen.stdout().print(
        f"written: {output} ({len(text.encode('utf-8', 'backslashreplace')) / 1e6:.1f} MB)", highlight=False, markup=False
    )
    return 0


def read_runs(directories: Sequence[Location]) -> list[Run]:
    """Read workdirs; those of one name get numbers. Raises FileNotFoundError for one without contents, ValueError for none at all."""
    if not directories:
        raise ValueError("--workdir: found no directory, expected --workdir=DIR[,DIR...]")
    names = [directory.name for directory in directories]
    unique = [name if names.count(name) == 1 else f"{name} [{number}]" for number, name in enumerate(names, 1)]
    return [remote.read(directory, name) for directory, name in zip(directories, unique, strict=True)]


def _with_references(runs: Sequence[Run]) -> tuple[list[Run], dict[str, dict[str, float]]]:
    """The references of each run by its name. A run whose config does not say them gets a line in `unreadable`."""
    values: dict[str, dict[str, float]] = {}
    described = []
    for run in runs:
        try:
            values[run.name] = references(run)
        except Exception as error:  # a config that was edited, or is of another version, can fail anywhere
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            run = run._replace(unreadable=(*run.unreadable, f"{run.directory / 'config.json'}: no values when nothing is learned: {why}"))
        described.append(run)
    return described, values


def references(run: Run) -> dict[str, float]:
    """The values of a run's losses when nothing is learned, from its config; {} where there is none."""
    if not run.config or not run.metrics:
        return {}
    from sere_jax.build import pretraining  # imports JAX
    from sere_jax.config.saved import completed

    config = completed(_nested(run.config))
    values = pretraining.objective(config, pretraining.Steps(1, max(run.step, 1))).references
    return {name: float(value) for name, value in values.items()}


def report(runs: Sequence[Run], nothing_learned: Mapping[str, Mapping[str, float]]) -> str:
    """The page as text, at most `LIMIT` bytes: figures that do not fit are named instead."""
    sections = [("runs", "Runs", _overview(runs)), ("settings", "Settings", "".join(settings(runs)))]
    sections += [(f"curves-{kind}", heading, content) for kind, heading in _KINDS if (content := _curves(runs, kind, nothing_learned))]
    sections += [("evaluations", "Evaluations", content)] if (content := "".join(_evaluations(runs))) else []
    title = "Report on " + ", ".join(run.name for run in runs)
    room = LIMIT - len(page.page(title, sections).encode("utf-8", "backslashreplace")) - 10_000
    sections += [("figures", "Figures", content)] if (content := _figures(runs, room)) else []
    return page.page(title, sections)


def _overview(runs: Sequence[Run]) -> str:
    names = ("run", "recipe", "model", "step", "images/s", "s waiting a step", "newest scores", "state")
    rows = []
    for run in runs:
        newest = {name: series.values[-1] for name, series in run.metrics.items()}
        total, config = run.total_steps, run.config
        speed, wait = (f"{newest[key]:.3g}" if key in newest else "" for key in ("speed/images_per_second", "speed/data_wait"))
        step = f"{run.step:,}" + (f" of {total:,}" if total else "")
        rows.append(
            [run.name, config.get("recipe", ""), _model(config), step, speed, wait, newest_scores(run), state(run) if config else ""]
        )
    unreadable = [line for run in runs for line in run.unreadable]
    return page.table("Runs of this report", names, rows, text=True) + "".join(page.note(f"cannot be read: {line}") for line in unreadable)


def newest_scores(run: Run, most: int = 2) -> str:
    """The best accuracies of the newest evaluation in the loop, and its best mIoU: 'knn/k10/top1 0.409, patch_knn/k3/miou 0.215'."""
    scores = {name: series for name, series in run.metrics.items() if name.endswith(("/top1", "/miou"))}
    last = max((series.steps[-1] for series in scores.values()), default=0)
    ranked = sorted(((series.values[-1], name) for name, series in scores.items() if series.steps[-1] == last), reverse=True)
    shown: list[tuple[float, str]] = []
    for ending, count in (("/top1", most), ("/miou", 1)):
        shown += [one for one in ranked if one[1].endswith(ending)][:count]
    return ", ".join(f"{name} {value:.3f}" for value, name in shown)


def _model(config: Mapping[str, Any]) -> str:
    words = [config.get(key) for key in ("model.name", "model.variant")]
    return " ".join(str(word) for word in words if word)


def _curves(runs: Sequence[Run], kind: str, nothing_learned: Mapping[str, Mapping[str, float]]) -> str:
    names = list(dict.fromkeys(name for run in runs for name in run.metrics if kind_of(name).name == kind))
    if not names:
        return ""
    charts = []
    for number, name in enumerate(names):
        lines = []
        for style, run in enumerate(runs):
            if name in run.metrics:
                steps, values, random = run.metrics[name]
                lines.append(chart.Line(run.name, steps, values, style, nothing_learned.get(run.name, {}).get(name, random)))
        drawn, text = chart.draw(f"{kind}-{number}", name, lines), page.escape(_values(lines))
        charts.append(f"<figure>{drawn}<figcaption><strong>{page.escape(name)}</strong>: {text}</figcaption></figure>")
    return _key(runs) + f'<div class="charts">{"".join(charts)}</div>'


def _values(lines: Sequence[chart.Line]) -> str:
    """The last value of each curve, beside the one when nothing is learned: once where it is the same for all."""
    references = {line.reference for line in lines}
    (common,) = references if len(references) == 1 else (None,)
    differing = ["" if line.reference in (None, common) else f" ({line.reference:.4g} when nothing is learned)" for line in lines]
    last = ", ".join(f"{line.name} {line.values[-1]:.4g}{beside}" for line, beside in zip(lines, differing, strict=True))
    return last + ("" if common is None else f"; {common:.4g} when nothing is learned (dotted)")


def _key(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return ""
    items = ""
    for number, run in enumerate(runs):
        colour, dash = chart.style(number)
        line = f'<line x1="0" x2="48" y1="5" y2="5" stroke="{colour}" stroke-width="3" stroke-dasharray="{dash}"/>'
        items += f'<li><svg viewBox="0 0 48 10" aria-hidden="true">{line}</svg> {page.escape(run.name)}</li>'
    return f'<div class="key"><ul aria-label="Lines">{items}</ul></div>'


def _evaluations(runs: Sequence[Run]) -> Iterator[str]:
    """A table a protocol: a column a network or baseline of a run, a row a score."""
    for protocol in dict.fromkeys(name for run in runs for name in run.evaluations):
        evaluated = [run for run in runs if protocol in run.evaluations]
        columns, scores = [], []
        for run in evaluated:
            results = run.evaluations[protocol]["results"]
            columns += [f"{run.name}: {_label(result)}" for result in results]
            scores += [dict(_numbers({key: value for key, value in result.items() if key not in _ABOUT})) for result in results]
        names = dict.fromkeys(name for result in scores for name in result)
        rows = [[name, *(f"{result[name]:.4g}" if name in result else "" for result in scores)] for name in names]
        yield f"<h3>{page.escape(protocol)}</h3>" + page.table(f"Scores of {protocol}", ["score", *columns], rows)
        yield "".join(page.note(line) for line in _notes(evaluated, protocol))


def _notes(runs: Sequence[Run], protocol: str) -> Iterator[str]:
    """The notes of an evaluation, with the name of the run where not all runs have the same line; then the config files."""
    notes = {run.name: [str(line) for line in run.evaluations[protocol].get("notes", [])] for run in runs}
    for name, lines in notes.items():
        for line in lines:
            if any(line not in others for others in notes.values()):
                yield f"{name}: {line}"
            elif name == runs[0].name:
                yield line
    yield from filter(None, (launch_note(run.name, run.launches.get(protocol)) for run in runs))


def _label(result: Mapping[str, Any]) -> str:
    words = [result.get("name", ""), result.get("tokens") or "", f"step {result['step']}" if result.get("step") is not None else ""]
    return ", ".join(str(word) for word in words if word)


def _numbers(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in a result by the path of their keys; what was tried to choose a setting is left out."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and not key.startswith("selection"):
            yield from _numbers(value, f"{prefix}{key} ")
        elif isinstance(value, float) or (type(value) is int and abs(value) <= sys.float_info.max):
            yield (prefix + key).removeprefix("scores "), float(value)


def _figures(runs: Sequence[Run], room: int) -> str:
    parts, left_out = [], []
    for run in runs:
        for path in run.figures:
            try:
                drawn = page.picture(path, f"{run.name}: {_meaning(path.stem)}")
            except Exception as error:  # Pillow raises many types on damaged files
                left_out.append(f"{path} cannot be read ({error})")
                continue
            if len(drawn) > room:
                left_out.append(f"{path} does not fit into the {LIMIT / 1e6:.0f} MB of this page")
                continue
            room -= len(drawn)
            parts.append(drawn)
    return "".join(parts) + "".join(page.note(line) for line in left_out)


def _meaning(stem: str) -> str:
    """What a figure shows, by the name of its file: a figure of `figures.py`, or PROTOCOL-NETWORK."""
    protocol, _, network = stem.partition("-")
    shown = _FIGURES_OF.get(protocol) if network else None
    return f"{protocol} of {network}: {shown}" if shown else _FIGURES.get(stem, f"figure {stem}")


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *groups, name = path.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[name] = value
    return tree
