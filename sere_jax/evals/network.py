"""What a protocol is given to judge: a backbone's function, its parameters and how its images are prepared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from sere_jax.data.images.reading import BY_TYPE, ValueRange
from sere_jax.types import Features, PyTree


class EvalError(ValueError):
    """A protocol cannot do what was asked; the message names the setting, what was found and what would do."""


class Network(NamedTuple):
    """One thing to evaluate. Protocols know functions and parameters, never checkpoints or configs.

    `apply(params, images, **flags) -> Features` takes float images [b, H, W, c] that were normalised with `mean` and
    `std` (of pixels in [0, 1]); the figures call it with `attention=True` as well. `init(seed)` makes parameters of
    the same shapes at random: every protocol can then show what the architecture alone is worth.
    """

    name: str
    apply: Callable[..., Features]
    params: PyTree
    size: int  # side of the square images it was trained on, pixels
    resize: int  # the shorter side before the centre crop of `size`, pixels
    patch: int  # side of a patch, pixels
    mean: tuple[float, ...]
    std: tuple[float, ...]
    init: Callable[[int], PyTree] | None = None
    about: dict[str, Any] = {}  # where it comes from (checkpoint, step): copied into the reports
    value_range: ValueRange = BY_TYPE  # of arrays and TIFF bands: values that become the levels 0 and 255


def prepared(network: Network, size: int, resize: int) -> tuple[int, int]:
    """Side of the centre crop and the shorter side before it, in pixels.

    0 takes the network's own; of `resize` beside a given `size`, size x 256 / 224. Raises EvalError where the crop does not fit.
    """
    crop, shorter = (size, size * 256 // 224) if size else (network.size, network.resize)
    if 0 < resize < crop:
        raise EvalError(f"resize: found {resize}, expected 0 or at least the {crop} pixels of {network.name}'s crop; nearest: {crop}")
    return crop, resize or shorter


def untrained(network: Network, seed: int) -> Network:
    """The same network before training.

    Raises EvalError where the network does not know how to make fresh parameters.
    """
    if network.init is None:
        raise EvalError(f"{network.name}: cannot make its random initialisation; expected a network with an init function")
    about = {"checkpoint": "random initialisation", "seed": seed}
    return network._replace(name="random init", params=network.init(seed), about=about)
