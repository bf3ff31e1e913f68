"""Hugging Face's names: both generations read, the old ones written, and what `transformers` itself makes of the export."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax import load_backbone
from sere_jax.commands.export import export
from sere_jax.interop import hf, hf_config
from sere_jax.interop.files import write_tensors
from sere_jax.interop.formats import import_network
from sere_jax.interop.tables import InteropError
from sere_jax.interop.timm import Architecture, stack_blocks
from tests import micro, saved_run
from tests.interop.test_timm import _equal, _params


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(directory of the export, the run's config, its state)"""
    config = micro.config()
    state = saved_run.state(config)
    workdir = saved_run.checkpoint(tmp_path_factory.mktemp("run"), config, state)
    export(workdir, workdir / "hf", layout="hf_vit")
    return workdir / "hf", config, state


@pytest.mark.parametrize("blocks", [hf.OLD, hf.NEW])
@pytest.mark.parametrize("prefix", ["", "vit."])
def test_there_and_back_is_bit_exact(blocks, prefix):
    _, params = _params()
    tensors = {prefix + name: tensor for name, tensor in hf.to_hf(params, blocks=blocks).items()}
    assert _equal(hf.from_hf(tensors), params)
    assert _equal(hf.from_hf({prefix + n: t for n, t in hf.to_hf(stack_blocks(params), blocks=blocks).items()}), params)


def test_names_and_shapes_are_theirs():
    """Written out by hand from a `ViTModel` of transformers 4 with one layer, width 48, 16-pixel images, patch 4."""
    _, params = _params(depth=1)
    layer = "encoder.layer.0."
    linear = {
        f"{layer}attention.attention.query": (48, 48),
        f"{layer}attention.attention.key": (48, 48),
        f"{layer}attention.attention.value": (48, 48),
        f"{layer}attention.output.dense": (48, 48),
        f"{layer}intermediate.dense": (192, 48),
        f"{layer}output.dense": (48, 192),
    }
    expected = {f"{name}.weight": shape for name, shape in linear.items()} | {f"{name}.bias": shape[:1] for name, shape in linear.items()}
    for name in (f"{layer}layernorm_before", f"{layer}layernorm_after", "layernorm"):
        expected |= {f"{name}.weight": (48,), f"{name}.bias": (48,)}
    expected |= {"embeddings.cls_token": (1, 1, 48), "embeddings.position_embeddings": (1, 17, 48)}
    expected |= {"embeddings.patch_embeddings.projection.weight": (48, 3, 4, 4), "embeddings.patch_embeddings.projection.bias": (48,)}
    assert {name: tensor.shape for name, tensor in hf.to_hf(params).items()} == expected


def test_a_mask_token_is_read_and_a_head_is_left():
    _, params = _params(mask_token=True)
    d = params["mask_token"].shape[-1]
    tensors = hf.to_hf(params) | {"embeddings.mask_token": params["mask_token"][None], "pooler.dense.weight": np.zeros((d, d), np.float32)}
    found = import_network({f"vit.{name}": tensor for name, tensor in tensors.items()})
    assert (found.format, found.left) == ("hf_vit", ("pooler.dense.weight",))
    assert _equal(found.params, {"backbone": params})


def test_misfits_are_listed_in_their_names():
    _, params = _params()
    tensors = hf.to_hf(params)
    tensors["encoder.layer.1.attention.attention.kee.bias"] = tensors.pop("encoder.layer.1.attention.attention.key.bias")
    with pytest.raises(InteropError) as error:
        hf.from_hf(tensors)
    assert "2 names or shapes do not fit" in str(error.value)
    assert "missing  encoder.layer.1.attention.attention.key.bias [48]; nearest: encoder.layer.1.attention.attention.kee.bias" in str(
        error.value
    )


def test_transformers_loads_it_strictly_and_gives_the_same_tokens(exported, deviation):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    directory, _, _ = exported
    backbone = load_backbone(directory)
    model, told = transformers.ViTModel.from_pretrained(directory, add_pooling_layer=False, local_files_only=True, output_loading_info=True)
    assert not any(told.values()), told
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).last_hidden_state.numpy()
    ours = backbone(jnp.asarray(images))
    # float32 on both sides, two blocks, tokens of size 1.
    deviation("tokens of exports", "transformers, cls", np.abs(ours.cls - theirs[:, 0]).max(), 1e-4)
    deviation("tokens of exports", "transformers, patches", np.abs(ours.patches.reshape(2, 16, 48) - theirs[:, 1:]).max(), 1e-4)


def test_what_transformers_writes_is_read_back(exported, tmp_path):
    transformers = pytest.importorskip("transformers")
    directory, _, state = exported
    model = transformers.ViTModel.from_pretrained(directory, add_pooling_layer=False, local_files_only=True)
    model.save_pretrained(tmp_path / "theirs")
    jax.tree.map(np.testing.assert_array_equal, load_backbone(tmp_path / "theirs").params, state.method.teacher["backbone"])
    # A state_dict that is saved by hand has the names of the modules.
    write_tensors(tmp_path / "by_hand.safetensors", {name: tensor.numpy() for name, tensor in model.state_dict().items()}, {})
    jax.tree.map(
        np.testing.assert_array_equal, load_backbone(tmp_path / "by_hand.safetensors", heads=3).params, state.method.teacher["backbone"]
    )


def test_the_directory_says_what_it_is(exported):
    directory, config, _ = exported
    found = json.loads((directory / "config.json").read_text())
    assert found["sere_jax"]["config"]["recipe"] == config.recipe
    assert (found["model_type"], found["num_attention_heads"], found["image_size"]) == ("vit", 3, 16)
    assert json.loads((directory / "preprocessor_config.json").read_text())["crop_size"] == {"height": 16, "width": 16}
    backbone = load_backbone(directory)
    assert (backbone.module.heads, backbone.preprocess.size, backbone.about["format"]) == (3, 16, "hf_vit")


def test_heads_are_read_from_the_config_beside(exported, tmp_path):
    _, params = _params()
    write_tensors(tmp_path / "model.safetensors", hf.to_hf(params), {})
    with pytest.raises(InteropError, match="heads: unknown"):
        load_backbone(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(hf_config.configuration(Architecture(48, 2, 3, 4, 16))))
    assert load_backbone(tmp_path).module.heads == 3
