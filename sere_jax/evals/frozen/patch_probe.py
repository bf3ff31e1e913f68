"""A probe of patch tokens: it is fitted to the patches of training images, and predicts the pixels of others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from sere_jax.data.sources.example import Source
from sere_jax.evals.frozen import patch_data
from sere_jax.evals.frozen.patch_data import Encode, Patches, PatchSettings, Sources, grouped
from sere_jax.evals.frozen.patch_votes import DISTANCES, Gallery
from sere_jax.evals.pictures import LeftOut
from sere_jax.evals.segmentation.images import MaskedPicture, read_masked
from sere_jax.evals.segmentation.outcome import Tally
from sere_jax.evals.segmentation.pictures import PictureFiles
from sere_jax.evals.segmentation.stretch import stretched_classes
from sere_jax.reporting.progress import track

Setting = tuple[Any, ...]  # (k, distance), or (C,)
Logits = Callable[[Float[np.ndarray, "q d"]], Mapping[Setting, Float[np.ndarray, "q c"]]]
# Patches to fit on, number of classes, settings to fit -> their logits of any patches.
Fit = Callable[[Patches, int, Sequence[Setting]], Logits]


def nearest(patches: Patches, classes: int, tried: Sequence[Setting]) -> Logits:
    """The `Fit` of k-NN: a patch's logits are the shares of the classes among its k nearest patches."""
    gallery = Gallery(patches.features, patches.labels, classes)

    def logits(queries: Float[np.ndarray, "q d"]) -> Mapping[Setting, Float[np.ndarray, "q c"]]:
        result: dict[Setting, np.ndarray] = {}
        for distance in DISTANCES:
            if neighbours := [k for k, one in tried if one == distance]:
                votes = gallery.votes(queries, distance, neighbours)
                result |= {(k, distance): value for k, value in votes.items()}
        return result

    return logits


class Probe:
    """The patches of one network: settings are chosen on some training images, and tested."""

    def __init__(
        self,
        sources: Sources,
        data: PatchSettings,
        encode: Encode,
        left_out: Mapping[str, LeftOut],
        grid: Sequence[Setting],
        fit: Fit,
        name: str = "",  # of the network, for the display of progress; "": none
    ) -> None:
        self._sources, self._data, self._encode, self._left_out = sources, data, encode, left_out
        self._grid, self._fit, self._name = grid, fit, name
        self._classes = len(sources.labelling.classes)
        self._patches = patch_data.training_patches(encode, sources, data.reading, left_out["train"], name)

    def choose(self) -> tuple[Setting, dict[str, float]]:
        """The setting with the best mIoU on the images that choose, the first of equals; and the mIoU of each."""
        if len(self._grid) == 1:
            return self._grid[0], {}
        out = np.isin(self._patches.images, self._sources.selecting)
        if self._data.select == "test" or out.all() or not out.any():
            part, source, positions = self._patches, self._sources.test, range(len(self._sources.test))
        else:
            part, source = Patches(*(array[~out] for array in self._patches)), self._sources.train
            positions = self._sources.selecting.tolist()
        tallies = self._tallies(part, source, self._tracked(positions, "images that choose the settings"))
        miou = {setting: tally.scores(self._data.absent)["miou"] for setting, tally in tallies.items()}
        return max(self._grid, key=lambda setting: miou[setting]), {" ".join(map(str, s)): value for s, value in miou.items()}

    def of_all(self) -> dict[Setting, Tally]:
        """The pixels of the test images with each setting, all training patches fitted."""
        return self._tallies(self._patches, self._sources.test, range(len(self._sources.test)))

    def _tallies(self, part: Patches, source: Source, positions: Iterable[int]) -> dict[Setting, Tally]:
        tallies = {setting: Tally(self._classes) for setting in self._grid}
        logits = self._fit(part, self._classes, self._grid)
        key = "test" if source is self._sources.test else "train"
        for picture, predictions in self._predicted(logits, source, positions, key):
            for setting, predicted in predictions.items():
                tallies[setting].add(picture.truth, predicted)
        return tallies

    def test(self, setting: Setting, files: PictureFiles) -> Tally:
        """Fit all training patches with one setting, and count the pixels of the test images."""
        logits = self._fit(self._patches, self._classes, [setting])
        tally = Tally(self._classes)
        positions = self._tracked(range(len(self._sources.test)), "test images")
        for picture, predictions in self._predicted(logits, self._sources.test, positions, "test"):
            (predicted,) = predictions.values()
            tally.add(picture.truth, predicted)
            files.add(picture, predicted)
        return tally

    def _tracked(self, positions: Iterable[int], what: str) -> Iterable[int]:
        return track(positions, f"{self._name}: {what}") if self._name else positions

    def _predicted(
        self, logits: Logits, source: Source, positions: Iterable[int], part: str
    ) -> Iterator[tuple[MaskedPicture, dict[Setting, np.ndarray]]]:
        """Each image with the classes that each setting predicts. A batch of images is compared with the gallery at a time."""
        pictures = read_masked(source, positions, self._sources.labelling, self._left_out[part], self._data.reading)
        for group in grouped(self._encode(pictures), self._data.batch_size):
            flat = np.concatenate([patches.reshape(-1, patches.shape[-1]) for _, patches in group])
            answers = logits(flat)
            for number, (picture, patches) in enumerate(group):
                (height, width), count = patches.shape[:2], len(flat) // len(group)
                rows = slice(number * count, (number + 1) * count)
                yield picture, {s: stretched_classes(v[rows].reshape(height, width, -1), picture.shape) for s, v in answers.items()}
