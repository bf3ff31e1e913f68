"""Checkpoints of MoCo v3, of ResNets and of MAE: what `load_backbone`, the export and k-NN during a run make of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from sere_jax.build import pretraining
from sere_jax.commands import pretrain
from sere_jax.commands.export import export
from sere_jax.interop.files import read_tensors
from sere_jax.interop.tables import InteropError
from sere_jax.models.resnet import ResNet
from sere_jax.train.checkpoint import CheckpointError
from sere_jax.train.checkpoint_manager import Checkpoints
from sere_jax.train.state import State
from sere_jax.weights.backbone import load_backbone
from sere_jax.weights.read import read_weights
from tests import micro, saved_run
from tests.oracles import resnet as oracle
from tests.test_mocov3_resnet_mae import CASES

IMAGES = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)


def _state(config: ConfigDict) -> State:
    """Statistics of a network that has seen something: means near 0, variances near 1."""
    state = micro.state(config)

    def drawn(path: Any, x: jax.Array, rng: np.random.Generator) -> np.ndarray:
        value = 0.1 * rng.normal(size=x.shape)
        return (np.exp(value) if path[-1].key == "var" else value).astype(np.float32)

    stats = []
    for seed, tree in ((1, state.batch_stats), (2, state.method.teacher_batch_stats)):
        rng = np.random.default_rng(seed)
        stats.append(jax.tree_util.tree_map_with_path(lambda path, x, rng=rng: drawn(path, x, rng), tree))
    moved = state._replace(step=jnp.int32(saved_run.STEP), batch_stats=stats[0])
    return micro.with_method(moved, teacher_batch_stats=stats[1])


@pytest.fixture(scope="module", params=["dino_sere_resnet", "mocov3_resnet"])
def resnet_run(request, tmp_path_factory):
    config = CASES[request.param]()
    state = _state(config)
    return saved_run.checkpoint(tmp_path_factory.mktemp("run"), config, state), config, state


def _evaluated(config: ConfigDict, state: State) -> tuple[Any, Any]:
    if pretraining.recipe(config).eval_network == "teacher":
        return state.method.teacher["backbone"], state.method.teacher_batch_stats["backbone"]
    return state.params["backbone"], state.batch_stats["backbone"]


def test_a_resnet_is_evaluated_with_the_running_statistics_of_its_network(resnet_run):
    workdir, config, state = resnet_run
    params, stats = _evaluated(config, state)
    backbone = load_backbone(workdir)
    features = backbone(IMAGES)
    expected = oracle.resnet(micro.copies(params), micro.copies(stats), IMAGES, (1, 1, 1, 1))
    np.testing.assert_allclose(features.patches, expected, rtol=1e-3, atol=1e-4)  # float32 through thirteen convolutions
    np.testing.assert_allclose(features.cls, expected.mean((1, 2)), rtol=1e-3, atol=1e-4)
    # An image's features do not depend on the images beside it.
    np.testing.assert_allclose(backbone(IMAGES[:1]).cls, features.cls[:1], rtol=1e-4, atol=1e-5)
    assert isinstance(backbone.module, ResNet) and backbone.module.patch_size == 32
    assert jax.tree.map(jnp.shape, backbone.init(0)) == jax.tree.map(jnp.shape, backbone.params)


@pytest.mark.parametrize(("layout", "name"), [("timm", "x.safetensors"), ("dino", "x.safetensors"), ("npz", "x.npz")])
def test_an_exported_resnet_comes_back_whole(resnet_run, tmp_path, layout, name):
    workdir = resnet_run[0]
    export(workdir, tmp_path / name, layout=layout)
    first, again = load_backbone(workdir), load_backbone(tmp_path / name)
    micro.assert_equal(again.params, first.params)
    assert again.module == first.module and again.preprocess == first.preprocess


def test_an_exported_resnet_has_torchvisions_names(resnet_run, tmp_path):
    export(resnet_run[0], tmp_path / "x.safetensors")
    tensors, metadata = read_tensors(tmp_path / "x.safetensors")
    assert {"conv1.weight", "bn1.running_var", "layer4.0.downsample.1.running_mean", "layer1.0.bn3.num_batches_tracked"} < set(tensors)
    assert metadata["architecture"]["stages"] == [1, 1, 1, 1]
    with pytest.raises(InteropError, match="format: found hf_vit"):
        export(resnet_run[0], tmp_path / "hf", layout="hf_vit")


@pytest.mark.parametrize(("layout", "name"), [("dino", "x.pth"), ("sere", "x.safetensors"), ("npz", "x.npz")])
def test_heads_of_a_resnet_run_come_back(resnet_run, tmp_path, layout, name):
    """Both networks, with what each has; only npz has room for MoCo v3's heads."""
    if name.endswith(".pth"):
        pytest.importorskip("torch")
    workdir, _, state = resnet_run
    if "heads_dino" not in state.params and layout != "npz":
        with pytest.raises(InteropError, match="found no heads_dino to export; .*npz holds heads of any kind"):
            export(workdir, tmp_path / name, layout=layout, network="both", with_heads=True)
        return
    export(workdir, tmp_path / name, layout=layout, network="both", with_heads=True)
    held = ("backbone", "heads_dino") if layout == "dino" else tuple(state.params)
    sides = {"student": (state.params, state.batch_stats), "teacher": (state.method.teacher, state.method.teacher_batch_stats)}
    for network, trees in sides.items():
        found = read_weights(tmp_path / name, network=network)
        for have, wanted in zip((found.params, found.batch_stats), trees, strict=True):
            micro.assert_equal(have, micro.copies({key: value for key, value in wanted.items() if key in held}))


def test_knn_during_a_run_sees_what_load_backbone_sees(resnet_run):
    workdir, config, state = resnet_run
    seen = []
    pretrain._evaluate(config, lambda params, step: seen.append(params) or (), state, 7)
    micro.assert_equal(micro.copies(seen[0]), micro.copies(load_backbone(workdir).params))


def test_maes_encoder_is_what_counts(tmp_path):
    """The state has no teacher; the encoder sees whole images; the decoder stays behind."""
    config = CASES["mae"]()
    state = saved_run.state(config)
    assert state.method.teacher == {}
    backbone = load_backbone(saved_run.checkpoint(tmp_path, config, state))
    again = Checkpoints(tmp_path / "checkpoints", every_steps=1).restore(pretraining.abstract_state(config, pretraining.Steps(10, 100)), 7)
    micro.assert_equal(micro.copies(again), micro.copies(state))
    micro.assert_equal(micro.copies(backbone.params), micro.copies(state.params["backbone"]))
    assert backbone(np.zeros((1, 16, 16, 3), np.float32)).patches.shape == (1, 4, 4, 48)
    export(tmp_path, tmp_path / "x.safetensors")
    micro.assert_equal(load_backbone(tmp_path / "x.safetensors").params, backbone.params)
    with pytest.raises(CheckpointError, match="found no teacher"):
        load_backbone(tmp_path, network="teacher")


def test_mocov3s_student_is_what_counts(tmp_path):
    config = CASES["mocov3"]()
    state = saved_run.state(config)
    backbone = load_backbone(saved_run.checkpoint(tmp_path, config, state))
    micro.assert_equal(micro.copies(backbone.params), micro.copies(state.params["backbone"]))
    assert backbone.about["network"] == "student"
    teacher = load_backbone(tmp_path, network="teacher")
    micro.assert_equal(micro.copies(teacher.params), micro.copies(state.method.teacher["backbone"]))
