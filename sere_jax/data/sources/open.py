"""From a text to a source of encoded images: the bundled ones, folders, lists, prepared sets, some classes of these, mixtures."""

from __future__ import annotations

import difflib
import logging
import os

from sere_jax.buckets import address_mistake, is_address
from sere_jax.data.sources.bucket import BucketFolder, BucketList
from sere_jax.data.sources.bundled import BundledSource
from sere_jax.data.sources.example import Example, Source, SourceError
from sere_jax.data.sources.folder import FolderSource
from sere_jax.data.sources.masked import MaskedSource
from sere_jax.data.sources.mixture import FORM as MIXTURE_FORM
from sere_jax.data.sources.mixture import Mixture, split_mixture
from sere_jax.data.sources.path_list import PathListSource
from sere_jax.data.sources.prepared import copied
from sere_jax.data.sources.subset import ClassSubset
from sere_jax.data.sources.tfds import TfdsSource, divide
from sere_jax.writing import place

_log = logging.getLogger(__name__)

__all__ = ["Example", "Source", "SourceError", "open_source"]

KINDS = ("bundled", "folder", "list", "tfds", "classes", "masks", "mix")
FORMS = (
    "bundled[:train|gallery|query], folder:DIR, list:FILE, tfds:NAME[/CONFIG]:SPLIT, "
    f"classes:LIST:SOURCE, masks:DIR:SOURCE or {MIXTURE_FORM}"
)

_IN_A_BUCKET = "expected folder:gs://BUCKET/NAME, list:gs://BUCKET/NAME/FILE or tfds:gs://BUCKET/NAME:SPLIT; LIST and DIR lie on a disk"


def open_source(spec: str) -> Source:
    """The source that `spec` names; nothing is decoded yet.

    `bundled[:train|gallery|query]`: the photographs that ship with scikit-image and scikit-learn (`train` by default).
    `folder:DIR`: image files at any depth, labelled by the first level of sub-folders where there are any.
    `list:FILE`: the image files that a text file names, one path a line, with a class after a tab if there are labels.
    `tfds:NAME[/CONFIG]:SPLIT`: a prepared TensorFlow Datasets set in a random-access format, read without TensorFlow.
    `classes:LIST:SOURCE`: of one of these the images of the classes in the text file LIST, one name a line.
    `masks:DIR:SOURCE`: a folder or list with label maps of the same names in another directory.
    `mix:WEIGHT*SOURCE|WEIGHT*SOURCE...`: several of these, each with its share of every epoch; without weights by their sizes.

    The directories of the first three may lie in a bucket, as in `folder:gs://BUCKET/NAME`; `cache` says what is kept here.

    Its notes are logged as warnings. Raises SourceError when the text has another form, or when the data are missing, empty or ambiguous.
    """
    if "\0" in spec:
        raise SourceError(f"source {spec!r} has a NUL byte, which no path has")
    source = _open(spec)
    for note in source.notes():
        _log.warning("%s: %s", ascii(spec)[1:-1], note)
    return source


def _open(spec: str) -> Source:
    kind, _, rest = spec.partition(":")
    if (is_address(spec) or is_address(rest)) and (mistake := bucket_mistake(spec)):
        raise SourceError(f"source: found {spec!r}, {mistake}")
    if kind == "bundled":
        return BundledSource(spec, rest or "train")
    if kind == "folder":
        return BucketFolder(spec, rest) if is_address(rest) else FolderSource(spec, rest)
    if kind == "list":
        return BucketList(spec, rest) if is_address(rest) else PathListSource(spec, rest)
    if kind == "tfds":
        return TfdsSource(spec, _on_this_machine(spec, rest) if is_address(rest) else rest)
    if kind == "mix":
        texts, weights = split_mixture(spec)
        return Mixture(spec, [_open(text) for text in texts], weights)
    if kind == "classes":
        file, colon, inner = rest.partition(":")
        if not (file and colon) or inner.startswith("mix:"):
            raise SourceError(f"{spec!r}: expected classes:LIST:SOURCE, e.g. 'classes:S300.txt:tfds:imagenet2012:train', SOURCE no mixture")
        return ClassSubset(spec, file, _open(inner))
    if kind == "masks":
        directory, colon, inner = rest.partition(":")
        if not (directory and colon):
            raise SourceError(f"{spec!r}: expected masks:DIR:folder:IMAGES or masks:DIR:list:FILE")
        return MaskedSource(spec, directory, _open(inner))
    if spec and os.path.isdir(place(spec)):
        raise SourceError(f"source {spec!r} is a directory: write 'folder:{spec}' (expected {FORMS})")
    near = difflib.get_close_matches(kind, KINDS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise SourceError(f"source {spec!r} is of no known kind; expected {FORMS}{hint}")


def bucket_mistake(spec: str) -> str:
    """Why the address in a source's text cannot be read, as the end of a message; "" where it can. Nothing is asked of the bucket."""
    kind, _, rest = spec.partition(":")
    address = divide(rest)[0] if kind == "tfds" else rest
    return address_mistake(address) if kind in ("folder", "list", "tfds") and is_address(address) else _IN_A_BUCKET


def _on_this_machine(spec: str, rest: str) -> str:
    address, _, split = divide(rest)
    return f"{copied(spec, address, split)}:{split}"


def folders(spec: str) -> list[str]:
    """The directories of a source of which every image is read, on a disk or in a bucket; nothing is opened.

    >>> folders("mix:2*folder:/a|1*classes:LIST:folder:/b/c")
    ['/a', '/b/c']
    """
    kind, _, rest = spec.partition(":")
    if kind == "folder" and rest:
        return [rest if is_address(rest) else str(place(rest))]
    if kind in ("classes", "masks"):
        return folders(rest.partition(":")[2])
    if kind != "mix":
        return []
    try:
        parts, _ = split_mixture(spec)
    except SourceError:  # `open_source` says so
        return []
    return [directory for part in parts if not part.startswith("mix:") for directory in folders(part)]
