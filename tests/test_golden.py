"""The metrics of `configs/quickstart.py` at its first steps, kept in tests/golden/quickstart_step1.json.

Everything is in these numbers: initialisation, augmentation, network, losses, schedules, optimizer, teacher. The other tests say
what is right; this one says that something moved. Changing the file is legitimate where a change is meant to alter the numbers of
a run (the quickstart's config, a rule of the method, the order in which random numbers are drawn), and the commit's message says
which and why. It is not where a refactoring, a speed-up or a new version of a library "only" moved them: find out why first.

Made anew by

    python -m tests.test_golden
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from configs.quickstart import get_config
from sere_jax.build import pretraining
from tests import micro

FILE = Path(__file__).parent / "golden" / "quickstart_step1.json"
# Relative. Bit-identity holds on one machine and for one compiled program. Measured against the file on a CPU with AVX2, with one thread
# and with two: 6e-7 for losses, 1.2e-6 for the gradient's norm. The same CPU held to SSE4.2, which has no fused multiply-add: 4e-6 for
# relation losses and schedules; the teacher's temperature of 0.04 multiplies a rounding by 25, hence 5e-5 for DINO's loss.
TOLERANCES = {"dino": 1e-4, "loss": 1e-4, "teacher_entropy": 2e-4, "center_norm": 1e-4, "grad_norm": 5e-4}
PEAK = 12  # a step behind the warm-up and the frozen epoch, where one update shows


def _metrics() -> dict[str, dict[str, float]]:
    """Metrics of the initial network, and of the same one after one update, on one batch of noise."""
    config = get_config()
    length = pretraining.Steps(per_epoch=10, total=config.schedule.total_steps)
    views = micro.views(config, batch=8)
    step = micro.jit(pretraining.train_step(config, length))
    state = micro.jit(lambda: pretraining.init_state(config, length))()
    state, first = step(state._replace(step=jnp.int32(PEAK)), views)
    _, second = step(state, views)
    return {"initial": jax.tree.map(float, dict(first)), "updated": jax.tree.map(float, dict(second))}


def test_metrics_of_the_quickstart():
    golden = json.loads(FILE.read_text())
    # A metric more in the log is no change of the run.
    found = {when: {name: metrics[name] for name in golden[when]} for when, metrics in _metrics().items()}
    for when, metrics in found.items():
        for name, value in metrics.items():
            # Adam's first update is the gradient's sign times the rate. Where a gradient is nearly 0, another machine may round it to
            # the other side, so the second set of numbers is good to fewer digits.
            tolerance = min(1e-3, TOLERANCES.get(name, 5e-6) * (5 if when == "updated" else 1))
            assert value == pytest.approx(golden[when][name], rel=tolerance), f"{when}: {name}"
    # The update shows: on its own batch the loss falls.
    assert golden["updated"]["loss"] < golden["initial"]["loss"]


if __name__ == "__main__":
    FILE.write_text(json.dumps(_metrics(), indent=1, sort_keys=True) + "\n")
    print(FILE.read_text())
