"""PyTorch's own files. The only module that knows torch, which is imported when such a file is opened and not before."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sere_jax.interop.tables import Tensors
from sere_jax.writing import replacing

ENDINGS = (".pth", ".pth.tar", ".pt", ".bin", ".ckpt")

LEFT = "left"  # the metadata key for what was not read
ARGUMENTS = "arguments"  # and that for the arguments of the program that wrote the file
_ABOUT = "sere_jax"
_WRAPPERS = ("state_dict", "model")  # dictionaries that hold one network; names inside them get no prefix
_NOT_WEIGHTS = ("optimizer", "scaler", "fp16_scaler", "lr_scheduler", "amp")


class TorchFileError(ValueError):
    """A file that PyTorch wrote cannot be read, or PyTorch is not installed."""


def read_torch(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the tensors of a file by their path of names, `teacher.backbone.norm.weight`, and its metadata.

    Metadata are what `write_torch` was given; under `left` the names of what is not among the tensors; and under `arguments` the plain
    values among the arguments of the program that wrote the file.

    Names of nested dictionaries are joined by dots, except `state_dict` and `model`. Optimizers and numbers are not read.
    Only data is read, never code (`weights_only`); `argparse.Namespace`, in which DINO and iBOT store their arguments, is allowed.
    Raises TorchFileError on anything else, with the reason.
    """
    try:
        import torch
    except ImportError as error:
        raise TorchFileError("PyTorch is needed to read it: pip install torch, or convert it to .safetensors elsewhere") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle of code, a truncated zip file, an HTML page: torch raises many types on those
        raise TorchFileError(" ".join(str(error).split())[:400] or type(error).__name__) from error
    about = content.pop(_ABOUT, {}) if isinstance(content, dict) else {}
    arguments = _arguments(content) if isinstance(content, Mapping) else {}
    tensors: dict[str, np.ndarray] = {}
    left: list[str] = []

    def walk(value: Any, name: str) -> None:
        if isinstance(value, Mapping) and name not in _NOT_WEIGHTS:
            for key, inner in value.items():
                walk(inner, name if not name and key in _WRAPPERS else f"{name}.{key}".lstrip("."))
        elif isinstance(value, torch.Tensor):
            plain = value.detach().contiguous()
            half = plain.dtype == torch.bfloat16
            tensors[name] = plain.view(torch.uint16).numpy().view(ml_dtypes.bfloat16) if half else plain.numpy()
        else:
            left.append(name)

    walk(content, "")
    return tensors, {**about, LEFT: left, **({ARGUMENTS: arguments} if arguments else {})}


def _arguments(content: Mapping[Any, Any]) -> dict[str, Any]:
    """The plain values of a file's `args`, and its `arch`."""
    stored = content.get("args", {})
    named = dict(stored) if isinstance(stored, Mapping) else vars(stored) if hasattr(stored, "__dict__") else {}
    named |= {"arch": content["arch"]} if isinstance(content.get("arch"), str) else {}
    return {str(key): value for key, value in named.items() if isinstance(value, str | int | float | bool)}


def write_torch(path: Path, networks: Mapping[str, Tensors], about: Mapping[str, Any]) -> None:
    """Write {network: tensors by name} as `torch.save` does, with `about` (texts, numbers, dictionaries of them) beside them.

    Raises TorchFileError without PyTorch.
    """
    try:
        import torch
    except ImportError as error:
        raise TorchFileError("PyTorch is needed to write it: pip install torch, or write a .safetensors") from error

    def tensor(array: np.ndarray) -> torch.Tensor:
        half = array.dtype == ml_dtypes.bfloat16
        copy = np.array(array.view(np.uint16) if half else array, order="C")
        return torch.from_numpy(copy).view(torch.bfloat16) if half else torch.from_numpy(copy)

    content = {network: {name: tensor(array) for name, array in tensors.items()} for network, tensors in networks.items()}
    # An open file, not its name: torch would store the name, and the same weights would make different bytes.
    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save({**content, _ABOUT: dict(about)}, file)
