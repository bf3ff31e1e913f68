"""What the probes of patch tokens share: their keys, the tokens of whole images, and the images to choose settings on."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Float, Int, UInt8

from sere_jax.config.keys import RULES as TRAINING
from sere_jax.config.rule import BOOL, TEXT, Rule, choice, count
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.images.resize import resize_bicubic
from sere_jax.data.sources.example import Source
from sere_jax.evals.features import normalise, to_host
from sere_jax.evals.frozen.comparison import SIDE
from sere_jax.evals.frozen.labelled import image_numbers
from sere_jax.evals.network import EvalError, Network, prepared
from sere_jax.evals.outcome import Images
from sere_jax.evals.pictures import LeftOut
from sere_jax.evals.segmentation.images import MaskedPicture, patch_classes, read_masked
from sere_jax.evals.segmentation.label_check import check_label_maps
from sere_jax.evals.segmentation.labelling import NONE, Labelling, check_same_classes, labelling, open_masked
from sere_jax.evals.segmentation.scores import ABSENT
from sere_jax.reporting.progress import track
from sere_jax.types import PyTree

RULES: Mapping[str, Rule] = {
    "train": TEXT,
    "test": TEXT,
    "train_images": count(),
    "classes": count(),
    "ignore": Rule(int, low=0, high=65535, length=0),
    "zero_ignored": BOOL,
    "absent": choice(*ABSENT),
    "select": choice("split", "test"),
    "held_out": Rule(float, low=0.0, high=0.9, above=True),
    "size": SIDE,
    "batch_size": count(1),
    "backend": TRAINING["data.backend"],
    "max_pixels": TRAINING["data.max_pixels"],
    "baselines": BOOL,
    "save_predictions": BOOL,
    "panels": count(),
    "seed": TRAINING["seed"],
}
Item = TypeVar("Item")
_PIXELS = 4  # side to which a patch is shrunk for the baseline of raw pixels


class PatchSettings(NamedTuple):
    """The keys that every probe of patch tokens has."""

    train: str
    test: str
    train_images: int
    classes: int
    ignore: tuple[int, ...]
    zero_ignored: bool
    absent: Any
    select: str
    held_out: float
    size: int
    batch_size: int
    reading: ImageReading
    baselines: bool
    save_predictions: bool
    panels: int
    seed: int


class Sources(NamedTuple):
    """The opened sources and the images of each part, as positions."""

    train: Source
    test: Source
    labelling: Labelling
    positions: Int[np.ndarray, " n"]  # of the training images
    selecting: Int[np.ndarray, " m"]  # those of them that settings are chosen on; with select=test none
    in_both: int  # test images that are training images too


class Tokens(NamedTuple):
    """The tokens of one image."""

    picture: MaskedPicture
    patches: Float[np.ndarray, "h w d"]


class Patches(NamedTuple):
    """Labelled patches of the training images; those without a class are left out."""

    features: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]
    images: Int[np.ndarray, " n"]  # positions of their images


Encode = Callable[[Iterable[MaskedPicture]], Iterator[Tokens]]


def open_sources(settings: PatchSettings) -> Sources:
    """Open both sources and look at their label maps.

    Raises EvalError where label maps are missing or cannot be used (`check_label_maps`), or no image is left to choose settings on.
    """
    train, test = open_masked("train", settings.train), open_masked("test", settings.test)
    classes = labelling(train, classes=settings.classes, ignore=settings.ignore, zero_ignored=settings.zero_ignored)
    check_same_classes(train, test)
    order = np.random.default_rng(settings.seed).permutation(len(train))
    positions = np.sort(order[: settings.train_images or len(train)])
    selecting = positions[:0]
    if settings.select == "split":
        number = min(max(1, round(settings.held_out * len(positions))), len(positions) - 1)
        if number < 1:
            raise EvalError("select: found split and one training image; expected at least two, or select=test")
        selecting = np.sort(order[: len(positions)][:number])
    check_label_maps("train", train, classes, settings.reading, positions)
    check_label_maps("test", test, classes, settings.reading)
    pair = image_numbers(train, test)
    return Sources(train, test, classes, positions, selecting, int(np.isin(pair[1], pair[0][positions]).sum()))


def encoder(network: Network, size: int, batch_size: int) -> tuple[Encode, int]:
    """The encoder of a network's own parameters, and the side in pixels that images are resized to."""
    make, side = encoders(network, size, batch_size)
    return make(to_host(network.params)), side


def encoders(network: Network, size: int, batch_size: int) -> tuple[Callable[[PyTree], Encode], int]:
    """Parameters, as host arrays -> a function from images to their patch tokens after the final norm; and the side of the images.

    The whole image is resized to a square, so that no part of it is cut off. The devices of this process share a batch. Compiled once.
    """
    side = prepared(network, size, 0)[0]
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    rows, copies = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())

    @functools.partial(jax.jit, in_shardings=(copies, rows), out_shardings=rows)
    def run(params: Any, images: Any) -> jax.Array:
        return jnp.asarray(network.apply(params, normalise(images, network.mean, network.std)).patches).astype(jnp.float32)

    whole = -(-batch_size // len(devices)) * len(devices)

    def encode(params: PyTree, pictures: Iterable[MaskedPicture]) -> Iterator[Tokens]:
        for group in grouped(pictures, batch_size):
            images = np.zeros((whole, side, side, network.channels), np.uint8)
            for row, picture in enumerate(group):
                images[row] = resize_bicubic(picture.pixels, side, side)
            patches = np.asarray(run(params, jax.device_put(images, rows)))
            yield from (Tokens(picture, patches[row]) for row, picture in enumerate(group))

    def make(params: PyTree) -> Encode:
        return functools.partial(encode, jax.device_put(params, copies))

    return make, side


def raw_pixels(network: Network, side: int) -> Encode:
    """The baseline: the pixels of each patch, shrunk to 4 x 4, in [0, 1]."""
    cells = side // network.patch

    def encode(pictures: Iterable[MaskedPicture]) -> Iterator[Tokens]:
        for picture in pictures:
            yield Tokens(picture, _shrunk(picture.pixels, cells))

    return encode


def _shrunk(pixels: UInt8[np.ndarray, "H W c"], cells: int) -> Float[np.ndarray, "h w d"]:
    small = resize_bicubic(pixels, cells * _PIXELS, cells * _PIXELS).astype(np.float32) / 255
    blocks = small.reshape(cells, _PIXELS, cells, _PIXELS, -1).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(blocks.reshape(cells, cells, -1))


def grouped(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter.

    >>> list(grouped("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group


def training_patches(encode: Encode, sources: Sources, reading: ImageReading, left_out: LeftOut, name: str = "") -> Patches:
    """The labelled patches of all training images, with the progress of `name`. Raises EvalError where there is none."""
    parts: list[Patches] = []
    positions: Iterable[int] = sources.positions.tolist()
    if name:
        positions = track(positions, f"{name}: training images")
    pictures = read_masked(sources.train, positions, sources.labelling, left_out, reading)
    for picture, patches in encode(pictures):
        labels = patch_classes(picture.truth, patches.shape[:2], len(sources.labelling.classes)).ravel()
        counted = labels != NONE
        images = np.full(int(counted.sum()), picture.position, np.int64)
        parts.append(Patches(patches.reshape(len(labels), -1)[counted], labels[counted], images))
    if not sum(len(part.labels) for part in parts):
        raise EvalError("train: found no patch with a class; expected label maps with other numbers than the ignored ones")
    return Patches(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def images_of(settings: PatchSettings, sources: Sources, left_out: Mapping[str, LeftOut]) -> dict[str, Images]:
    """What a report says of the images."""
    sizes: Sequence[tuple[str, str, int]] = (("train", settings.train, len(sources.positions)), ("test", settings.test, len(sources.test)))
    return {part: Images(spec, total - len(left_out[part]), list(left_out[part].values())) for part, spec, total in sizes}


def notes(settings: PatchSettings, sources: Sources, side: int, patch: int) -> Iterator[str]:
    """Facts that a reader of the scores needs."""
    cells = side // patch
    yield f"every image is resized to {side} x {side} pixels ({cells} x {cells} patches); predictions are stretched to its own size"
    if settings.select == "test":
        yield "settings were chosen on the test images (select=test): the scores are too good, and no estimate for new images"
    if sources.in_both:
        yield f"{sources.in_both:,} of {len(sources.test):,} test images are training images too: the scores are too good"
