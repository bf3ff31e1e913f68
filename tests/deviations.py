"""How far we are from PyTorch and Pillow: tests hand in what they measured, and `--deviations` prints the largest of each group.

What a test hands in travels with its report, so the table is complete with several workers too. docs/fidelity.md keeps it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Deviation = Callable[[str, str, float, float], None]  # (group, what, found, limit)
_KEY = "deviation"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--deviations", action="store_true", help="print the largest deviation from PyTorch and Pillow of each group")


@pytest.fixture
def deviation(request: pytest.FixtureRequest) -> Deviation:
    """`deviation(group, what, found, limit)`: note it for the table, and fail where it is above the limit or no number."""

    def note(group: str, what: str, found: float, limit: float) -> None:
        request.node.user_properties.append((_KEY, (group, what, float(found), float(limit))))
        assert found <= limit, f"{group}, {what}: found a deviation of {found:.3g}, expected at most {limit:.3g}"

    return note


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.getoption("--deviations"):
        return
    worst: dict[tuple[str, float], tuple[float, str, int]] = {}
    for report in [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]:
        for group, what, found, limit in (value for key, value in report.user_properties if key == _KEY):
            most, where, count = worst.get((group, limit), (-1.0, "", 0))
            worst[group, limit] = (found, what, count + 1) if found > most else (most, where, count + 1)
    terminalreporter.section("largest deviation of each group")
    terminalreporter.write_line("| Group | Limit | Largest found | Where | Compared |\n|---|---|---|---|---|")
    for (group, limit), (found, what, count) in sorted(worst.items()):
        terminalreporter.write_line(f"| {group} | {limit:.2g} | {found:.2g} | {what} | {count} |")
