"""The files below a directory: which are images, in an order that no file system decides."""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from sere_jax.data.images import heif
from sere_jax.data.sources.example import SourceError, nfc

_JPEG = ".jpg .jpeg .jpe .jfif .jif .jfi .pjpeg .pjp"
EXTENSIONS = frozenset(f"{_JPEG} .png .apng .webp .bmp .ppm .pgm .pbm .pnm .tif .tiff .gif".split())
ARRAYS = frozenset({".npy"})
# Directories of systems and programs for copies, previews and deleted files, in lower case. Hidden ones are skipped anyway.
_NOT_DATA = frozenset({"@eadir", "__macosx", "lost+found", "#recycle", "@recycle", "$recycle.bin", "system volume information"})
_FIGURES = ("crops", "attention", "relations", "pca", "channels")  # how the files of WORKDIR/figures begin
# The part of a path that ends with a directory which this package may have written.
_SUSPECT = re.compile(r"(?:^|/)(?=config\.json$)|(?:^|/)(?:figures|eval/[^/]*-predictions)(?=/)")


class Tree(NamedTuple):
    """Relative paths of the files below a directory, in the order of their parts: the images, and everything else."""

    images: list[str]
    others: list[str]


def walk(root: str) -> Tree:
    """All files below `root`, without hidden ones and those in directories that hold no data.

    HEIC and AVIF are images where Pillow can read them. Links are followed. A directory that several paths reach is listed once: by its
    own path, else by the first link to it. Arrays (`.npy`) are images where there is no other image.

    Raises:
      OSError: a directory cannot be listed.
      SourceError: a run or an evaluation has written below `root`, and its figures would count as images.
    """
    visited: set[tuple[int, int]] = set()
    links: collections.deque[str] = collections.deque()
    paths = list(_files(root, "", visited, links))
    linked = bool(links)
    while links:
        prefix = links.popleft()
        if _identity(os.path.join(root, prefix)) not in visited:
            paths += _files(root, prefix, visited, links)
    if linked:
        paths.sort(key=_by_parts)
    return _tree(paths)


def arranged(paths: Iterable[str]) -> Tree:
    """What `walk` makes of files with these paths, in any order, relative and with `/`. There are no links.

    Raises SourceError where a run has written there, as `walk`; the message begins with the directory.
    """
    shown = [path for path in paths if _is_shown(*path.split("/"))]
    shown.sort(key=(lambda path: path.replace("/", "\0")) if all(map(str.isascii, shown)) else _by_parts)
    _refuse_outputs(shown)
    return _tree(shown)


def _is_shown(*parts: str) -> bool:
    return not any(part.startswith(".") for part in parts) and not any(map(_is_waste, parts[:-1]))


def _refuse_outputs(paths: list[str]) -> None:
    """Refuse what `_children` refuses, by the paths of all files. Few directories have a name that needs a look at their entries."""
    suspects = {path[: match.end()].rstrip("/") for path in paths for match in _SUSPECT.finditer(path)}
    for directory in sorted(suspects):
        names = set(_entries(directory, paths))
        if output := _output_of(directory, names, lambda place: _protocols(_entries(place, paths))):
            raise SourceError(f"{directory} is {output}, no images; expected a workdir outside of the images. Move it away.")


def _entries(directory: str, paths: list[str]) -> Iterator[str]:
    """The names of the files and directories in a directory."""
    start = f"{directory}/" if directory else ""
    return (path[len(start) :].partition("/")[0] for path in paths if path.startswith(start))


def _by_parts(path: str) -> list[tuple[str, str]]:
    return [(nfc(part), part) for part in path.split(os.sep)]


def _tree(paths: list[str]) -> Tree:
    """Divide sorted paths into images and others."""
    readable = EXTENSIONS | heif.extensions()
    if not any(extension(path) in readable for path in paths):
        readable = ARRAYS
    images = [path for path in paths if extension(path) in readable]
    return Tree(images, [] if len(images) == len(paths) else [path for path in paths if extension(path) not in readable])


def _files(root: str, start: str, visited: set[tuple[int, int]], links: collections.deque[str]) -> Iterator[str]:
    """The files below `start` without following links to directories, which go to `links`. A stack, as trees may be very deep."""
    stack = [iter([(start, True)])]
    while stack:
        for path, is_directory in stack[-1]:
            if is_directory:
                stack.append(iter(_children(root, path, visited, links)))
                break
            yield path
        else:
            stack.pop()


def _children(root: str, prefix: str, visited: set[tuple[int, int]], links: collections.deque[str]) -> list[tuple[str, bool]]:
    """The sorted entries of a directory that are shown, and which of them are directories to enter."""
    directory = os.path.join(root, prefix) if prefix else root
    visited.add(_identity(directory))
    with os.scandir(directory) as entries:
        listing = sorted(
            (nfc(entry.name), entry.name, _is_directory(entry), entry.is_symlink()) for entry in entries if entry.name[0] != "."
        )
    if output := _output_of(directory, {name for _, name, _, _ in listing}, _evaluated):
        raise SourceError(f"{directory!a} is {output}, no images; expected a workdir outside of the images. Move it away.")
    start = prefix + os.sep if prefix else ""
    children = []
    for _, name, is_directory, is_link in listing:
        if not is_directory:
            children.append((start + name, False))
        elif not _is_waste(name):
            if is_link:
                links.append(start + name)
            else:
                children.append((start + name, True))
    return children


def _output_of(directory: str, names: set[str], evaluated: Callable[[str], tuple[str, ...]]) -> str:
    """The part of this package that wrote a directory; '' for a directory of somebody's images.

    `evaluated` tells the protocols that have a report in a directory.
    """
    if "config.json" in names and names & {"checkpoints", "metrics.jsonl"}:
        return "the workdir of a run"
    if os.path.basename(directory) == "figures" and names:
        protocols = evaluated(os.path.join(os.path.dirname(directory), "eval"))
        figures = [name for name in names if name.endswith(".png") and name.startswith((*_FIGURES, *protocols))]
        # In a workdir other files may lie among them. Elsewhere a folder of this name may be anybody's.
        if len(figures) == len(names) or (figures and protocols):
            return "the figures of an evaluation"
    parent, name = os.path.split(directory)
    if name.endswith("-predictions") and os.path.basename(parent) == "eval" and name.startswith(tuple(f"{p}-" for p in evaluated(parent))):
        return "the predictions of an evaluation"
    return ""


def _evaluated(directory: str) -> tuple[str, ...]:
    """The names of the protocols that have a report in WORKDIR/eval."""
    try:
        return _protocols(os.listdir(directory))
    except OSError:  # there is none
        return ()


def _protocols(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name.removesuffix(".json") for name in names if name.endswith(".json"))


def _is_waste(name: str) -> bool:
    return name.lower() in _NOT_DATA


def _identity(directory: str) -> tuple[int, int]:
    status = os.stat(directory)
    return status.st_dev, status.st_ino


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: listed as a file that cannot be read
        return False


def extension(path: str) -> str:
    """The extension in lower case with its dot, "" where there is none."""
    dot = path.rfind(".")  # as os.path.splitext, in half of its time; a million calls are seconds
    return path[dot:].lower() if dot > path.rfind(os.sep) + 1 else ""


def count_extensions(paths: list[str]) -> str:
    """`12 .heic, 3 without an extension`: the most frequent first, at most eight kinds.

    >>> count_extensions(["a.heic", "b.HEIC", "c"])
    '2 .heic, 1 without an extension'
    """
    counts = collections.Counter(extension(path) or "without an extension" for path in paths)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ordered[8:])
    shown = [f"{count:,} {ascii(name)[1:-1]}" for name, count in ordered[:8]]
    return ", ".join([*shown, f"{rest:,} others"] if rest else shown)
