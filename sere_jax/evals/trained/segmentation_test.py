"""The test of a trained segmenter: whole images or sliding windows, in the size of the label maps, shared by the processes."""

from __future__ import annotations

import json
import zipfile
from pathlib import PurePosixPath
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Float, Int, UInt8
from PIL import Image

from sere_jax.buckets import Location
from sere_jax.data.annotations.scale_crop import fitted, resized
from sere_jax.data.sources.example import Source
from sere_jax.data.sources.open import open_source
from sere_jax.distributed import gather_texts
from sere_jax.evals.network import Network
from sere_jax.evals.outcome import Images
from sere_jax.evals.pictures import LeftOut, left_out_note, read_pictures
from sere_jax.evals.segmentation.images import read_masked
from sere_jax.evals.segmentation.labelling import Labelling
from sere_jax.evals.segmentation.outcome import Tally
from sere_jax.evals.segmentation.pictures import PictureFiles, encode_map
from sere_jax.evals.segmentation.stretch import stretched, stretched_classes, stretched_to_limit
from sere_jax.evals.segmentation.windows import slide
from sere_jax.evals.trained.segmentation_settings import Settings
from sere_jax.evals.trained.segmenter import Model
from sere_jax.reporting import table
from sere_jax.types import PyTree
from sere_jax.writing import replacing


class Tester:
    """Counts the pixels of all test images. Every process takes its share of them; all get the same result.

    Windows are compiled once. Whole images are cut to whole patches at the right and lower edge, and compiled for each size.
    """

    def __init__(self, model: Model, network: Network, source: Source, labelling: Labelling, settings: Settings) -> None:
        self._network, self._source, self._labelling, self._settings = network, source, labelling, settings
        self._left_out = LeftOut()
        devices = jax.local_devices()
        self._batch = len(devices) if settings.stride else 1
        mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
        self._copies = NamedSharding(mesh, PartitionSpec())
        self._rows = NamedSharding(mesh, PartitionSpec("data")) if settings.stride else self._copies
        self._run = jax.jit(
            model.of_images(to_pixels=bool(settings.stride)),
            in_shardings=(self._copies, self._copies, self._rows),
            out_shardings=self._rows,
        )

    def images(self) -> Images:
        """What a report says of the test images; every process calls it after a test."""
        texts = gather_texts(json.dumps(list(self._left_out.values())))  # each process has tested its own images
        left_out = [name for text in texts for name in json.loads(text)]
        return Images(self._settings.test, len(self._source) - len(left_out), left_out)

    def __call__(self, params: PyTree, running: PyTree, files: PictureFiles | None = None) -> Tally:
        """Test weights, which are host arrays. Predictions go to `files`, each process's own ones."""
        weights = jax.device_put((params, running), self._copies)
        tally = Tally(len(self._labelling.classes))
        positions = range(jax.process_index(), len(self._source), jax.process_count())
        for picture in read_masked(self._source, positions, self._labelling, self._left_out, self._settings.reading):
            predicted = self._classes(picture.pixels, weights)
            tally.add(picture.truth, predicted)
            if files is not None:
                files.add(picture, predicted)
        return tally if jax.process_count() == 1 else tally.summed(_sum)

    def submit(self, params: PyTree, running: PyTree, path: Location) -> None:
        """Predict the images of `submission` and write them to a zip file: CLASS/NAME.png, RGB with red + 256 green. Process 0 does it."""
        if jax.process_index() != 0:
            return
        weights = jax.device_put((params, running), self._copies)
        source, left_out = open_source(self._settings.submission), LeftOut()
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for picture in read_pictures(source, range(len(source)), left_out, self._settings.reading):
                predicted = self._classes(picture.pixels, weights)
                name = str(PurePosixPath(picture.name).with_suffix(".png")).lstrip("/")
                archive.writestr(name, encode_map(self._labelling.numbers(predicted), coding="red_green"))
        table.say(f"written: {path}")
        if note := left_out_note("submitted images", list(left_out.values()), len(source)):
            table.say(note)

    def _classes(self, pixels: UInt8[np.ndarray, "H W c"], weights: Any) -> Int[np.ndarray, "H W"]:
        logits, shape, most = self._logits(pixels, weights), (pixels.shape[0], pixels.shape[1]), self._settings.most_pixels
        return stretched_to_limit(logits, shape, most) if most else stretched_classes(logits, shape)

    def _logits(self, pixels: UInt8[np.ndarray, "H W c"], weights: Any) -> Float[np.ndarray, "h w k"]:
        """The mean over the scales, on the grid of the first."""
        first, *others = (self._at(scale, pixels, weights) for scale in self._settings.test_scales)
        return sum((stretched(logits, first.shape[:2]) for logits in others), first) / (1 + len(others))

    def _at(self, scale: float, pixels: UInt8[np.ndarray, "H W c"], weights: Any) -> Float[np.ndarray, "h w k"]:
        height, width = fitted((pixels.shape[0], pixels.shape[1]), self._settings.limits, scale)
        image = resized(pixels, height, width) if self._settings.test_resize == "opencv" else antialiased(pixels, height, width)
        if not self._settings.stride and self._network.whole_patches:
            image = whole_patches(image, self._network.patch, least=2 if self._settings.head == "upernet" else 1)
        logits = self._once(image, weights)
        if self._settings.test_flip:
            logits = (logits + self._once(np.ascontiguousarray(image[:, ::-1]), weights)[:, ::-1]) / 2
        return logits

    def _once(self, image: UInt8[np.ndarray, "H W c"], weights: Any) -> Float[np.ndarray, "h w k"]:
        def of_images(images: UInt8[np.ndarray, "n H W c"]) -> Float[np.ndarray, "n h w k"]:
            return np.asarray(self._run(*weights, jax.device_put(images, self._rows)))

        if self._settings.stride:
            fill, settings = mean_levels(self._network), self._settings
            return slide(image, of_images, window=settings.size, stride=settings.stride, fill=fill, batch=self._batch)
        return of_images(image[None])[0]


def whole_patches(image: UInt8[np.ndarray, "H W c"], patch: int, least: int = 1) -> UInt8[np.ndarray, "S T c"]:
    """The image without the rest of a patch at its right and lower edge; where there are fewer than `least` patches, its edge is repeated.

    >>> whole_patches(np.zeros((37, 3, 3), np.uint8), 16).shape
    (32, 16, 3)
    """
    height, width = (max(side // patch, least) * patch for side in image.shape[:2])
    lacking = [(0, max(0, new - old)) for new, old in zip((height, width), image.shape[:2], strict=True)]
    return np.pad(image[:height, :width], (*lacking, (0, 0)), mode="edge")


def antialiased(image: UInt8[np.ndarray, "H W c"], height: int, width: int) -> UInt8[np.ndarray, "S T c"]:
    """Pillow's bilinear filter, which is antialiased where an image shrinks; each channel by itself."""
    planes = (Image.fromarray(np.ascontiguousarray(image[..., channel])) for channel in range(image.shape[2]))
    return np.stack([np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR)) for plane in planes], axis=-1)


def mean_levels(network: Network) -> tuple[int, ...]:
    """The levels that become 0 when images are normalised."""
    return tuple(min(255, round(255 * mean)) for mean in network.mean)


def _sum(array: np.ndarray) -> np.ndarray:
    return np.asarray(multihost_utils.process_allgather(array)).sum(axis=0)
