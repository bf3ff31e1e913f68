"""The feature pyramid against torch's operators with the same weights, and a ResNet's maps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sere_jax.models.dense.fpn import FeaturePyramid
from sere_jax.models.resnet import ResNet
from tests.models.dense.test_upernet import maps, torch_map, variables


def test_a_pyramid_is_torchs():
    module, inputs = FeaturePyramid(6), maps((8, 12), (4, 6), (2, 3))
    weights = variables(module, inputs)

    def conv(x: torch.Tensor, name: str) -> torch.Tensor:
        kernel = torch.tensor(np.asarray(weights["params"][name]["kernel"]).transpose(3, 2, 0, 1))
        return F.conv2d(x, kernel, torch.tensor(np.asarray(weights["params"][name]["bias"])), padding=kernel.shape[-1] // 2)

    levels = [conv(torch_map(x), f"lateral_{i}") for i, x in enumerate(inputs)]
    for i in (1, 0):
        levels[i] = levels[i] + F.interpolate(levels[i + 1], scale_factor=2, mode="nearest")
    expected = [conv(x, f"output_{i}") for i, x in enumerate(levels)]
    expected.append(F.max_pool2d(expected[-1], 1, stride=2))
    pyramid = module.apply({"params": weights["params"]}, inputs)
    assert [x.shape[1:3] for x in pyramid] == [(8, 12), (4, 6), (2, 3), (1, 2)]
    for ours, theirs in zip(pyramid, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), atol=1e-5, rtol=1e-4)


def test_maps_that_do_not_halve_are_refused():
    module, inputs = FeaturePyramid(2), maps((9, 12), (4, 6))
    with pytest.raises(ValueError, match="each to be half"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), inputs))


def test_a_resnet_gives_the_maps_of_its_stages_on_request():
    module, images = ResNet(stages=(1, 1, 1, 1), stem=4), jnp.zeros((1, 64, 96, 3))
    shapes = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), images, maps=True)[0])
    assert [x.shape for x in shapes.maps] == [(1, 16, 24, 16), (1, 8, 12, 32), (1, 4, 6, 64), (1, 2, 3, 128)]
    assert jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), images)[0]).maps == ()
