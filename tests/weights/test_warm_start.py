"""Starting a run from weights: what is taken for whom, what starts at random, and mistakes told before anything compiles."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.build import pretraining
from sere_jax.commands import pretrain
from sere_jax.commands.export import export
from sere_jax.config.check import ConfigError
from sere_jax.interop import resnet
from sere_jax.interop.files import read_tensors, write_tensors
from sere_jax.interop.timm import to_timm
from sere_jax.train.checkpoint import read_state
from sere_jax.weights import warm_start
from sere_jax.weights.read import part
from tests import micro, saved_run
from tests.interop.test_timm import _equal
from tests.test_mocov3_resnet_mae import CASES

FIELDS = ("params", "batch_stats", "method/teacher", "method/teacher_batch_stats")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """(workdir of a DINO + SERE run with local crops, its state)"""
    config = micro.config(local_count=2)
    workdir = saved_run.checkpoint(tmp_path_factory.mktemp("source"), config, saved_run.state(config))
    return workdir, read_state(workdir)[0]


def _config(init_from, changes=None, **top):
    return micro.config(changes, local_count=2, init_from=str(init_from), **top)


def _state(config):
    """The state of step 0 as noise in its shapes, and with the weights of `init_from` in it; nothing is compiled."""
    shapes = pretraining.abstract_state(config, micro.LENGTH)
    fresh = jax.tree.map(lambda x: jnp.full(x.shape, 0.5, x.dtype), shapes)
    start = warm_start.read(config, shapes)
    return fresh, jax.tree.map(np.asarray, warm_start.begin(fresh, start)), start


@pytest.mark.parametrize("layout", ["workdir", "sere.pth", "sere.safetensors"])
def test_a_full_training_state_comes_back_whole(source, tmp_path, layout):
    workdir, saved = source
    place = workdir
    if layout != "workdir":
        pytest.importorskip("torch")
        place = tmp_path / layout
        export(workdir, place, layout="sere", network="both", with_heads=True)
    fresh, state, start = _state(_config(place))
    for field in FIELDS:
        assert _equal(part(state, field), part(saved, field)), field
    micro.assert_equal(state.opt_state, micro.copies(fresh.opt_state))
    assert int(state.step) == 0
    assert not any("random" in line for line in start.report)


def test_one_network_is_for_student_and_teacher_alike(source, tmp_path):
    _, saved = source
    write_tensors(tmp_path / "x.safetensors", to_timm(saved["method"]["teacher"]["backbone"]), {})
    fresh, state, start = _state(_config(tmp_path / "x.safetensors"))
    for network in (state.params, state.method.teacher):
        assert _equal(network["backbone"], saved["method"]["teacher"]["backbone"])
        micro.assert_equal(network["heads_dino"], micro.copies(fresh.params["heads_dino"]))
    text = "\n".join(start.report)
    assert "recognised   timm's names" in text
    assert "at random    heads_channel, heads_channel_local, heads_dino, heads_spatial, heads_spatial_local" in text


def test_a_resnet_of_torchvision_starts_a_run_with_its_statistics(tmp_path):
    torch = pytest.importorskip("torch")
    from tests.oracles.torch_resnet import ResNet, unsettle

    network = unsettle(ResNet((1, 1, 1, 1), 2, classes=3), 64)
    torch.save(network.state_dict(), tmp_path / "resnet.pth")
    config = CASES["dino_sere_resnet"]()
    config.init_from = str(tmp_path / "resnet.pth")
    fresh, state, start = _state(config)
    params, statistics = resnet.from_resnet({name: tensor.numpy() for name, tensor in network.state_dict().items()})
    for side, stats, others in (
        (state.params, state.batch_stats, fresh.batch_stats),
        (state.method.teacher, state.method.teacher_batch_stats, fresh.method.teacher_batch_stats),
    ):
        assert _equal(side["backbone"], params)
        assert _equal(stats["backbone"], statistics)
        micro.assert_equal(stats["heads_spatial"], micro.copies(others["heads_spatial"]))
    text = "\n".join(start.report)
    assert "left         fc.weight, fc.bias" in text
    assert "at random    heads_channel" in text


def test_running_statistics_that_do_not_fit_are_told(source, tmp_path):
    """One misshapen, one of an unknown name, one missing; the heads themselves are taken."""
    export(source[0], tmp_path / "x.npz", layout="npz", network="both", with_heads=True)
    tensors, metadata = read_tensors(tmp_path / "x.npz")
    stem = "student/batch_stats/heads_spatial"
    tensors[f"{stem}/bn/mean"] = np.zeros(7, np.float32)
    tensors[f"{stem}/bn/median"] = tensors[f"{stem}/bn/var"]
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("student/batch_stats/heads_channel/")}
    write_tensors(tmp_path / "y.npz", tensors, metadata)
    fresh, state, start = _state(_config(tmp_path / "y.npz"))
    text = "\n".join(start.report)
    assert "left         running statistics: heads_spatial/bn/mean [7] (expected [48]), heads_spatial/bn/median [48] (expected none" in text
    assert "at random    running statistics of heads_channel, heads_spatial: the source lacks them" in text
    micro.assert_equal(state.batch_stats["heads_channel"], micro.copies(fresh.batch_stats["heads_channel"]))
    np.testing.assert_array_equal(state.batch_stats["heads_spatial"]["bn"]["var"], tensors[f"{stem}/bn/var"])


def test_mocov3_goes_on_from_a_file_with_all_its_heads(tmp_path):
    """Only npz has room for them; the predictor is the student's alone."""
    config = CASES["mocov3"]()
    workdir = saved_run.checkpoint(tmp_path / "run", config, saved_run.state(config))
    saved = read_state(workdir)[0]
    export(workdir, tmp_path / "x.npz", layout="npz", network="both", with_heads=True)
    config.init_from = str(tmp_path / "x.npz")
    _, state, start = _state(config)
    for field in FIELDS:
        assert _equal(part(state, field), part(saved, field)), field
    assert any("predictor" in name for name in state.params["heads_mocov3"])
    assert not any("predictor" in name for name in state.method.teacher["heads_mocov3"])
    assert not any("random" in line for line in start.report)


def test_scanned_blocks_and_a_mask_token_of_its_own(source):
    workdir, saved = source
    config = _config(workdir, {"model": {"scan_blocks": True}, "masking": {"kind": "block"}})
    fresh, state, start = _state(config)
    np.testing.assert_array_equal(
        state.params["backbone"]["blocks"]["attn"]["qkv"]["kernel"][1], saved["params"]["backbone"]["blocks_1"]["attn"]["qkv"]["kernel"]
    )
    np.testing.assert_array_equal(state.params["backbone"]["mask_token"], fresh.params["backbone"]["mask_token"])
    assert "at random    mask_token" in start.report


def test_the_backbone_alone_on_request(source):
    workdir, saved = source
    fresh, state, _ = _state(_config(workdir, init_heads=False))
    assert _equal(state.params["backbone"], saved["params"]["backbone"])
    micro.assert_equal(state.params["heads_dino"], micro.copies(fresh.params["heads_dino"]))
    micro.assert_equal(state.batch_stats, micro.copies(fresh.batch_stats))


def test_positions_are_resized_only_on_request(source):
    workdir, _ = source
    larger = {"views": {"global_size": 24}}
    with pytest.raises(ConfigError, match=r"(?s)pos_embed: found \[1, 17, 48\], expected \[1, 37, 48\].*init_resize=True"):
        _state(_config(workdir, larger))
    _, state, start = _state(_config(workdir, larger, init_resize=True))
    assert state.params["backbone"]["pos_embed"].shape == (1, 37, 48)
    assert any("from 4 x 4 to 6 x 6" in line for line in start.report)


def test_everything_that_does_not_fit_is_listed(source, tmp_path):
    workdir, _ = source
    with pytest.raises(ConfigError) as error:
        _state(_config(workdir, {"head": {"prototypes": 32, "hidden": 16}}))
    message = str(error.value)
    assert "init_from: found" in message
    for name in (
        "heads_dino/last_layer/direction: found [64, 16], expected [32, 16]",
        "heads_dino/mlp_0/kernel",
        "heads_dino/mlp_2/kernel",
    ):
        assert name in message
    assert "init_heads=False takes the backbone alone" in message
    with pytest.raises(ConfigError, match="blocks_2/attn/proj/bias"):
        _state(_config(workdir, {"model": {"depth": 3}}))
    export(workdir, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="heads: found 4, expected 3"):
        _state(_config(tmp_path / "x.safetensors", {"model": {"heads": 4}}))


def test_training_does_not_begin_without_the_file(tmp_path):
    config = _config(tmp_path / "missing.pth", {"data": {"source": "bundled", "workers": 0}, "schedule": {"total_steps": 2}})
    config.optimizer.update(warmup_epochs=0, freeze_last_layer_epochs=0)
    config.data.batch_size = 16
    with pytest.raises(ConfigError, match=r"init_from: found '.*missing\.pth': .*no such file"):
        pretrain.train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_a_run_starts_from_a_file_and_resumes_without_it(source, tmp_path):
    path = tmp_path / "x.safetensors"
    export(source[0], path, layout="sere", network="both", with_heads=True)
    config = _config(path, {"data": {"source": "bundled", "workers": 0, "batch_size": 16}, "schedule": {"total_steps": 2}})
    config.optimizer.update(warmup_epochs=0, freeze_last_layer_epochs=0, freeze_backbone_epochs=0)
    pretrain.train(config, str(tmp_path / "run"))
    path.unlink()
    state = pretrain.train(config, str(tmp_path / "run"))
    assert int(state.step) == 2


def test_the_backbone_stands_still_while_heads_warm_up():
    config = micro.config({"optimizer": {"freeze_backbone_epochs": 1, "warmup_epochs": 0, "freeze_last_layer_epochs": 0}})
    length = pretraining.Steps(per_epoch=2, total=6)
    params = {"backbone": {"norm": {"scale": jnp.ones(3)}}, "heads_dino": {"mlp_0": {"bias": jnp.ones(3)}}}
    gradients = jax.tree.map(lambda x: 0.1 * x, params)
    optimizer = pretraining.optimizer(config, length)
    state, moved = optimizer.init(params), []
    for step in range(4):
        updates, state = optimizer.update(gradients, state, params, step=jnp.int32(step))
        moved.append([bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(updates)])
    assert moved == [[False, True]] * 2 + [[True, True]] * 2
