"""PyTorch's own files. The only module that knows torch, which is imported when such a file is opened and not before."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sere_jax.buckets import Location
from sere_jax.interop.integrity import DIGESTS, check_digests, check_unpacked, digests
from sere_jax.interop.pickles import check_pickles
from sere_jax.interop.tables import Tensors
from sere_jax.writing import replacing

ENDINGS = (".pth", ".pth.tar", ".pt", ".bin", ".ckpt")

LEFT = "left"  # the metadata key for what was not read
ARGUMENTS = "arguments"  # and that for the arguments of the program that wrote the file
_ABOUT = "sere_jax"
_WRAPPERS = ("state_dict", "model")  # dictionaries that hold one network; names inside them get no prefix
_MOST_NAMES, _DEEPEST = 100_000, 50  # names of tensors and others in a file; dictionaries inside one another
_LONGEST = 1000  # letters of a name
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
    check_pickles(path)
    try:
        import torch
    except ImportError as error:
        raise TorchFileError("PyTorch is needed to read it: pip install torch, or convert it to .safetensors elsewhere") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types, and its messages advise to run the code in the file
        raise TorchFileError(_reason(error)) from error
    about = content.pop(_ABOUT, {}) if isinstance(content, dict) else {}
    if not isinstance(about, dict):
        raise TorchFileError(f"{_ABOUT}: found {type(about).__name__}, expected a dictionary")
    written = about.pop(DIGESTS, {})
    arguments = _arguments(content) if isinstance(content, Mapping) else {}
    tensors: dict[str, np.ndarray] = {}
    left: list[str] = []
    claimed = 0
    for name, value in _leaves(content, "", ()):
        if len(tensors) + len(left) >= _MOST_NAMES:
            raise TorchFileError(f"found more than {_MOST_NAMES:,} names, expected those of one or two networks")
        if isinstance(value, torch.Tensor):
            claimed += _claimed_bytes(value, name)
            check_unpacked(claimed, path.stat().st_size)  # before it is copied
            tensors[name] = _array(value, name)
        else:
            left.append(name)
    if written:
        check_digests(tensors, {}, written)
    return tensors, {**about, LEFT: left, **({ARGUMENTS: arguments} if arguments else {})}


def _leaves(value: Any, name: str, parents: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    """The leaves of nested dictionaries with their paths of names."""
    if not isinstance(value, Mapping) or name in _NOT_WEIGHTS:
        yield name, value
        return
    if id(value) in parents or len(parents) >= _DEEPEST:
        raise TorchFileError(f"{name}: found a dictionary that holds itself, or {_DEEPEST} inside one another; expected nested names")
    for key, inner in value.items():
        if not isinstance(key, str | int) or len(name) > _LONGEST:
            raise TorchFileError(f"{name[:50]}: found a name of {type(key).__name__} or of more than {_LONGEST:,} letters, expected a text")
        path = name if not name and key in _WRAPPERS else f"{name}.{key}".lstrip(".")
        yield from _leaves(inner, path, (*parents, id(value)))


def _claimed_bytes(tensor: Any, name: str) -> int:
    """The bytes of a tensor's elements. Raises TorchFileError where it has no numbers of its own for each of them."""
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise TorchFileError(f"{name}: found a tensor that is sparse, quantised or without values, expected a plain one")
    claimed, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if claimed > stored:
        raise TorchFileError(f"{name}: found {stored:,} bytes, expected {claimed:,} for its shape {list(tensor.shape)}")
    return int(claimed)


def _array(tensor: Any, name: str) -> np.ndarray:
    """A tensor as NumPy's. Raises TorchFileError for a type that NumPy does not have."""
    import torch

    plain = tensor.detach().contiguous()
    if plain.dtype == torch.bfloat16:
        return plain.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    try:
        return plain.numpy()
    except (TypeError, RuntimeError) as error:  # types of 8 bits and less
        raise TorchFileError(f"{name}: found {plain.dtype}, which NumPy does not have; expected float32, float16 or bfloat16") from error


def _reason(error: Exception) -> str:
    """Why torch did not read a file, in our words."""
    if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return (
            f"it holds objects of Python code ({code[1]}), which are never run; expected tensors, numbers and texts. Where it was made, "
            "torch.save(model.state_dict(), FILE) writes tensors alone"
        )
    return f"it is damaged, or PyTorch did not write it ({type(error).__name__})"


def _arguments(content: Mapping[Any, Any]) -> dict[str, Any]:
    """The plain values of a file's `args`, and its `arch`."""
    stored = content.get("args", {})
    named = dict(stored) if isinstance(stored, Mapping) else vars(stored) if hasattr(stored, "__dict__") else {}
    named |= {"arch": content["arch"]} if isinstance(content.get("arch"), str) else {}
    return {str(key): value for key, value in named.items() if isinstance(value, str | int | float | bool)}


def write_torch(path: Location, networks: Mapping[str, Tensors], about: Mapping[str, Any]) -> None:
    """Write {network: tensors by name} as `torch.save` does, with `about` (texts, numbers, dictionaries of them) beside them.

    Raises TorchFileError without PyTorch, and where the file cannot be written (a full disk).
    """
    try:
        import torch
    except ImportError as error:
        raise TorchFileError("PyTorch is needed to write it: pip install torch, or write a .safetensors") from error

    def tensor(array: np.ndarray) -> torch.Tensor:
        half = array.dtype == ml_dtypes.bfloat16
        copy = np.array(array.view(np.uint16) if half else array, order="C")
        return torch.from_numpy(copy).view(torch.bfloat16) if half else torch.from_numpy(copy)

    written = digests({f"{network}.{name}": array for network, tensors in networks.items() for name, array in tensors.items()}, {})
    content = {network: {name: tensor(array) for name, array in tensors.items()} for network, tensors in networks.items()}
    # An open file, not its name: torch would store the name, and the same weights would make different bytes.
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            torch.save({**content, _ABOUT: {**about, DIGESTS: written}}, file)
    except OSError as error:
        raise TorchFileError(str(error)) from error
    except RuntimeError as error:  # what PyTorch makes of a full disk, with a stack
        raise TorchFileError(f"PyTorch could not write all of it, as on a full disk ({str(error).splitlines()[0]})") from error
