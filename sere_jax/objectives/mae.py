"""MAE: pixels of hidden patches from the visible ones. Source: He et al. 2022, Masked autoencoders are scalable vision learners."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sere_jax.losses.pixels import normalise_patches, patch_pixels, pixel_loss
from sere_jax.objectives.base import stateless
from sere_jax.types import Metrics, Objective, Outputs, Request, Views

PREDICTED = Request("mae", "global", "visible", "post", "student")
PIXELS = Request("", "global", "pixels", "post", "student")
REQUESTS = (PREDICTED, PIXELS)


def mae(*, patch_size: int, normalise_pixels: bool) -> Objective:
    """Mean squared error on the hidden patches of the student's crops. The method has no teacher and no state.

    With `normalise_pixels` each patch's targets have mean 0 and variance 1: predicting the mean costs 1.
    """

    def loss(outputs: Outputs, views: Views, step: jax.Array) -> tuple[jax.Array, Metrics]:
        if views.masks is None:
            raise ValueError("MAE needs masks; the views have none")
        target = patch_pixels(outputs[PIXELS].astype(jnp.float32), patch_size)
        target = normalise_patches(target) if normalise_pixels else target
        hidden = jnp.asarray(views.masks).reshape(target.shape[:-1])
        value = pixel_loss(outputs[PREDICTED], target, hidden)
        return value, {"mae": value}

    return stateless(REQUESTS, loss, {"mae": 1.0})
