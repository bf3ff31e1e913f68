"""Backbone plus named heads: computes exactly what the requests of a method ask for, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
from jaxtyping import Bool, Float

from sere_jax.types import Features, Outputs, Request


class Network(nn.Module):
    """One side (student or teacher) of a method.

    Views are flattened batch-major, (b v): view-major concatenation of a sharded batch would move it between the devices.
    """

    backbone: nn.Module
    heads: dict[str, nn.Module]

    def __call__(
        self,
        global_views: Float[jax.Array, "b v H W c"],
        local_views: Float[jax.Array, "b l S T c"],
        requests: Sequence[Request],
        *,
        masks: Bool[jax.Array, "b v h w"] | None = None,
        drop_path_noise: tuple[Float[jax.Array, "b v k 2"], Float[jax.Array, "b l k 2"]] | None = None,
    ) -> Outputs:
        """Answer the requests (all of one side). `drop_path_noise` is for the global and the local crops."""
        noise_global, noise_local = drop_path_noise or (None, None)
        kinds = {request.views for request in requests}
        features = {}
        if "global" in kinds:
            features["global"] = self._features(global_views, masks, noise_global)
        if "local" in kinds:
            features["local"] = self._features(local_views, None, noise_local)
        return {request: self._answer(request, features[request.views]) for request in requests}

    def _features(self, views: jax.Array, masks: jax.Array | None, noise: jax.Array | None) -> Features:
        b, v = views.shape[:2]
        flat = [None if x is None else x.reshape(b * v, *x.shape[2:]) for x in (views, masks, noise)]
        features = self.backbone(flat[0], masks=flat[1], drop_path_noise=flat[2])
        return jax.tree.map(lambda x: x.reshape(b, v, *x.shape[1:]), features)

    def _answer(self, request: Request, features: Features) -> object:
        if request.tokens == "cls":
            tokens = features.cls
        else:
            tokens = features.patches if request.norm == "post" else features.patches_prenorm
        if not request.head:
            return tokens
        if request.head not in self.heads:
            raise ValueError(f"a request names the head {request.head!r}; this network has {sorted(self.heads)}")
        return self.heads[request.head](tokens, student=request.side == "student")
