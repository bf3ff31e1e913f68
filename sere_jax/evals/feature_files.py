"""Write rows of features to Parquet or npz files of bounded size, with a description beside them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sere_jax.buckets import Location, local_copy
from sere_jax.writing import replacing

FORMATS = ("parquet", "npz")
DESCRIPTION = "features.json"


def missing_package(layout: str) -> str:
    """The package that writing a layout needs and that is not installed, "" where nothing is missing."""
    return "pyarrow" if layout == "parquet" and importlib.util.find_spec("pyarrow") is None else ""


def escaped(name: str) -> str:
    r"""Spell a file name as text that any file can hold: bytes that are not UTF-8 become `\xNN`, a backslash becomes `\\`.

    Python reads such bytes as lone surrogates, which Parquet's texts cannot hold. No two names get the same spelling, and
    `unescaped` gives the name back.

    Example:
      >>> print(escaped("caf\udce9.png"), escaped("café.png"))
      caf\xe9.png café.png
    """
    return re.sub(r"[\\\ud800-\udfff]", lambda match: "\\\\" if match[0] == "\\" else _byte(match[0]), name)


def unescaped(text: str) -> str:
    r"""The file name of a row, as `open` takes it.

    Example:
      >>> unescaped(r"caf\xe9.png") == "caf\udce9.png"
      True
    """
    codes = {"x": lambda digits: chr(0xDC00 + int(digits, 16)), "u": lambda digits: chr(int(digits, 16))}
    return re.sub(
        r"\\(?:(\\)|x([0-9a-f]{2})|u([0-9a-f]{4}))",
        lambda match: "\\" if match[1] else codes["x"](match[2]) if match[2] else codes["u"](match[3]),
        text,
    )


def _byte(surrogate: str) -> str:
    code = ord(surrogate)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


class Shards:
    """Write `features-00000.parquet`, ... of at most `rows_per_file` rows, each whole or absent; use it in a `with`.

    A Parquet cell is a list of numbers, in row-major order of the shape that `features.json` gives for the column; `h` and `w` of an
    image are its `grid_height` and `grid_width`. npz has arrays [rows, *shape], so all images must have one shape. Names have to
    be `escaped`. A file is kept in memory until it is written: patches of 1024 images at 224 pixels in ViT-S are 300 MB.
    """

    def __init__(self, directory: Location, rows_per_file: int, layout: str, dtype: str, about: Mapping[str, Any]) -> None:
        self.files: list[Location] = []
        self.rows = 0
        self._directory, self._rows_per_file, self._layout, self._dtype = directory, rows_per_file, layout, np.dtype(dtype)
        self._about = dict(about)
        self._pending: list[dict[str, Any]] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        directory.mkdir(parents=True, exist_ok=True)
        with replacing(directory / ".writable"):  # before the work: a directory that cannot be written raises OSError
            pass
        (directory / ".writable").unlink()

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is not None:
            self._remove()
            return
        try:
            self._finish()
        except BaseException:
            self._remove()
            raise

    def _remove(self) -> None:
        """Remove the files of features without a description: nothing reads them, and they would refuse the same command."""
        for file in self.files:
            with contextlib.suppress(OSError):
                file.unlink()

    def _finish(self) -> None:
        self._flush()
        description = {
            **self._about,
            "rows": self.rows,
            "dtype": self._dtype.name,
            "columns": {name: list(shape) for name, shape in self._shapes.items()},
            "names": "paths below the source; bytes that are not UTF-8 are spelled \\xNN, a backslash \\\\",
            "files": [file.name for file in self.files],
        }
        with replacing(self._directory / DESCRIPTION) as temporary:
            temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")

    def add(self, facts: Mapping[str, str | int], features: Mapping[str, np.ndarray]) -> None:
        """Add one image: texts and whole numbers by column (name, label, grid_height, ...), and arrays by column."""
        shapes = {key: value.shape for key, value in features.items()}
        if not self._shapes:
            self._shapes = shapes
        elif self._shapes != shapes:
            # Native sizes: extents that differ from image to image are given by the grid.
            self._shapes = {key: _common(self._shapes[key], shape) for key, shape in shapes.items()}
        row = {key: np.asarray(value, self._dtype) for key, value in features.items()}
        self._pending.append({**facts, **row})
        self.rows += 1
        if len(self._pending) >= self._rows_per_file:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        path = self._directory / f"features-{len(self.files):05d}.{self._layout}"
        columns = {key: [row[key] for row in self._pending] for key in self._pending[0]}
        with replacing(path) as temporary:
            if self._layout == "npz":
                entries: dict[str, Any] = {key: np.asarray(values) for key, values in columns.items()}
                np.savez(temporary, **entries)
            else:
                self._write_parquet(temporary, columns)
        self.files.append(path)
        self._pending = []

    def _write_parquet(self, path: Path, columns: Mapping[str, list[Any]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        arrays = {}
        for key, values in columns.items():
            if key in self._shapes:
                offsets = np.cumsum([0, *(value.size for value in values)])
                flat = pa.array(np.concatenate([value.ravel() for value in values]))
                arrays[key] = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), flat)
            else:
                arrays[key] = pa.array(values, pa.string() if isinstance(values[0], str) else pa.int32())
        pq.write_table(pa.table(arrays), path)


def read(directory: Location) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description, and all rows of Parquet files by column: arrays [rows, *shape], labels and other numbers [rows].

    Raises OSError or ValueError for files that are missing or damaged, and for columns whose rows have different shapes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    description = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))
    try:
        tables = []
        for name in description["files"]:
            with local_copy(directory / name) as file:
                tables.append(pq.read_table(file))
        whole = pa.concat_tables(tables).combine_chunks()
    except pa.ArrowException as error:
        raise ValueError(f"{directory}: damaged ({error})") from error
    columns = {}
    for name in whole.column_names:
        values, shape = whole.column(name), description["columns"].get(name)
        if shape is None:
            columns[name] = values.to_numpy()
        else:
            flat = np.concatenate([chunk.flatten().to_numpy() for chunk in values.chunks] or [np.zeros(0)])
            columns[name] = flat.reshape(description["rows"], *shape)
    return description, columns


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """The extents that both shapes have, -1 where they differ."""
    return tuple(a if a == b else -1 for a, b in zip(one, other, strict=True))
