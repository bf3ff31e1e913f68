"""Schedules against the arrays of the reference code (SPEC 8.6), read at every step, as integers and under jit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sere_jax.build import pretraining
from sere_jax.config.check import ConfigError
from sere_jax.objectives import dino, patch
from sere_jax.train import schedules
from tests import micro
from tests.oracles import schedules as oracle


def _read(schedule, steps: int) -> np.ndarray:
    return np.asarray(jax.vmap(schedule)(jnp.arange(steps)))


@pytest.mark.parametrize("warmup", [0, 1, 2, 30])
def test_learning_rate(warmup: int):
    found = _read(schedules.warmup_cosine(2e-3, 1e-6, warmup_steps=warmup, steps=100), 100)
    # float32: a step's rate is good to 1e-6 of the peak.
    np.testing.assert_allclose(found, oracle.learning_rate(2e-3, 1e-6, warmup, 100), atol=2e-9)


def test_learning_rate_has_the_peak_twice_and_ends_above_its_end():
    warmup, steps = 20, 200
    found = _read(schedules.warmup_cosine(1e-3, 1e-6, warmup_steps=warmup, steps=steps), steps)
    assert found[0] == 0
    assert found[warmup - 1] == found[warmup] == np.float32(1e-3)
    assert 1e-6 < found[-1] < 1.2e-6
    assert found.argmax() == warmup - 1 and np.all(np.diff(found[warmup:]) < 0)


def test_a_warm_up_that_stops_short_of_the_peak():
    """MoCo v3's and MAE's: step i of the warm-up has peak i / warm-up; the cosine after it starts at the peak."""
    found = _read(schedules.warmup_cosine(1.0, 0.0, warmup_steps=5, steps=9, inclusive=False), 9)
    np.testing.assert_allclose(found[:6], [0, 0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
    np.testing.assert_allclose(found[5:], oracle.cosine(1.0, 0.0, 4), atol=1e-6)


def test_warm_up_as_long_as_the_run():
    found = _read(schedules.warmup_cosine(1.0, 0.0, warmup_steps=5, steps=5), 5)
    np.testing.assert_allclose(found, [0, 0.25, 0.5, 0.75, 1], rtol=1e-6)


def _pytorch(make: Callable[[torch.optim.Optimizer], Any], start: float, steps: int) -> np.ndarray:
    """The rates that one of PyTorch's schedulers gives from step 0 on."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=start)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return np.array(rates)


def test_linear_polynomial_and_step_schedules_are_pytorchs():
    """Read past their ends, too; float32 is good to 1e-6 of the start."""
    torch_schedulers = torch.optim.lr_scheduler
    for schedule, make in (
        (schedules.linear(0.3, 0.0, 10), lambda o: torch_schedulers.LinearLR(o, 1.0, 0.0, 10)),
        (schedules.linear(0.3, 0.03, 10), lambda o: torch_schedulers.LinearLR(o, 1.0, 0.1, 10)),
        (schedules.polynomial(0.3, 0.0, 10, power=0.9), lambda o: torch_schedulers.PolynomialLR(o, 10, 0.9)),
        (schedules.steps_down(0.3, 0.1, (3, 7)), lambda o: torch_schedulers.MultiStepLR(o, [3, 7], 0.1)),
    ):
        np.testing.assert_allclose(_read(schedule, 13), _pytorch(make, 0.3, 13), atol=3e-7)


def test_a_linear_schedule_is_numpys_linspace():
    np.testing.assert_allclose(_read(schedules.linear(0.2, 0.7, 5), 6), np.linspace(0.2, 0.7, 6), rtol=1e-6)


@pytest.mark.parametrize("ends", [(0.04, 0.4), (0.996, 1.0)])
def test_cosine(ends: tuple[float, float]):
    found = _read(schedules.cosine(*ends, 50), 50)
    np.testing.assert_allclose(found, oracle.cosine(*ends, 50), atol=1e-6)
    assert abs(found[0] - ends[0]) < 1e-7
    assert found[-1] < ends[1]


def test_teacher_temperature_is_indexed_by_the_epoch():
    schedule = schedules.linear_by_epoch(0.04, 0.07, epochs=30, steps_per_epoch=7)
    found = _read(schedule, 40 * 7)
    np.testing.assert_allclose(found, np.repeat(oracle.teacher_temperature(0.04, 0.07, 30, 40), 7), rtol=1e-6)
    np.testing.assert_allclose(found[29 * 7], 0.07, rtol=1e-6)
    assert found[29 * 7 - 1] < 0.0695


@pytest.mark.parametrize("epochs", [0, 1])
def test_teacher_temperature_with_hardly_a_warm_up(epochs: int):
    found = _read(schedules.linear_by_epoch(0.04, 0.07, epochs=epochs, steps_per_epoch=2), 6)
    np.testing.assert_allclose(found, np.repeat(oracle.teacher_temperature(0.04, 0.07, epochs, 3), 2), rtol=1e-6)


@pytest.mark.parametrize(("recipe", "start"), [("ibot", 4), ("dinoplus", 0)])
def test_ibots_patch_temperature_waits_for_the_masking_to_start(recipe: str, start: int, monkeypatch: pytest.MonkeyPatch):
    """iBOT: the first value until masking starts, then the warm-up, then the last. The cls token's warm-up does not wait, nor DINO+'s."""
    schedules_of: dict[str, Any] = {}
    for module, name in ((dino, "dino"), (patch, "patch"), (patch, "aligned")):
        make = getattr(module, name)
        spy = lambda name=name, make=make, **settings: schedules_of.update({name: settings["teacher_temp"]}) or make(**settings)  # noqa: E731
        monkeypatch.setattr(module, name, spy)
    config = micro.config({"masking": {"start_epoch": 4}, "dino": {"warmup_teacher_temp_epochs": 3}}, recipe=recipe)
    config.patch.update(warmup_teacher_patch_temp=0.04, teacher_patch_temp=0.07)
    config.dino.update(warmup_teacher_temp=0.02, teacher_temp=0.06)
    pretraining.objective(config, pretraining.Steps(per_epoch=2, total=20))
    patch_temperature = _read(schedules_of["patch" if recipe == "ibot" else "aligned"], 20)
    by_epoch = [0.04] * start + [0.04, 0.055, 0.07] + [0.07] * (7 - start)
    np.testing.assert_allclose(patch_temperature, np.repeat(by_epoch, 2), rtol=1e-6)
    np.testing.assert_allclose(_read(schedules_of["dino"], 20), np.repeat([0.02, 0.04] + [0.06] * 8, 2), rtol=1e-6)


def test_a_window_of_micro_batches_reads_its_first():
    schedule = schedules.warmup_cosine(1.0, 0.0, warmup_steps=4, steps=12)
    np.testing.assert_array_equal(_read(schedules.every(schedule, 3), 4), _read(schedule, 12)[::3])


def test_schedules_of_a_config():
    """The peak is base_lr x batch / 256; durations in epochs become steps; accumulation lays schedules out in micro-batches."""
    config = micro.config({"data": {"batch_size": 512}, "optimizer": {"base_lr": 5e-4, "warmup_epochs": 2}})
    length = pretraining.Steps(10, 100)
    found = pretraining.optimizer_schedules(config, length)
    np.testing.assert_allclose(_read(found.learning_rate, 100), oracle.learning_rate(1e-3, 1e-6, 20, 100), atol=1e-9)
    np.testing.assert_allclose(_read(found.weight_decay, 100), oracle.cosine(0.04, 0.4, 100), atol=1e-6)
    np.testing.assert_allclose(_read(found.ema_momentum, 100), oracle.cosine(0.996, 1.0, 100), atol=1e-6)
    config.optimizer.accumulate_steps = 4
    found = pretraining.optimizer_schedules(config, length)
    np.testing.assert_allclose(_read(found.learning_rate, 100), oracle.learning_rate(1e-3, 1e-6, 80, 400)[::4], atol=1e-9)
    np.testing.assert_allclose(_read(found.weight_decay, 100), oracle.cosine(0.04, 0.4, 400)[::4], atol=1e-6)


@pytest.mark.parametrize(("total_steps", "expected"), [(0, (7, 21)), (5, (7, 5))])
def test_length_of_a_run(total_steps: int, expected: tuple[int, int]):
    config = micro.config({"schedule": {"epochs": 3, "total_steps": total_steps}})
    assert pretraining.steps(config, 63) == expected  # 63 examples in batches of 8: the last 7 are left out of an epoch


def test_a_data_set_smaller_than_a_batch_is_refused():
    with pytest.raises(ConfigError, match=r"data.batch_size: found 8, expected at most the 7 images of .*; the smallest batch .* has 8"):
        pretraining.steps(micro.config(), 7)  # eight devices
    with pytest.raises(ConfigError, match=r"data.batch_size: found 32, expected at most the 29 images of .*; nearest: 24"):
        pretraining.steps(micro.config({"data": {"batch_size": 32}}), 29)
