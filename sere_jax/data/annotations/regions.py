"""Regions of objects: COCO's polygons and run lengths as masks, and masks as run lengths.

A mask's pixels are counted column by column. Run lengths say how many pixels in turn lie outside and inside, beginning outside; the
compressed form is the text that COCO's result files hold. Polygons are filled by faster-coco-eval, pixel for pixel as COCO's own
tools fill them: corners on a grid of fifths of a pixel, and a pixel belongs to the region where the outline passes left of its centre
an odd number of times. The text of run lengths is decoded here, because a wrong one would make native code write beyond its memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from sere_jax.data.sources.example import BadImage

_OFFSET, _BITS, _MORE, _SIGN = 48, 5, 32, 16  # a character less 48 holds five bits; the sixth says that more follow
_AROUND = 1.0  # polygons may reach this far outside the frame, in sides of it


def decode_region(segmentation: str | Sequence[Any] | Mapping[str, Any], height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """The mask of a segmentation: polygons, each a list x, y, x, y, ..., or run lengths {"counts": ..., "size": [height, width]}.

    A text is read as JSON, as `Instance.segmentation` holds it. Several polygons form one region. Raises BadImage for a segmentation
    of another form, for run lengths of another size, and for corners that are no finite numbers or lie far outside the frame.

    >>> decode_region([[1, 1, 3, 1, 3, 2, 1, 2]], 3, 4).astype(int).tolist()
    [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    >>> decode_region({"counts": [1, 2, 3], "size": [2, 3]}, 2, 3).astype(int).tolist()
    [[0, 1, 0], [1, 0, 0]]
    """
    if isinstance(segmentation, str):
        try:
            segmentation = json.loads(segmentation)
        except ValueError as error:
            raise BadImage(f"a segmentation that is no JSON: {error}") from error
    if fault := region_fault(segmentation, height, width):
        raise BadImage(fault)
    if isinstance(segmentation, Mapping):
        counts = _counts(segmentation["counts"])
        return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T
    from faster_coco_eval.core import mask

    polygons = [[float(number) for number in polygon] for polygon in segmentation]
    return mask.decode(mask.merge(mask.frPyObjects(polygons, height, width))).astype(bool)


def region_fault(segmentation: Any, height: int, width: int) -> str:
    """What is wrong with a segmentation of an image of this height and width, or "" where nothing is."""
    if isinstance(segmentation, Mapping):
        return _run_fault(segmentation, height, width)
    if not isinstance(segmentation, Sequence) or isinstance(segmentation, str) or not segmentation:
        return f"a segmentation {_shown(segmentation)}, expected polygons or run lengths"
    for polygon in segmentation:
        if not isinstance(polygon, Sequence) or isinstance(polygon, str) or len(polygon) < 6 or len(polygon) % 2:
            return f"a polygon {_shown(polygon)}, expected x, y, x, y, ... of at least three corners"
        for side, numbers in ((width, polygon[0::2]), (height, polygon[1::2])):
            if not all(_is_number(number) and -_AROUND * side <= number <= (1 + _AROUND) * side for number in numbers):
                return f"a polygon {_shown(polygon)} with corners outside the image of {width} x {height} pixels"
    return ""


def encode_region(mask: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """Compressed run lengths of a mask, as COCO's result files hold them: {"size": [height, width], "counts": TEXT}.

    >>> encode_region(np.array([[False, True], [True, True]]))
    {'size': [2, 2], 'counts': '13'}
    """
    edges = np.flatnonzero(np.diff(mask.T.ravel().astype(np.int8), prepend=0))
    counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
    if len(counts) > 1 and not counts[-1]:
        counts = counts[:-1]
    return {"size": [int(side) for side in mask.shape], "counts": _text(counts.tolist())}


def _run_fault(region: Mapping[str, Any], height: int, width: int) -> str:
    size = region.get("size")
    if "counts" not in region or not isinstance(size, Sequence) or list(size) != [height, width]:
        return f"run lengths {_shown(region)}, expected 'counts' and 'size' [{height}, {width}], the image's height and width"
    try:
        counts = _counts(region["counts"])
    except (ValueError, TypeError, OverflowError):
        return f"run lengths {_shown(region)}, expected a list of whole numbers or COCO's text of them"
    if any(count < 0 for count in counts) or sum(counts) != height * width:
        return f"run lengths of {sum(counts):,} pixels in all, expected the {height * width:,} of the image, none negative"
    return ""


def _counts(counts: Any) -> list[int]:
    """Run lengths as numbers. From the fourth on the text holds the difference from the one two places before."""
    if not isinstance(counts, (str, bytes)):
        if any(isinstance(count, bool) or count != int(count) for count in counts):
            raise ValueError("no whole numbers")
        return [int(count) for count in counts]
    numbers: list[int] = []
    value = shift = 0
    for character in counts if isinstance(counts, bytes) else counts.encode():
        bits = character - _OFFSET
        if not 0 <= bits < 2 * _MORE or shift > 60:
            raise ValueError("no text of run lengths")
        value |= (bits & (_MORE - 1)) << shift
        shift += _BITS
        if bits & _MORE:
            continue
        value -= (1 << shift) if bits & _SIGN else 0
        numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("a text of run lengths that is cut short")
    return numbers


def _text(counts: Sequence[int]) -> str:
    """The inverse of `_counts`."""
    characters: list[int] = []
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        more = True
        while more:
            bits = value & (_MORE - 1)
            value >>= _BITS
            more = value != (-1 if bits & _SIGN else 0)
            characters.append(bits + (_MORE if more else 0) + _OFFSET)
    return bytes(characters).decode()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
