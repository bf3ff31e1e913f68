"""The networks that protocols evaluate: a function, its parameters, and the preparation of its images."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from sere_jax.data.images.reading import BY_TYPE, ImageReading, ValueRange
from sere_jax.train.digest import digests
from sere_jax.types import Features, PyTree


class EvalError(ValueError):
    """An evaluation that cannot be run. The message names the setting, what was found and what was expected."""


class Network(NamedTuple):
    """One network to evaluate. Protocols know functions and parameters, never checkpoints or configs.

    `apply(params, images, **flags) -> Features` takes float images [b, H, W, c], normalised with `mean` and `std` (of
    pixels in [0, 1]). The figures also call it with `attention=True`, and classifications of several blocks with
    `layers=(10, 11), layers_norm="post"`. `init(seed)` makes random parameters of the same
    shapes, so that every protocol can compare with the untrained architecture.
    """

    name: str
    apply: Callable[..., Features]
    params: PyTree
    size: int  # side of the square images that it was trained on, pixels
    resize: int  # the shorter side before the centre crop of `size`, pixels
    patch: int  # side of a patch, pixels
    mean: tuple[float, ...]
    std: tuple[float, ...]
    init: Callable[[int], PyTree] | None = None
    about: dict[str, Any] = {}  # where it comes from (checkpoint, network, step): copied into the reports
    value_range: ValueRange = BY_TYPE  # of arrays and TIFF bands: values that become the levels 0 and 255
    whole_patches: bool = True  # a ViT sees whole patches only; False for a ResNet, which sees images of any size to their edge
    module: Any = None  # the Linen module behind `apply`, for evaluations that train; None: it cannot be trained
    # Makes {kernel, bias} of the first layer of the checkpoint's projection head, {} where it holds none.
    projection: Callable[[], dict[str, Any]] | None = None
    # Makes {scale, bias} of the LayerNorm of pooled patches that fine-tuning has trained, {} where the checkpoint holds none.
    fc_norm: Callable[[], dict[str, Any]] | None = None
    depth: int = 0  # blocks of a ViT, whose tokens `apply` returns as `layers`; 0 for a ResNet, which has none

    @property
    def channels(self) -> int:
        """Number of channels of its images."""
        return len(self.mean)

    @property
    def origin(self) -> str:
        """Network and step for reports and figures: 'teacher, step 5'; '' if unknown."""
        network, step, seed = (self.about.get(key) for key in ("network", "step", "seed"))
        words = [network, None if step is None else f"step {step}", None if seed is None else f"seed {seed}"]
        return ", ".join(word for word in words if word)

    @property
    def description(self) -> str:
        """The name with the checkpoint, network and step, as far as known: 'run: runs/run, teacher, step 5'."""
        return f"{self.name}: " + ", ".join(word for word in (self.about.get("checkpoint"), self.origin) if word)


def digest(network: Network) -> str:
    """What tells a network from others: its parameters, the settings of its module, and the preparation of its images.

    The same file read with other `--heads` is another network.
    """
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(network.params)}
    fields = dataclasses.fields(network.module) if dataclasses.is_dataclass(network.module) else ()
    module = {field.name: repr(getattr(network.module, field.name)) for field in fields if field.name not in ("parent", "name")}
    images = (network.size, network.resize, network.patch, network.mean, network.std, network.value_range)
    facts = [sorted(zip(leaves, digests(leaves), strict=True)), module, images]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def size_mistake(size: int, patch: int) -> str:
    """The mistake in a side of `size` pixels for a ViT with patches of `patch` pixels, or ''.

    >>> size_mistake(30, 8)
    'found 30, expected a multiple of the patch of 8 pixels, or the right and lower edges would be cut off; nearest: 24 or 32'
    """
    if size > 0 and size % patch == 0:
        return ""
    below, above = size // patch * patch, (size // patch + 1) * patch
    near = f"{below} or {above}" if below > 0 else str(above)
    return (
        f"found {size}, expected a multiple of the patch of {patch} pixels, or the right and lower edges would be cut off; nearest: {near}"
    )


def prepared(network: Network, size: int, resize: int) -> tuple[int, int]:
    """Side of the centre crop and the shorter side before it, in pixels.

    0 takes the network's own values. If `size` is given and `resize` is 0, the shorter side is size x 256 / 224. Raises
    EvalError where the crop is larger than the resized image, or is no multiple of a ViT's patch.
    """
    crop, shorter = (size, size * 256 // 224) if size else (network.size, network.resize)
    if network.whole_patches and (mistake := size_mistake(crop, network.patch)):
        raise EvalError(f"size of {network.name}: {mistake}")
    if 0 < resize < crop:
        raise EvalError(f"resize: found {resize}, expected 0 or at least the {crop} pixels of {network.name}'s crop; nearest: {crop}")
    return crop, resize or shorter


def shared_reading(networks: Sequence[Network], reading: ImageReading) -> ImageReading:
    """`reading` with the channels and the value range of the networks.

    Raises EvalError if these differ, because all networks of a table or figure get the same images.
    """
    inputs = {(network.channels, network.value_range): network.name for network in networks}
    if len(inputs) > 1:
        listed = ", ".join(f"{name}: {channels} channels, value_range {values}" for (channels, values), name in inputs.items())
        raise EvalError(f"networks: found different inputs ({listed}), expected the same for all of a table or figure")
    for channels, value_range in inputs:
        reading = dataclasses.replace(reading, channels=channels, value_range=value_range)
    return reading


def untrained(network: Network, seed: int) -> Network:
    """The same network at random initialisation. Raises EvalError if the network has no `init`."""
    if network.init is None:
        raise EvalError(f"{network.name}: cannot make its random initialisation; expected a network with an init function")
    about = {"checkpoint": "random initialisation", "seed": seed}
    return network._replace(name="random init", params=network.init(seed), about=about, projection=None, fc_norm=None)
