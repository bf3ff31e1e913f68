"""Spatial and channel self-relation of a whole batch against the oracle, option by option, and how a config reaches them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.build import pretraining
from sere_jax.types import Objective, Outputs, Request, Views
from tests import micro
from tests.oracles import sere as oracle

BATCH, WIDTH = 3, 12
STEP = jnp.zeros((), jnp.int32)


def _config(local_count: int, recipe: str = "spatial_channel", **relation: Any):
    # The separable sampling compiles faster; that the default is the same function is a case of its own below.
    relation = {"global_points": 4, "local_points": 3, "sampling_impl": "separable"} | relation
    changes = {"model": {"width": WIDTH}, "relation": relation}
    return micro.config(changes, local_count=local_count, recipe=recipe)


@functools.cache
def _maps(local_count: int) -> dict[str, np.ndarray]:
    """Features like those of a relation head: not negative, of order 1; a global grid of 4 x 4 and a local one of 2 x 2."""
    rng = np.random.default_rng(7)
    shapes = {"teacher": (2, 4, 4), "student": (2, 4, 4), "local": (local_count, 2, 2)}
    return {name: np.abs(rng.normal(size=(BATCH, v, h, w, WIDTH))).astype(np.float32) for name, (v, h, w) in shapes.items()}


def _outputs(method: Objective, maps: dict[str, np.ndarray]) -> Outputs:
    return {r: jnp.asarray(maps["local" if r.views == "local" else r.side]) for r in method.requests}


def _views(local_count: int) -> Views:
    return micro.views(_config(local_count), seed=3, batch=BATCH)


def _metrics(local_count: int, **relation: Any) -> dict[str, float]:
    method = pretraining.objective(_config(local_count, **relation), micro.LENGTH)
    arguments = _outputs(method, _maps(local_count)), _views(local_count)
    _, _, metrics = micro.compiled(lambda outputs, views: method.apply(outputs, views, method.init(), STEP), *arguments)(*arguments)
    return {name: float(value) for name, value in metrics.items()}


def _expected(local_count: int, spatial: dict[str, Any], channel: dict[str, Any]) -> dict[str, float]:
    maps, views = _maps(local_count), _views(local_count)
    arrays = maps["teacher"], maps["student"], maps["local"]
    # As many relation heads as the ViT has.
    options = {"heads": 3, "global_points": 4, "local_points": 3} | spatial
    found = {
        "spatial": oracle.spatial_terms(*arrays, np.asarray(views.boxes, np.float64), views.flips, **options),
        "channel": oracle.channel_terms(*arrays, **channel),
    }
    means = {}
    for name, (global_terms, local_terms) in found.items():
        assert len(global_terms) == 2 and len(local_terms) == 2 * local_count
        means[name] = float(np.mean(global_terms + local_terms))
        means[f"{name}_global"] = float(np.mean(global_terms))
        if local_count:
            means[f"{name}_local"] = float(np.mean(local_terms))
    return means


@pytest.mark.parametrize("local_count", [0, 1, 10])
def test_mean_over_all_terms(local_count: int):
    """SPEC 8.4: 2 + 2 l terms, every one of the same weight."""
    assert _metrics(local_count) == pytest.approx(_expected(local_count, {}, {}), rel=1e-5)


# What the config says -> what the oracle is told: (spatial, channel). A change of nothing is a change of the implementation only.
OPTIONS = {
    "scale=width": ({"scale": "width"}, {"scale": "width"}, {}),
    "sampling=centers": ({"sampling": "centers"}, {"sampling": "centers"}, {}),
    "padding=border": ({"padding": "border"}, {"padding": "border"}, {}),
    "disjoint=skip": ({"disjoint": "skip"}, {"disjoint": "skip"}, {}),
    "heads=2": ({"heads": 2}, {"heads": 2}, {}),
    "sampling_impl=map_coordinates": ({"sampling_impl": "map_coordinates"}, {}, {}),
    "temperature_side=student": (
        {"temperature_side": "student"},
        {"t_teacher": 1.0, "t_student": 0.5},
        {"t_teacher": 1.0, "t_student": 0.1},
    ),
    "temperatures": (
        {"teacher_temp_spatial": 0.7, "teacher_temp_channel": 0.3, "student_temp": 2.0},
        {"t_teacher": 0.7, "t_student": 2.0},
        {"t_teacher": 0.3, "t_student": 2.0},
    ),
    "global_points": ({"global_points": 5}, {"global_points": 5}, {}),
    "local_points": ({"local_points": 2}, {"local_points": 2}, {}),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_changes_what_it_should_and_nothing_else(option: str):
    relation, spatial, channel = OPTIONS[option]
    found, expected, default = _metrics(2, **relation), _expected(2, spatial, channel), _default()
    assert found == pytest.approx(expected, rel=1e-5)
    untouched = {"global_points": "spatial_local", "local_points": "spatial_global"}.get(option)
    for name, value in found.items():
        told = bool(spatial if name.startswith("spatial") else channel) and name != untouched
        assert (abs(value - default[name]) > 1e-4) == told, name


@functools.cache
def _default() -> dict[str, float]:
    return _expected(2, {}, {})


def test_no_gradient_reaches_views_apart():
    config = _config(0, recipe="spatial")
    method, views = pretraining.objective(config, micro.LENGTH), _views(0)
    student = method.requests[0]
    gradients = micro.jit(jax.grad(lambda outputs: method.apply(outputs, views, method.init(), STEP)[0]))(_outputs(method, _maps(0)))
    np.testing.assert_array_equal(gradients[student][0], 0.0)  # the views of example 0 do not overlap
    assert np.all(np.abs(gradients[student][1:]).max((2, 3, 4)) > 0)


@pytest.mark.parametrize("local_count", [0, 3])
def test_features_of_nothing_give_the_references(local_count: int):
    """Constant features have relations that say nothing: ln 169 and ln 36 (with 13 and 6 points), ln d."""
    method = pretraining.objective(_config(local_count, global_points=13, local_points=6), micro.LENGTH)
    nothing = {name: np.zeros_like(value) for name, value in _maps(local_count).items()}
    metrics = micro.jit(method.apply)(_outputs(method, nothing), _views(local_count), method.init(), STEP)[2]
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(dict(method.references), rel=1e-5)
    assert metrics["spatial_global"] == pytest.approx(5.130, abs=5e-4) and metrics["channel"] == pytest.approx(np.log(WIDTH), rel=1e-5)
    if local_count:
        assert metrics["spatial_local"] == pytest.approx(3.584, abs=5e-4)


@pytest.mark.parametrize("tokens", ["pre", "post"])
@pytest.mark.parametrize("local_heads", ["separate", "shared"])
def test_what_is_asked_of_the_network(tokens: str, local_heads: str):
    found = pretraining.objective(_config(2, tokens=tokens, local_heads=local_heads), micro.LENGTH).requests
    suffix = "_local" if local_heads == "separate" else ""
    expected = set()
    for head in ("spatial", "channel"):
        expected |= {Request(head, "global", "patches", tokens, side) for side in ("student", "teacher")}
        expected |= {Request(head + suffix, "local", "patches", tokens, "student")}
    assert set(found) == expected
    assert set(pretraining.network(_config(2, tokens=tokens, local_heads=local_heads)).heads) == {request.head for request in expected}
    assert all(request.views == "global" for request in pretraining.objective(_config(0, tokens=tokens), micro.LENGTH).requests)
