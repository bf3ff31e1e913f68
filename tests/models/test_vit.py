"""The ViT against a token-by-token NumPy one; drop path; scan and remat; sizes and initialisation (SPEC 1.1)."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.build import pretraining
from sere_jax.models import vit as vit_module
from sere_jax.models.variants import VARIANTS
from sere_jax.models.vit import ViT
from tests import micro
from tests.oracles import bicubic
from tests.oracles import vit as oracle

SMALL = {"width": 12, "depth": 2, "heads": 3, "patch_size": 2, "image_size": 6}


def _images(b: int = 2, height: int = 6, width: int = 6, channels: int = 3) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(b, height, width, channels)), jnp.float32)


@functools.cache
def _params(**changes: Any) -> Any:
    model = ViT(**{**SMALL, **changes})
    return micro.random_like(jax.eval_shape(model.init, jax.random.key(0), _images(channels=model.in_channels))["params"])


@functools.cache
def _runner(model: tuple, static: tuple) -> Any:
    vit = ViT(**{**SMALL, **dict(model)})
    return micro.jit(lambda params, images, arrays: vit.apply({"params": params}, images, **dict(static), **arrays))


def _apply(params: Any, images: jax.Array, model: dict[str, Any] | None = None, **call: Any) -> Any:
    arrays = {name: value for name, value in call.items() if isinstance(value, jax.Array)}
    static = {name: value for name, value in call.items() if name not in arrays}
    return _runner(tuple((model or {}).items()), tuple(static.items()))(params, images, arrays)


def _expected(params: Any, images: jax.Array, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    both = [oracle.vit(micro.copies(params), np.asarray(image), patch=2, heads=3, **options) for image in images]
    return tuple(np.stack(tokens) for tokens in zip(*both, strict=True))


def test_tokens_are_those_of_the_definition():
    params, images = _params(), _images()
    found, (normed, raw) = _apply(params, images), _expected(params, images)
    # float32 through two blocks; tokens are of order 1 to 10.
    np.testing.assert_allclose(found.cls, normed[:, 0], atol=2e-5)
    np.testing.assert_allclose(found.patches, normed[:, 1:].reshape(2, 3, 3, 12), atol=2e-5)
    np.testing.assert_allclose(found.patches_prenorm, raw[:, 1:].reshape(2, 3, 3, 12), rtol=1e-5, atol=2e-5)
    assert found.layers == () and found.attention is None


def test_patch_embedding_is_a_strided_convolution():
    params, images = _params(in_channels=4), _images(channels=4)
    kernel, bias = (params["patch_embed"]["proj"][name] for name in ("kernel", "bias"))
    convolved = jax.lax.conv_general_dilated(images, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    convolved += bias
    for image, expected in zip(np.asarray(images), np.asarray(convolved), strict=True):
        np.testing.assert_allclose(oracle.patch_embed(micro.copies(params["patch_embed"]["proj"]), image, 2), expected, atol=1e-5)
    no_blocks = {name: value for name, value in params.items() if not name.startswith("blocks")}
    found = _apply(no_blocks, images, {"in_channels": 4, "depth": 0})
    np.testing.assert_allclose(found.patches_prenorm.reshape(2, 9, 12), convolved.reshape(2, 9, 12) + params["pos_embed"][:, 1:], atol=1e-5)


def test_another_size_resizes_the_position_embedding():
    """A view of 8 x 4 pixels: as if the resized embedding had been stored."""
    params, images = _params(), _images(1, 8, 4)
    stored = np.asarray(params["pos_embed"])
    patches = bicubic.interpolate(stored[0, 1:].reshape(3, 3, 12), (4, 2), (4.1 / 3, 2.1 / 3)).reshape(1, 8, 12)
    resized = {**params, "pos_embed": np.concatenate([stored[:, :1], patches], 1)}
    np.testing.assert_allclose(_apply(params, images).cls, _expected(resized, images)[0][:, 0], atol=2e-5)


def test_layers_and_attention_on_request():
    params, images = _params(), _images()
    found = _apply(params, images, layers=(1, 0), attention=True)
    first = {name: value for name, value in params.items() if name != "blocks_1"}
    np.testing.assert_allclose(found.layers[1], _expected(first, images)[1], rtol=1e-5, atol=2e-5)
    np.testing.assert_array_equal(found.layers[0][:, 1:].reshape(2, 3, 3, 12), found.patches_prenorm)
    assert found.attention.shape == (2, 3, 10, 10)
    np.testing.assert_allclose(jnp.sum(found.attention, -1), 1.0, rtol=1e-5)


def _noise(values: list) -> jax.Array:
    return jnp.asarray(values, jnp.float32)


def test_drop_path_keeps_everything_at_noise_below_one_and_drops_at_zero():
    """Rates 0 and .4 over two blocks: a kept branch is divided by .6, a dropped one is exactly absent, per example and branch."""
    params, images = _params(), _images()
    noise = _noise([[[0.0, 0.999], [0.999, 0.0]], [[0.0, 0.0], [0.39, 0.41]]])
    keep = np.array([[[1, 1], [1 / 0.6, 0]], [[1, 1], [0, 1 / 0.6]]])
    found = _apply(params, images, {"drop_path": 0.4}, drop_path_noise=noise)
    for e in range(2):
        np.testing.assert_allclose(found.cls[e], _expected(params, images[e : e + 1], keep=keep[e])[0][0, 0], atol=2e-5)


def test_drop_path_scales_are_float32_beside_bfloat16_branches():
    """1 / (1 - 0.4) is 1.6667; bfloat16 has only 1.6641 and 1.6719 near it."""
    branch = jnp.full((1, 2, 3), 3.0, jnp.bfloat16)  # exact
    scaled = vit_module._scaled(branch, vit_module._keep(jnp.ones((1, 2, 2)), 0.4)[:, 1], 0)
    assert scaled.dtype == jnp.float32
    np.testing.assert_allclose(scaled, 5.0, rtol=1e-6)


def test_drop_path_rates_rise_linearly_over_depth():
    params = {**_params(), **{f"blocks_{i}": _params()["blocks_0"] for i in range(5)}}
    images, model = _images(1), {"depth": 5, "drop_path": 0.4}
    layers = tuple(range(5))

    def branches_dropped(noise: float) -> list[bool]:
        """A block drops both of its branches: its tokens are those of the block before."""
        found = _apply(params, images, model, drop_path_noise=jnp.full((1, 5, 2), noise), layers=layers).layers
        return [bool(jnp.all(a == b)) for a, b in itertools.pairwise(found)]

    assert branches_dropped(0.05) == [True] * 4  # rates 0, .1, .2, .3, .4
    assert branches_dropped(0.15) == [False, True, True, True]
    assert branches_dropped(0.35) == [False, False, False, True]
    assert branches_dropped(0.45) == [False] * 4


def test_no_drop_path_without_noise_or_rate():
    params, images = _params(), _images()
    plain = _apply(params, images).cls
    np.testing.assert_array_equal(_apply(params, images, {"drop_path": 0.5}).cls, plain)
    np.testing.assert_array_equal(_apply(params, images, drop_path_noise=jnp.zeros((2, 2, 2))).cls, plain)


@functools.cache
def _gradient(scan_blocks: bool, remat: str) -> tuple[jax.Array, Any]:
    noise = jnp.asarray(np.random.default_rng(1).random((2, 2, 2)), jnp.float32)
    vit = ViT(**SMALL, drop_path=0.3, scan_blocks=scan_blocks, remat=remat)

    def loss(params: Any) -> jax.Array:
        features = vit.apply({"params": params}, _images(), drop_path_noise=noise)
        return jnp.sum(features.cls**2) + jnp.sum(features.patches_prenorm)

    return micro.jit(jax.value_and_grad(loss))(micro.stacked(_params()) if scan_blocks else _params())


@pytest.mark.parametrize(("scan_blocks", "remat"), [(True, "none"), (True, "dots"), (False, "full")])
def test_scan_and_remat_change_nothing(scan_blocks: bool, remat: str):
    value, gradient = _gradient(scan_blocks, remat)
    plain, expected = _gradient(False, "none")
    np.testing.assert_allclose(value, plain, rtol=1e-5)
    # The same sums in another order, over gradients of up to some hundreds.
    micro.assert_close(gradient, micro.stacked(expected) if scan_blocks else expected, rtol=1e-3, atol=1e-3)


def test_scanned_blocks_do_not_collect_layers():
    with pytest.raises(ValueError, match="scan_blocks=False"):
        _apply(micro.stacked(_params()), _images(), {"scan_blocks": True}, layers=(0,))


def test_wrong_channels_are_named():
    with pytest.raises(ValueError, match="images have 4 channels; this ViT was built with in_channels=3"):
        _apply(_params(), _images(channels=4))


def test_masked_patches_are_the_mask_token():
    params, images = _params(mask_token=True), _images()
    masks = np.zeros((2, 3, 3), bool)
    masks[0, 1, 2] = True
    changed = np.asarray(images).copy()
    changed[0, 2:4, 4:6] = 7.0  # the pixels of the hidden patch
    found = [_apply(params, x, {"mask_token": True}, masks=jnp.asarray(masks)).cls for x in (images, jnp.asarray(changed))]
    np.testing.assert_array_equal(*found)
    plain = _apply(params, images, {"mask_token": True})
    assert np.any(found[0][0] != plain.cls[0])
    np.testing.assert_array_equal(found[0][1], plain.cls[1])


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_what_is_computed_again_is_not_optimised_away(remat: str):
    """Matrix products in the compiled gradients: without scan the compiler could merge the second computation with the first."""
    params, images = _params(), _images()

    def products(remat: str) -> int:
        vit = ViT(**SMALL, remat=remat)
        gradients = micro.jit(jax.grad(lambda params: jnp.sum(vit.apply({"params": params}, images).cls ** 2)))
        return gradients.lower(params).compile().as_text().count(" dot(")

    assert products(remat) > products("none")


def test_low_precision_keeps_parameters_in_float32():
    params, images = _params(), _images()
    found = _apply(params, images, {"dtype": jnp.bfloat16})
    assert found.cls.dtype == jnp.float32  # the final LayerNorm's
    assert found.patches_prenorm.dtype == jnp.float32  # the sum that the blocks add to, which the relations read
    exact = _apply(params, images).cls
    assert 1e-4 < np.abs(found.cls - exact).max() < 0.2  # 8 bits of mantissa, values of up to 3
    made = jax.eval_shape(ViT(**SMALL, dtype=jnp.bfloat16).init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}


def _abstract(model: dict[str, Any], **changes: Any) -> Any:
    return jax.eval_shape(
        lambda: pretraining.init_state(micro.config({"model": {**model, "patch_size": 16}, **changes}), micro.LENGTH)
    ).params


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_parameter_counts_of_vit_s():
    """SPEC 1.1 and 1.2: 21.67 M, and C^2 + 4 C for each of SERE's modules."""
    model = {"variant": "vits", "width": 0, "depth": 0, "heads": 0}
    params = _abstract(model, views={"global_size": 224, "local_size": 96, "local_count": 3})
    assert _count(params["backbone"]) == 21_665_664
    modules = {name: _count(value) for name, value in params.items() if name not in ("backbone", "heads_dino")}
    assert modules == dict.fromkeys(["heads_spatial", "heads_channel", "heads_spatial_local", "heads_channel_local"], 148_992)
    assert VARIANTS["vits"] == (384, 12, 6) and VARIANTS["vitb"] == (768, 12, 12)


def test_initialisation():
    """N(0, .02) without a narrow truncation, zeros, ones, and PyTorch's uniform for the patch projection."""
    wide = {"width": 192, "depth": 1, "heads": 3, "patch_size": 4, "image_size": 48}
    params = micro.jit(ViT(**wide).init)(jax.random.key(1), _images(1, 48, 48))["params"]
    block = params["blocks_0"]
    normals = [params["cls_token"], params["pos_embed"]]
    normals += [block[part][name]["kernel"] for part, name in (("attn", "qkv"), ("attn", "proj"), ("mlp", "fc1"), ("mlp", "fc2"))]
    for x in normals:
        # The standard deviation of n draws is known to 1 / sqrt(2 n); five of those. (192 draws at least.)
        assert abs(np.std(x) / 0.02 - 1) < 5 / np.sqrt(2 * x.size)
    assert np.abs(block["mlp"]["fc1"]["kernel"]).max() > 3.5 * 0.02  # a cut at two deviations would show
    for part, name in (("attn", "qkv"), ("attn", "proj"), ("mlp", "fc1"), ("mlp", "fc2")):
        assert not np.any(block[part][name]["bias"])
    for norm in (block["norm1"], block["norm2"], params["norm"]):
        assert np.all(norm["scale"] == 1) and not np.any(norm["bias"])
    bound = 1 / np.sqrt(4 * 4 * 3)
    for name in ("kernel", "bias"):
        x = params["patch_embed"]["proj"][name]
        assert 0.97 * bound < np.abs(x).max() <= bound
        assert abs(np.std(x) / (bound / np.sqrt(3)) - 1) < 5 / np.sqrt(2 * x.size)
