"""timm's `config.json` beside the weights: followed, told, or refused. The files have the layouts of those on Hugging Face's hub."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from sere_jax import load_backbone
from sere_jax.interop import resnet, timm, timm_config
from sere_jax.interop.files import write_tensors
from sere_jax.interop.tables import InteropError
from tests.interop.test_timm import _params

SIZES = timm.Architecture(48, 2, 3, 4, 16)
IMAGES = {
    "tag": "augreg_in21k",
    "custom_load": True,
    "input_size": [3, 16, 16],
    "fixed_input_size": True,
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "crop_mode": "center",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.25, 0.5],
    "num_classes": 21843,
    "pool_size": None,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
}
CONFIG = {
    "architecture": "vit_small_patch16_224",
    "num_classes": 21843,
    "num_features": 384,
    "global_pool": "token",
    "model_args": {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 4, "img_size": 16},
    "pretrained_cfg": IMAGES,
}
FLAT = {"architecture": "vit_small_patch16_224", "num_features": 384, "num_heads": 3} | IMAGES


@pytest.fixture(scope="module")
def tensors():
    return timm.to_timm(_params()[1])


def _load(place, tensors, config, **arguments):
    write_tensors(place / "model.safetensors", tensors, {})
    if config is not None:
        (place / "config.json").write_text(json.dumps(config))
    return load_backbone(place, **arguments)


@pytest.mark.parametrize("config", [CONFIG, FLAT], ids=["nested", "flat"])
def test_heads_and_images_are_those_of_the_file(tmp_path, tensors, config):
    backbone = _load(tmp_path, tensors, config)
    assert backbone.module.heads == 3
    how = backbone.preprocess
    assert (how.size, how.resize) == (16, 17)  # floor(16 / 0.9)
    assert (how.mean, how.std) == ((0.5, 0.5, 0.5), (0.5, 0.25, 0.5))
    report = "\n".join(backbone.about["report"])
    assert "normalised with mean 0.5 0.5 0.5, std 0.5 0.25 0.5" in report
    assert "assumed" not in report
    larger = load_backbone(tmp_path, image_size=32).preprocess
    assert (larger.size, larger.resize, larger.std) == (32, 34, (0.5, 0.25, 0.5))  # the same share of the image
    with pytest.raises(InteropError, match="heads: found 4, expected 3, which the file states"):
        load_backbone(tmp_path, heads=4)


@pytest.mark.parametrize("prefix", ["timm_model.", "module.timm_model."])
def test_files_of_transformers_timm_wrapper_are_timms(tmp_path, tensors, prefix):
    """`TimmWrapperModel.save_pretrained` puts `timm_model.` before timm's names, and its model type into timm's config."""
    wrapped = {f"{prefix}{name}": tensor for name, tensor in tensors.items()} | {f"{prefix}head.weight": np.zeros((5, 48), np.float32)}
    config = CONFIG | {"model_type": "timm_wrapper", "do_pooling": True, "initializer_range": 0.02, "architectures": ["TimmWrapperModel"]}
    backbone = _load(tmp_path, wrapped, config)
    assert (backbone.module.heads, backbone.preprocess.std) == (3, (0.5, 0.25, 0.5))
    image = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32)
    expected = _load(tmp_path, tensors, config)(image).cls
    np.testing.assert_array_equal(backbone(image).cls, expected)
    (tmp_path / "config.json").unlink()
    write_tensors(tmp_path / "model.safetensors", wrapped | {f"{prefix}blocks.0.ls1.gamma": np.zeros(48, np.float32)}, {})
    with pytest.raises(InteropError, match="layer scale"):
        load_backbone(tmp_path, heads=3)


@pytest.mark.parametrize("config", [None, {"recipe": "dino"}])
def test_without_a_config_of_timm_the_assumption_is_told(tmp_path, tensors, config):
    backbone = _load(tmp_path, tensors, config, heads=3)
    assert backbone.preprocess.mean == (0.485, 0.456, 0.406)
    assert "assumed      ImageNet's mean and std: no config.json that states others is beside it" in backbone.about["report"]


@pytest.mark.parametrize(("size", "heads", "width"), [("tiny", 3, 192), ("small", 6, 384), ("base", 12, 768), ("large", 16, 1024)])
def test_a_plain_architecture_states_its_heads(size, heads, width):
    config = {"architecture": f"vit_{size}_patch16_224", "pretrained_cfg": IMAGES}
    assert timm_config.stated(config, timm.Architecture(width, 12, 1, 16, 224)).heads == heads
    assert timm_config.stated(config, timm.Architecture(width + 48, 12, 1, 16, 224)).heads == 0  # another width: not that architecture


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_layer": "quick_gelu"}, "model_args.act_layer: found 'quick_gelu', expected 'gelu'"),
        ({"act_layer": "gelu_tanh"}, "act_layer"),
        ({"norm_layer": "rmsnorm"}, "norm_layer: found 'rmsnorm'"),
        ({"qkv_bias": False}, "qkv_bias: found False, expected True"),
        ({"class_token": False}, "class_token"),
        ({"no_embed_class": True}, "no_embed_class"),
        ({"reg_tokens": 4}, "reg_tokens: found 4, expected 0"),
        ({"init_values": 1e-5}, "init_values: found 1e-05, expected 0"),
        ({"pre_norm": True}, "pre_norm"),
        ({"mlp_ratio": 5.3375}, "mlp_ratio"),
        ({"embed_dim": 64}, "embed_dim: found 64, expected 48"),
        ({"num_heads": 5}, "num_heads: found 5, expected a divisor of the width 48"),
        ({"num_heads": True}, "num_heads: found True"),
        ({"use_rot_pos_emb": True}, "use_rot_pos_emb: found True, which this project's network does not know"),
        ({"act_layer": "relu", "reg_tokens": 1}, "(?s)reg_tokens.*act_layer|act_layer.*reg_tokens"),
    ],
)
def test_arguments_that_compute_something_else_are_refused(tmp_path, tensors, change, message):
    with pytest.raises(InteropError, match=message):
        _load(tmp_path, tensors, CONFIG | {"model_args": CONFIG["model_args"] | change})


@pytest.mark.parametrize("name", ["vit_base_patch32_clip_quickgelu_224", "vit_base_patch16_clip_224", "vit_small_patch16_rope_224"])
def test_architectures_that_compute_something_else_are_refused(name):
    with pytest.raises(InteropError, match=f"architecture: found '{name}'"):
        timm_config.stated(CONFIG | {"architecture": name}, SIZES)


def test_what_changes_nothing_is_accepted_and_the_rest_told():
    harmless = {"drop_path_rate": 0.1, "dynamic_img_size": True, "global_pool": "", "init_values": None, "fc_norm": None, "mlp_ratio": 4.0}
    arguments = CONFIG["model_args"] | harmless
    assert timm_config.stated(CONFIG | {"model_args": arguments}, SIZES) == (3, 1e-6, ())
    told = timm_config.stated(
        CONFIG | {"architecture": "my_vit", "model_args": arguments | {"global_pool": "avg", "img_size": [32, 32]}}, SIZES
    ).notes
    for part in ("the architecture 'my_vit' is not known", "timm pools the patch tokens", r"stored for 16 pixels"):
        assert any(part in note for note in told), part


@pytest.mark.parametrize(
    ("change", "expected", "note"),
    [
        ({}, (16, 17), ""),
        ({"crop_pct": 1.0}, (16, 16), ""),
        ({"crop_pct": None}, (16, 18), ""),  # timm's default 0.875
        ({"crop_pct": 1.5}, (16, 16), ""),
        ({"input_size": [3, 24, 24], "fixed_input_size": False}, (24, 26), ""),
        ({"input_size": [3, 24, 24]}, (16, 17), ""),  # a fixed size that model_args states wins
        ({"input_size": [3, 32, 24], "fixed_input_size": False}, (24, 26), "images of 32 x 24 pixels"),
        ({"interpolation": "bilinear"}, (16, 17), r"another interpolation \('bilinear'\)"),
        ({"crop_mode": "squash"}, (16, 17), "they crop by 'squash'"),
        ({"crop_border_pixels": 4}, (16, 17), "not followed: crop_border_pixels=4"),
    ],
)
def test_the_preparation_of_timm_in_our_terms(change, expected, note):
    asked = timm_config.preparation(CONFIG | {"pretrained_cfg": IMAGES | change}, 16, 3)
    assert (asked.size, asked.resize) == expected
    assert [*map(bool, asked.notes)] == [True] * bool(note)
    assert not note or re.search(note, asked.notes[0])


@pytest.mark.parametrize(
    "change",
    [{"mean": [0.5]}, {"std": [1, 0, 1]}, {"crop_pct": 0}, {"crop_pct": "0.9"}, {"input_size": [224, 224]}, {"input_size": [1, 16, 16]}],
)
def test_values_that_cannot_be_understood_are_named(change):
    with pytest.raises(InteropError, match=r"config\.json: pretrained_cfg: cannot be understood: .*found"):
        timm_config.preparation(CONFIG | {"pretrained_cfg": IMAGES | change}, 16, 3)


def test_a_resnet_is_checked_too():
    sizes = resnet.Sizes()
    assert timm_config.check_resnet({"architecture": "resnet50", "model_args": {"layers": [3, 4, 6, 3], "num_classes": 0}}, sizes) == []
    assert "not known" in timm_config.check_resnet({"architecture": "my_net"}, sizes)[0]
    for config in ({"architecture": "resnetblur50"}, {"architecture": "resnetaa50"}, {"model_args": {"output_stride": 16}}):
        with pytest.raises(InteropError, match=r"config\.json"):
            timm_config.check_resnet(config, sizes)


def test_features_are_those_of_the_stated_heads(tmp_path, tensors):
    """Heads leave no trace in tensors: with another number the features differ."""
    image = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32)
    three = _load(tmp_path, tensors, CONFIG)(image).cls
    four = _load(tmp_path, tensors, CONFIG | {"model_args": CONFIG["model_args"] | {"num_heads": 4}})(image).cls
    assert np.abs(np.asarray(three) - np.asarray(four)).max() > 1e-3
