"""A fine-tuned network is a checkpoint like any other: it is loaded, exported, started from, and evaluated."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from configs.eval import imagenet_s
from sere_jax import load_backbone
from sere_jax.build import pretraining
from sere_jax.commands import evaluate
from sere_jax.commands.export import export
from sere_jax.evals.network import Network, untrained
from sere_jax.evals.trained import heads, segmenter
from sere_jax.evals.trained.model import Model
from sere_jax.interop.files import read_tensors
from sere_jax.interop.tables import InteropError, flatten
from sere_jax.models.norm import join_statistics
from sere_jax.models.resnet import ResNet
from sere_jax.train.checkpoint import CheckpointError
from sere_jax.train.checkpoint_manager import Checkpoints
from sere_jax.train.state import State
from sere_jax.weights import warm_start
from sere_jax.weights.read import networks_of, read_weights
from tests import micro, saved_run
from tests.evals.trained import micro_training
from tests.oracles import torch_vit

CLASSES = ("ash", "birch", "cedar")


def saved(directory, network: Network, kind: str = "fine_tune", **changes):
    """The checkpoint that fine-tuning writes at step 4, with random numbers in a head that would start near 0; and its model."""
    model = Model(network, micro_training.settings(directory, **changes), len(CLASSES))
    params, running = model.init()
    drawn = micro.random_like({name: leaf for name, leaf in params.items() if name != "backbone"})
    params = jax.tree.map(jnp.asarray, params | drawn)
    state = State(jnp.int32(4), params, jax.tree.map(jnp.asarray, running), {}, jnp.int32(0), {})
    with Checkpoints(directory / "checkpoints", every_steps=1) as checkpoints:
        identity = {"kind": kind, "network": model.description(CLASSES)}
        checkpoints.save(4, state, {"train": "folder:x"}, force=True, identity=json.loads(json.dumps(identity)))
    return model, params, running


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)


@pytest.mark.parametrize("pool", ["patches", "cls"])
def test_an_export_is_timms_network_with_its_classifier(tmp_path, images, pool):
    model, params, running = saved(tmp_path, micro_training.network(), pool=pool)
    written = export(tmp_path, tmp_path / "x.safetensors", with_heads=True)
    tensors = {name: torch.from_numpy(tensor) for name, tensor in read_tensors(written.tensors)[0].items()}
    timm = json.loads(written.config.read_text())
    arguments = timm["timm"]["arguments"]
    assert (arguments["num_classes"], arguments["global_pool"]) == (3, {"patches": "avg", "cls": "token"}[pool])
    assert timm["label_names"] == list(CLASSES)
    # timm's VisionTransformer has `fc_norm` and no `norm` where it averages patches, and the reverse where it takes the cls token.
    oracle = torch_vit.ViT(48, 2, 3, 4, 16)
    oracle.head = torch.nn.Linear(48, 3)
    norm = torch.nn.LayerNorm(48, eps=1e-6)
    if pool == "patches":
        oracle.norm, oracle.fc_norm = torch.nn.Identity(), norm
    oracle.load_state_dict(tensors, strict=True)
    with torch.no_grad():
        stages = oracle(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        pooled = norm(stages.prenorm.mean((2, 3))) if pool == "patches" else stages.cls
        expected = oracle.head(pooled).numpy()
    logits = micro.jit(model.logits)(params, running, jnp.asarray(images))
    np.testing.assert_allclose(logits, expected, atol=1e-4)  # float32 on both sides


def test_it_is_loaded_started_from_and_evaluated_like_any_other(tmp_path, images):
    _, params, _ = saved(tmp_path, micro_training.network())
    backbone = load_backbone(tmp_path)
    assert (backbone.preprocess.size, backbone.preprocess.resize, backbone.about["step"]) == (16, 18, 4)
    micro.assert_equal(micro.copies(backbone.params), micro.copies(params["backbone"]))
    assert networks_of(tmp_path) == ()
    config = micro.config()
    config.init_from = str(tmp_path)
    start = warm_start.read(config, pretraining.abstract_state(config, micro.LENGTH))
    for network in ("params", "method/teacher"):
        np.testing.assert_array_equal(start.leaves[f"{network}/backbone/norm/scale"], params["backbone"]["norm"]["scale"])
    assert any(line.startswith("left") and "head" in line for line in start.report)
    network = evaluate.load(str(tmp_path / "checkpoints" / "4"))
    assert network.name == tmp_path.name and network.depth == 2 and network.projection is not None and network.projection() == {}


@pytest.mark.parametrize("pool", ["patches", "cls"])
def test_imagenet_s_starts_with_the_norm_of_fine_tuned_patches(tmp_path, pool):
    _, params, _ = saved(tmp_path, micro_training.network(), pool=pool)
    network = evaluate.load(str(tmp_path))
    config = imagenet_s.get_config("50")
    config.update({"train": "images", "test": "images", "size": 16})
    settings = evaluate.settings(config, [])
    norm = segmenter.Model(network, settings, 4).init()[0]["head"]["fc_norm"]
    fresh = {"scale": np.ones(48, np.float32), "bias": np.zeros(48, np.float32)}  # the cls token was fine-tuned, not the patches
    micro.assert_equal(norm, micro.copies(params["fc_norm"]) if pool == "patches" else fresh)
    random = segmenter.Model(untrained(network, 0), settings, 4).init()[0]
    micro.assert_equal(random["head"]["fc_norm"], fresh)
    assert "fc_norm" not in segmenter.Model(network, settings._replace(head="linear", blocks=(1,)), 4).init()[0]["head"]


def test_what_an_export_leaves_and_what_has_no_place_is_told(tmp_path):
    saved(tmp_path, micro_training.network())
    (line,) = [line for line in export(tmp_path, tmp_path / "x.safetensors").report if "with_heads" in line]
    assert line == "left         head, fc_norm (with_heads=True writes the classifier): the timm layout has no place for it"
    with pytest.raises(InteropError, match="network: found 'teacher', expected none"):
        load_backbone(tmp_path, network="teacher")
    export(tmp_path, tmp_path / "x.npz", layout="npz", with_heads=True)
    assert set(read_weights(tmp_path / "x.npz").params) == {"backbone", "head", "fc_norm"}
    config = micro.config()
    run = saved_run.checkpoint(tmp_path / "run", config, saved_run.state(config))
    with pytest.raises(InteropError, match="with_heads: found no classifier"):
        export(run, tmp_path / "x.safetensors", with_heads=True)


def test_heads_of_a_frozen_network_are_no_network(tmp_path):
    state = State(jnp.int32(4), heads.stacked_heads({"kind_0": (0, 4)}, 2, 3, 0), {}, {}, jnp.int32(0), {})
    with Checkpoints(tmp_path / "checkpoints", every_steps=1) as checkpoints:
        checkpoints.save(4, jax.tree.map(jnp.asarray, state), {}, force=True, identity={"kind": "linear", "network": {}})
    with pytest.raises(CheckpointError, match="found a checkpoint of the protocol linear, which holds no backbone"):
        load_backbone(tmp_path)


def test_fine_tuning_begins_with_the_first_layer_of_a_saved_projection(tmp_path, images):
    config = micro.config()
    state = saved_run.state(config)
    network = evaluate.load(str(saved_run.checkpoint(tmp_path / "run", config, state)))
    model, params, running = saved(tmp_path, network, pool="cls", head_layer=1)
    layer = state.method.teacher["heads_dino"]["mlp_0"]
    # The teacher's own features, then the first layer of its DINO head by PyTorch.
    features = np.asarray(network.apply(network.params, jnp.asarray(images)).cls)
    hidden = torch.nn.functional.gelu(torch.tensor(features @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]))).numpy()
    first, _ = model.init()
    np.testing.assert_array_equal(first["projection"]["kernel"], layer["kernel"])
    first = first | {"head": params["head"]}
    expected = hidden @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])
    logits = micro.jit(model.logits)(jax.tree.map(jnp.asarray, first), running, jnp.asarray(images))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InteropError, match="found a projection layer before the classifier"):
        export(tmp_path, tmp_path / "x.safetensors", with_heads=True)


def test_a_resnet_is_read_with_its_running_statistics(tmp_path):
    module = ResNet(stages=(1, 1), stem=4, image_size=16)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3))))
    variables = micro.random_like(shapes)
    params = join_statistics(variables["params"], variables["batch_stats"])
    network = micro_training.network()._replace(module=module, params=params, depth=0, whole_patches=False, patch=8)
    saved(tmp_path, network)
    weights = read_weights(tmp_path)
    micro.assert_equal(flatten(weights.batch_stats["backbone"]), flatten(variables["batch_stats"]))
    assert weights.architecture == (4, (1, 1), 3, 16)
    tensors, _ = read_tensors(export(tmp_path, tmp_path / "x.safetensors", with_heads=True).tensors)
    assert tensors["fc.weight"].shape == (3, 32) and "layer2.0.bn3.running_var" in tensors
