"""Whether the pickles in a file of PyTorch's are worth reading: how much they hold, counted before anything is made of them."""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path

from sere_jax.interop.integrity import UnsoundFile

_MOST_OPERATIONS = 300_000  # a tensor takes some 25
_LARGEST_TUPLE = 100_000  # elements, those of the tuples in it included
_LEGACY = 5  # pickles that open a file of PyTorch before 1.6; arrays follow
_GET, _PUT = ("GET", "BINGET", "LONG_BINGET"), ("PUT", "BINPUT", "LONG_BINPUT")
_MUTABLE = ("SETITEM", "SETITEMS", "APPEND", "APPENDS", "BUILD", "EMPTY_DICT", "DICT", "EMPTY_LIST", "LIST")


def check_pickles(path: Path) -> None:
    """Raise UnsoundFile where a pickle has too many operations, or a tuple that holds tuples twice, again and again.

    A tuple of two references to a tuple of two references, and so on, takes 4 bytes a level. Its hash takes twice as long with each level,
    and nothing can interrupt it. What is no pickle passes: PyTorch says what is wrong.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    _check(io.BytesIO(archive.read(name)))
        return
    with path.open("rb") as file:
        for _ in range(_LEGACY):
            if not _check(file):
                return


def _check(file: io.BytesIO | io.BufferedReader) -> bool:
    """Whether a whole pickle was read."""
    try:
        for count, size in enumerate(_sizes(file)):
            if count > _MOST_OPERATIONS:
                raise UnsoundFile(f"found a pickle of more than {_MOST_OPERATIONS:,} operations, expected those of one or two networks")
            if size > _LARGEST_TUPLE:
                raise UnsoundFile(
                    f"found a tuple that holds tuples with more than {_LARGEST_TUPLE:,} elements in all, expected plain names"
                )
    except (ValueError, IndexError, KeyError) as error:
        if isinstance(error, UnsoundFile):
            raise
        return False
    return True


def _sizes(file: io.BytesIO | io.BufferedReader) -> Iterator[int]:
    """After each operation of a pickle, the elements of what it put on the stack. A list or dictionary, which has no hash, counts as 1."""
    stack: list[int | None] = []
    memo: dict[int, int] = {}
    for operation, argument, _ in pickletools.genops(file):
        name, before = operation.name, operation.stack_before
        if name == "MARK":
            stack.append(None)
        elif name in _GET:
            stack.append(memo[int(argument or 0)])
        elif name in _PUT or name == "MEMOIZE":
            memo[len(memo) if name == "MEMOIZE" else int(argument or 0)] = stack[-1] or 1
        else:
            total = 0
            if pickletools.stackslice in before:
                while (size := stack.pop()) is not None:
                    total += size
                before = before[: before.index(pickletools.markobject)]
            total += sum(stack.pop() or 1 for _ in before)
            if operation.stack_after:
                stack.append(1 if name in _MUTABLE else 1 + total)
        yield (stack[-1] if stack else None) or 0
