"""The listing of a source as compressed text, so that a later start can name the images that changed."""

from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from sere_jax.data.sources.example import Entry, Fingerprint, Source, chunks, fingerprint

_SHOWN = 3
_quoted = json.JSONEncoder().encode  # of a text; the rest of a line are numbers, which need no encoder


class Listing(NamedTuple):
    """A source's fingerprint, and all of its entries as compressed text: about 10 bytes an entry."""

    fingerprint: Fingerprint
    entries: bytes


def take(source: Source) -> Listing:
    """List a source once. The size of each file is asked of the file system; no image is read."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1, mtime=0) as file:

        def recorded() -> Iterator[Entry]:
            for chunk in chunks(source.listing()):
                lines = [f"[{_quoted(name)}, {size}, {label}, {annotation}]\n" for name, size, label, annotation in chunk]
                file.write("".join(lines).encode())
                yield from chunk

        whole = fingerprint(len(source), recorded(), source.class_names())
    return Listing(whole, buffer.getvalue())


def changes(before: bytes, now: bytes) -> list[str]:
    """What differs between two lists of `Listing.entries`, in a line for each kind of change, with the first names.

    Example:
      >>> one, two = gzip.compress(b'["a.jpg", 9, -1, -1]'), gzip.compress(b'["b.jpg", 9, -1, -1]')
      >>> changes(one, two)
      ['1 new: b.jpg', '1 gone: a.jpg']
    """
    old, new = _read(before), _read(now)
    gone, added = old - new, new - old
    names_gone, names_added = Counter(_name(line) for line in gone.elements()), Counter(_name(line) for line in added.elements())
    lines = [
        _line("new", names_added - names_gone),
        _line("gone", names_gone - names_added),
        _line("of another size or class", names_gone & names_added),
    ]
    return [line for line in lines if line] or ["the same images, but their order, the names of classes or the weights of a mixture differ"]


def _read(entries: bytes) -> Counter[bytes]:
    return Counter(gzip.decompress(entries).splitlines())


def _name(line: bytes) -> str:
    return str(json.loads(line)[0])


def _line(kind: str, names: Counter[str]) -> str:
    first = sorted(names.elements())[:_SHOWN]
    count = names.total()
    return f"{count:,} {kind}: {', '.join(first)}{', ...' if count > _SHOWN else ''}" if count else ""
