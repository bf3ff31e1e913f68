"""Values that no run can use are refused, though their type is right."""

from __future__ import annotations

import pytest

from tests.config.test_check import _mistakes

CASES: list[tuple[dict[str, object], str | None]] = [
    ({"run__keep_every_steps": 300, "schedule__total_steps": 1000}, "multiple or divisor of run.checkpoint_every_steps = 500"),
    ({"run__keep_every_steps": 250, "schedule__total_steps": 900}, None),
    ({"photometry__mean": (123.7, 116.3, 103.5)}, "each a number of at least 0 and at most 1"),
    ({"photometry__std": (58.4, 57.1, 57.4)}, "each a number above 0 and at most 1"),
    ({"data__workers": 10000}, "data.workers: found 10000, expected a whole number of at least 0 and at most 512"),
    ({"optimizer__base_lr": 30.0}, "optimizer.base_lr: found 30, expected a peak, base_lr x batch_size / 256, of at most 1 with adamw"),
]


@pytest.mark.parametrize(("changes", "line"), CASES)
def test_what_no_run_can_use_is_refused(changes, line):
    found = _mistakes(**changes)
    assert found == [] if line is None else any(line in one for one in found), found


def test_the_number_of_devices_may_be_unknown():
    """Before JAX is imported."""
    assert _mistakes(devices=0, data__batch_size=7, run__fsdp=3) == []
    assert len(_mistakes(devices=2, data__batch_size=7, run__fsdp=3)) == 2
