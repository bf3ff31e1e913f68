"""What a config makes: the initial state, and a whole train step of DINO + SERE on one device and on eight."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sere_jax.build import pretraining
from sere_jax.commands import aot, hlo
from sere_jax import sharding
from sere_jax.train.state import State
from sere_jax.types import Metrics
from tests import micro

# Updates from the first step on; the last layer stands still in the first epoch (5 steps).
RUN = {"optimizer": {"warmup_epochs": 0, "base_lr": 0.03, "clip_grad": 0.3}, "teacher": {"ema_momentum": 0.9}}


def _config(photometry: bool = False, **changes: Any):
    return micro.config(RUN | changes, local_count=1, photometry=photometry)


@functools.cache
def _compiled(photometry: bool) -> Any:
    config = _config(photometry)
    return micro.jit(pretraining.train_step(config, micro.LENGTH))


@functools.cache
def _first() -> tuple[State, State, Metrics]:
    """The state before and after one step, and its metrics."""
    state = micro.state(_config())
    return state, *_compiled(True)(state, micro.views(_config()))


def test_the_teacher_is_the_average_of_every_student_parameter():
    """SPEC 8.9: predictors and local modules, which the teacher never runs, among them."""
    before, after, _ = _first()
    expected = jax.tree.map(lambda t, s: 0.9 * t + 0.1 * s, before.method.teacher, after.params)
    micro.assert_close(after.method.teacher, expected, atol=3e-7)  # two roundings of values up to 1.5
    moved = {path: np.any(a != b) for (path, a), b in _pairs(after.params, before.params)}
    assert {name for name, any_ in moved.items() if not any_} == {"heads_dino/last_layer/direction"}
    unused = [after.method.teacher["heads_spatial"]["predictor"]["kernel"], after.method.teacher["heads_channel_local"]["bn"]["scale"]]
    stale = [before.method.teacher["heads_spatial"]["predictor"]["kernel"], before.method.teacher["heads_channel_local"]["bn"]["scale"]]
    assert all(np.any(a != b) for a, b in zip(unused, stale, strict=True))


def _pairs(a: Any, b: Any) -> list:
    flat_a, flat_b = flatten_dict(a, sep="/"), flatten_dict(b, sep="/")
    assert flat_a.keys() == flat_b.keys()
    return [((path, leaf), flat_b[path]) for path, leaf in flat_a.items()]


def test_only_what_a_network_runs_moves_its_running_statistics():
    before, after, _ = _first()

    def moved(new: Any, old: Any) -> set[str]:
        return {path.rpartition("/")[0] for (path, a), b in _pairs(new, old) if np.any(a != b)}

    heads = ["heads_spatial", "heads_channel"]
    norms = ("bn", "predictor_bn")  # the teacher's predictor runs for its statistics alone
    assert moved(after.method.teacher_batch_stats, before.method.teacher_batch_stats) == {f"{head}/{bn}" for head in heads for bn in norms}
    local = [f"{head}_local" for head in heads]
    assert moved(after.batch_stats, before.batch_stats) == {f"{head}/{bn}" for head in heads + local for bn in norms}
    spatial = "heads_spatial"
    assert np.any(after.batch_stats[spatial]["bn"]["mean"] != after.method.teacher_batch_stats[spatial]["bn"]["mean"])


def test_metrics_are_complete_and_add_up():
    _, after, metrics = _first()
    references = pretraining.objective(_config(), micro.LENGTH).references
    assert references.keys() < metrics.keys()
    assert metrics.keys() - references.keys() == {
        "loss",
        "grad_norm",
        "ema_momentum",
        "learning_rate",
        "weight_decay",
        "bad_step",
        "center_norm",
    }
    assert all(np.isfinite(value) and jnp.shape(value) == () for value in metrics.values())
    np.testing.assert_allclose(metrics["loss"], metrics["dino"] + metrics["spatial"] + metrics["channel"], rtol=1e-6)
    np.testing.assert_allclose(metrics["spatial"], (metrics["spatial_global"] + metrics["spatial_local"]) / 2, rtol=1e-6)
    assert int(after.step) == 1 and int(after.bad_steps) == 0


def test_a_loss_that_is_not_a_number_leaves_the_whole_state_alone():
    before, _, _ = _first()
    broken = micro.with_method(before, objective={**before.method.objective, "dino": {"center": jnp.full((1, 64), jnp.nan, jnp.float32)}})
    after, metrics = _compiled(True)(broken, micro.views(_config()))
    assert float(metrics["bad_step"]) == 1
    micro.assert_equal(after, broken._replace(step=jnp.int32(1), bad_steps=jnp.int32(1)))


def test_the_same_seed_is_the_same_step_to_the_bit():
    before, after, metrics = _first()
    micro.assert_equal(_compiled(True)(before, micro.views(_config())), (after, metrics))


def _train(step: Any, state: State, config: Any, count: int) -> tuple[State, list[float]]:
    losses = []
    for i in range(count):
        state, metrics = step(state, micro.views(config, seed=i))
        assert float(metrics["bad_step"]) == 0
        losses.append(float(metrics["loss"]))
    return state, losses


@functools.cache
def _plain(count: int) -> tuple[State, list[float]]:
    return _train(_compiled(True), micro.state(_config()), _config(), count)


def _stack_state(state: State, like: State) -> State:
    """An unrolled state at step 0 in the shape of one with scanned blocks (whose moments are zeros)."""
    scanned = [{**tree, "backbone": micro.stacked(tree["backbone"])} for tree in (state.params, state.method.teacher)]
    return micro.with_method(like._replace(params=scanned[0]), teacher=scanned[1])


def _variant(**changes: Any) -> tuple[State, list[float], State]:
    """Three steps of a variant from the same start: its state, its losses and the plain run's state in its shape."""
    config = _config(True, **changes)
    start, state = micro.state(config), micro.state(_config())
    scanned = config.model.scan_blocks
    plain = _plain(3)[0]
    if scanned:
        state = _stack_state(state, start)
        plain = start._replace(params={**plain.params, "backbone": micro.stacked(plain.params["backbone"])})
    return *_train(micro.jit(pretraining.train_step(config, micro.LENGTH)), state, config, 3), plain


def _assert_same_training(found: State, losses: list[float], plain: State) -> None:
    np.testing.assert_allclose(losses, _plain(3)[1], rtol=1e-5)
    # Adam divides by the root of its second moment: where a gradient is nearly 0, rounding turns into a share of the rate
    # (0.0009 a step here). So almost all of the parameters must agree closely, and all of them to a step's length.
    differences = np.concatenate([np.abs(np.asarray(a) - b).ravel() for (_, a), b in _pairs(found.params, plain.params)])
    assert np.quantile(differences, 0.99) < 1e-5 and differences.max() < 3 * 0.0009


def test_scanned_blocks_and_separable_sampling_train_the_same():
    _assert_same_training(*_variant(model={"scan_blocks": True, "remat": "dots"}, relation={"sampling_impl": "separable"}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"scan_blocks": True, "remat": "dots"}},
        {"model": {"scan_blocks": True}},
        {"model": {"remat": "full"}},
        {"relation": {"sampling_impl": "separable"}},
    ],
    ids=["scan+dots", "scan", "full", "separable"],
)
def test_each_variant_alone_trains_the_same(changes: dict[str, Any]):
    _assert_same_training(*_variant(**changes))


@functools.cache
def _on_eight(fsdp: int, accumulate_steps: int = 1) -> tuple[Any, State, Any]:
    """The step compiled for eight devices, the placed start, and a function that makes and places a batch."""
    config, mesh = _config(True), sharding.make_mesh(fsdp)
    config.optimizer.accumulate_steps, batch = accumulate_steps, 8 * accumulate_steps
    state = micro.state(config)
    # The rule's own threshold would leave this small state on every device.
    shardings = sharding.state_shardings(state, mesh, min_size=512)
    step = jax.jit(
        pretraining.train_step(config, micro.LENGTH, mesh),
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
        compiler_options=micro.FAST_COMPILE,
    )
    placed = jax.device_put(state, shardings)
    place = lambda seed: sharding.to_global(micro.views(config, seed, batch), mesh)  # noqa: E731
    return step.lower(placed, place(0)).compile(), placed, place


def _assert_same_losses(fsdp: int, count: int) -> None:
    step, state, place = _on_eight(fsdp)
    losses = []
    for i in range(count):
        state, metrics = step(state, place(i))
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, _plain(count)[1], rtol=1e-5)


def test_eight_devices_compute_the_losses_of_one():
    _assert_same_losses(fsdp=1, count=3)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_ten_steps_on_eight_devices(fsdp: int):
    _assert_same_losses(fsdp, count=10)


def _collectives(text: str) -> dict[str, list[str]]:
    """Kind of collective -> the shapes it answers, from compiled HLO."""
    found: dict[str, list[str]] = {}
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    for shape, kind in re.findall(rf"= (\(?[\w\[\],{{}} /*=]+\)?) ({kinds})(?:-start)?\(", text):
        found.setdefault(kind, []).append(re.sub(r"\{[^}]*\}", "", shape))
    return found


def test_data_parallel_exchanges_sums_only():
    """No rows, no logits and no parameters travel: each BatchNorm's mean and variance, a few scalars, and the gradients at once.

    More sums than this are latency on a pod, and another kind of collective is a batch or a matrix that travels. Where a change
    to the method needs another number (a BatchNorm more: two forward, up to three backward), change it here and say why.
    """
    found = _collectives(_on_eight(1)[0].as_text())
    assert set(found) == {"all-reduce"}
    assert len(found["all-reduce"]) <= 35  # the two norms of the teacher's predictors, which run for their statistics, among them
    assert sum("64" in re.findall(r"\d+", shape) and "48" not in shape for shape in found["all-reduce"]) == 0  # K-wide logits


def _crossing_bytes(step: Any) -> int:
    exchanged = hlo.collectives(hlo.parse(step.as_text()), {"data": 8, "fsdp": 1})
    assert all(one.kind == "all-reduce" and one.array.dtype == "f32" and one.group == 8 for one in exchanged)
    return sum(one.bytes for one in exchanged)


def _needed_bytes(state: State) -> tuple[int, int]:
    """Bytes of the gradients, and of what crosses beside them: BatchNorm's means and variances, forward in both networks and backward in
    the student; the teacher's mean bottleneck for the center; the metrics."""
    size = lambda tree: 4 * sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    statistics = 2 * size(state.batch_stats) + size(state.method.teacher_batch_stats)
    return size(state.params), statistics + 4 * (16 + 50)


def test_each_gradient_crosses_once():
    """Global and local crops share parameters; their gradients are added on the device. Read from the compiled program."""
    step, state, _ = _on_eight(1)
    gradients, beside = _needed_bytes(state)
    assert gradients <= _crossing_bytes(step) <= 1.1 * (gradients + beside)
    rows = aot.summary(hlo.collectives(hlo.parse(step.as_text()), {"data": 8, "fsdp": 1}))
    # 2 blocks of 12 squares and 13 vectors of the width, one of them the branches' biases; in MB
    assert rows[0] == ["gradients of backbone/blocks", "all-reduce", "f32", "data", "24", f"{4 * 2 * (12 * 48**2 + 13 * 48) / 1e6:,.3f}"]


@pytest.mark.slow
def test_micro_batches_are_cut_without_moving_rows_and_cross_once():
    """BatchNorm is over a micro-batch, so its statistics cross with each; gradients after the last."""
    step, state, place = _on_eight(1, accumulate_steps=2)
    assert set(_collectives(step.as_text())) == {"all-reduce"}
    gradients, beside = _needed_bytes(state)
    assert _crossing_bytes(step) <= 1.1 * (gradients + 2 * beside)
    assert np.isfinite(float(step(state, place(0))[1]["loss"]))


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [2, 8])
def test_a_split_state_gathers_parameters_and_nothing_else(fsdp: int):
    """Activations do not travel: what is gathered has a parameter's shape (stored transposed, perhaps)."""
    step, state, _ = _on_eight(fsdp)
    found = _collectives(step.as_text())
    assert set(found) == {"all-reduce", "all-gather"}
    shapes = {tuple(sorted(size for size in leaf.shape if size > 1)) for leaf in jax.tree.leaves(state.params)}
    gathered = [tuple(int(size) for size in re.findall(r"\d+", shape.partition("[")[2])) for shape in found["all-gather"]]
    assert {tuple(sorted(size for size in shape if size > 1)) for shape in gathered} <= shapes
    batch = {shape for shape in found["all-reduce"] if re.search(r"\[\d+,[25],48\]", shape)}  # [rows, tokens, width]
    assert not batch


@pytest.mark.slow
@pytest.mark.parametrize("image_weight", ["code", "paper"])
def test_weights_of_the_relations_reach_the_parameters_and_the_curves(image_weight: str):
    ends = []
    for weight in (0.0, 1.0):
        config = _config(True, relation={"alpha": weight, "beta": weight, "image_weight": image_weight})
        step, state, curve = micro.jit(pretraining.train_step(config, micro.LENGTH)), micro.state(config), []
        for _ in range(10):  # the same batch: it must be learned
            state, metrics = step(state, micro.views(config))
            curve.append((float(metrics["spatial"]), float(metrics["channel"])))
        ends.append((state.params["backbone"]["blocks_0"]["mlp"]["fc1"]["kernel"], np.array(curve[-1])))
    assert np.abs(ends[0][0] - ends[1][0]).max() > 1e-3
    assert np.all(ends[1][1] < ends[0][1])


def _aval(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, x.dtype, jax.typeof(x).weak_type if isinstance(x, jax.Array) else x.weak_type), tree)


def test_the_state_at_the_start():
    """A function of the seed; the teacher is a copy that does not share memory; a step returns what it took, type by type."""
    config = _config()
    start = micro.jit(lambda seed: pretraining.init_state(micro.config(RUN, local_count=1, seed=seed), micro.LENGTH), static_argnums=0)
    state, other = start(0), start(1)
    micro.assert_equal(state.method.teacher, state.params)
    micro.assert_equal(state.method.teacher_batch_stats, state.batch_stats)
    assert int(state.step) == int(state.bad_steps) == 0 and not np.any(state.method.objective["dino"]["center"])
    same = [path for (path, a), b in _pairs(state.params, other.params) if not np.any(a != b)]
    assert all(path.endswith(("bias", "scale")) for path in same)
    assert not {x.unsafe_buffer_pointer() for x in jax.tree.leaves(state.params)} & {
        x.unsafe_buffer_pointer() for x in jax.tree.leaves(state.method.teacher)
    }
    after = jax.eval_shape(pretraining.train_step(config, micro.LENGTH), state, micro.views(config))[0]
    assert _aval(after) == _aval(state)  # a weak type would compile the second step anew
    assert jax.tree.structure(pretraining.abstract_state(config, micro.LENGTH)) == jax.tree.structure(state)
