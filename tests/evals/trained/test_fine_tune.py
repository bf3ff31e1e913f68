"""Fine-tuning: its steps against PyTorch's, its rules by hand, and whole trainings that are broken off, resumed, and read again."""

from __future__ import annotations

import json
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sere_jax import sharding
from sere_jax.data.batches.labelled import LabelledBatch
from sere_jax.data.sources.open import open_source
from sere_jax.data.sources.subset import Selection
from sere_jax.evals import protocols
from sere_jax.evals.network import EvalError, Network
from sere_jax.evals.trained import fine_tune, layers, run
from sere_jax.evals.trained.images import open_parts
from sere_jax.evals.trained.model import Model
from sere_jax.models.norm import join_statistics
from sere_jax.models.resnet import ResNet
from sere_jax.train import meter
from sere_jax.train.state import State
from sere_jax.train.update import make_update
from sere_jax.types import Features
from tests import micro
from tests.evals import micro_network
from tests.evals.trained import micro_training
from tests.oracles import torch_fine_tune, torch_vit
from tests.parity import weights

CLASSES, TOTAL, PER_EPOCH = 5, 20, 2


def batch(rng: np.random.Generator, count: int = 8) -> LabelledBatch:
    images = rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, count).astype(np.int32)
    return LabelledBatch(images, labels, None, np.arange(count, dtype=np.int32), np.zeros(count, bool))


def test_three_steps_are_torchs(tmp_path):
    settings = micro_training.settings(tmp_path, smoothing=0.1, layer_decay=0.65, base_lr=0.032, epochs=TOTAL // PER_EPOCH)
    network = micro_training.network()
    model = Model(network, settings, CLASSES)
    params, running = model.init()
    params = jax.tree.map(jnp.asarray, params) | {
        "head": micro.random_like(params["head"], 4),
        "fc_norm": micro.random_like(params["fc_norm"], 5),
    }
    optimizer = fine_tune.optimizer(settings, model, fine_tune.learning_rate(settings, PER_EPOCH))
    update = micro.jit(make_update(loss=model.loss, optimizer=optimizer))
    state = State(jnp.int32(0), params, running, optimizer.init(params), jnp.int32(0), {})

    oracle = torch_fine_tune.Classifier(torch_vit.ViT(48, 2, 3, 4, 16), 48, CLASSES).double()
    weights.load(oracle, params)
    peak = 0.032 * 8 / 256
    trainer = torch_fine_tune.Trainer(oracle, depth=2, decay=0.65, weight_decay=0.05, peak=peak, low=1e-6, warmup=PER_EPOCH, total=TOTAL)
    rng = np.random.default_rng(0)
    for _ in range(3):
        one = batch(rng)
        normal = (one.images / 255 - np.array(network.mean)) / np.array(network.std)
        expected = trainer.step(torch.tensor(normal.transpose(0, 3, 1, 2)), torch.tensor(one.labels.astype(np.int64)), 0.1)
        state, metrics = update(state, one)
        assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-4)
    found, start = weights.tensors(state.params), weights.tensors(params)
    for name, value in weights.arrays(dict(oracle.named_parameters())).items():
        ours, before = found[name], start[name]
        if name.endswith("attn.qkv.bias"):  # keys' biases have no gradient but rounding, which Adam makes as large as any
            ours, value, before = (np.delete(x, slice(48, 96)) for x in (ours, value, before))
        assert weights.relative(ours, value) < 1e-4, name
        if not name.startswith("backbone.norm"):  # the old final norm is not used
            assert weights.relative(ours - before, value - before) < 1e-2, name  # float32's share of the movement itself
    assert all((found[f"backbone.norm.{which}"] == start[f"backbone.norm.{which}"]).all() for which in ("weight", "bias"))


def test_layer_decay_and_decay_groups():
    factor = layers.layer_decay(0.65, depth=12)
    for path in ("backbone/cls_token", "backbone/pos_embed", "backbone/patch_embed/proj/kernel"):
        assert factor(path) == pytest.approx(0.65**13)
    assert factor("backbone/blocks_0/attn/qkv/kernel") == pytest.approx(0.65**12)
    assert factor("backbone/blocks_11/mlp/fc2/bias") == pytest.approx(0.65)
    assert {factor(path) for path in ("backbone/norm/scale", "fc_norm/bias", "head/kernel", "projection/kernel")} == {1.0}
    resnet = layers.layer_decay(0.5, stages=(3, 4, 6, 3))
    assert resnet("backbone/conv1/kernel") == 0.5**17 and resnet("backbone/layer1_0/conv1/kernel") == 0.5**16
    assert resnet("backbone/layer2_0/bn1/scale") == 0.5**13 and resnet("backbone/layer4_2/conv3/kernel") == 0.5
    params = micro_network.init(0)
    named = dict(_named({"backbone": params, "head": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}}))
    decayed = {path for path, leaf in named.items() if layers.decayed(path, leaf.ndim)}
    assert decayed == {path for path in named if path.endswith("kernel")}


def _named(tree):
    return [("/".join(key.key for key in path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def test_the_rate_rises_from_zero_and_falls_to_the_lowest_by_step(tmp_path):
    rate = fine_tune.learning_rate(micro_training.settings(tmp_path, epochs=10, warmup_epochs=2, batch_size=512, base_lr=5e-4), 5)
    values = [float(rate(jnp.int32(step))) for step in (0, 5, 10, 30, 50)]
    assert values == pytest.approx([0.0, 5e-4, 1e-3, (1e-3 + 1e-6) / 2, 1e-6], rel=1e-5)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return micro_network.photographs(tmp_path_factory.mktemp("data") / "photographs", count=24, classes=3)


class Broken(Exception):
    pass


class MeanColour(nn.Module):
    """A backbone that compiles at once: the mean colour, times a matrix."""

    stages: tuple[int, ...] = ()
    stem: int = 4
    in_channels: int = 3
    image_size: int = 16
    heads: int = 0
    dtype: Any = jnp.float32
    running_statistics: bool = False

    @nn.compact
    def __call__(self, images, *, drop_path_noise=None):
        x = nn.Dense(4, name="conv1")(images.mean((1, 2), keepdims=True))
        return Features(x[:, 0, 0], x, x)


def mean_colour() -> Network:
    params = MeanColour().init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    return micro_training.network()._replace(module=MeanColour(), params=params, depth=0, whole_patches=False)


DEVICE = {"mixup": 0.8, "cutmix": 1.0, "erase_prob": 0.25, "drop_path": 0.1}


@pytest.mark.parametrize(
    ("make", "augmented"),
    [(mean_colour, {}), pytest.param(micro_training.network, DEVICE, marks=pytest.mark.slow)],
    ids=["mean colour", "ViT, augmented on the device too"],
)
def test_a_training_that_is_broken_off_ends_as_one_that_is_not(tmp_path, photographs, monkeypatch, make, augmented):
    augmented = augmented | {"rand_magnitude": 9.0, "epochs": 3, "select": "split", "held_out": 0.3}
    settings = micro_training.settings(photographs, save_predictions=True, **augmented)
    network = make()
    fine_tune.fine_tune("finetune", [network], tmp_path / "whole", settings)
    report = json.loads((tmp_path / "whole" / "eval" / "finetune.json").read_text())
    (result,) = report["results"]
    assert set(result["scores"]) == {"top1", "per_class", "last_top1"} and report["images"]["validation"]["read"] == 7
    assert report["images"]["train"]["read"] == 17 and result["head"]["epoch"] in (1, 2, 3)

    scores = fine_tune._scores
    calls = []

    def broken(predicted):
        calls.append(1)
        if len(calls) == 3:  # test and validation after the first epoch, then the second's
            raise Broken
        return scores(predicted)

    monkeypatch.setattr(fine_tune, "_scores", broken)
    with pytest.raises(Broken):
        fine_tune.fine_tune("finetune", [network], tmp_path / "parts", settings)
    monkeypatch.setattr(fine_tune, "_scores", scores)
    fine_tune.fine_tune("finetune", [network], tmp_path / "parts", settings._replace(workers=0, log_every_steps=2))
    files = [tmp_path / part / "eval" / "finetune-micro-predictions.npz" for part in ("whole", "parts")]
    logits = [np.load(file)["logits"] for file in files]
    assert (logits[0] == logits[1]).all()
    again = json.loads((tmp_path / "parts" / "eval" / "finetune.json").read_text())["results"][0]
    assert again["scores"] == result["scores"] and again["head"] == result["head"]

    # A finished training is only read: nothing is compiled.
    monkeypatch.setattr(run, "make_update", lambda **_: pytest.fail("trained again"))
    with pytest.raises(pytest.fail.Exception):
        fine_tune.fine_tune("finetune", [network], tmp_path / "parts", settings._replace(seed=1))


def test_images_that_cannot_be_read_are_not_counted(tmp_path, capsys):
    directory = micro_network.photographs(tmp_path / "photographs", count=23, classes=3)
    (directory / "class0" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    settings = micro_training.settings(directory, validation=f"folder:{directory}", select="validation", epochs=1, warmup_epochs=0)
    fine_tune.fine_tune("finetune", [mean_colour()], tmp_path, settings)
    images = json.loads((tmp_path / "eval" / "finetune.json").read_text())["images"]
    assert {part: (counts["read"], counts["left_out"]) for part, counts in images.items()} == dict.fromkeys(
        ("train", "validation", "test"), (23, ["class0/torn.png"])
    )
    assert "1 of 24 train images cannot be read and is left out: class0/torn.png" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_eight_devices_train_as_one(tmp_path):
    settings = micro_training.settings(tmp_path, **DEVICE, accumulate_steps=2)
    model = Model(micro_training.network(), settings, CLASSES)
    params, running = model.init()
    optimizer = fine_tune.optimizer(settings, model, lambda step: jnp.float32(1e-3))
    update = micro.jit(make_update(loss=model.loss, optimizer=optimizer, accumulate_steps=2))
    params = jax.tree.map(jnp.asarray, params) | {"head": micro.random_like(params["head"])}
    state, one = State(jnp.int32(0), params, running, optimizer.init(params), jnp.int32(0), {}), batch(np.random.default_rng(0), 16)
    mesh = sharding.make_mesh()
    alone = update(state, one)[1]["loss"]
    shared = update(jax.device_put(state, sharding.replicated(mesh)), sharding.to_global(one, mesh))[1]["loss"]
    assert float(shared) == pytest.approx(float(alone), rel=1e-5)  # float32, summed in another order


@pytest.mark.slow
def test_a_resnet_is_fine_tuned_with_batch_statistics(tmp_path):
    module = ResNet(stages=(1, 1), stem=4, image_size=16)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    network = micro_training.network()._replace(
        module=module, params=join_statistics(variables["params"], variables["batch_stats"]), depth=0, whole_patches=False, patch=8
    )
    model = Model(network, micro_training.settings(tmp_path, drop_path=0.1), CLASSES)
    params, running = model.init()
    assert set(params) == {"backbone", "head"} and set(running) == {"backbone"}
    one = batch(np.random.default_rng(0))
    keys = jax.random.split(jax.random.key(0), 8)
    (value, output), gradients = micro.jit(jax.value_and_grad(model.loss, has_aux=True))(params, running, one, keys)
    assert float(value) == pytest.approx(np.log(CLASSES), abs=1e-3) and float(jnp.abs(gradients["head"]["kernel"]).max()) > 0
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), output.running, running)
    assert all(jax.tree.leaves(moved))
    logits = model.logits(params, running, jnp.zeros((2, 16, 16, 3)))
    assert logits.shape == (2, CLASSES)


def test_a_head_is_begun_from_the_projection_or_refused(tmp_path):
    settings = micro_training.settings(tmp_path, pool="cls", head_layer=1)
    with pytest.raises(EvalError, match="head_layer: found 1, and micro holds no projection head; expected 0"):
        Model(micro_training.network()._replace(projection=dict), settings, CLASSES)
    layer = {"kernel": np.full((48, 7), 0.5, np.float32), "bias": np.ones(7, np.float32)}
    params, _ = Model(micro_training.network()._replace(projection=lambda: layer), settings, CLASSES).init()
    assert params["projection"]["kernel"] is layer["kernel"] and params["head"]["kernel"].shape == (7, CLASSES)


def test_a_network_that_cannot_be_begun_from_is_refused_before_any_training(tmp_path, photographs, monkeypatch):
    monkeypatch.setattr(run, "train", lambda *_: pytest.fail("the random initialisation was trained first"))
    settings = micro_training.settings(photographs, pool="cls", head_layer=1, random_init=True)
    with pytest.raises(EvalError, match="head_layer: found 1, and micro holds no projection head; expected 0"):
        fine_tune.fine_tune("semi", [mean_colour()._replace(projection=dict)], tmp_path, settings)


def test_the_share_of_unreadable_images_that_a_training_bears_is_a_key(tmp_path, monkeypatch):
    directory = micro_network.photographs(tmp_path / "photographs", count=24, classes=3)
    for number in (0, 4, 8, 13, 17):
        (directory / f"class{number % 3}" / f"photo{number}.png").write_bytes(b"torn")
    monkeypatch.setattr(meter, "_FEWEST_IMAGES", 1)
    with pytest.raises(meter.TooManyBadImages, match=r"of 8 images .*; max_bad_fraction allows 0\.01"):
        fine_tune.fine_tune("finetune", [mean_colour()], tmp_path, micro_training.settings(directory))
    fine_tune.fine_tune("finetune", [mean_colour()], tmp_path, micro_training.settings(directory, max_bad_fraction=0.9))
    images = json.loads((tmp_path / "eval" / "finetune.json").read_text())["images"]
    assert (images["train"]["read"], len(images["train"]["left_out"])) == (19, 5)


def test_held_out_images_are_apart_and_of_every_class(photographs):
    parts = open_parts(f"folder:{photographs}", "", f"folder:{photographs}", select="split", share=0.25, seed=0)
    names = [{part.source[i].name for i in range(len(part.source))} for part in (parts.train, parts.choose)]
    assert len(names[0]) == 18 and len(names[1]) == 6 and not names[0] & names[1]
    assert sorted(parts.choose.source[i].label for i in range(6)) == [0, 0, 1, 1, 2, 2] and parts.in_both == 24
    whole = open_source(f"folder:{photographs}")
    part = Selection(whole, np.array([5, 2]))
    assert [part[i].name for i in range(2)] == [whole[5].name, whole[2].name]
    assert [entry.name for entry in part.listing()] == [whole[5].name, whole[2].name] and part.fingerprint().count == 2


def test_mistakes_among_keys(photographs):
    assert protocols.mistakes(micro_training.config(photographs)) == []
    wrong = micro_training.config(photographs, select="validation", warmup_epochs=5, head_layer=1)
    found = "\n".join(protocols.mistakes(wrong))
    assert (
        "validation: found ''" in found
        and "warmup_epochs: found 5, expected at most the 2 epochs" in found
        and "pool: found patches" in found
    )
    assert protocols.mistakes(micro_training.config(photographs, validation="folder:V")) == [
        "validation: found 'folder:V' beside select=test, expected '', or select=validation"  # it would not be looked at
    ]
    with pytest.raises(EvalError, match="batch_size: found 12, expected a multiple of 8"):
        run.check_batch(12, 1)
