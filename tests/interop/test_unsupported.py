"""Parts of other people's ViTs that ours lack are refused by the part's name; names are as their authors' code writes them."""

from __future__ import annotations

import numpy as np
import pytest

from sere_jax.interop import hf, timm
from sere_jax.interop.formats import import_network
from sere_jax.interop.tables import InteropError
from tests.interop.test_timm import _equal, _params

SMALL = np.zeros(48, np.float32)


@pytest.fixture(scope="module")
def tensors():
    return timm.to_timm(_params()[1])


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (("register_tokens",), "register tokens"),  # DINOv2
        (("reg_token",), "register tokens"),  # timm
        (("storage_tokens",), "register tokens"),  # DINOv3
        (("blocks.0.ls1.gamma", "blocks.0.ls2.gamma"), "layer scale"),  # DINOv2, timm
        (("blocks.0.gamma_1",), "layer scale"),  # BEiT, CaiT
        (("blocks.0.mlp.w12.weight", "blocks.0.mlp.w3.weight"), "a gated MLP"),  # DINOv2 giant
        (("blocks.0.mlp.fc1_g.weight",), "a gated MLP"),  # EVA-02 in timm
        (("blocks.0.attn.q_norm.weight", "blocks.0.attn.k_norm.weight"), "QK-norm"),
        (("rope_embed.periods",), "rotary position embedding"),  # DINOv3
        (("blocks.0.attn.relative_position_bias_table",), "relative position bias"),  # BEiT
        (("blocks.0.attn.q_bias", "blocks.0.attn.v_bias"), "biases of queries and values"),  # BEiT
        (("dist_token", "head_dist.weight"), "a distillation token"),  # DeiT
        (("attn_pool.latent",), "attention pooling"),  # SigLIP in timm
        (("norm_pre.weight",), "a norm before the first block"),  # CLIP in timm
        (("fc_norm.weight",), "a norm of pooled patches"),  # MAE, fine-tuned
        (("patch_embed.backbone.stem.conv.weight",), "a convolutional stem"),  # hybrid ViTs
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_part_is_named(tensors, names, part, prefix):
    extra = {prefix + name: tensor for name, tensor in (tensors | dict.fromkeys(names, SMALL)).items()}
    with pytest.raises(InteropError, match=f"{part}.*: {names[0]}"):
        import_network(extra)
    assert _equal(import_network(extra, ignore=names).params["backbone"], _params()[1])


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("encoder.layer.0.layer_scale1.lambda1", "layer scale"),  # DINOv2
        ("embeddings.register_tokens", "register tokens"),
        ("embeddings.distillation_token", "a distillation token"),  # DeiT
        ("encoder.layer.0.mlp.weights_in.weight", "a gated MLP"),  # DINOv2 giant
        ("vision_model.head.probe", "attention pooling .*\n.*a CLIP or SigLIP vision tower"),
    ],
)
def test_a_part_is_named_in_hugging_faces_names(name, part):
    with pytest.raises(InteropError, match=rf"(?s){part}.*: {name}"):
        import_network(hf.to_hf(_params()[1]) | {name: SMALL})


def test_parts_are_named_together_before_the_position_embedding_is_looked_at(tensors):
    """DINOv2 with registers as timm stores it: 37 x 37 positions, none of them the cls token's."""
    extra = tensors | {"reg_token": np.zeros((1, 4, 48), np.float32), "blocks.1.ls1.gamma": SMALL}
    extra["pos_embed"] = np.zeros((1, 1369, 48), np.float32)
    with pytest.raises(InteropError, match=r"(?s)register tokens.*reg_token\n.*layer scale.*blocks\.1\.ls1\.gamma"):
        import_network(extra)


@pytest.mark.parametrize(
    ("slots", "reason"), [(16, "these are 4 x 4 positions without one for the cls token"), (18, "a distillation token")]
)
def test_odd_position_embeddings_are_explained(tensors, slots, reason):
    with pytest.raises(InteropError, match=f"pos_embed: found {slots} slots.*{reason}"):
        import_network(tensors | {"pos_embed": np.zeros((1, slots, 48), np.float32)})


def test_the_decoder_of_maes_own_files_is_left(tensors):
    decoder = {"mask_token": np.zeros((1, 1, 32), np.float32), "decoder_embed.weight": np.zeros((32, 48), np.float32)}
    imported = import_network(tensors | decoder)
    assert _equal(imported.params["backbone"], _params()[1])
    assert set(imported.left) == set(decoder)
