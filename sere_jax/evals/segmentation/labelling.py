"""Which class a number of a label map stands for, and which numbers no score counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt16

from sere_jax.data.annotations.maps import NO_MAP
from sere_jax.data.sources.example import Source
from sere_jax.data.sources.open import open_source
from sere_jax.evals.network import EvalError

NONE = -1  # the class of a pixel that no loss and no score counts


class Labelling(NamedTuple):
    """The classes of a data set, and the numbers that stand for them in its label maps.

    Attributes:
      classes: names, in the order of their numbers.
      ignored: numbers of pixels that nothing counts: 255 (VOC, ADE20K), 1000 (ImageNet-S).
      zero_ignored: 0 means "none of the classes", and class k is stored as k + 1 (ADE20K). Otherwise 0 is the first class.
      palette: red, green and blue of each number of the label maps, from 0 on; b"" where they have no colours.
    """

    classes: tuple[str, ...]
    ignored: tuple[int, ...] = (255,)
    zero_ignored: bool = False
    palette: bytes = b""

    def targets(self, label_map: UInt16[np.ndarray, "H W"], name: str = "a label map") -> Int[np.ndarray, "H W"]:
        """The class of every pixel, `NONE` where it is ignored.

        Raises EvalError for a number that is no class, and for the map that stands for a missing one; `name` is of the image.

        >>> Labelling(("wall", "sky"), zero_ignored=True).targets(np.array([[0, 1], [2, 255]], np.uint16)).tolist()
        [[-1, 0], [1, -1]]
        """
        result = label_map.astype(np.int32) - int(self.zero_ignored)
        result[np.isin(label_map, self.ignored)] = NONE
        largest = int(result.max(initial=NONE))
        if largest < len(self.classes):
            return result
        if (label_map == NO_MAP).all():
            raise EvalError(f"{name}: has no label map; expected a source of images that all have one")
        number, last = largest + int(self.zero_ignored), len(self.classes) - 1 + int(self.zero_ignored)
        raise EvalError(
            f"{name}: found {number} in the label map, expected 0 to {last} or an ignored number, "
            f"{', '.join(map(str, self.ignored)) or 'of which there are none'}; set classes or ignore"
        )

    def numbers(self, classes: Int[np.ndarray, "H W"]) -> UInt16[np.ndarray, "H W"]:
        """The numbers that the data set stores for predicted classes."""
        return (classes + int(self.zero_ignored)).astype(np.uint16)


def open_masked(key: str, spec: str) -> Source:
    """A source whose images have label maps. `key` is the name of its setting. Raises EvalError for other sources."""
    expected = "masks:DIR:folder:IMAGES, masks:DIR:list:FILE or a prepared set with label maps"
    if not spec:
        raise EvalError(f"{key}: found nothing, expected {expected}")
    source = open_source(spec)
    if source.map_classes is None:
        raise EvalError(f"{key}: {spec!r} has no label maps, expected {expected}")
    return source


def check_same_classes(train: Source, test: Source) -> None:
    """Raise EvalError where both sources name the classes of their label maps, and not alike."""
    if train.map_classes and test.map_classes and train.map_classes != test.map_classes:
        raise EvalError(f"test: {test.spec!r} names other classes of its label maps than {train.spec!r}; expected the same")


def labelling(source: Source, *, classes: int = 0, ignore: Sequence[int] = (255,), zero_ignored: bool = False) -> Labelling:
    """The labelling of a source with label maps.

    Args:
      classes: their number, without an ignored 0; 0 takes the names that the source gives.
      ignore: numbers that are ignored.
      zero_ignored: whether 0 is.

    Raises EvalError where the source gives no names and `classes` is 0, or where they contradict each other.
    """
    names = tuple(source.map_classes or ())[int(zero_ignored) :]
    if not names and not classes:
        raise EvalError(f"classes: found 0, and {source.spec!r} does not name the classes of its label maps; expected their number")
    if names and classes and len(names) != classes:
        raise EvalError(f"classes: found {classes}, expected 0 or {len(names)}, the classes that {source.spec!r} names")
    listed = names or tuple(f"class {number + int(zero_ignored)}" for number in range(classes))
    return Labelling(listed, tuple(ignore), zero_ignored, source.map_palette)
