"""From the text in a config to a source of encoded images: `bundled[:SPLIT]`, `folder:DIR`, `tfds:NAME[/CONFIG]:SPLIT`."""

from __future__ import annotations

import difflib
import os

from sere_jax.data.bundled import BundledSource
from sere_jax.data.example import Example, Source, SourceError
from sere_jax.data.folder import FolderSource
from sere_jax.data.tfds_source import TfdsSource

__all__ = ["Example", "Source", "SourceError", "open_source"]

_FORMS = "bundled[:train|gallery|query], folder:DIR or tfds:NAME[/CONFIG]:SPLIT"


def open_source(spec: str) -> Source:
    """The source that `spec` names; nothing is decoded yet.

    `bundled[:train|gallery|query]`: the photographs that ship with scikit-image and scikit-learn (`train` by default).
    `folder:DIR`: image files at any depth, labelled by the first level of sub-folders where there are any.
    `tfds:NAME[/CONFIG]:SPLIT`: a prepared TensorFlow Datasets set in a random-access format, read without TensorFlow.

    Raises SourceError when the text has another form, or when the data are missing, empty or ambiguous.
    """
    kind, _, rest = spec.partition(":")
    if kind == "bundled":
        return BundledSource(spec, rest or "train")
    if kind == "folder":
        return FolderSource(spec, rest)
    if kind == "tfds":
        return TfdsSource(spec, rest)
    if os.path.isdir(os.path.expanduser(spec)):
        raise SourceError(f"source {spec!r} is a directory: write 'folder:{spec}' (expected {_FORMS})")
    near = difflib.get_close_matches(kind, ["bundled", "folder", "tfds"], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise SourceError(f"source {spec!r} is of no known kind; expected {_FORMS}{hint}")
