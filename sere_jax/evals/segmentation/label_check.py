"""A look at label maps before anything expensive runs: their faults would else be told by the first test, after a training."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from sere_jax.data.annotations.maps import label_map_of
from sere_jax.data.images.decode import decode
from sere_jax.data.images.reading import DEFAULT_READING, ImageReading
from sere_jax.data.sources.example import BadImage, Source
from sere_jax.evals.network import EvalError
from sere_jax.evals.pictures import left_out_note
from sere_jax.evals.segmentation.labelling import NONE, Labelling
from sere_jax.reporting import table

CHECKED = 1000  # images of a source that are looked at: some 10 s of one core for photographs of 640 x 480 pixels
_THREADS = 8


class _Finding(NamedTuple):
    """What was found of one image."""

    name: str
    left_out: str = ""  # why the image is left out: a damaged file, a label map of another size
    wrong: str = ""  # why its numbers are no classes
    counts: bool = False  # whether it has a pixel that is not ignored


def check_label_maps(
    key: str,
    source: Source,
    labelling: Labelling,
    reading: ImageReading = DEFAULT_READING,
    positions: Int[np.ndarray, " n"] | None = None,
) -> None:
    """Read at most `CHECKED` images with their label maps, spread evenly over the source or over some `positions` of it.

    Images that an evaluation leaves out are named in a line. `key` is the name of the source's setting.

    Raises EvalError where a label map holds a number that is no class, where all of these images would be left out, and where none of
    their pixels counts.
    """
    sample = spread(np.arange(len(source)) if positions is None else positions)
    with ThreadPoolExecutor(_THREADS) as threads:
        findings = list(threads.map(lambda position: _look(source, int(position), labelling, reading), sample))
    what = f"of {len(sample):,} label maps" + (f" (of {len(source):,}) that were looked at" if len(sample) < len(source) else "")
    wrong, left_out = [one for one in findings if one.wrong], [one for one in findings if one.left_out]
    if wrong:
        raise EvalError(f"{key}: {len(wrong):,} {what} cannot be used; {wrong[0].wrong}")
    if left_out and len(left_out) == len(findings):
        raise EvalError(f"{key}: 0 {what} can be used; {left_out[0].name}: {left_out[0].left_out}")
    if findings and not any(one.counts for one in findings):
        raise EvalError(f"{key}: 0 {what} have a pixel that counts; expected numbers other than the ignored ones; set ignore")
    if left_out:
        note = left_out_note(f"{key} images", [one.name for one in left_out], len(sample), why="cannot be used")
        table.say(f"{note} ({left_out[0].left_out})")


def spread(positions: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """At most `CHECKED` positions at equal distances, the first and the last among them.

    >>> spread(np.arange(3)).tolist(), len(spread(np.arange(5000))), spread(np.arange(5000))[[0, -1]].tolist()
    ([0, 1, 2], 1000, [0, 4999])
    """
    if len(positions) <= CHECKED:
        return positions
    return positions[np.linspace(0, len(positions) - 1, CHECKED).round().astype(np.int64)]


def _look(source: Source, position: int, labelling: Labelling, reading: ImageReading) -> _Finding:
    name = f"item {position}"
    try:
        example = source[position]
        name = example.name
        shape = decode(example.data, reading).shape[:2]
        targets = labelling.targets(label_map_of(example.annotation, shape, reading.max_pixels), name)
    except (BadImage, OSError) as error:
        return _Finding(name, left_out=str(error))
    except EvalError as error:
        return _Finding(name, wrong=str(error))
    return _Finding(name, counts=bool((targets != NONE).any()))
