"""The page of runs: complete, self-contained, accessible and small; the list of runs; a browser that opens the page without a network."""

from __future__ import annotations

import errno
import gzip
import itertools
import json
import os
import re
import shutil
import socket
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sere_jax.commands import identity, report, runs
from sere_jax.reporting import workdir
from sere_jax.reporting.chart import STYLES
from tests.reporting import made_runs


class _Page(HTMLParser):
    """Collects what the checks look at; a tag that is not closed, or closed twice, raises AssertionError."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("runs")
    first = made_runs.workdir(root / "dino", **{"optimizer.base_lr": 0.002})
    second = made_runs.workdir(root / "sere", steps=7, figures=0)
    (second / "launch.json").write_text(json.dumps({"config_file": "configs/small.py", "changed": {}}))
    (first / "eval" / "launches").mkdir()
    evaluated = {"config_file": "configs/eval/logistic.py:bundled", "changed": {"cs": {"file": [1.0], "run": [2.0], "by": "command line"}}}
    (first / "eval" / "launches" / "logistic.json").write_text(json.dumps(evaluated))
    assert report.main([f"--workdir={first},{second}"]) == 0
    return (first / "report.html").read_text()


def test_the_page_shows_settings_curves_scores_and_figures_of_all_runs(page: str):
    text = re.sub(r"\s+", " ", _Page(page).text)
    assert "Report on dino, sere" in text
    assert "40 of 40" in text and "7 of 40" in text and "finished" in text and "knn/k10/top1 0.400" in text
    assert re.search(r"optimizer\.base_lr[\d.e-]+0\.002", text)  # a key that differs, with its default
    assert "seed" not in re.findall(r'<th scope="row">([^<]+)</th>', page.replace("<wbr>", ""))  # one that does not
    assert "0.05 when nothing is learned" in text  # from NAME/random
    assert "4.159 when nothing is learned" in text  # dino: ln 64, of the config's 64 prototypes
    assert "dino: <random>" in text and "5 images & more" in text
    assert "dino: changes of configs/small.py:source=<mine>" in text and "sere: config file configs/small.py; nothing was changed" in text
    rows = re.findall(
        r'<tr><th scope="row">([^<]+)</th><td class="text">([^<]*)</td><td class="text">([^<]*)</td><td [^>]*>([^<]+)',
        page.replace("<wbr>", ""),
    )
    assert ("schedule.epochs", "100", "20", "command line") in rows
    assert ("optimizer.warmup_epochs", "10", "2", "what follows from it") in rows
    assert "dino: config file configs/eval/logistic.py:bundled; changed: cs: [1.0] -> [2.0] (command line)" in text
    assert {"Losses", "Accuracies while training", "Entropies", "Throughput and waiting for data", "Evaluations", "Figures"} <= set(
        re.findall(r"<h2[^>]*>([^<]+)</h2>", page)
    )


def test_the_page_needs_no_network_and_is_accessible(page: str):
    parsed = _Page(page)
    tags = parsed.tags
    assert not [tag for tag, _ in tags if tag == "script"] and "url(" not in page and "@import" not in page
    links = [value for _, attributes in tags for key, value in attributes.items() if key in ("src", "href")]
    assert links and all(link is not None and link.startswith(("#", "data:")) for link in links)
    identifiers = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert all(link[1:] in identifiers for link in links if link and link.startswith("#"))
    assert dict(tags)["html"]["lang"] == "en" and [tag for tag, _ in tags].count("h1") == 1
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))  # no level is skipped
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    regions = [attributes for tag, attributes in tags if attributes.get("role") == "region"]
    assert regions and all(region["tabindex"] == "0" and region["aria-label"] for region in regions)  # the keyboard scrolls them
    drawn = [attributes for tag, attributes in tags if tag == "svg"]
    assert drawn and all("aria-labelledby" in svg or svg.get("aria-hidden") == "true" for svg in drawn)
    named = [name for svg in drawn for name in (svg.get("aria-labelledby") or "").split()]
    assert named and set(named) <= set(identifiers)
    count = [tag for tag, _ in tags].count
    assert count("table") == count("caption") > 0
    for colour, _ in (*STYLES, ("#3d4450", ""), ("#0b4f96", "")):
        assert _contrast(colour) > 4.5  # on white, as WCAG's AA asks of text


def _contrast(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)


def test_figures_that_do_not_fit_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "LIMIT", 200_000)
    made = made_runs.workdir(tmp_path / "many", figures=4, side=400)
    (made / "figures" / "broken.png").write_bytes(b"no picture")
    (made / "eval" / "broken.json").write_text("{")
    assert report.main([f"--workdir={made}", f"--output={tmp_path / 'page.html'}"]) == 0
    text = (tmp_path / "page.html").read_text()
    assert len(text.encode()) <= 200_000
    assert text.count("<img") + text.count("does not fit into") == 4 and "does not fit into" in text
    assert "broken.png cannot be read" in text and "cannot be read: " in text and "broken.json" in text


def test_twelve_runs_are_told_apart_and_odd_scores_are_shown(tmp_path):
    names = ['<i>&"one"', *(f"run {number}" for number in range(2, 13))]
    made = [made_runs.workdir(tmp_path / name, steps=3, figures=0) for name in names]
    line = {"step": 3, "loss": None, "patch_knn/k3/miou": 0.2154, "patch_knn/k3/miou/random": 0.1}
    (made[0] / "metrics.jsonl").write_text(f"{json.dumps(line)}\n")
    scores = {"miou": float("nan"), "macc": 0.5, "pixels": 10**400}  # JSON's whole numbers have any length
    (made[0] / "eval" / "upernet.json").write_text(json.dumps({"results": [{"name": "<u>", "scores": scores}], "notes": ["<b>"]}))
    for stem in ("upernet-run", "pca", "mine"):
        shutil.copy(Path(made_runs.workdir(tmp_path / f"for {stem}") / "figures" / "pca.png"), made[0] / "figures" / f"{stem}.png")
    assert report.main([f"--workdir={','.join(map(str, made))}", f"--output={tmp_path / 'page.html'}"]) == 0
    parsed = _Page((tmp_path / "page.html").read_text())
    drawn = {(tag["stroke"], tag["stroke-dasharray"]) for name, tag in parsed.tags if name == "line" and "stroke-dasharray" in tag}
    assert len(drawn) == 12
    text = " ".join(parsed.text.split())
    assert all(name in text for name in names) and '<i>&"one": <u>' in text and "<b>" in text
    assert "patch_knn/k3/miou 0.215" in text and "0.1 when nothing is learned" in text and "nan" in text
    alternatives = [tag["alt"] or "" for name, tag in parsed.tags if name == "img"]
    assert [alternative.removeprefix('<i>&"one": ') for alternative in alternatives] == [
        "figure mine",
        "three principal components of the patch features as colours",
        "upernet of run: image, true and predicted classes, and errors of some test images",
    ]


def test_a_run_whose_launch_is_not_known_is_reported(tmp_path):
    """Of an older version, of a program that made the config, and with a damaged file."""
    old, program, damaged = (made_runs.workdir(tmp_path / name, steps=3, figures=0) for name in ("old", "program", "damaged"))
    (old / "launch.json").unlink()
    (program / "launch.json").write_text('{"config_file": "", "changed": {}}')
    (damaged / "launch.json").write_text('{"config_file": "x.py", "changed": [3]}')
    assert report.main([f"--workdir={old},{program},{damaged}", f"--output={tmp_path / 'page.html'}"]) == 0
    text = " ".join(_Page((tmp_path / "page.html").read_text()).text.split())
    assert "old: which config file it was launched with was not saved" in text
    assert "program: a program made its config, there is no config file" in text
    assert "damaged: which config file" in text and "damaged/launch.json: expected config_file" in text


def test_a_directory_without_a_run_is_refused(tmp_path, capsys):
    assert report.main([f"--workdir={tmp_path}"]) == 2
    assert "found neither config.json, metrics.jsonl" in capsys.readouterr().err
    assert report.main(["--workdir=,"]) == 2 and "found no directory" in capsys.readouterr().err


def test_runs_are_listed_with_step_scores_and_state(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    made_runs.workdir(tmp_path / "a" / "done")
    made_runs.workdir(tmp_path / "live", steps=3)
    (tmp_path / "live" / ".lock").write_text(f'{{"host": "{socket.gethostname()}", "pid": {os.getpid()}, "since": "now"}}')
    made_runs.workdir(tmp_path / "over", steps=4)
    assert runs.main([str(tmp_path)]) == 0
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if "of 40" in line}
    assert set(lines) == {"a/done", "live", "over"}
    assert "40 of 40" in lines["a/done"] and "finished" in lines["a/done"] and "knn/k10/top1 0.400" in lines["a/done"]
    assert "logistic" in lines["a/done"] and f"running (process {os.getpid()})" in lines["live"] and "stopped" in lines["over"]
    assert runs.main([str(tmp_path / "nothing")]) == 2


@pytest.fixture
def torn(tmp_path: Path) -> dict[str, Path]:
    """Runs of which a file cannot be used, beside a sound one."""
    made = {
        name: made_runs.workdir(tmp_path / name, steps=4, figures=0) for name in ("length", "batch", "values", "list", "empty", "sound")
    }
    for name, changes in (
        ("length", {"schedule": {"total_steps": "x"}}),
        ("batch", {"schedule": {"total_steps": 0, "epochs": 3}, "data": {"batch_size": 0}}),
        ("values", {"recipe": 5}),
    ):
        path = made[name] / "config.json"
        config = json.loads(path.read_text())
        for group, change in changes.items():
            config[group] = config[group] | change if isinstance(change, dict) else change
        path.write_text(json.dumps(config))
    (made["list"] / "config.json").write_text("[]")
    (made["list"] / "metrics.jsonl").write_text("")
    shutil.rmtree(made["list"] / "eval")
    (made["empty"] / "config.json").write_text("[" * 100_000)  # JSON that is nested too deeply
    (made["sound"] / "eval" / "odd.json").write_text('{"results": [5]}')
    (made["sound"] / "eval" / "detections.json").write_text("[]")  # no report
    return made


_REASONS = (
    r"length/config\.json: schedule\.total_steps: found 'x', expected a whole number of at least 0",
    r"batch/config\.json: data\.batch_size: found 0, expected a whole number of at least 1",
    r"list/config\.json: found \[\], expected an object with keys",
    r"empty/config\.json: ",
    r"sound/eval/odd\.json: expected lists of results",
)


def test_runs_with_files_that_cannot_be_used_are_listed_with_the_reason(torn, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert runs.main([str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert {line.split()[1] for line in shown.out.splitlines() if line.startswith("│")} == set(torn)
    assert all(re.search(f"cannot be read: .*{reason}", shown.err) for reason in _REASONS), shown.err
    assert len(shown.err.splitlines()) == len(_REASONS)


def test_a_report_shows_the_other_runs_and_the_reason(torn, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert report.main([f"--workdir={','.join(map(str, torn.values()))}", f"--output={page}"]) == 0
    error, text = capsys.readouterr().err, " ".join(_Page(page.read_text()).text.split())
    references = r"values/config\.json: no values when nothing is learned: KeyError: 5"
    for reason in (*_REASONS, references):
        assert re.search(f"cannot be read: .*{reason}", error), error
        assert re.search(reason, text), text
    assert "4 of 40" in text


def test_a_metrics_file_that_the_disk_refuses_is_named(tmp_path, monkeypatch):
    made = made_runs.workdir(tmp_path / "run")
    read = Path.read_text

    def refused(path: Path, *arguments, **options) -> str:
        if path.name == "metrics.jsonl":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refused)
    run = workdir.read_run(made)
    assert run.unreadable == (f"{made / 'metrics.jsonl'}: Input/output error",) and not run.metrics and run.config


def test_the_length_of_a_run_counts_the_images_of_its_shards(tmp_path):
    """1,000 images in 2 shards by batches of 16: 62 steps an epoch."""
    made = made_runs.workdir(tmp_path / "run", **{"schedule.total_steps": 0, "schedule.epochs": 3, "data.batch_size": 16})
    assert workdir.read_run(made).total_steps == 0  # nothing says how many images there are
    entries = gzip.compress(b'["a-00000-of-00002[0:500]", 9, -1, -1]\n["a-00001-of-00002[0:500]", 9, -1, -1]\n')
    identity.keep_entries(identity.Data("tfds:a:train", 1000, "0123456789abcdef", entries), made)
    run = workdir.read_run(made)
    assert run.total_steps == 3 * 62 and run.step == 40 and "stopped" in workdir.state(run) and not run.unreadable


def test_a_process_of_another_host_is_not_taken_for_dead(tmp_path):
    made = made_runs.workdir(tmp_path / "far", steps=3)
    (made / ".lock").write_text('{"host": "elsewhere", "pid": 1, "since": "now"}')
    state = workdir.state(workdir.read_run(made), now=(made / "metrics.jsonl").stat().st_mtime + 300)
    assert state == "last line 5 min ago, on elsewhere"
