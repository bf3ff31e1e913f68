"""Checkpoints and files -> images -> features: whichever way the weights come, the features are the same."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sere_jax
from sere_jax.build import pretraining
from sere_jax.commands.export import export
from sere_jax.commands.export_command import main
from sere_jax.interop.files import FileError, read_tensors, write_tensors
from sere_jax.interop.tables import InteropError
from sere_jax.models.resnet import ResNet
from sere_jax.train.checkpoint import CheckpointError
from sere_jax.weights.backbone import Backbone, load_backbone
from sere_jax.weights.beside import Preprocess
from tests import micro, saved_run
from tests.oracles import timm_vit


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A checkpoint of a micro run: (workdir, config, state)."""
    config = micro.config()
    state = saved_run.state(config)
    return saved_run.checkpoint(tmp_path_factory.mktemp("run"), config, state), config, state


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)


def _expected(config, params, images):
    return pretraining.backbone(config).apply({"params": params["backbone"]}, images)


def _same(found, expected, atol=1e-6):
    # The same program on the same numbers; jit may fuse what the plain call does not.
    for one, other in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


@pytest.mark.parametrize("where", ["", "checkpoints", "checkpoints/7"])
def test_a_run_gives_its_teacher(run, images, where):
    workdir, config, state = run
    backbone = sere_jax.load_backbone(workdir / where)
    _same(backbone(images), _expected(config, state.method.teacher, images), atol=1e-5)
    assert backbone.preprocess == Preprocess(16, 18, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic")
    assert (backbone.about["network"], backbone.about["step"]) == ("teacher", 7)


def test_a_backbone_is_told_in_a_line(run):
    """Without the parameters and the config, which would fill the screen."""
    workdir, config, _ = run
    vit = pretraining.backbone(config)
    shape = f"ViT of {vit.depth} blocks, width {vit.width}, {vit.heads} heads, patches of {vit.patch_size} pixels"
    assert repr(load_backbone(workdir)) == f"Backbone({shape}, source={str(workdir)!r}, network='teacher', step=7, images of 16 pixels)"
    resnet = Backbone(ResNet(), {}, Preprocess(224, 256))
    assert repr(resnet) == "Backbone(ResNet of 3-4-6-3 blocks, width 2048, images of 224 pixels)"


def test_the_student_on_request(run, images):
    workdir, config, state = run
    _same(load_backbone(str(workdir), network="student")(images), _expected(config, state.params, images), atol=1e-5)
    with pytest.raises(InteropError, match="network: found 'momentum', expected one of teacher, student"):
        load_backbone(workdir, network="momentum")


def test_shapes_other_sizes_layers_and_attention(run):
    backbone = load_backbone(run[0])
    features = backbone(jnp.zeros((1, 24, 32, 3)), layers=(0, 1), attention=True)
    assert features.cls.shape == (1, 48)
    assert features.patches.shape == (1, 6, 8, 48)
    assert [tokens.shape for tokens in features.layers] == [(1, 49, 48)] * 2
    np.testing.assert_allclose(features.attention.sum(-1), np.ones((1, 3, 49)), atol=1e-5)


def test_fresh_parameters_have_the_same_shapes(run, images):
    backbone = load_backbone(run[0])
    fresh = backbone.init(3)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, backbone.params)
    assert not np.allclose(backbone.apply(fresh, images).cls, backbone(images).cls)


def test_a_scanned_run_gives_the_same_features(run, images, tmp_path):
    _, config, state = run
    scanned = config.copy_and_resolve_references()
    scanned.model.update({"scan_blocks": True, "remat": "dots"})
    from sere_jax.interop.timm import stack_blocks

    stacked = micro.with_method(
        state, teacher={**state.method.teacher, "backbone": jax.tree.map(jnp.asarray, stack_blocks(state.method.teacher["backbone"]))}
    )
    backbone = load_backbone(saved_run.checkpoint(tmp_path, scanned, stacked))
    _same(backbone(images), _expected(config, state.method.teacher, images), atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "name", "with_heads"),
    [
        ("timm", "x.safetensors", False),
        ("dino", "x.safetensors", False),
        ("dino", "x.safetensors", True),
        ("npz", "x.npz", False),
        ("npz", "x.npz", True),
    ],
)
def test_an_exported_file_gives_the_same_parameters(run, tmp_path, layout, name, with_heads):
    workdir, _, state = run
    export(workdir, tmp_path / name, layout=layout, with_heads=with_heads)
    backbone = load_backbone(tmp_path / name)
    jax.tree.map(np.testing.assert_array_equal, backbone.params, state.method.teacher["backbone"])
    assert backbone.module == load_backbone(workdir).module
    assert backbone.preprocess == load_backbone(workdir).preprocess


def test_exported_tensors_give_the_teachers_tokens_by_an_independent_forward_pass(run, images, tmp_path):
    workdir, config, state = run
    export(workdir, tmp_path / "x.safetensors")
    tensors, _ = read_tensors(tmp_path / "x.safetensors")
    features = _expected(config, state.method.teacher, images)
    for i, image in enumerate(np.asarray(images)):
        tokens = timm_vit.forward(tensors, image, heads=3)
        np.testing.assert_allclose(features.cls[i], tokens[0], atol=1e-4)  # float32 against float64
        np.testing.assert_allclose(features.patches[i].reshape(16, 48), tokens[1:], atol=1e-4)


def test_what_an_export_tells_about_itself(run, tmp_path):
    workdir, config, _ = run
    written = export(workdir, tmp_path / "x.safetensors", network="student")
    _, metadata = read_tensors(written.tensors)
    assert (metadata["network"], metadata["step"], metadata["layout"], metadata["format"]) == ("student", 7, "timm", "pt")
    assert metadata["config"]["model"]["width"] == 48
    assert "Apache-2.0" in metadata["licence"]
    assert metadata["versions"].keys() >= {"sere_jax", "jax"}
    beside = json.loads(written.config.read_text())
    assert written.config.name == "x.config.json"
    assert beside["timm"]["arguments"] == {
        "img_size": 16, "patch_size": 4, "in_chans": 3, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0,
    }  # fmt: skip
    assert beside["config"]["recipe"] == config.recipe
    preprocessor = json.loads(written.preprocessor.read_text())
    assert (preprocessor["crop_size"], preprocessor["size"]) == ({"height": 16, "width": 16}, {"shortest_edge": 18})
    assert preprocessor["image_mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize(("dtype", "relative"), [("bfloat16", 2**-8), ("float16", 2**-10)])
def test_smaller_types_round(run, tmp_path, dtype, relative):
    workdir, _, state = run
    export(workdir, tmp_path / "x.safetensors", dtype=dtype)
    assert {str(tensor.dtype) for tensor in read_tensors(tmp_path / "x.safetensors")[0].values()} == {dtype}
    loaded = load_backbone(tmp_path / "x.safetensors")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=relative, atol=1e-6), loaded.params, state.method.teacher["backbone"])


def test_a_strangers_file_must_be_told_its_heads(run, images, tmp_path):
    workdir, config, state = run
    export(workdir, tmp_path / "ours.safetensors")
    tensors, _ = read_tensors(tmp_path / "ours.safetensors")
    write_tensors(tmp_path / "theirs.safetensors", tensors, {})
    with pytest.raises(InteropError, match=r"heads: unknown.*expected heads=N"):
        load_backbone(tmp_path / "theirs.safetensors")
    _same(load_backbone(tmp_path / "theirs.safetensors", heads=3)(images), _expected(config, state.method.teacher, images), atol=1e-5)
    with pytest.raises(InteropError, match="heads: found 6, expected 3"):
        load_backbone(tmp_path / "ours.safetensors", heads=6)
    with pytest.raises(InteropError, match="expected 'teacher', the one that the file holds"):
        load_backbone(tmp_path / "ours.safetensors", network="student")


def test_sources_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileError, match="it does not exist"):
        load_backbone(tmp_path / "nothing")
    with pytest.raises(FileError, match="no such file"):
        load_backbone(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load_backbone(tmp_path)
    (tmp_path / "x.h5").write_bytes(b"")
    with pytest.raises(FileError, match=r"found a file that ends in '\.h5'"):
        load_backbone(tmp_path / "x.h5")


def test_the_program(run, tmp_path, capsys):
    output = tmp_path / "deep" / "x.safetensors"
    assert main([f"--checkpoint={run[0]}", "--format=timm", "--network=teacher", f"--output={output}"]) == 0
    assert str(output) in capsys.readouterr().out
    assert output.is_file()
    assert main([f"--checkpoint={run[0]}", f"--output={tmp_path}/x.npz", "--with_heads"]) == 2
    message = capsys.readouterr().err
    assert "expected a name that ends in .safetensors" in message
    assert main([f"--checkpoint={tmp_path}/none", f"--output={output}"]) == 2


def test_importing_the_package_is_cheap():
    code = "import sys, sere_jax; assert not {'jax', 'flax', 'orbax'} & set(sys.modules); print(sere_jax.load_backbone.__name__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "load_backbone"
