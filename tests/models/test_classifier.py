"""The classifier's forward pass against PyTorch's statement of MAE's and iBOT's heads, and how its head starts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sere_jax.models.classifier import Classifier
from sere_jax.models.resnet import ResNet
from tests import micro
from tests.evals.micro_network import VIT, init


@pytest.mark.parametrize(("pool", "hidden"), [("patches", 0), ("cls", 0), ("cls", 20)])
def test_logits_are_the_stated_ones(pool: str, hidden: int):
    module = Classifier(VIT, classes=5, pool=pool, hidden=hidden)
    images = jax.random.normal(jax.random.key(0), (3, 16, 16, 3))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), images))["params"]
    params = {**micro.random_like(shapes, 1), "backbone": init(3)}
    features = VIT.apply({"params": params["backbone"]}, images)
    tensors = jax.tree.map(lambda x: torch.tensor(np.asarray(x)), {**params, "backbone": {}})
    x = torch.tensor(np.asarray(features.cls))
    if pool == "patches":
        mean = torch.tensor(np.asarray(features.patches_prenorm)).mean((1, 2))
        x = F.layer_norm(mean, (48,), tensors["fc_norm"]["scale"], tensors["fc_norm"]["bias"], eps=1e-6)
    if hidden:
        x = F.gelu(F.linear(x, tensors["projection"]["kernel"].T, tensors["projection"]["bias"]))
    expected = F.linear(x, tensors["head"]["kernel"].T, tensors["head"]["bias"])
    found = module.apply({"params": params}, images)
    # float32: products of 48 numbers
    np.testing.assert_allclose(np.asarray(found), expected.numpy(), rtol=1e-4, atol=1e-4)
    assert set(params) == {"backbone", "head"} | ({"fc_norm"} if pool == "patches" else set()) | ({"projection"} if hidden else set())


def test_the_head_starts_small_and_a_resnet_has_no_norm_of_its_own():
    module = Classifier(ResNet(stages=(1, 1), stem=4), classes=300, pool="patches", fc_norm=False)
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((2, 8, 8, 3))))["params"]
    assert set(params) == {"backbone", "head"} and params["head"]["kernel"].shape == (32, 300)
    head = Classifier(VIT, classes=300).init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    assert float(head["head"]["kernel"].std()) == pytest.approx(2e-5, rel=0.03) and not head["head"]["bias"].any()
    assert (head["fc_norm"]["scale"] == 1).all()
