"""The figure of crops shows what training is fed: not a batch like it, the batch itself."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from configs.eval import figures as figures_config
from sere_jax.build import pretraining
from sere_jax.commands import evaluate, pretrain
from sere_jax.data.sources.open import open_source
from sere_jax.evals.figures import canvas, crops, protocol
from sere_jax.evals.figures.first_batch import FirstBatch
from sere_jax.train.state import PretrainMethod, State
from sere_jax.train.step import PretrainStep
from sere_jax.types import Objective, Request, Views
from tests import micro
from tests.evals import micro_network


def trained(source: str, **changes) -> ConfigDict:
    """A config of training in which everything that the figures' config has too is something else there."""
    photometry = {"jitter_prob": 1.0, "hue": 0.0, "gray_prob": 0.5, "solarize_prob": (0.5, 0.5, 0.5)}  # hue and blur compile slowly
    config = micro.config(
        {"photometry": photometry, "data": {"source": source, "backend": "pil", "workers": 0}, **changes}, local_count=1, seed=11
    )
    config.data.batch_size = 4
    return config


def shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, training: ConfigDict, source: str, **changes) -> FirstBatch:
    """What the figures' protocol hands to the drawing of the crops, from a config and a network that `training` made."""
    seen: list[FirstBatch] = []
    original = crops.draw
    monkeypatch.setattr(crops, "draw", lambda batch, *rest, **named: seen.append(batch) or original(batch, *rest, **named))
    config = figures_config.get_config()
    config.update({"which": ("crops",), "images": (0, 1, 2), "source": source, **changes})
    network = micro_network.network()._replace(about={"config": training.to_dict()})
    evaluate.run(config, [network], tmp_path)
    assert (tmp_path / "figures" / "crops.png").is_file()
    return seen[0]


def fed(config: ConfigDict) -> tuple[Views, np.ndarray, np.ndarray]:
    """The batch of step 0 as the loop reads it, and the crops that the train step gives to the networks."""
    source = open_source(config.data.source)
    length = pretraining.steps(config, len(source))
    batches = pretrain._batches(config, source, length, 0)
    views = next(batches)
    batches.close()

    def forward(params, batch_stats, global_views, local_views, requests, *, views, drop_path_noise):
        return {requests[0]: (global_views, local_views, params)}, batch_stats

    def apply(outputs, views, state, step):
        (found,) = outputs.values()
        return jnp.sum(found[2]), {}, {"global": found[0], "local": found[1]}

    step = PretrainStep(
        forward=forward,
        objective=Objective((Request("toy", "global", "cls", "post", "student"),), dict, apply, lambda state, statistics: state, {}),
        optimizer=optax.with_extra_args_support(optax.sgd(0.1)),
        augment=pretraining.augment(config),
        drop_path_noise=lambda keys, views: None,
        ema_momentum=lambda step: jnp.float32(0),
        ema_timing="none",
        accumulate_steps=1,
        seed=config.seed,
        logged={},
    )
    state = State(jnp.int32(0), jnp.zeros(2), {}, optax.sgd(0.1).init(jnp.zeros(2)), jnp.int32(0), PretrainMethod({}, {}, {}))
    _, metrics = micro.jit(step)(state, views)
    return views, *(np.asarray(metrics[name]) * config.photometry.std + config.photometry.mean for name in ("global", "local"))


def test_the_crops_are_those_that_the_train_step_sees(monkeypatch, tmp_path):
    source = f"folder:{micro_network.photographs(tmp_path / 'photos', count=9)}"
    config = trained(source, masking={"kind": "random", "ratio": (0.5, 0.5), "ratio_var": (0.0, 0.0)})
    other = f"folder:{micro_network.photographs(tmp_path / 'others', count=3)}"
    found = shown(monkeypatch, tmp_path, config, other)
    views, *coloured = fed(config)
    assert np.any(views.masks)
    micro.assert_equal(found.views, Views(*(array[:3] for array in views)))
    for ours, theirs in zip(found.coloured, coloured, strict=True):
        assert ours.shape == theirs[:3].shape
        assert np.abs(ours - theirs[:3]).max() < 1e-5  # float32, normalised and back
    assert found.names == [f"photo{int(i)}.png" for i in views.index[:3]]


@pytest.mark.parametrize(("views_of", "points"), [("checkpoint", (5, "centers")), ("config", (3, "endpoints"))])
def test_the_overlap_points_are_those_of_training(monkeypatch, tmp_path, views_of: str, points: tuple[int, str]):
    source = f"folder:{micro_network.photographs(tmp_path / 'photos', count=4)}"
    training = trained(source, relation={"global_points": 5, "sampling": "centers"})
    drawn: list[tuple[int, str]] = []
    monkeypatch.setattr(
        crops, "draw", lambda batch, origin, *, patch, points, local_points, sampling: drawn.append((points, sampling)) or Figure()
    )
    monkeypatch.setattr(canvas, "save", lambda figure, path: path)
    monkeypatch.setattr(protocol, "first_batch", lambda feed, count: None)
    monkeypatch.setattr(protocol, "_origin", lambda feed, batch: "")
    config = figures_config.get_config()
    config.update({"which": ("crops",), "images": (0,), "source": source, "views_of": views_of, "points": 3})
    evaluate.run(config, [micro_network.network()._replace(about={"config": training.to_dict()})], tmp_path)
    assert drawn == [points]


def test_a_source_that_is_gone_is_told_and_replaced_by_the_given_one(monkeypatch, tmp_path, capsys):
    source = f"folder:{micro_network.photographs(tmp_path / 'photos', count=3)}"
    found = shown(monkeypatch, tmp_path, trained(f"folder:{tmp_path}/gone"), source)
    assert "crops: the training images are not to be had" in capsys.readouterr().out
    assert sorted(found.names) == [f"photo{i}.png" for i in range(3)]  # fewer than a batch: all of them


def test_views_of_the_config_come_from_it_alone(monkeypatch, tmp_path):
    source = f"folder:{micro_network.photographs(tmp_path / 'photos', count=5)}"
    plain = {"jitter_prob": 0.0, "gray_prob": 0.0, "blur_prob": (0.0,) * 3, "solarize_prob": (0.0,) * 3}
    changes = {
        "views_of": "config",
        "views": {**figures_config.get_config().views, "global_size": 12, "local_count": 2},
        "photometry": plain,
    }
    found = shown(monkeypatch, tmp_path, trained(f"folder:{tmp_path}/gone"), source, **changes)
    assert found.views.global_views.shape == (3, 2, 12, 12, 3) and found.views.local_views.shape[1] == 2


def test_one_wide_crop_an_image_is_drawn(monkeypatch, tmp_path):
    """MAE's batches: no second view, hence no overlap; and a crop need not be square."""
    source = f"folder:{micro_network.photographs(tmp_path / 'photos', count=5)}"
    config = trained(source, masking={"kind": "random", "ratio": (0.75, 0.75), "ratio_var": (0.0, 0.0)})
    config.views.update(global_count=1, local_count=0, global_width=32)
    found = shown(monkeypatch, tmp_path, config, source)
    assert found.views.global_views.shape == (3, 1, 16, 32, 3)
    assert found.views.masks is not None and found.views.masks.sum() == 3 * 24  # of 4 x 8 patches
