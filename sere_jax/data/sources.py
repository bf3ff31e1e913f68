"""From a text to a source of encoded images: `bundled[:SPLIT]`, `folder:DIR`, `tfds:NAME[/CONFIG]:SPLIT`, `classes:LIST:SOURCE`."""

from __future__ import annotations

import difflib
import os

from sere_jax.data.bundled import BundledSource
from sere_jax.data.example import Example, Source, SourceError
from sere_jax.data.folder import FolderSource
from sere_jax.data.subset import ClassSubset
from sere_jax.data.tfds_source import TfdsSource

__all__ = ["Example", "Source", "SourceError", "open_source"]

_FORMS = "bundled[:train|gallery|query], folder:DIR, tfds:NAME[/CONFIG]:SPLIT or classes:LIST:SOURCE"


def open_source(spec: str) -> Source:
    """The source that `spec` names; nothing is decoded yet.

    `bundled[:train|gallery|query]`: the photographs that ship with scikit-image and scikit-learn (`train` by default).
    `folder:DIR`: image files at any depth, labelled by the first level of sub-folders where there are any.
    `tfds:NAME[/CONFIG]:SPLIT`: a prepared TensorFlow Datasets set in a random-access format, read without TensorFlow.
    `classes:LIST:SOURCE`: of one of these the images of the classes in the text file LIST, one name a line.

    Raises SourceError when the text has another form, or when the data are missing, empty or ambiguous.
    """
    kind, _, rest = spec.partition(":")
    if kind == "bundled":
        return BundledSource(spec, rest or "train")
    if kind == "folder":
        return FolderSource(spec, rest)
    if kind == "tfds":
        return TfdsSource(spec, rest)
    if kind == "classes":
        file, colon, inner = rest.partition(":")
        if not (file and colon):
            raise SourceError(f"{spec!r}: expected classes:LIST:SOURCE, e.g. 'classes:S300.txt:tfds:imagenet2012:train'")
        return ClassSubset(spec, file, open_source(inner))
    if os.path.isdir(os.path.expanduser(spec)):
        raise SourceError(f"source {spec!r} is a directory: write 'folder:{spec}' (expected {_FORMS})")
    near = difflib.get_close_matches(kind, ["bundled", "folder", "tfds", "classes"], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise SourceError(f"source {spec!r} is of no known kind; expected {_FORMS}{hint}")
