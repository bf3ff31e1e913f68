"""The train step as a pure function, on a network small enough to do again by hand: accumulation, teacher, bad steps, keys."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sere_jax.ops.keys import example_keys
from sere_jax.train.state import PretrainMethod, State
from sere_jax.train.step import PretrainStep
from sere_jax.train.update import LossOutput, make_update
from sere_jax.types import Objective, Request, Views
from tests import micro

STUDENT, TEACHER = (Request("toy", "global", "cls", "post", side) for side in ("student", "teacher"))
VIEWS = micro.views(micro.config())


def _forward(params, batch_stats, global_views, local_views, requests, *, views, drop_path_noise):
    """x W, less the batch's mean (a BatchNorm's share of trouble), which is also the running statistic."""
    x = jnp.mean(global_views, (2, 3)) @ params["w"]
    if drop_path_noise is not None:
        x = x * (1 + drop_path_noise[0][..., 0, :1])
    mean = jnp.mean(x, (0, 1))
    return {requests[0]: x - mean}, {"mean": 0.9 * batch_stats["mean"] + 0.1 * mean}


def _objective(power: float = 2.0) -> Objective:
    def apply(outputs, views, state, step):
        student, teacher = outputs[STUDENT], outputs[TEACHER]
        loss = jnp.mean(jnp.abs(student - teacher[:, ::-1] + state["center"]) ** power)
        return loss, {"squares": jnp.mean(teacher**2, (0, 1))}, {"toy": loss}

    def update(state, statistics):  # not linear: the state may move by statistics of the whole window alone
        return {"center": 0.9 * state["center"] + 0.1 * jnp.sqrt(statistics["squares"])}

    return Objective((STUDENT, TEACHER), lambda: {"center": jnp.zeros(2)}, apply, update, {})


def _augment(views: Views, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Noise from each example's key; a negative index makes NaN."""
    noise = jax.vmap(lambda key: jax.random.normal(key, views.global_views.shape[1:]))(keys)
    pixels = jnp.asarray(views.global_views, jnp.float32) / 255 + 0.1 * noise
    return jnp.where((views.index < 0)[:, None, None, None, None], jnp.nan, pixels), jnp.zeros((len(views.index), 0, 2, 2, 3))


def _drop_path(keys: jax.Array, views: Views) -> tuple[jax.Array, jax.Array]:
    noise = jax.vmap(lambda key: jax.random.uniform(key, (2, 1, 2)))(keys)
    return noise, noise[:, :0]


def _sgd() -> optax.GradientTransformationExtraArgs:
    """p - 0.1 (step + 1) g, with the number of updates as its state."""

    def update(updates, state, params=None, *, step):
        return jax.tree.map(lambda g: -0.1 * (step + 1) * g, updates), state + 1

    return optax.GradientTransformationExtraArgs(lambda params: jnp.zeros((), jnp.int32), update)


def _momentum(step: jax.Array) -> jax.Array:
    return 0.5 + 0.1 * step


def _state(step: int = 2) -> State:
    rng = np.random.default_rng(0)
    params, teacher = ({"w": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)} for _ in range(2))
    stats, teacher_stats = ({"mean": jnp.asarray(rng.normal(size=2), jnp.float32)} for _ in range(2))
    center = {"center": jnp.asarray([0.3, -0.2], jnp.float32)}
    return State(jnp.int32(step), params, stats, jnp.int32(0), jnp.int32(1), PretrainMethod(teacher, teacher_stats, center))


def _step(power: float = 2.0, **options: Any) -> Any:
    parts = {"forward": _forward, "objective": _objective(power), "optimizer": _sgd(), "augment": _augment}
    return micro.jit(PretrainStep(**parts, drop_path_noise=_drop_path, ema_momentum=_momentum, seed=5, **options))


def _by_hand(state: State, rows: list[slice], teacher: Any = None) -> dict[str, Any]:
    """What a window of micro-batches must give: written in another order, from the rules of SPEC 1.5."""
    teacher = state.method.teacher if teacher is None else teacher
    objective, keys = _objective(), example_keys(5, state.step, 8)
    stats, teacher_stats = state.batch_stats, state.method.teacher_batch_stats
    losses, gradients, squares = [], [], []
    for part in rows:
        views = jax.tree.map(lambda x, part=part: x[part], VIEWS)
        crop_keys = jnp.stack([jax.random.split(key)[0] for key in keys[part]])
        path_keys = jnp.stack([jax.random.split(key)[1] for key in keys[part]])
        crops, noise = _augment(views, crop_keys), _drop_path(path_keys, views)
        from_teacher, teacher_stats = _forward(teacher, teacher_stats, *crops, (TEACHER,), views=views, drop_path_noise=None)

        def loss_of(params, crops=crops, noise=noise, from_teacher=from_teacher, stats=stats, views=views):
            found, new_stats = _forward(params, stats, *crops, (STUDENT,), views=views, drop_path_noise=noise)
            loss, statistics, _ = objective.apply({**found, **from_teacher}, views, state.method.objective, state.step)
            return loss, (new_stats, statistics)

        (loss, (stats, statistics)), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        losses.append(loss), gradients.append(gradient["w"]), squares.append(statistics["squares"])
    w = state.params["w"] - 0.1 * (state.step + 1) * sum(gradients) / len(rows)
    center = 0.9 * state.method.objective["center"] + 0.1 * np.sqrt(sum(squares) / len(rows))
    return {"loss": sum(losses) / len(rows), "w": w, "center": center, "stats": stats, "teacher_stats": teacher_stats}


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_step_over_micro_batches(parts: int):
    """Gradients and centers averaged, one update and one average of the teacher; BatchNorm moves with every micro-batch."""
    state = _state()
    after, metrics = _step(accumulate_steps=parts)(state, VIEWS)
    expected = _by_hand(state, [slice(j, None, parts) for j in range(parts)])
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(after.params["w"], expected["w"], atol=1e-6)
    np.testing.assert_allclose(after.method.objective["center"], expected["center"], atol=1e-6)
    micro.assert_close(after.batch_stats, expected["stats"], atol=1e-6)
    micro.assert_close(after.method.teacher_batch_stats, expected["teacher_stats"], atol=1e-6)
    momentum = 0.5 + 0.1 * 2  # at this step
    np.testing.assert_allclose(after.method.teacher["w"], momentum * state.method.teacher["w"] + (1 - momentum) * expected["w"], atol=1e-6)
    assert int(after.opt_state) == 1 and int(after.step) == 3 and int(after.bad_steps) == 1
    assert float(metrics["bad_step"]) == 0 and float(metrics["ema_momentum"]) == pytest.approx(momentum)


@pytest.mark.parametrize("timing", ["before", "none"])
def test_other_times_of_the_teacher(timing: str):
    """`before`: the teacher takes in the student as it was and answers already so; `none`: it stays."""
    state = _state()
    after, metrics = _step(ema_timing=timing)(state, VIEWS)
    teacher = {"w": 0.7 * state.method.teacher["w"] + 0.3 * state.params["w"]} if timing == "before" else state.method.teacher
    expected = _by_hand(state, [slice(None)], teacher)
    micro.assert_close(after.method.teacher, teacher, atol=1e-7)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(after.params["w"], expected["w"], atol=1e-6)


@pytest.mark.parametrize(("timing", "parts"), [("after", 1), ("after", 2), ("before", 1)])
def test_a_nan_in_one_image_changes_nothing_but_the_counters(timing: str, parts: int):
    state = _state()
    broken = VIEWS._replace(index=np.where(VIEWS.index == 3, -1, VIEWS.index).astype(np.int32))
    after, metrics = _step(ema_timing=timing, accumulate_steps=parts)(state, broken)
    assert float(metrics["bad_step"]) == 1 and not np.isfinite(metrics["loss"])
    micro.assert_equal(after, state._replace(step=state.step + 1, bad_steps=state.bad_steps + 1))


def test_a_gradient_that_is_not_finite_is_a_bad_step_too():
    """|x|^.5 at 0: the loss is fine, its gradient is not."""
    state = _state()
    state = micro.with_method(
        state._replace(params={"w": jnp.zeros((3, 2))}), teacher={"w": jnp.zeros((3, 2))}, objective={"center": jnp.zeros(2)}
    )
    after, metrics = _step(power=0.5)(state, VIEWS)
    assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"]) and float(metrics["bad_step"]) == 1
    micro.assert_equal(after, state._replace(step=state.step + 1, bad_steps=state.bad_steps + 1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("place", ["params", "mu", "nu", "gradient"])
def test_no_update_takes_in_a_value_that_is_lost(place: str, value: float):
    """The loss and its gradient are finite: only the update shows what lies in a parameter that nothing reads, or in a moment."""
    optimizer = optax.with_extra_args_support(optax.adamw(0.1))

    def loss(params, running, batch, keys):
        error = jnp.mean((batch["x"] @ params["w"]) ** 2)
        return error + (batch["scale"][0] * params["w"].sum() if place == "gradient" else 0.0), LossOutput(running, {})

    params = {"w": jnp.ones((3, 1)), "unused": jnp.zeros(2)}
    opt_state = optimizer.init(params)
    broken = jnp.full(2, value)
    if place == "params":
        params = params | {"unused": broken}
    elif place in ("mu", "nu"):
        opt_state = (opt_state[0]._replace(**{place: {"w": jnp.zeros((3, 1)), "unused": broken}}), *opt_state[1:])
    state = State(jnp.int32(4), params, {}, opt_state, jnp.int32(1), {})
    batch = {"x": jnp.ones((2, 3)), "scale": jnp.full(2, value if place == "gradient" else 0.0)}
    after, metrics = jax.jit(make_update(loss=loss, optimizer=optimizer))(state, batch)
    assert float(metrics["bad_step"]) == 1
    micro.assert_equal(after, state._replace(step=state.step + 1, bad_steps=state.bad_steps + 1))


def test_a_good_step_after_a_bad_one_goes_on():
    state, step = _state(), _step()
    broken, _ = step(micro.with_method(state, objective={"center": jnp.full(2, jnp.nan)}), VIEWS)
    after, metrics = step(micro.with_method(broken, objective=state.method.objective), VIEWS)
    again, _ = step(state._replace(step=state.step + 1, bad_steps=state.bad_steps + 1), VIEWS)
    assert float(metrics["bad_step"]) == 0
    micro.assert_equal(after, again)


def test_the_loss_has_no_gradient_in_the_teacher():
    state, step = _state(), _step().__wrapped__
    gradient = jax.grad(lambda teacher: step(micro.with_method(state, teacher=teacher), VIEWS)[1]["loss"])(state.method.teacher)
    assert not np.any(gradient["w"])
    assert np.any(jax.grad(lambda params: step(state._replace(params=params), VIEWS)[1]["loss"])(state.params)["w"])


def test_each_network_keeps_statistics_of_its_own():
    state, step = _state(), _step()
    plain, _ = step(state, VIEWS)
    other_teacher, _ = step(micro.with_method(state, teacher={"w": 2 * state.method.teacher["w"]}), VIEWS)
    other_student, _ = step(state._replace(params={"w": 2 * state.params["w"]}), VIEWS)
    micro.assert_equal(other_teacher.batch_stats, plain.batch_stats)
    micro.assert_equal(other_student.method.teacher_batch_stats, plain.method.teacher_batch_stats)
    assert np.any(other_teacher.method.teacher_batch_stats["mean"] != plain.method.teacher_batch_stats["mean"])
    assert np.any(other_student.batch_stats["mean"] != plain.batch_stats["mean"])


def test_random_numbers_depend_on_seed_step_and_position_alone():
    data = lambda *arguments: np.asarray(jax.random.key_data(example_keys(*arguments)))  # noqa: E731
    keys = data(0, jnp.int32(3), 8)
    assert len({tuple(key) for key in keys}) == 8
    np.testing.assert_array_equal(data(0, jnp.int32(3), 16)[:8], keys)
    for other in (data(1, jnp.int32(3), 8), data(0, jnp.int32(4), 8)):
        assert not np.any(np.all(other == keys, axis=-1))


def test_the_same_step_twice_is_the_same_to_the_bit():
    state, step = _state(), _step()
    micro.assert_equal(step(state, VIEWS), step(state, VIEWS))
