"""A tiny ResNet against a naive NumPy one, in training and at evaluation; the start and the size of ResNet-50 (SPEC 1.8)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.models.norm import join_statistics, split_statistics
from sere_jax.models.resnet import ResNet
from tests import micro
from tests.oracles import resnet as oracle
from tests.oracles.vit import running

STAGES = (2, 1)
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(3, 18, 14, 3)), jnp.float32)


@functools.cache
def _variables() -> dict[str, Any]:
    """Random parameters and statistics: variances positive, scales around 1."""
    shapes = jax.eval_shape(ResNet(STAGES, 2).init, jax.random.key(0), IMAGES)
    rng = np.random.default_rng(1)

    def drawn(path: Any, x: jax.ShapeDtypeStruct) -> np.ndarray:
        values = rng.normal(size=x.shape)
        positive = {"var": np.exp(values), "scale": 1 + 0.2 * values}
        return positive.get(path[-1].key, 0.4 * values).astype(np.float32)

    return jax.tree_util.tree_map_with_path(drawn, shapes)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("evaluation", [False, True])
def test_maps_are_those_of_the_definition(evaluation: bool, remat: bool):
    variables, module = _variables(), ResNet(STAGES, 2, running_statistics=evaluation, remat=remat)
    found, updated = micro.jit(lambda v, x: module.apply(v, x, mutable=["batch_stats"]))(variables, IMAGES)
    expected = oracle.resnet(variables["params"], variables["batch_stats"] if evaluation else None, np.asarray(IMAGES), STAGES)
    assert module.width == expected.shape[-1] == 16 and module.patch_size == 8 and found.patches.shape == (3, 3, 2, 16)
    np.testing.assert_allclose(found.patches, expected, rtol=1e-4, atol=2e-4)  # float32 through seven convolutions
    np.testing.assert_array_equal(found.patches_prenorm, found.patches)
    np.testing.assert_allclose(found.cls, expected.mean((1, 2)), rtol=1e-4, atol=2e-4)
    if evaluation:
        micro.assert_equal(updated["batch_stats"], variables["batch_stats"])


# (stride, dilation) of the blocks that differ, as torchvision's `replace_stride_with_dilation` makes them.
DILATED = {
    1: {"layer3_0": (1, 1), "layer3_1": (1, 2)},
    2: {"layer2_0": (1, 1), "layer2_1": (1, 2), "layer3_0": (1, 2), "layer3_1": (1, 4)},
}


@pytest.mark.parametrize("count", [1, 2])
def test_dilated_stages_keep_the_size_of_their_map(count: int):
    stages = (1, 2, 2)
    shapes = jax.eval_shape(ResNet(stages, 2).init, jax.random.key(0), IMAGES)
    variables, module = micro.random_like(shapes, 5), ResNet(stages, 2, dilated_stages=count)
    output = micro.jit(lambda x: module.apply(variables, x, mutable=["batch_stats"])[0])
    expected = oracle.resnet(variables["params"], None, np.asarray(IMAGES), stages, DILATED[count])
    assert expected.shape == (3, *((3, 2), (5, 4))[count - 1], 32)
    np.testing.assert_allclose(output(IMAGES).patches, expected, rtol=1e-4, atol=2e-4)  # float32 through sixteen convolutions


def test_training_moves_the_running_statistics():
    variables, module = _variables(), ResNet(STAGES, 2)
    _, updated = micro.jit(lambda v, x: module.apply(v, x, mutable=["batch_stats"]))(variables, IMAGES)
    first = oracle.convolution(variables["params"]["conv1"]["kernel"], np.asarray(IMAGES), 2, 3)
    expected = running(variables["batch_stats"]["bn1"]["mean"], first.mean((0, 1, 2)))
    np.testing.assert_allclose(updated["batch_stats"]["bn1"]["mean"], expected, atol=1e-5)
    moved = jax.tree.map(lambda a, b: bool(np.all(a != b)), updated["batch_stats"], variables["batch_stats"])
    assert all(jax.tree.leaves(moved))


def test_what_a_resnet_does_not_have():
    module, variables = ResNet(STAGES, 2), _variables()
    shapes = jax.eval_shape(lambda: module.apply(variables, IMAGES, attention=True, mutable=["batch_stats"])[0])
    assert shapes.attention is None and shapes.layers == ()
    with pytest.raises(ValueError, match="layers: found \\(0,\\), expected none"):
        module.apply(variables, IMAGES, layers=(0,))
    with pytest.raises(ValueError, match="images have 1 channels; this ResNet was built with in_channels=3"):
        module.apply(variables, IMAGES[..., :1])


@functools.cache
def _full() -> Any:
    return jax.eval_shape(ResNet().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))


def test_resnet_50_has_the_published_size():
    """25,557,032 less the classifier's 2048 x 1000 + 1000; 53 BatchNorms; a map of 7 x 7 x 2048 for 224 pixels."""
    full = _full()
    assert sum(leaf.size for leaf in jax.tree.leaves(full["params"])) == 23_508_032
    assert len(jax.tree.leaves(full["batch_stats"])) == 2 * 53
    features = jax.eval_shape(lambda v, x: ResNet(running_statistics=True).apply(v, x), full, jnp.zeros((2, 224, 224, 3)))
    assert (features.cls.shape, features.patches.shape) == ((2, 2048), (2, 7, 7, 2048))
    assert (ResNet().width, ResNet().patch_size, ResNet().depth) == (2048, 32, 16)
    sides = {0: (56, 28, 14, 7), 1: (56, 28, 14, 14), 2: (56, 28, 28, 28)}
    for dilated, expected in sides.items():
        module = ResNet(running_statistics=True, dilated_stages=dilated)
        maps = jax.eval_shape(lambda v, x, module=module: module.apply(v, x, maps=True).maps, full, jnp.zeros((1, 224, 224, 3)))
        assert [x.shape[1:] for x in maps] == [(side, side, 256 * 2**i) for i, side in enumerate(expected)]


@pytest.mark.parametrize("zero", [False, True])
def test_it_starts_as_torchvisions(zero: bool):
    """N(0, 2 / (k k outputs)) for convolutions, 1 and 0 for BatchNorm; with zero_init_residual each block's last scale is 0."""
    params = micro.jit(ResNet(STAGES, 8, zero_init_residual=zero).init)(jax.random.key(0), IMAGES)["params"]
    for kernel in (params["conv1"]["kernel"], params["layer1_0"]["conv2"]["kernel"], params["layer2_0"]["downsample_conv"]["kernel"]):
        side, _, _, outputs = kernel.shape
        np.testing.assert_allclose(np.std(kernel), (2 / (side * side * outputs)) ** 0.5, rtol=0.1)
    block = params["layer1_1"]
    assert np.all(block["bn3"]["scale"] == (0 if zero else 1)) and np.all(block["bn2"]["scale"] == 1) and not np.any(block["bn1"]["bias"])


def test_statistics_among_the_parameters_and_back():
    variables = _variables()
    joined = join_statistics(variables["params"], variables["batch_stats"])
    assert set(joined["bn1"]) == {"scale", "bias", "mean", "var"}
    again = split_statistics(joined)
    micro.assert_equal(again, {"params": variables["params"], "batch_stats": variables["batch_stats"]})
    assert split_statistics({"norm": {"scale": 1}}) == {"params": {"norm": {"scale": 1}}, "batch_stats": {}}
