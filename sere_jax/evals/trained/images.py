"""The labelled images of a classifier's training: the sources, the part to choose by, batches with augmentation, and predictions."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Int

from sere_jax.buckets import Location
from sere_jax.data.annotations.maps import label_map_of
from sere_jax.data.annotations.transforms import Transform
from sere_jax.data.batches.labelled import LabelledBatch, labelled_batches
from sere_jax.data.batches.whole_images import EvalBatch
from sere_jax.data.images.decode import decode
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.example import Example, Source
from sere_jax.data.sources.subset import Labelled, Selection
from sere_jax.evals import overlap
from sere_jax.evals.features import collect, normalise
from sere_jax.evals.frozen import cached
from sere_jax.evals.frozen.classification import image_set
from sere_jax.evals.frozen.labelled import image_numbers, open_labelled
from sere_jax.evals.network import EvalError
from sere_jax.evals.outcome import Images, Predictions
from sere_jax.evals.pictures import LeftOut, names, read_examples
from sere_jax.reporting import records
from sere_jax.reporting.progress import track
from sere_jax.types import PyTree

_TOGETHER = 256  # images that wait for a thread


class Part(NamedTuple):
    """One source, and the class of each of its labels."""

    spec: str
    source: Source
    numbers: Int[np.ndarray, " c"]


class Parts(NamedTuple):
    """The images of a protocol."""

    train: Part
    choose: Part  # the images that the best epoch is chosen by
    test: Part
    classes: tuple[str, ...]
    in_both: int  # test images that are training images too

    def digests(self) -> dict[str, str]:
        """What tells the images that are trained on and chosen by from others."""
        return {name: part.source.fingerprint().digest for name, part in (("train", self.train), ("choose", self.choose))}


def open_parts(train: str, validation: str, test: str, *, select: str, share: float, seed: int) -> Parts:
    """Open the sources; with select=split a share of every class of the training images is held out to choose by.

    Raises EvalError for sources without labels, for classes that the training images lack, and where nothing can be held out.
    """
    pair = open_labelled(train, test, ("train", "test"))
    training, tested = Part(train, pair.gallery, pair.gallery_numbers), Part(test, pair.query, pair.query_numbers)
    in_both = int(np.isin(pair.images[1], pair.images[0]).sum())
    if select == "test":
        return Parts(training, tested, tested, pair.classes, in_both)
    if select == "validation":
        other = open_labelled(train, validation, ("train", "validation"))
        return Parts(training, Part(validation, other.query, other.query_numbers), tested, pair.classes, in_both)
    if not isinstance(pair.gallery, Labelled):
        raise EvalError(f"select: found split, and {train!r} does not know its labels beforehand; expected validation or test")
    out = cached.split(pair.gallery.labels(), share, seed)
    fitted, selecting = (Selection(pair.gallery, np.flatnonzero(which)) for which in (~out, out))
    return Parts(
        training._replace(source=fitted),
        Part(f"{share:.0%} of {train}, held out", selecting, pair.gallery_numbers),
        tested,
        pair.classes,
        in_both,
    )


def check_enough(parts: Parts, batch_size: int) -> None:
    """Raise EvalError where the training images do not fill a batch."""
    if len(parts.train.source) < batch_size:
        raise EvalError(f"batch_size: found {batch_size}, expected at most the {len(parts.train.source)} training images")


def notes(parts: Parts, select: str) -> Iterator[str]:
    """Facts about the images that a reader of the scores needs."""
    if select == "test":
        yield "the best epoch was chosen on the test images (select=test): its scores are too good; those of the last epoch are not"
    yield from _too_good(parts.in_both, len(parts.test.source))


def notes_of_both(train: Source, test: Source) -> Iterator[str]:
    """How many test images are training images too, where there are some."""
    numbers = image_numbers(train, test)
    yield from _too_good(int(np.isin(numbers[1], numbers[0]).sum()), len(test))


def _too_good(in_both: int, images: int) -> Iterator[str]:
    if in_both:
        yield f"{in_both:,} of {images:,} test images are training images too: the scores are too good"


def augmented_batches(
    part: Part, transform: Transform, *, seed: int, batch_size: int, total_steps: int, workers: int, reading: ImageReading, repeats: int = 1
) -> Callable[[int], Iterator[LabelledBatch]]:
    """step -> this process's rows of the batches from that step on; labels are numbers of classes."""

    def batches(start_step: int) -> Iterator[LabelledBatch]:
        made = labelled_batches(
            part.source,
            transform=transform,
            maps=False,
            seed=seed,
            batch_size=batch_size,
            total_steps=total_steps,
            start_step=start_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=workers,
            reading=reading,
            repeats=repeats,
        )
        return (batch._replace(labels=part.numbers[batch.labels]) for batch in made)

    return batches


def training_images(spec: str, source: Source, trained: Iterable[Location], reading: ImageReading, *, maps: bool = False) -> Images:
    """The images that the trainings in these directories learned from, with their label maps where there are `maps`.

    They are read once more only where a training met one that cannot be read, to name them all; call it after the last training. Known
    to process 0 only.
    """
    left_out = LeftOut()

    def read(example: Example) -> None:
        image = decode(example.data, reading)
        if maps:
            label_map_of(example.annotation, image.shape[:2], reading.max_pixels)

    def look(position: int) -> None:
        collections.deque(read_examples(source, [position], left_out, read), maxlen=0)

    met = (record.get("data/replaced") for directory in trained for record in records.read(directory))
    if jax.process_index() == 0 and any(met):
        with ThreadPoolExecutor() as pool:
            for start in track(range(0, len(source), _TOGETHER), f"counting the training images that can be read, by {_TOGETHER}"):
                list(pool.map(look, range(start, min(start + _TOGETHER, len(source)))))
    return Images(spec, len(source) - len(left_out), [left_out[position] for position in sorted(left_out)])


class Whole(NamedTuple):
    """How whole images are prepared: the shorter side to `resize` pixels, then the centre `size` x `size`."""

    size: int
    resize: int
    batch_size: int
    workers: int
    reading: ImageReading
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Predicted(NamedTuple):
    """Predictions of a part, and what was read of it."""

    predictions: Predictions
    images: Images


class Predictor:
    """A compiled function from weights to the logits of all images of a part, equal on every process. Make it once.

    Each process handles its own rows, and its devices share them.
    """

    def __init__(self, logits: Callable[[PyTree, PyTree, jax.Array], jax.Array], whole: Whole) -> None:
        mesh = jax.make_mesh((jax.local_device_count(),), ("data",), axis_types=(AxisType.Auto,), devices=jax.local_devices())
        self._whole, self._copies, self._split = whole, NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))

        def run(params: PyTree, running: PyTree, images: jax.Array) -> jax.Array:
            return logits(params, running, normalise(images, whole.mean, whole.std))

        shardings = (self._copies, self._copies, self._split)
        self._run = jax.jit(run, in_shardings=shardings, out_shardings=self._split)

    def __call__(self, params: PyTree, running: PyTree, part: Part) -> Predicted:
        """Predict a part. `params` and `running` are host arrays."""
        whole, devices = self._whole, jax.local_device_count()
        weights = jax.device_put((params, running), self._copies)
        images = image_set("images", part.source, batch_size=whole.batch_size, reading=whole.reading, workers=whole.workers)
        rows: list[dict[str, np.ndarray]] = []

        def predict(batch: EvalBatch) -> jax.Array:
            padded = np.pad(batch.images, ((0, -len(batch.images) % devices), (0, 0), (0, 0), (0, 0)))
            return self._run(*weights, jax.device_put(padded, self._split))

        for batch, logits in overlap.computed(images.batches(whole.size, whole.resize), predict):
            rows.append({"features/logits": logits[: len(batch.valid)], "labels": batch.labels, "index": batch.index, "valid": batch.valid})
        read = collect(rows, ("logits",))
        predictions = Predictions(read.features["logits"], part.numbers[read.labels], read.positions)
        return Predicted(predictions, Images(part.spec, len(read.labels), names(part.source, read.unreadable.tolist())))


def prefixed(scores: Mapping[str, float], prefix: str) -> Iterator[tuple[str, float]]:
    """(prefix/name, value) of each score."""
    return ((f"{prefix}/{name}", value) for name, value in scores.items())
