"""The campaigns of `make reliability`, with few trials."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.reliability.__main__ import CAMPAIGNS
from tests.reliability.outcome import Row, Trials, table

FEW = {"weights": 12, "images": 60, "lost": 6}
ON_PROCESSES = {"kills": 3, "kills_of_two": 2, "signals": 3, "signals_of_two": 2, "elastic": 2, "damaged": 5, "disks": 5, "soak": 1}


def _passes(name: str, count: int, work: Path) -> None:
    row = CAMPAIGNS[name][1](Trials(name, count), random.Random(f"test {name}"), work)
    assert row.trials == count and not row.failures, table([row])


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged files
@pytest.mark.parametrize("name", FEW)
def test_a_campaign_finds_nothing(tmp_path: Path, name: str):
    _passes(name, FEW[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_PROCESSES)
def test_a_campaign_on_processes_finds_nothing(tmp_path: Path, name: str):
    _passes(name, ON_PROCESSES[name], tmp_path)


def test_the_table_has_a_row_a_campaign_and_the_failures_below():
    text = table([Row("kills", 2, "2 killed", []), Row("images", 3, "3 read", ["a.png: hangs"])])
    assert "| kills | 2 | 2 killed | 0 |" in text and text.endswith("\n\nimages: a.png: hangs")
    assert {*FEW, *ON_PROCESSES} == CAMPAIGNS.keys()
