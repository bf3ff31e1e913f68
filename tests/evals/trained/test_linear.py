"""The protocol `linear`: its heads against PyTorch, and whole trainings that are broken off and resumed."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from configs.eval import linear as shipped
from sere_jax import sharding
from sere_jax.commands import evaluate
from sere_jax.data.batches.labelled import LabelledBatch
from sere_jax.evals import protocols
from sere_jax.evals.frozen import cached
from sere_jax.evals.frozen.linear_grid import GridSettings
from sere_jax.evals.network import EvalError
from sere_jax.evals.trained import heads, linear, run
from sere_jax.train.state import State
from sere_jax.train.update import make_update
from sere_jax.types import Features
from tests import micro
from tests.evals import micro_network

CLASSES, WIDTH, PER_EPOCH = 4, 10, 2
COLUMNS = {"kind_0": (0, WIDTH), "kind_1": (6, WIDTH)}
GRID = GridSettings(rates=(0.1, 3.0, 40.0), epochs=3, batch_size=8, weight_decay=1e-3, seed=2)


def batch(rng: np.random.Generator) -> heads.FeatureBatch:
    labels = rng.integers(0, CLASSES, 8).astype(np.int32)
    return heads.FeatureBatch(rng.normal(size=(8, WIDTH)).astype(np.float32), labels, np.zeros(8, bool))


def by_torch(batches, columns, rate, start):
    """One head alone, SGD with momentum as PyTorch's manual states it, at DINO's cosine of whole epochs."""
    weights = [torch.tensor(start, requires_grad=True), torch.zeros(CLASSES, requires_grad=True)]
    momenta = [torch.zeros_like(weight) for weight in weights]
    for step, one in enumerate(batches):
        now = rate * 8 / 256 * (1 + math.cos(math.pi * (step // PER_EPOCH) / GRID.epochs)) / 2
        outputs = torch.tensor(one.features[:, slice(*columns)]) @ weights[0] + weights[1]
        gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(outputs, torch.tensor(one.labels).long()), weights)
        with torch.no_grad():
            for weight, momentum, gradient in zip(weights, momenta, gradients, strict=True):
                momentum.mul_(0.9).add_(gradient + 1e-3 * weight)
                weight -= now * momentum
    return weights[0].detach().numpy(), weights[1].detach().numpy()


def test_every_head_of_the_grid_is_the_one_that_torch_trains_alone():
    optimizer = heads.optimizer(GRID, PER_EPOCH)
    params = jax.tree.map(jnp.asarray, heads.stacked_heads(COLUMNS, len(GRID.rates), CLASSES, GRID.seed))
    start = {kind: np.asarray(head["kernel"][0]) for kind, head in params.items()}
    update = micro.jit(make_update(loss=heads.heads_loss(COLUMNS), optimizer=optimizer))
    state = State(jnp.int32(0), params, {}, optimizer.init(params), jnp.int32(0), {})
    rng = np.random.default_rng(0)
    batches = [batch(rng) for _ in range(GRID.epochs * PER_EPOCH)]
    for one in batches:
        state, metrics = update(state, one)
    for kind, columns in COLUMNS.items():
        for number, rate in enumerate(GRID.rates):
            kernel, bias = by_torch(batches, columns, rate, start[kind])
            # Six steps in float32; weights of the largest rate are some 10 in size.
            np.testing.assert_allclose(state.params[kind]["kernel"][number], kernel, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(state.params[kind]["bias"][number], bias, rtol=1e-4, atol=1e-4)
    assert float(metrics["best_loss"]) < float(metrics["loss"]) / 6


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return micro_network.photographs(tmp_path_factory.mktemp("data") / "photographs", count=40, classes=2)


class Broken(Exception):
    pass


def config(photographs, **changes):
    result = shipped.get_config()
    values = {"train": f"folder:{photographs}", "test": f"folder:{photographs}", "blocks": (1,), "rates": (0.01, 1.0), "held_out": 0.2}
    result.update(values | {"epochs": 3, "batch_size": 16, "random_init": False, "save_predictions": True} | changes)
    return result


def settings(photographs, **changes):
    return evaluate.settings(config(photographs, **changes), [])


def colours():
    """A network that shows the mean colour."""
    return micro_network.network("colours")._replace(apply=_mean_colour, params=np.float32(2), depth=0)


def _mean_colour(params, images, **_):
    cls = images.mean((1, 2)) * params
    return Features(cls, images[:, :2, :2], images[:, :2, :2])


def test_features_of_a_batch_are_those_of_whole_images():
    network = colours()
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    one = LabelledBatch(images, np.arange(8, dtype=np.int32), None, np.arange(8, dtype=np.int32), np.zeros(8, bool))
    features = heads.frozen_features(network, 1)(sharding.to_global(one, sharding.make_mesh())).features
    normalised = (images / 255.0 - np.array(network.mean)) / np.array(network.std)
    expected = np.concatenate([2 * normalised.mean((1, 2)), normalised[:, :2, :2].mean((1, 2))], axis=1)
    np.testing.assert_allclose(features, expected, atol=1e-5)  # means of 256 numbers in float32
    assert cached.columns(3, (1,), ("cls+patches",)) == {"cls of 1 block + mean patch": (0, 6)}


def test_the_best_head_is_reported_with_what_was_read(tmp_path, photographs):
    linear.linear([colours()], tmp_path, settings(photographs, epochs=1))
    report = json.loads((tmp_path / "eval" / "linear.json").read_text())
    (result,) = report["results"]
    assert set(result["scores"]) == {"top1", "per_class", "last_top1"} and result["head"]["rate"] in (0.01, 1.0)
    assert [report["images"][part]["read"] for part in ("train", "validation", "test")] == [32, 8, 40]
    assert set(result["selection_accuracy"]) == {"cls of 1 block", "cls of 1 block + mean patch"}
    assert any("40 of 40 test images are training images too" in note for note in report["notes"])


def test_a_network_that_the_images_do_not_suit_is_refused_before_any_training(tmp_path, photographs, monkeypatch):
    monkeypatch.setattr(run, "train", lambda *_: pytest.fail("the first network was trained before"))
    networks = [colours(), colours()._replace(name="odd", patch=5)]
    with pytest.raises(EvalError, match="size of odd: found 16, expected a multiple of the patch of 5 pixels"):
        linear.linear(networks, tmp_path, settings(photographs))


@pytest.mark.slow
def test_a_training_that_is_broken_off_ends_as_one_that_is_not(tmp_path, photographs, monkeypatch):
    linear.linear([colours()], tmp_path / "whole", settings(photographs))
    best, calls = linear._best, []

    def broken(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise Broken
        return best(*arguments)

    monkeypatch.setattr(linear, "_best", broken)
    with pytest.raises(Broken):
        linear.linear([colours()], tmp_path / "parts", settings(photographs))
    monkeypatch.setattr(linear, "_best", best)
    linear.linear([colours()], tmp_path / "parts", settings(photographs, log_every_steps=2))
    files = [tmp_path / part / "eval" / "linear-colours-predictions.npz" for part in ("whole", "parts")]
    logits = [np.load(file)["logits"] for file in files]
    assert (logits[0] == logits[1]).all()


def test_mistakes_name_key_value_and_what_would_do(tmp_path, photographs):
    assert protocols.mistakes(config(photographs)) == []
    wrong = "\n".join(protocols.mistakes(config(photographs, select="validation", eval_batch_size=7, rates=(0.0,)), processes=2))
    assert "validation: found ''" in wrong and "eval_batch_size: found 7" in wrong and "rates: found (0.0,)" in wrong
    assert protocols.mistakes(config(photographs, batch_size=0, eval_batch_size=8), processes=3)[1:] == [
        "eval_batch_size: found 8, expected a multiple of the 3 processes; nearest: 9"
    ]
    with pytest.raises(EvalError, match="batch_size: found 64, expected at most the 32 training images"):
        linear.linear([colours()], tmp_path, settings(photographs, batch_size=64))
    with pytest.raises(EvalError, match="blocks: found 4, expected at most 1: colours is no ViT"):
        linear.linear([colours()], tmp_path, settings(photographs, blocks=(4,)))
