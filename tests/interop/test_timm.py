"""timm's names: nothing lost in either direction, the same tokens by an independent forward pass, all misfits listed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.interop import timm
from sere_jax.interop.tables import InteropError, flatten
from sere_jax.models.vit import ViT
from tests.oracles import timm_vit

SIZES = {"width": 48, "depth": 2, "heads": 3, "patch_size": 4, "image_size": 16}


def _random(tree, seed: int = 0):
    """Every parameter drawn anew: norms and biases start at constants that would hide a mix-up."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), tree)


def _params(**changes):
    module = ViT(**(SIZES | changes))
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 16, 16, module.in_channels)))
    return module, _random(shapes["params"])


def _equal(a, b) -> bool:
    a, b = flatten(a), flatten(b)
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


@pytest.mark.parametrize("changes", [{}, {"depth": 11, "width": 12}, {"in_channels": 1}, {"image_size": 4}])
def test_there_and_back_is_bit_exact(changes):
    _, params = _params(**changes)
    assert _equal(timm.from_timm(timm.to_timm(params)), params)


def test_scanned_blocks_are_exported_one_by_one():
    _, params = _params()
    stacked = timm.stack_blocks(params)
    assert stacked["blocks"]["attn"]["qkv"]["kernel"].shape == (2, 48, 144)
    assert _equal(timm.unstack_blocks(stacked), params)
    assert _equal(timm.to_timm(stacked), timm.to_timm(params))


def test_stacked_parameters_are_those_of_a_scanned_vit():
    module, params = _params()
    scanned = ViT(**SIZES, scan_blocks=True)
    images = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
    one, other = (jax.jit(m.apply)({"params": p}, images).patches for m, p in ((module, params), (scanned, timm.stack_blocks(params))))
    np.testing.assert_allclose(one, other, atol=1e-5)  # float32, fused differently


def test_names_and_shapes_are_timms():
    """Written out by hand from timm's VisionTransformer(img_size=16, patch_size=4, embed_dim=48, depth=1, num_classes=0)."""
    _, params = _params(depth=1)
    assert {name: tensor.shape for name, tensor in timm.to_timm(params).items()} == {
        "cls_token": (1, 1, 48),
        "pos_embed": (1, 17, 48),
        "patch_embed.proj.weight": (48, 3, 4, 4),
        "patch_embed.proj.bias": (48,),
        "blocks.0.norm1.weight": (48,),
        "blocks.0.norm1.bias": (48,),
        "blocks.0.attn.qkv.weight": (144, 48),
        "blocks.0.attn.qkv.bias": (144,),
        "blocks.0.attn.proj.weight": (48, 48),
        "blocks.0.attn.proj.bias": (48,),
        "blocks.0.norm2.weight": (48,),
        "blocks.0.norm2.bias": (48,),
        "blocks.0.mlp.fc1.weight": (192, 48),
        "blocks.0.mlp.fc1.bias": (192,),
        "blocks.0.mlp.fc2.weight": (48, 192),
        "blocks.0.mlp.fc2.bias": (48,),
        "norm.weight": (48,),
        "norm.bias": (48,),
    }
    assert all(tensor.flags["C_CONTIGUOUS"] for tensor in timm.to_timm(params).values())


def test_the_exported_tensors_give_the_same_tokens():
    module, params = _params()
    image = np.random.default_rng(2).normal(size=(16, 16, 3)).astype(np.float32)
    features = jax.jit(module.apply)({"params": params}, image[None])
    tokens = timm_vit.forward(timm.to_timm(params), image, heads=3)
    # float32 against float64 through two blocks; tokens are of size 1.
    np.testing.assert_allclose(features.cls[0], tokens[0], atol=1e-4)
    np.testing.assert_allclose(features.patches[0].reshape(16, 48), tokens[1:], atol=1e-4)


def test_sizes_are_read_off_the_tensors():
    _, params = _params(depth=11, width=12)
    assert timm.architecture_of(timm.to_timm(params), heads=3) == timm.Architecture(12, 11, 3, 4, 16, 3)
    assert timm.architecture_of_params(params, heads=3) == timm.Architecture(12, 11, 3, 4, 16, 3)
    with pytest.raises(InteropError, match="heads: found 5, expected a divisor of the width 12"):
        timm.architecture_of(timm.to_timm(params), heads=5)


def test_all_misfits_are_listed_with_the_nearest_name():
    _, params = _params()
    tensors = timm.to_timm(params)
    tensors["blocks.1.attn.qkv.weigth"] = tensors.pop("blocks.1.attn.qkv.weight")
    tensors["norm.bias"] = np.zeros(7, np.float32)
    tensors["head.weight"] = np.zeros((10, 48), np.float32)
    with pytest.raises(InteropError) as error:
        timm.from_timm(tensors)
    message = str(error.value)
    assert message.startswith("4 names or shapes do not fit:")
    assert "missing  blocks.1.attn.qkv.weight [144, 48]; nearest: blocks.1.attn.qkv.weigth" in message
    assert "unused   blocks.1.attn.qkv.weigth [144, 48]; nearest: blocks.1.attn.qkv.weight" in message
    assert "unused   head.weight [10, 48]" in message
    assert "shape    norm.bias: found [7], expected [48]" in message


def test_only_what_is_expressly_allowed_may_be_left_over():
    _, params = _params()
    tensors = timm.to_timm(params) | {"head.weight": np.zeros((10, 48), np.float32), "head.bias": np.zeros(10, np.float32)}
    assert _equal(timm.from_timm(tensors, ignore=("head.*",)), params)
    with pytest.raises(InteropError, match=r"blocks\.0\.ls1\.gamma"):
        timm.from_timm(tensors | {"blocks.0.ls1.gamma": np.zeros(48)}, ignore=("head.*",))


def test_a_missing_block_in_the_middle_is_noticed():
    _, params = _params(depth=3)
    tensors = {name: tensor for name, tensor in timm.to_timm(params).items() if not name.startswith("blocks.1.")}
    with pytest.raises(InteropError, match="12 names"):
        timm.from_timm(tensors)


def test_our_own_tree_is_held_against_the_table_too():
    _, params = _params()
    params["norm"]["scal"] = params["norm"].pop("scale")
    with pytest.raises(InteropError, match="missing  norm/scale"):
        timm.to_timm(params)


def test_the_mask_token_stays_at_home():
    module = ViT(**SIZES, mask_token=True)
    params = _random(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"])
    assert "mask_token" in params
    assert not any("mask" in name for name in timm.to_timm(params))


@pytest.mark.parametrize("tensors", [{}, {"conv1.weight": np.zeros((64, 3, 7, 7))}, {"cls_token": np.zeros(3)}])
def test_what_is_no_vit_is_named(tensors):
    with pytest.raises(InteropError, match="not the parameters of a ViT"):
        timm.from_timm(tensors)
