"""Write features of images to files: python -m sere_jax extract --checkpoint=X --data=folder:DIR --tokens=cls,patches --output=DIR

X is anything that `load_backbone` reads, --data any source of the project. DIR gets `features-00000.parquet` (or `.npz`), ..., with one
row for each readable image, its name and its label, and `features.json`, which describes the columns and the origin of the weights.

tokens     cls [d], patches [h, w, d] (both after the final norm), attention [m, h, w] (of the cls token to the patches, in the
           last block, one map for each head; the rest of its attention, up to 1, goes to itself)
layers     numbers of blocks, from 0, or back from -1: `layer_I` [1 + h w, d], all tokens after block I, cls first, before the norm
size       pixels of the centre square, cut out after the shorter side was resized (default: the network's own); or
           native: every image at its own size, cut to whole patches

Names are paths below DIR. A byte of a name that is not UTF-8 is spelled \\xNN, and a backslash is doubled.
Exit code 2: the extraction failed; mistakes of the command line are told before JAX is imported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sere_jax.buckets import Location
from sere_jax.data.images.reading import MAX_PIXELS
from sere_jax.data.sources.example import Source
from sere_jax.data.sources.open import open_source
from sere_jax.evals.feature_files import FORMATS, missing_package
from sere_jax.train.saved_steps import CheckpointError
from sere_jax.weights import source
from sere_jax.writing import destination

TOKENS = ("cls", "patches", "attention")
DTYPES = ("float32", "float16")


class ExtractError(ValueError):
    """An argument cannot be followed; the message names it, what was found and what was expected."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(argv)
    output = destination(options.output)
    tokens = [token for token in options.tokens.split(",") if token]
    native, layers, size, images = options.size == "native", [], 0, None
    mistakes = number_mistakes(batch_size=options.batch_size, rows_per_file=options.rows_per_file, max_pixels=options.max_pixels)
    try:
        layers = _whole_numbers("layers", [text for text in options.layers.split(",") if text])
        size = 0 if native else _whole_numbers("size", [options.size])[0]
    except ExtractError as error:
        mistakes.append(str(error))
    mistakes += free_mistakes(output, tokens, layers, native, options.format, options.dtype)
    mistakes += source.mistakes(options.checkpoint, options.step)
    try:
        images = open_source(options.data) if not mistakes else None
    except ValueError as error:
        mistakes.append(str(error))
    if mistakes or images is None:
        print(*(f"extract: {sentence}" for sentence in mistakes), sep="\n", file=sys.stderr)
        return 2
    return _run(options, output, images, tokens=tokens, layers=layers, size=size, native=native)


def _run(
    options: argparse.Namespace, output: Location, images: Source, *, tokens: list[str], layers: list[int], size: int, native: bool
) -> int:
    from sere_jax.commands.compiled import keep_compiled  # these import JAX
    from sere_jax.commands.extract import extract
    from sere_jax.weights.backbone import load_backbone

    keep_compiled()
    ignore = [pattern for pattern in options.ignore.split(",") if pattern]
    try:
        backbone = load_backbone(options.checkpoint, network=options.network, step=options.step, heads=options.heads, ignore=ignore)
        for line in backbone.about.get("report", ()):
            print(line)
        written = extract(
            backbone,
            images,
            output,
            tokens=tokens,
            layers=layers,
            size=size,
            resize=options.resize,
            native=native,
            batch_size=options.batch_size,
            rows_per_file=options.rows_per_file,
            layout=options.format,
            dtype=options.dtype,
            workers=options.workers,
            max_pixels=options.max_pixels,
        )
    except (ValueError, CheckpointError) as error:
        print(f"extract: {error}", file=sys.stderr)
        return 2
    unreadable = f", {written.unreadable} left out as unreadable" if written.unreadable else ""
    print(f"{output}: {written.images:,} images in {len(written.files)} files{unreadable}")
    return 0


def number_mistakes(**numbers: int) -> list[str]:
    """The numbers that are below 1, as sentences."""
    return [f"{name}: found {number}, expected at least 1" for name, number in numbers.items() if number < 1]


def free_mistakes(output: Location, tokens: Sequence[str], layers: Sequence[int], native: bool, layout: str, dtype: str) -> list[str]:
    """What cannot be followed whatever the network is, as sentences."""
    mistakes = [f"tokens: found {token!r}, expected some of {', '.join(TOKENS)}" for token in tokens if token not in TOKENS]
    for name, value, choices in (("format", layout, FORMATS), ("dtype", dtype, DTYPES)):
        if value not in choices:
            mistakes.append(f"{name}: found {value!r}, expected one of {', '.join(choices)}")
    if not tokens and not layers:
        mistakes.append("tokens: found none, expected at least one, or layers")
    if native and layout == "npz":
        mistakes.append("size: found native with the format npz, whose arrays have one shape; expected the format parquet")
    if package := missing_package(layout):
        mistakes.append(f"format: {layout} needs {package}: pip install {package}, or take the format npz")
    if output.is_dir() and any(output.glob("features-*")):
        mistakes.append(f"output: found features in {output} already; expected another directory")
    return mistakes


def _whole_numbers(name: str, texts: Sequence[str]) -> list[int]:
    try:
        return [int(text) for text in texts]
    except ValueError:
        special = ", or native" if name == "size" else ""
        raise ExtractError(f"{name}: found {','.join(texts)!r}, expected whole numbers{special}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sere_jax extract", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="workdir or file")
    parser.add_argument("--data", required=True, help="folder:DIR, bundled[:SPLIT] or tfds:NAME[/CONFIG]:SPLIT")
    parser.add_argument("--output", required=True, help="directory")
    parser.add_argument("--tokens", default="cls", help="some of cls,patches,attention; '' with --layers alone")
    parser.add_argument("--layers", default="", help="numbers of blocks, 0,5,-1")
    parser.add_argument("--size", default="0", help="pixels, or native; default: the network's own")
    parser.add_argument("--resize", type=int, default=0, help="the shorter side before the crop; default: size x 256 / 224")
    parser.add_argument("--format", default="parquet", choices=FORMATS, help="kind of the files (default: parquet)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="type of the features (default: float32)")
    parser.add_argument("--batch_size", type=int, default=32, help="images of one forward pass (default: 32)")
    parser.add_argument("--rows_per_file", type=int, default=1024, help="images whose features share a file (default: 1024)")
    parser.add_argument("--workers", type=int, default=2, help="threads that decode")
    parser.add_argument("--max_pixels", type=int, default=MAX_PIXELS, help="larger images count as unreadable")
    parser.add_argument("--network", default="", choices=("", "teacher", "student"), help="default: the one that the recipe evaluates")
    parser.add_argument("--step", type=int, help="default: the newest")
    parser.add_argument("--heads", type=int, default=0, help="attention heads, for files that do not state them")
    parser.add_argument("--ignore", default="", help="patterns of tensors of a file to leave out, separated by commas")
    return parser
