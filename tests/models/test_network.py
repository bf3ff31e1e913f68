"""The network answers requests: which tokens of which views through which head, and nothing else."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.models.network import Network
from sere_jax.types import Features, Request


class _Backbone(nn.Module):
    """Features that tell their image: the mean pixel, with .25 added before the final norm."""

    @nn.compact
    def __call__(self, images, *, masks=None, drop_path_noise=None):
        mean = jnp.mean(images, (1, 2))
        if masks is not None:
            mean = mean + 100 * jnp.mean(masks, (1, 2))[:, None]
        if drop_path_noise is not None:
            mean = mean + 1000 * drop_path_noise[:, 0, :1]
        patches = jnp.broadcast_to(mean[:, None, None], (len(images), 2, 2, mean.shape[-1]))
        return Features(mean, patches + 10, patches + 10.25)


class _Head(nn.Module):
    sign: int

    @nn.compact
    def __call__(self, tokens, *, student):
        self.param("seen", nn.initializers.ones, ())
        return self.sign * tokens + (0.5 if student else 0.0)


NETWORK = Network(_Backbone(), {"plus": _Head(1), "minus": _Head(-1)})
GLOBAL = jnp.broadcast_to(jnp.arange(6.0).reshape(3, 2)[:, :, None, None, None], (3, 2, 4, 4, 1))
LOCAL = jnp.broadcast_to(-jnp.arange(6.0).reshape(3, 2)[:, :, None, None, None], (3, 2, 2, 2, 1))


def _answers(*requests: Request, **call):
    variables = NETWORK.init(jax.random.key(0), GLOBAL, LOCAL, requests)
    return NETWORK.apply(variables, GLOBAL, LOCAL, requests, **call), variables


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request("", "global", "cls", "post", "student"), [[0, 1], [2, 3], [4, 5]]),
        (Request("", "local", "cls", "post", "teacher"), [[0, -1], [-2, -3], [-4, -5]]),
        (Request("plus", "global", "cls", "post", "student"), [[0.5, 1.5], [2.5, 3.5], [4.5, 5.5]]),
        (Request("minus", "global", "cls", "post", "teacher"), [[0, -1], [-2, -3], [-4, -5]]),
    ],
)
def test_views_keep_their_places(request_: Request, expected: list):
    found, _ = _answers(request_)
    np.testing.assert_array_equal(found[request_][..., 0], expected)


def test_patches_before_and_after_the_final_norm():
    post, pre = (Request("plus", "global", "patches", norm, "teacher") for norm in ("post", "pre"))
    found, _ = _answers(post, pre)
    assert found[post].shape == (3, 2, 2, 2, 1)
    assert float(found[post][0, 1, 0, 0, 0]) == 11 and float(found[pre][0, 1, 0, 0, 0]) == 11.25


def test_nothing_that_was_not_asked_for():
    asked = Request("plus", "global", "cls", "post", "student")
    found, variables = _answers(asked)
    assert list(found) == [asked] and set(variables["params"]) == {"heads_plus"}
    # A global request alone never looks at local crops: here there are none to look at.
    NETWORK.apply(variables, GLOBAL, jnp.zeros((3, 0, 2, 2, 1)), (asked,))


def test_masks_hide_global_patches_only_and_each_kind_has_its_own_noise():
    requests = tuple(Request("", views, "cls", "post", "student") for views in ("global", "local"))
    masks = jnp.zeros((3, 2, 2, 2), bool).at[2, 1].set(True)
    noise = jnp.zeros((3, 2, 1, 2)).at[0, 0].set(1.0), jnp.zeros((3, 2, 1, 2)).at[1, 1].set(1.0)
    found, _ = _answers(*requests, masks=masks, drop_path_noise=noise)
    np.testing.assert_array_equal(found[requests[0]][..., 0], [[1000, 1], [2, 3], [4, 105]])
    np.testing.assert_array_equal(found[requests[1]][..., 0], [[0, -1], [-2, 997], [-4, -5]])


def test_an_unknown_head_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"head 'plsu'; this network has \['minus', 'plus'\]"):
        _answers(Request("plsu", "global", "cls", "post", "student"))
