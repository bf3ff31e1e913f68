"""Tables on the screens that people have: what does not fit beside goes below, and nothing is lost."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sere_jax.reporting import screen, table

NAME = "dino_sere_vits16 (mean patch)"
KNN = (("accuracy, %", *(f"k={k}\ntop{n}" for k in (10, 20, 100, 200) for n in (1, 5))), ["100.0"] * 8)
RELATIONS = (
    ("", *(f"{kind}\n{name}" for kind in ("spatial", "channel") for name in ("ratio", "same", "different", "uniform"))),
    ["0.412 ±0.013", "0.123", "0.298", "0.301"] * 2,
)


def shown(monkeypatch: pytest.MonkeyPatch, width: int, columns: tuple[str, ...], row: list[str]) -> list[str]:
    """The lines of a table on a terminal of that width."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(screen, "stdout", lambda: console)
    table.show("Title", columns, [[NAME, *row]])
    return console.file.getvalue().splitlines()


def columns_of(lines: list[str]) -> list[str]:
    """What stands in each column from top to bottom, without spaces."""
    cells = [[cell.strip() for cell in line.replace("┃", "│").strip("│").split("│")] for line in lines if line[:1] in ("┃", "│")]
    return ["".join(column).replace(" ", "") for column in zip(*cells, strict=True)]


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize(("columns", "row"), [KNN, RELATIONS], ids=["knn", "relations"])
def test_eight_values_fit_whole(monkeypatch, width: int, columns: tuple[str, ...], row: list[str]):
    lines = shown(monkeypatch, width, columns, row)
    assert max(map(len, lines)) <= width
    expected = [heading + cell for heading, cell in zip(columns, [NAME, *row], strict=True)]
    assert columns_of(lines) == ["".join(text.split()) for text in expected]
    whole = {line.strip() for text in row for line in text.split()}
    assert all(any(number in line for line in lines) for number in whole)  # names may be broken, numbers not


def test_a_wide_screen_breaks_nothing(monkeypatch):
    lines = shown(monkeypatch, 160, *RELATIONS)
    assert any(NAME in line and "0.412 ±0.013" in line for line in lines)
