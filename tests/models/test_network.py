"""The network answers requests: which tokens of which views through which head, and nothing else."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.models.network import Alignment, Network
from sere_jax.types import Features, Request, Views


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


def _answers(*requests: Request, network: Network = NETWORK, **call):
    variables = network.init(jax.random.key(0), GLOBAL, LOCAL, requests, views=call.get("views"))
    return network.apply(variables, GLOBAL, LOCAL, requests, **call), variables


def _views(**changes) -> Views:
    """Nothing but geometry and masks: pixels are given apart."""
    none = np.zeros((3, 0, 1, 1, 3), np.uint8)
    views = Views(none, none, np.zeros((3, 4, 4), np.float32), np.zeros((3, 4), bool), np.arange(3, dtype=np.int32), np.zeros(3, bool))
    return views._replace(**changes)


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
    views = _views(masks=np.zeros((3, 2, 2, 2), bool))
    views.masks[2, 1] = True
    noise = jnp.zeros((3, 2, 1, 2)).at[0, 0].set(1.0), jnp.zeros((3, 2, 1, 2)).at[1, 1].set(1.0)
    found, _ = _answers(*requests, views=views, drop_path_noise=noise)
    np.testing.assert_array_equal(found[requests[0]][..., 0], [[1000, 1], [2, 3], [4, 105]])
    np.testing.assert_array_equal(found[requests[1]][..., 0], [[0, -1], [-2, 997], [-4, -5]])


def test_an_unknown_head_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"head 'plsu'; this network has \['minus', 'plus'\]"):
        _answers(Request("plsu", "global", "cls", "post", "student"))


class _Positions(nn.Module):
    """Patches that tell where they are: (row, column), with 1000 added where a mask hides them; .5 more before the norm."""

    @nn.compact
    def __call__(self, images, *, masks=None, drop_path_noise=None):
        rows, columns = jnp.meshgrid(jnp.arange(4.0), jnp.arange(4.0), indexing="ij")
        patches = jnp.broadcast_to(jnp.stack([rows, columns], -1), (len(images), 4, 4, 2))
        if masks is not None:
            patches = patches + 1000.0 * masks[..., None]
        return Features(patches[:, 0, 0], patches, patches + 0.5)


def test_masked_tokens_are_those_at_the_indices_and_only_the_student_sees_masks():
    masks = np.zeros((3, 2, 4, 4), bool)
    masks[1, 0, 2, 3] = masks[1, 0, 3, 1] = True
    indices = np.full((3, 2, 3), -1, np.int32)
    indices[1, 0, :2] = 2 * 4 + 3, 3 * 4 + 1
    student, teacher = (Request("", "global", "masked", "post", side) for side in ("student", "teacher"))
    whole = student._replace(norm="pre", whole=True)
    network = Network(_Positions(), {})
    views = _views(masks=masks, mask_indices=indices)
    (found, _), (plain, _) = _answers(student, whole, network=network, views=views), _answers(teacher, network=network, views=views)
    assert found[student].shape == (3, 2, 3, 2)
    np.testing.assert_array_equal(found[student][1, 0], [[1002, 1003], [1003, 1001], [0, 0]])  # the padding reads the first patch
    np.testing.assert_array_equal(plain[teacher][1, 0], [[2, 3], [3, 1], [0, 0]])
    np.testing.assert_array_equal(found[whole][1, 0], [[2.5, 3.5], [3.5, 1.5], [0.5, 0.5]])
    with pytest.raises(ValueError, match="no mask_indices"):
        _answers(student, network=network, views=_views())


def test_aligned_tokens_are_the_same_source_points_in_both_crops():
    """Two crops of 40 pixels, the second shifted by 10 (one patch) and mirrored: a patch's centre is a multiple of 10, plus 5."""
    boxes = np.tile(np.array([[0, 0, 40, 40], [10, 0, 40, 40]], np.float32), (3, 1, 1))
    flips = np.tile([False, True], (3, 1))
    network = Network(_Positions(), {}, Alignment(points=3, sampling="centers"))
    request = Request("", "global", "aligned", "post", "teacher")
    found = _answers(request, network=network, views=_views(boxes=boxes, flips=flips))[0][request]
    # The overlap is 30 wide and 40 high, so its 3 x 3 cells are 10 wide and 40 / 3 high.
    columns = np.array([15, 25, 35])
    rows = (np.arange(3) + 0.5) * 40 / 3
    np.testing.assert_allclose(found[0, 0].reshape(3, 3, 2)[..., 1], np.tile(columns / 10 - 0.5, (3, 1)), atol=1e-5)
    np.testing.assert_allclose(found[0, 1].reshape(3, 3, 2)[..., 1], np.tile((50 - columns) / 10 - 0.5, (3, 1)), atol=1e-5)
    for view in (0, 1):
        np.testing.assert_allclose(found[0, view].reshape(3, 3, 2)[..., 0], np.tile(rows[:, None] / 10 - 0.5, (1, 3)), atol=1e-5)
    with pytest.raises(ValueError, match="no views"):
        _answers(request, network=network)
