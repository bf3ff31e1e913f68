"""Prepare a data set once: python -m sere_jax prepare --source=folder:DIR --output=OUT [--max_side=512 --quality=95]

`--source=tfds:NAME[/CONFIG]:SPLIT` of a set that is not prepared runs TFDS's builder first, `--source=tfds:MODULE.py:SPLIT` a builder of
your own. Without `--output` nothing else happens: train from `tfds:NAME:SPLIT`.
It writes ArrayRecord shards, which `tfds:OUT:SPLIT` and `tfds.builder_from_directory(OUT)` read without TensorFlow. After an
interruption, the same command continues. The output depends only on the source and the options. `--verify --output=OUT` reads it back.
`--shard=I/N` on each of N machines, I from 0, writes every N-th shard into one directory that all of them see. The same command with
`--merge` checks that all shards are there and completes the set; its files are those that one machine would have written.
Exit code 0: done; 1: too many images could not be read, or verification found something; 2: it could not begin.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from sere_jax.buckets import is_address
from sere_jax.config.arguments import shard
from sere_jax.data.images.reading import MAX_PIXELS
from sere_jax.data.prepare.builders import build, is_builder, reading_spec
from sere_jax.data.prepare.encode import Encoder, Sizes, fingerprint
from sere_jax.data.prepare.layouts import LAYOUTS, open_layout
from sere_jax.data.prepare.records import Layout, subset
from sere_jax.data.prepare.shards import Output, PrepareError, encoded, plan, read_manifest, verify, write_info
from sere_jax.data.sources.open import SourceError
from sere_jax.writing import destination, writing_to

Track = Callable[[Iterable[Any], int, str], Iterable[Any]]


class Part(NamedTuple):
    """The share of one machine: shards number, number + of, number + 2 * of, ...; with `of` = 0 nothing is written."""

    number: int = 0
    of: int = 1


_WHOLE = Part()


def prepare(
    layout: Layout, spec: str, directory: str, sizes: Sizes, *, per_shard: int, workers: int, track: Track, part: Part = _WHOLE
) -> dict[str, Any]:
    """Write the shards of a part that are missing, and return the manifest; {} while those of other machines are missing.

    Raises PrepareError; with `part.of` = 0 where shards are missing.
    """
    made_from = fingerprint(layout, spec, sizes, per_shard)
    output = Output(directory, made_from)
    if output.finished:
        print(f"{directory} is already prepared from the same source with the same options")
    shards = [] if output.finished else plan(layout, per_shard)
    encoder = Encoder(layout, sizes)
    notes: dict[str, list[dict[str, Any]]] = {split: [] for split in layout.splits}
    missing: list[str] = []
    with concurrent.futures.ThreadPoolExecutor(workers) as threads:
        for number, shard in enumerate(shards):
            note = output.done(shard)
            if note is None and (not part.of or number % part.of != part.number):
                missing.append(shard.file)
                continue
            if note is None:
                results = encoded(encoder, layout.splits[shard.split], shard, threads, ahead=4 * workers)
                label = f"{shard.split}, shard {number + 1} of {len(shards)}"
                note = output.write(shard, track(results, shard.last - shard.first, label))
            notes[shard.split].append(note)
    if missing and not part.of:
        named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise PrepareError(f"{directory}: {len(missing)} of {len(shards)} shards are missing: {named}; run their --shard=i/n again")
    if output.finished:
        return read_manifest(directory)
    return {} if part.of > 1 else _finish(output, layout, encoder, notes, made_from)


def _finish(
    output: Output, layout: Layout, encoder: Encoder, notes: dict[str, list[dict[str, Any]]], made_from: dict[str, Any]
) -> dict[str, Any]:
    if not any(note["records"] for split_notes in notes.values() for note in split_notes):
        raise PrepareError(f"{made_from['source']}: not one image could be read")
    left_out = [error for split_notes in notes.values() for note in split_notes for error in note["left_out"]]
    splits = {
        split: [{key: value for key, value in note.items() if key != "left_out"} for note in split_notes]
        for split, split_notes in notes.items()
    }
    write_info(output.directory, layout, encoder.features, splits)
    packages = ("opencv-python-headless", "pillow", "array_record", "tensorflow-datasets")
    versions = {package: importlib.metadata.version(package) for package in packages}
    manifest = {"made_from": made_from, "splits": splits, "left_out": left_out, "versions": versions}
    output.finish(manifest)
    return manifest


def _report(manifest: dict[str, Any], directory: str, max_bad_fraction: float) -> int:
    total = sum(shard["records"] for shards in manifest["splits"].values() for shard in shards)
    for split, shards in manifest["splits"].items():
        count, size = sum(shard["records"] for shard in shards), sum(shard["bytes"] for shard in shards)
        print(f"tfds:{directory}:{split}  {count:,} images, {size / 1e6:,.1f} MB, {len(shards)} shards")
    left_out = manifest["left_out"]
    for error in left_out[:20]:
        print(f"left out: {error['name']}: {error['error']}", file=sys.stderr)
    if left_out:
        print(f"{len(left_out)} images left out in all; manifest.json names them", file=sys.stderr)
    return 1 if len(left_out) > max_bad_fraction * (total + len(left_out)) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sere_jax prepare", description=(__doc__ or "").splitlines()[0])
    layouts = f"KIND:DIR with KIND one of {', '.join(LAYOUTS)}"
    parser.add_argument("--source", default="", help=f"a source of a config, {layouts}, or tfds:MODULE.py:SPLIT with a builder of your own")
    parser.add_argument("--output", default="", help="a new directory, or one to go on with; may be left out to only run a TFDS builder")
    parser.add_argument("--split", default="", help="only this split; for a folder, the name of its only split (train)")
    parser.add_argument("--classes", default="", metavar="FILE", help="only these classes, one a line")
    parser.add_argument("--images", default="", metavar="FILE", help="only these images, one a line")
    parser.add_argument("--max_side", type=int, default=0, help="limit of the longer side in pixels; 0: files stay as they are")
    parser.add_argument("--quality", type=int, default=95, help="of JPEGs made with --max_side")
    parser.add_argument("--max_pixels", type=int, default=MAX_PIXELS, help="images of more pixels are left out")
    parser.add_argument("--max_bad_fraction", type=float, default=0.01, help="share of images left out that is no error")
    parser.add_argument("--records_per_shard", type=int, default=4096, help="images of one shard (default: 4096)")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="write every N-th shard from the I-th on, I from 0; see --merge")
    parser.add_argument("--merge", action="store_true", help="check that the shards of all machines are there, and complete the set")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads")
    parser.add_argument("--verify", action="store_true", help="read a prepared set back and check every image")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; its exit code."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the display asks JAX which process this is; no accelerator is needed for that
    from sere_jax.reporting.progress import track

    flags = _parser().parse_args(arguments)
    directory = str(destination(flags.output)) if flags.output and not is_address(flags.output) else ""
    try:
        if is_address(flags.output):
            raise SourceError(f"--output: found {flags.output!r}, expected a directory; copy the set into the bucket when it is prepared")
        if is_builder(flags.source) and not (directory or flags.max_side or flags.classes or flags.images or flags.verify):
            return _run_builder(flags.source)
        if not directory:
            raise SourceError("--output: missing; expected a directory to write to")
        if flags.verify:
            wrong = verify(directory, lambda items, total: track(items, "verifying", total))
            print("\n".join(wrong) or f"{directory}: every image is what was written")
            return 1 if wrong else 0
        if not flags.source:
            raise SourceError("--source: missing")
        if flags.max_side < 0 or not 1 <= flags.quality <= 100 or flags.records_per_shard < 1:
            raise SourceError("expected --max_side of at least 0, --quality of 1 to 100 and --records_per_shard of at least 1")
        source = reading_spec(flags.source, build(flags.source)[0]) if is_builder(flags.source) else flags.source
        layout = subset(open_layout(source, split=flags.split), classes=flags.classes, images=flags.images)
        with writing_to(directory):
            manifest = prepare(
                layout,
                flags.source,
                directory,
                Sizes(flags.max_side, flags.quality, flags.max_pixels),
                per_shard=flags.records_per_shard,
                workers=max(1, flags.workers),
                part=_part(flags.shard, flags.merge),
                track=functools.partial(_tracked, track),
            )
    except (SourceError, PrepareError) as error:
        print(error, file=sys.stderr)
        return 2
    if not manifest:
        print(f"{directory}: the shards of --shard={flags.shard} are written; when all machines are done, run the command with --merge")
        return 0
    return _report(manifest, directory, flags.max_bad_fraction)


def _part(text: str, merge: bool) -> Part:
    try:
        number, of = shard(text)
    except ValueError as error:
        raise SourceError(str(error)) from error
    if merge and of > 1:
        raise SourceError(f"--merge: found --shard={text} beside it, expected one of the two")
    return Part(0, 0) if merge else Part(number, of)


def _run_builder(spec: str) -> int:
    directory, counts = build(spec)
    for split, count in counts.items():
        print(f"tfds:{directory}:{split}  {count:,} examples")
    return 0


def _tracked(track: Callable[..., Iterable[Any]], items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
    return track(items, label, total)
