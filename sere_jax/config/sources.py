"""Mistakes in the text of a data source, and in the paths that it names. Nothing is opened."""

from __future__ import annotations

import os
import re

from sere_jax.buckets import is_address
from sere_jax.config.names import nearest
from sere_jax.data.sources.example import SourceError
from sere_jax.data.sources.folder import nearest_directory
from sere_jax.data.sources.mixture import split_mixture
from sere_jax.data.sources.open import FORMS, KINDS, bucket_mistake
from sere_jax.data.sources.tfds import divide, is_directory
from sere_jax.writing import place


def source_mistakes(key: str, spec: str) -> list[str]:
    """The mistakes in the text of a data source, and in the paths that it names."""
    kind, colon, rest = spec.partition(":")
    if is_address(rest) or is_address(spec):  # nothing is asked of the bucket before the source is opened
        return [f"{key}: found {spec!r}, {mistake}"] if (mistake := bucket_mistake(spec)) else []
    if kind == "folder" and colon:
        return [] if _holds_a_file(rest) else [f"{key}: found {spec!r}, expected folder:DIR, {_directory(rest)}"]
    if kind == "bundled":
        regions = ("train", "gallery", "query")
        if not colon or rest in regions:
            return []
        return [f"{key}: found {spec!r}, expected bundled[:train|gallery|query]{nearest(rest, regions)}"]
    if kind == "list":
        return [] if os.path.isfile(place(rest)) else [f"{key}: found {spec!r}, expected list:FILE, a file that exists{_neighbour(rest)}"]
    if kind == "mix" and colon:
        return _mixture(key, spec)
    if kind == "classes" and ":" in rest:
        file, _, inner = rest.partition(":")
        lines = [] if os.path.isfile(place(file)) else [f"{key}: found {spec!r}, expected classes:LIST:SOURCE, LIST a file that exists"]
        if inner.startswith("mix:"):
            return [*lines, f"{key}: found {spec!r}, expected classes:LIST:SOURCE, SOURCE no mixture; mix sources of classes instead"]
        return lines + source_mistakes(key, inner)
    if kind == "masks" and ":" in rest:
        maps, _, inner = rest.partition(":")
        lines = [] if os.path.isdir(place(maps)) else [f"{key}: found {spec!r}, expected masks:DIR:SOURCE, DIR {_directory(maps)}"]
        return lines + source_mistakes(key, inner)
    if kind == "tfds" and colon:
        return _prepared_set(key, spec, rest)
    if spec and os.path.isdir(place(spec)):
        return [f"{key}: found {spec!r}, expected {FORMS}; nearest: folder:{spec}"]
    return [f"{key}: found {spec!r}, expected {FORMS}{nearest(kind, KINDS)}"]


def _prepared_set(key: str, spec: str, rest: str) -> list[str]:
    """Check the form of a set's name, or that a directory holds a prepared set. Its splits are checked when it is opened."""
    name, _, split = divide(rest)
    if name and split and is_directory(name):
        path = str(place(name))
        if os.path.isfile(os.path.join(path, "dataset_info.json")):
            return []
        near = "" if os.path.isdir(path) else nearest_directory(path)
        line = f"{key}: found {spec!r}, expected tfds:DIR:SPLIT, DIR a prepared set with a dataset_info.json"
        return [line + (f"; nearest: {near}" if near else "")]
    if split and re.fullmatch(r"[\w.]+(/[\w.\-]+)?(:\d+\.\d+\.\d+)?", name):
        return []
    return [f"{key}: found {spec!r}, expected tfds:NAME[/CONFIG]:SPLIT or tfds:DIR:SPLIT, as in tfds:imagenet2012:train"]


def _mixture(key: str, spec: str) -> list[str]:
    try:
        parts, _ = split_mixture(spec)
    except SourceError as error:
        return [f"{key}: {error}"]
    nested = [f"{key}: found {part!r} in a mixture, expected another source" for part in parts if part.startswith("mix:")]
    return nested or [line for part in parts for line in source_mistakes(key, part)]


def _neighbour(path: str) -> str:
    """`; nearest: FILE` of the same directory."""
    directory, name = os.path.split(path)
    names = os.listdir(place(directory)) if os.path.isdir(place(directory)) else []
    neighbour = nearest(name, names).removeprefix("; nearest: ")
    return f"; nearest: {os.path.join(directory, neighbour)}" if neighbour else ""


def _holds_a_file(directory: str) -> bool:
    return bool(directory) and any(files for _, _, files in os.walk(place(directory)))


def _directory(directory: str) -> str:
    if not directory:
        return "with a directory"
    if os.path.isdir(place(directory)):
        return "a directory with images; it is empty"
    near = nearest_directory(directory)
    return "a directory that exists" + (f"; nearest: folder:{near}" if near else "")
