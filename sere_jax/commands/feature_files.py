"""Rows of features to Parquet or npz files of bounded size, with a description beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FORMATS = ("parquet", "npz")


class Shards:
    """Writes `features-00000.parquet`, ... of at most `rows_per_file` rows, each whole or not there; use it in a `with`.

    Parquet has a list of numbers a cell, in row-major order of the shape that `features.json` gives a column; `h` and `w` of an
    image are its `grid_height` and `grid_width`. npz has arrays [rows, *shape]: all images must have one shape. A file is kept in
    memory until it is written: patches of 1024 images at 224 pixels in ViT-S are 300 MB.
    """

    def __init__(self, directory: Path, rows_per_file: int, layout: str, dtype: str, about: Mapping[str, Any]) -> None:
        self.files: list[Path] = []
        self.rows = 0
        self._directory, self._rows_per_file, self._layout, self._dtype = directory, rows_per_file, layout, np.dtype(dtype)
        self._about = dict(about)
        self._pending: list[dict[str, Any]] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        directory.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is not None:  # what is half done is not described as done
            return
        self._flush()
        columns = {name: list(shape) for name, shape in self._shapes.items()}
        described = {**self._about, "rows": self.rows, "dtype": self._dtype.name, "columns": columns, "files": [f.name for f in self.files]}
        (self._directory / "features.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")

    def add(self, name: str, label: int, grid: Sequence[int], features: Mapping[str, np.ndarray]) -> None:
        """One image: its name, its label (-1: none), its patch grid (h, w), and arrays by column."""
        if not self._shapes:
            self._shapes = {key: value.shape for key, value in features.items()}
        elif self._shapes != {key: value.shape for key, value in features.items()}:
            # Native sizes: the extents that differ from image to image are told by the grid.
            self._shapes = {key: _common(self._shapes[key], value.shape) for key, value in features.items()}
        row = {key: np.asarray(value, self._dtype) for key, value in features.items()}
        self._pending.append({"name": name, "label": label, "grid_height": grid[0], "grid_width": grid[1], **row})
        self.rows += 1
        if len(self._pending) >= self._rows_per_file:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        path = self._directory / f"features-{len(self.files):05d}.{self._layout}"
        partial = path.with_name(f".{path.name}.partial")
        columns = {key: [row[key] for row in self._pending] for key in self._pending[0]}
        if self._layout == "npz":
            entries: dict[str, Any] = {key: np.asarray(values) for key, values in columns.items()}
            with open(partial, "wb") as file:
                np.savez(file, **entries)
        else:
            self._write_parquet(partial, columns)
        os.replace(partial, path)
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
                arrays[key] = pa.array(values, pa.string() if key == "name" else pa.int32())
        pq.write_table(pa.table(arrays), path)


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """Extents that both have, -1 where they differ."""
    return tuple(a if a == b else -1 for a, b in zip(one, other, strict=True))
