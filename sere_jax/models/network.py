"""Backbone plus named heads: computes exactly what the requests of a method ask for, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Float

from sere_jax.ops.geometry import Padding, Sampling, SamplingImpl, overlap_points, sample
from sere_jax.ops.patches import gather_patches, visible_patches
from sere_jax.types import Features, Outputs, Request, Views, VisibleTokens


class Alignment(NamedTuple):
    """How features are sampled for the requests with tokens = "aligned": the settings of `ops.geometry`."""

    points: int = 13  # a side
    sampling: Sampling = "endpoints"
    padding: Padding = "zeros"
    impl: SamplingImpl = "map_coordinates"


class Network(nn.Module):
    """One side (student or teacher) of a method.

    Views are flattened batch-major, (b v): a view-major order would move a sharded batch between devices.
    """

    backbone: nn.Module
    heads: dict[str, nn.Module]
    alignment: Alignment = Alignment()
    views_apart: bool = False  # BatchNorm treats each view as a batch, because the backbone runs once for each view

    def __call__(
        self,
        global_views: Float[jax.Array, "b v H W c"],
        local_views: Float[jax.Array, "b l S T c"],
        requests: Sequence[Request],
        *,
        views: Views | None = None,
        drop_path_noise: tuple[Float[jax.Array, "b v k 2"], Float[jax.Array, "b l k 2"]] | None = None,
    ) -> Outputs:
        """Answer requests, which are all of one side.

        `views` holds the masks and the geometry that some requests need. `drop_path_noise` holds the noise of global and of local crops.
        """
        noise_global, noise_local = drop_path_noise or (None, None)
        features: dict[tuple[str, bool], Features] = {}
        outputs: Outputs = {}
        for request in requests:
            crops, noise = (global_views, noise_global) if request.views == "global" else (local_views, noise_local)
            if request.tokens == "pixels":
                outputs[request] = crops
                continue
            if request.tokens == "visible":
                outputs[request] = self._head(request)(self._visible(crops, noise, views), student=True)
                continue
            kind = (request.views, _sees_masks(request, views))
            if kind not in features:
                features[kind] = self._features(crops, jnp.asarray(views.masks) if views is not None and kind[1] else None, noise)
            outputs[request] = self._answer(request, features[kind], views)
        return outputs

    def _features(self, crops: jax.Array, masks: jax.Array | None, noise: jax.Array | None) -> Features:
        v = crops.shape[1]
        if self.views_apart and v > 1:
            one = [slice(i, i + 1) for i in range(v)]
            apart = [
                self._features(crops[:, i], None if masks is None else masks[:, i], None if noise is None else noise[:, i]) for i in one
            ]
            return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *apart)
        flat = [None if x is None else rearrange(x, "b v ... -> (b v) ...") for x in (crops, masks, noise)]
        features = self.backbone(flat[0], masks=flat[1], drop_path_noise=flat[2])
        return jax.tree.map(lambda x: rearrange(x, "(b v) ... -> b v ...", v=v), features)

    def _answer(self, request: Request, features: Features, views: Views | None) -> object:
        tokens = self._tokens(request, features, views)
        return self._head(request)(tokens, student=request.side == "student") if request.head else tokens

    def _head(self, request: Request) -> nn.Module:
        if request.head not in self.heads:
            raise ValueError(f"a request names the head {request.head!r}; this network has {sorted(self.heads)}")
        return self.heads[request.head]

    def _visible(self, crops: jax.Array, noise: jax.Array | None, views: Views | None) -> VisibleTokens:
        if views is None or views.masks is None or views.mask_indices is None:
            raise ValueError("a request asks for visible tokens; the views have no masks")
        v = crops.shape[1]
        visible, restore = visible_patches(views.masks, views.mask_indices.shape[-1])
        flat = [None if x is None else rearrange(x, "b v ... -> (b v) ...") for x in (crops, visible, noise)]
        features = self.backbone(flat[0], visible=flat[1], drop_path_noise=flat[2])
        cls, patches = (rearrange(x, "(b v) ... -> b v ...", v=v) for x in (features.cls, features.patches[:, 0]))
        return VisibleTokens(cls, patches, restore)

    def _tokens(self, request: Request, features: Features, views: Views | None) -> jax.Array:
        if request.tokens == "cls":
            return jnp.asarray(features.cls)
        patches = jnp.asarray(features.patches if request.norm == "post" else features.patches_prenorm)
        if request.tokens == "patches":
            return patches
        if request.tokens == "masked":
            if views is None or views.mask_indices is None:
                raise ValueError("a request asks for masked tokens; the views have no mask_indices")
            return gather_patches(patches, views.mask_indices)
        if views is None:
            raise ValueError("a request asks for aligned tokens; there are no views to tell the crops' boxes")
        return self._aligned(patches, views)

    def _aligned(self, patches: Float[jax.Array, "b 2 h w d"], views: Views) -> Float[jax.Array, "b 2 p d"]:
        boxes, flips = jnp.asarray(views.boxes), jnp.asarray(views.flips)
        size, sampling, padding, impl = self.alignment
        points = overlap_points(boxes[:, 0], flips[:, 0], boxes[:, 1], flips[:, 1], size=size, sampling=sampling)
        return jnp.stack([sample(patches[:, i], points[i], padding=padding, impl=impl) for i in (0, 1)], axis=1)


def _sees_masks(request: Request, views: Views | None) -> bool:
    masked = views is not None and views.masks is not None
    return masked and request.side == "student" and request.views == "global" and not request.whole
