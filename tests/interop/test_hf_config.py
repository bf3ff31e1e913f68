"""What the JSON files beside Hugging Face's weights state: followed, told, or refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sere_jax import load_backbone
from sere_jax.interop import hf, hf_config
from sere_jax.interop.files import FileError, write_tensors
from sere_jax.interop.stated import Stated
from sere_jax.interop.tables import InteropError
from sere_jax.interop.timm import Architecture
from tests.interop.test_timm import _params

SIZES = Architecture(48, 2, 3, 4, 16)
CONFIG = hf_config.configuration(SIZES)
PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 16, "width": 16},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.5, 0.5],
    "resample": 3,
}


def _directory(place, config=None, preprocessor=None):
    write_tensors(place / "model.safetensors", hf.to_hf(_params()[1]), {})
    for name, content in (("config.json", config), ("preprocessor_config.json", preprocessor)):
        if content is not None:
            (place / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return place


@pytest.mark.parametrize("eps", [1e-12, 1e-2])
def test_the_epsilon_of_layer_norm_is_theirs(tmp_path, deviation, eps):
    """1e-2 is large enough to show: transformers itself gives the same tokens from the same directory."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    backbone = load_backbone(_directory(tmp_path, CONFIG | {"layer_norm_eps": eps}))
    assert backbone.module.norm_eps == eps
    model = transformers.ViTModel.from_pretrained(tmp_path, add_pooling_layer=False, local_files_only=True)
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).last_hidden_state.numpy()
    # float32 on both sides, two blocks, tokens of size 1.
    deviation("tokens of exports", f"transformers, epsilon {eps:g}", np.abs(np.asarray(backbone(images).cls) - theirs[:, 0]).max(), 1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu_pytorch_tanh"}, "hidden_act: found 'gelu_pytorch_tanh', expected 'gelu'"),
        ({"hidden_act": "quick_gelu"}, "hidden_act"),
        ({"qkv_bias": False}, "qkv_bias: found False, expected True"),
        ({"num_hidden_layers": 1}, "num_hidden_layers: found 1, expected 2"),
        ({"intermediate_size": 96}, "intermediate_size: found 96, expected 192"),
        ({"model_type": "ijepa"}, "model_type: found 'ijepa', expected one of vit"),
        ({"num_attention_heads": 5}, "num_attention_heads: found 5, expected a divisor of the width 48"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps: found 'small'"),
        ({"layer_norm_eps": True}, "layer_norm_eps: found True"),
        ({"num_attention_heads": True}, "num_attention_heads: found True"),
        ({"num_channels": True}, "num_channels: found True"),
        ({"image_size": 32}, "image_size: found 32, expected 16"),
        ({"patch_size": [4, 8]}, r"patch_size: found \[4, 8\]"),
        ({"num_register_tokens": 4}, "num_register_tokens: found 4, expected 0"),
        ({"layerscale_value": 1.0}, "layerscale_value: found 1.0, which this project's network does not know"),
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn: found True, expected False"),
        ({"mlp_ratio": 2}, "mlp_ratio: found 2, expected 4"),
        ({"attention_bias": False}, "attention_bias: found False"),
        ({"use_absolute_position_embeddings": False}, "use_absolute_position_embeddings: found False"),
        ({"position_embedding_type": "rotary"}, "position_embedding_type: found 'rotary', expected 'absolute'"),
        ({"patch_stride": 2}, "patch_stride: found 2, expected 4"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"rope_theta": 100.0}, "rope_theta: found 100.0, which this project's network does not know; remove a key that changes nothing"),
        ({"qkv_bias": False, "mlp_ratio": 2}, "(?s)qkv_bias.*mlp_ratio"),
    ],
)
def test_what_would_compute_something_else_is_refused(tmp_path, change, message):
    with pytest.raises(InteropError, match=message):
        load_backbone(_directory(tmp_path, CONFIG | change))


def test_what_changes_nothing_is_accepted():
    irrelevant = {
        "pooler_act": "tanh",
        "pooler_output_size": 8,
        "hidden_dropout_prob": 0.1,
        "encoder_stride": 16,
        "hidden_act": "gelu_python",
    }
    ours = {
        "mlp_ratio": 4,
        "num_register_tokens": 0,
        "use_swiglu_ffn": False,
        "rope_theta": None,
        "patch_size": [4, 4],
        "torch_dtype": "float32",
    }
    assert hf_config.stated(CONFIG | irrelevant | ours, SIZES) == Stated(3, 1e-6)


@pytest.mark.parametrize("kind", ["ViTConfig", "ViTMAEConfig", "ViTMSNConfig"])
def test_every_key_that_transformers_itself_writes_is_known(kind):
    transformers = pytest.importorskip("transformers")
    sizes = Architecture(768, 12, 12, 16, 224)
    content = json.loads(json.dumps(getattr(transformers, kind)().to_dict()))
    assert hf_config.stated(content, sizes).heads == 12


@pytest.mark.parametrize(("model_type", "eps"), [("vit", 1e-12), ("vit_mae", 1e-12), ("vit_msn", 1e-6)])
def test_an_epsilon_that_is_not_stated_is_transformers_default(model_type, eps):
    transformers = pytest.importorskip("transformers")
    assert transformers.AutoConfig.for_model(model_type).layer_norm_eps == eps
    stated = hf_config.stated({key: value for key, value in CONFIG.items() if key != "layer_norm_eps"} | {"model_type": model_type}, SIZES)
    assert stated.norm_eps == eps


def test_without_a_config_the_assumption_is_told(tmp_path):
    backbone = load_backbone(_directory(tmp_path), heads=3)
    assert backbone.module.norm_eps == 1e-12
    assert any("assumed      LayerNorm epsilon 1e-12" in line for line in backbone.about["report"])


def test_their_normalisation_is_used_and_told(tmp_path):
    backbone = load_backbone(_directory(tmp_path, CONFIG, PREPROCESSOR))
    assert (backbone.preprocess.mean, backbone.preprocess.std) == ((0.5, 0.5, 0.5), (0.25, 0.5, 0.5))
    text = "\n".join(backbone.about["report"])
    assert "normalised with mean 0.5 0.5 0.5, std 0.25 0.5 0.5" in text
    assert "they resize images to 16 x 16 pixels whatever their shape" in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, (16, 16, (0.5,) * 3)),
        ({"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}}, (16, 20, (0.5,) * 3)),
        ({"size": {"shortest_edge": 20}, "crop_size": 16, "do_center_crop": False}, (20, 20, (0.5,) * 3)),
        ({"size": 24}, (24, 24, (0.5,) * 3)),
        ({"do_normalize": False}, (16, 16, (0.0,) * 3)),
        ({"rescale_factor": 2 / 255}, (16, 16, (0.25,) * 3)),  # 2x - 0.5 = 2 (x - 0.25)
        ({"do_rescale": False, "image_mean": [127.5] * 3}, (16, 16, (0.5,) * 3)),
        ({"do_rescale": None, "do_center_crop": None, "image_mean": 0.25}, (16, 16, (0.25,) * 3)),
        ({"size": [20, 20], "crop_size": 16}, (16, 20, (0.5,) * 3)),
        ({"do_resize": False}, (16, 16, (0.5,) * 3)),
        ({"do_resize": False, "size": 99, "crop_size": {"height": 12, "width": 12}}, (12, 12, (0.5,) * 3)),
    ],
)
def test_their_preparation_in_our_terms(change, expected):
    found = hf_config.preparation(PREPROCESSOR | change, 16)
    assert (found.size, found.resize, found.mean) == expected


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"resample": 2}, "another interpolation"),
        ({"do_resize": False}, "they do not resize images; here the shorter side is resized to 16 pixels"),
        ({"size": {"shortest_edge": 16, "longest_edge": 40}}, "they bound the longer side to 40 pixels"),
        ({"crop_size": 24}, "they crop 24 pixels from 16, with a black border"),
        ({"crop_size": {"height": 12, "width": 16}}, "they crop 12 x 16 pixels"),
        ({"crop_pct": 0.9}, "not followed: crop_pct=0.9"),
    ],
)
def test_what_is_done_otherwise_is_told(change, note):
    assert any(note in line for line in hf_config.preparation(PREPROCESSOR | change, 16).notes)


@pytest.mark.parametrize("key", ["do_flip_channel_order", "rescale_offset", "do_grayscale"])
def test_steps_that_change_the_pixels_are_refused(key):
    with pytest.raises(InteropError, match=rf"preprocessor_config\.json: found {key}=true, expected false"):
        hf_config.preparation(PREPROCESSOR | {key: True}, 16)
    assert hf_config.preparation(PREPROCESSOR | {key: False}, 16) == hf_config.preparation(PREPROCESSOR, 16)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_file_beside_is_named(tmp_path, content):
    with pytest.raises(FileError, match=r"config\.json"):
        load_backbone(_directory(tmp_path, content))
    wrongs = [{"size": {"longest_edge": 3}}, {"size": 0}, {"size": True}, {"size": "16"}, {"image_std": [0, 1, 1]}, {"image_mean": [0.5]}]
    for wrong in (*wrongs, {"image_mean": [0.5, float("nan"), 0.5]}, {"rescale_factor": 0}, {"crop_size": {"height": 4}}):
        with pytest.raises(InteropError, match=r"preprocessor_config\.json"):
            hf_config.preparation(PREPROCESSOR | wrong, 16)
