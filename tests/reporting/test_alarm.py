"""The alarm of a collapse: silent through healthy runs, raised within 200 steps of a collapse, on the panel and in the log."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from sere_jax.reporting.alarm import CollapseAlarm
from sere_jax.reporting.display import Panel
from sere_jax.reporting.progress import Progress

K = math.log(512)
REFERENCES = {"dino": K, "teacher_entropy": K}
# (dino, teacher_entropy) every 20 steps of a run of the quickstart, then 96 wide, from its start, then every 120.
HEALTHY = [
    *((4.4294, 3.6891), (5.1154, 4.7579), (4.4222, 4.0976), (5.1302, 4.8903), (4.8265, 4.5634), (2.9275, 2.5471), (2.506, 2.079)),
    *((3.0668, 2.5344), (2.7471, 2.2207), (1.8676, 1.2939), (2.5329, 1.9987), (2.7335, 2.0839), (3.92, 3.4173), (3.7548, 3.2531)),
]

WITHOUT_CENTER = [
    *((3.2388, 2.0820), (1.1924, 0.4060), (0.6381, 0.3473), (0.5077, 0.3139)),
    *((0.3505, 0.2502), (0.1587, 0.1265), (0.0256, 0.0207), (0.0045, 0.0023)),
]

TOO_FAST = [
    *((2.2605, 1.3488), (5.3959, 5.0356), (2.8123, 2.6779), (1.1479, 0.9031), (3.8209, 3.6928)),
    *((5.7962, 5.7893), (5.8154, 5.8063), (5.9452, 5.8891), (5.5190, 5.5030), (5.6281, 5.6233), (5.9888, 5.9851)),
]


def said(alarm: CollapseAlarm, pairs, first: int = 20, every: int = 20) -> list[tuple[int, str]]:
    """(step, line) of everything that the alarm says."""
    lines = []
    for number, (loss, entropy) in enumerate(pairs):
        step = first + number * every
        lines += [(step, line) for line in alarm.watch(step, {"dino": loss, "teacher_entropy": entropy, "center_norm": 2.0})]
    return lines


def test_a_healthy_run_is_left_alone():
    assert said(CollapseAlarm(REFERENCES), HEALTHY) == []


def test_a_slow_start_near_the_uniform_answer_is_left_alone():
    start = [(K - 0.001 * number, K - 0.0012 * number) for number in range(20)]
    assert said(CollapseAlarm(REFERENCES), [*start, *HEALTHY]) == []


@pytest.mark.parametrize(
    ("end", "cause"),
    [((0.01, 0.004), "one prototype for every image"), ((K + 0.001, K - 0.001), "center_norm 2: every image gets the same distribution")],
)
def test_both_collapses_are_told_within_200_steps(end, cause):
    alarm = CollapseAlarm(REFERENCES)
    last = HEALTHY[-1]
    down = [tuple(one + share * (other - one) for one, other in zip(last, end, strict=True)) for share in (0.5, 0.9)]
    lines = said(alarm, [*HEALTHY, *down, *[end] * 8])
    collapsed = 20 + 20 * (len(HEALTHY) + len(down))  # the first log of the collapsed state
    assert len(lines) == 1 and lines[0][0] - collapsed <= 200 and cause in lines[0][1] and lines[0][1].startswith("COLLAPSE")
    assert said(alarm, [HEALTHY[0]], first=2000) == [(2000, "step 2,000: teacher_entropy has left the collapse")] and not alarm.active


def test_patches_that_all_get_the_same_answer_are_told_while_cls_tokens_are_healthy():
    alarm = CollapseAlarm({**REFERENCES, "patch_masked": K, "patch_entropy": K})
    cls = {"dino": HEALTHY[0][0], "teacher_entropy": HEALTHY[0][1]}
    healthy = cls | {"patch_masked": 5.1, "patch_entropy": 4.6, "masked_share": 0.15}
    nothing_hidden = cls | {"patch_masked": 0.0, "patch_entropy": 0.0, "masked_share": 0.0}
    uniform = cls | {"patch_masked": 6.2380, "patch_entropy": 6.2379, "masked_share": 0.15, "patch_center_norm": 0.5}
    quiet = [alarm.watch(20 * step, values) for step, values in enumerate([healthy, healthy, nothing_hidden, nothing_hidden, uniform])]
    assert not any(quiet)
    (line,) = alarm.watch(100, uniform)
    assert line.startswith("COLLAPSE at step 100: patch_masked is 6.24 and patch_entropy 6.24") and "patch_center_norm 0.5" in line


def test_a_run_without_centering_is_told_as_its_loss_falls():
    """(dino, teacher_entropy) of the quickstart with dino.center_momentum=1, every 20 steps from step 20."""
    lines = said(CollapseAlarm(REFERENCES), WITHOUT_CENTER)
    assert [step for step, _ in lines] == [120]


def test_a_run_that_breaks_at_its_rate_is_told():
    """The quickstart with optimizer.base_lr=1, every 20 steps: from step 120 on student and teacher say the same of every view."""
    lines = said(CollapseAlarm(REFERENCES), TOO_FAST)
    assert [step for step, line in lines if "COLLAPSE" in line] == [140, 200]


def test_a_run_that_never_learns_is_told_after_2000_steps():
    lines = said(CollapseAlarm(REFERENCES), [(K, K)] * 120)
    assert [step for step, _ in lines] == [2040]  # the second log after them


def test_one_low_entropy_and_confident_answers_that_differ_are_no_collapse():
    alarm = CollapseAlarm(REFERENCES)
    assert said(alarm, [*HEALTHY, (0.01, 0.004), HEALTHY[0]]) == []
    # Every image has a prototype of its own, which the student does not know yet.
    assert said(alarm, [(0.9, 0.004)] * 5) == []


def test_ranks_that_fall_or_are_those_of_constant_features():
    alarm = CollapseAlarm({})
    assert [alarm.watch(step, {"rank/rankme": rank}) for step, rank in ((200, 40.0), (400, 90.0), (600, 30.0))] == [[], [], []]
    (line,) = alarm.watch(800, {"rank/rankme": 12.0})
    assert "was 90" in line
    assert "alike" in CollapseAlarm({}).watch(200, {"rank/rankme": 1.02})[0]


def test_the_panel_the_lines_and_the_records_tell_it(tmp_path):
    text = io.StringIO()
    collapsed = {"dino": 0.003, "teacher_entropy": 0.001}
    with Progress(str(tmp_path), total_steps=100, references=REFERENCES, live=False, console=Console(file=text, width=200)) as progress:
        progress.start(0)
        for step in (20, 40, 60):
            progress.write(step, collapsed)
    assert "COLLAPSE at step 40: dino is 0.003 and teacher_entropy 0.001: one prototype for every image" in text.getvalue()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record.get("collapse") for record in records] == [None, 1.0, 1.0]
    panel = Panel(100, 0, REFERENCES)
    panel.warnings = ("one prototype for every image",)
    screen = Console(file=io.StringIO(), width=120, record=True)
    screen.print(panel.draw(120))
    assert "COLLAPSE: one prototype for every image" in screen.export_text()


def test_values_at_random_initialisation_stand_beside_those_of_the_run():
    panel = Panel(100, 0, {})
    panel.start(0)
    values = {"rank/rankme": 30.0, "rank/rankme/random": 12.0}
    panel.write(20, values)
    assert panel.line(20, values).endswith("rank/rankme 30 (12)")
