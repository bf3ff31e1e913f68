"""The test of a trained detector: every image whole, in few shapes, shared by the processes and by the devices of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Int, UInt8

from sere_jax.data.annotations.placement import WholeImage
from sere_jax.data.batches.detection import MULTIPLE, buckets
from sere_jax.data.images.reading import DEFAULT_READING, ImageReading
from sere_jax.data.sources.example import Source
from sere_jax.evals.detection.data import read_truth
from sere_jax.evals.detection.images import PlacedImages, of_all_processes, placed_images, results_of_images
from sere_jax.evals.detection.outcome import Judged, judge
from sere_jax.evals.detection.pictures import DrawnImages
from sere_jax.evals.outcome import Images
from sere_jax.evals.pictures import LeftOut, read_pictures
from sere_jax.types import Array, Detections, PyTree

Detect = Callable[[PyTree, PyTree, UInt8[Array, "b H W c"], Int[Array, "b 2"]], Detections]


class Tester:
    """Judges weights by the average precision on all test images. Every process detects on its share; all get the same result.

    Args:
      detect: (params, running statistics, padded images, their sizes) -> detections; it is compiled once for each bucket.
      source: the test images with their objects.
      batch_size: images at a time, of all processes together; rounded up to a multiple of the devices.
      multiple: what the sides of padded images must be multiples of.
    """

    def __init__(
        self,
        detect: Detect,
        source: Source,
        *,
        placing: WholeImage,
        batch_size: int,
        multiple: int = MULTIPLE,
        reading: ImageReading = DEFAULT_READING,
    ) -> None:
        self.truth = read_truth(source)
        self._source, self._placing, self._reading = source, placing, reading
        self._left_out = LeftOut()
        self._shapes = buckets(placing.size, placing.longest, multiple)
        devices = jax.local_devices()
        of_process = -(-batch_size // jax.process_count())
        self._batch_size = -(-of_process // len(devices)) * len(devices)
        mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
        self._copies, self._rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
        shardings = (self._copies, self._copies, self._rows, self._rows)
        self._run = jax.jit(detect, in_shardings=shardings, out_shardings=self._rows)

    def images(self) -> Images:
        """What a report says of the test images; call it after a test."""
        return Images(self._source.spec, len(self._source) - len(self._left_out), list(self._left_out.values()))

    def __call__(self, params: PyTree, running: PyTree) -> Judged:
        """Test weights, which are host arrays. Images that cannot be read are left out of the truth too."""
        weights = jax.device_put((params, running), self._copies)

        def detect(batch: PlacedImages) -> Detections:
            return self._run(*weights, *jax.device_put((batch.images, batch.sizes), self._rows))

        positions = range(jax.process_index(), len(self._source), jax.process_count())
        batches = placed_images(
            self._source,
            positions,
            self._left_out,
            placing=self._placing,
            shapes=self._shapes,
            batch_size=self._batch_size,
            reading=self._reading,
        )
        results = of_all_processes(results_of_images(batches, detect, self.truth))
        for position, name in of_all_processes(list(self._left_out.items())):
            self._left_out.setdefault(position, name)
        order = {image_id: place for place, image_id in enumerate(self.truth.image_ids)}
        results.sort(key=lambda result: order[result["image_id"]])  # the same whatever the number of processes
        return judge(self.truth, results, self._left_out)

    def draw(self, judged: Judged, count: int, least_score: float = 0.5) -> DrawnImages:
        """The first images with their truth and what was detected, to be drawn."""
        names = {category["id"]: category["name"] for category in self.truth.table["categories"]}
        drawn = DrawnImages(count, names, least_score)
        readable = [position for position in range(len(self._source)) if position not in self._left_out][:count]
        for picture in read_pictures(self._source, readable, self._left_out, self._reading):
            image: dict[str, Any] = self.truth.table["images"][picture.position]
            both = (self.truth.table["annotations"], judged.results)
            truth, results = ([entry for entry in entries if entry["image_id"] == image["id"]] for entries in both)
            drawn.add(picture.name, picture.pixels, (image["height"], image["width"]), truth, results)
        return drawn
