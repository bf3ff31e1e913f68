"""One record as the bytes of a shard: the image limited in size, the label map with it, the rest as TFDS features."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from typing import Any

import cv2
import numpy as np
from PIL import Image

from sere_jax.data.annotations.maps import NO_MAP, Coding, decode_label_map
from sere_jax.data.annotations.transforms import crop_map
from sere_jax.data.images.decode import BadImage, decode
from sere_jax.data.images.reading import MAX_PIXELS, ImageReading
from sere_jax.data.prepare.records import Layout, Record
from sere_jax.data.sources.annotation import Instance, Size


@dataclasses.dataclass(frozen=True)
class Sizes:
    """`max_side` limits the longer side, in pixels; 0 keeps files as they are. `quality` is that of the JPEGs then made."""

    max_side: int = 0
    quality: int = 95
    max_pixels: int = MAX_PIXELS


class Encoder:
    """Record -> bytes, by the features of a layout. Used by several threads."""

    def __init__(self, layout: Layout, sizes: Sizes) -> None:
        import tensorflow_datasets as tfds

        self.features = features(layout)
        self._sizes = sizes
        self._layout = layout
        self._serializer = tfds.core.example_serializer.ExampleSerializer(self.features.get_serialized_info())

    def __call__(self, record: Record) -> bytes:
        """Raises BadImage or OSError where the image or its label map cannot be read, or its objects are of an image of another shape."""
        data, stored, original = shrink(record.image.read(), self._sizes)
        # Of a set that was shrunk before: the size that its boxes and segmentations are measured in. (1, 1) are shares.
        frame = original if record.frame is None or record.frame == (1, 1) else record.frame
        check_frame(frame, original)
        example: dict[str, Any] = {
            "image": io.BytesIO(data),
            "file_name": printable(record.name),
            "sha256": hashlib.sha256(data).hexdigest(),
            "original_size": np.array(frame, np.int32),
        }
        if self._layout.classes:
            example["label"] = record.label
        if self._layout.has_ids:
            example["image_id"] = record.id
        if self._layout.map_classes is not None:
            example["segmentation"] = io.BytesIO(label_map(record, self._layout.map_coding, original, stored))
        if self._layout.object_classes is not None:
            example["objects"] = objects(record.instances, record.frame or original)
        # Otherwise the order of a record's keys changes from one process to the next, and with it the files of machines that share a set.
        return self._serializer.get_tf_example(self.features.encode_example(example)).SerializeToString(deterministic=True)


def features(layout: Layout) -> Any:
    """The TFDS features of a layout. `original_size` is (height, width) before any shrinking; boxes are shares of it."""
    import tensorflow_datasets as tfds

    kinds: dict[str, Any] = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "file_name": tfds.features.Text(),
        "sha256": tfds.features.Text(),
        "original_size": tfds.features.Tensor(shape=(2,), dtype=np.int32),
    }
    if layout.classes:
        kinds["label"] = tfds.features.ClassLabel(names=[printable(name) for name in layout.classes])
    if layout.has_ids:
        kinds["image_id"] = np.int64
    if layout.map_classes is not None:
        names = [printable(name) for name in layout.map_classes] or None
        kinds["segmentation"] = tfds.features.LabeledImage(labels=names, shape=(None, None, 1), dtype=np.uint16, encoding_format="png")
    if layout.object_classes is not None:
        kinds["objects"] = tfds.features.Sequence(
            {
                "bbox": tfds.features.BBoxFeature(),
                "label": tfds.features.ClassLabel(names=[printable(name) for name in layout.object_classes]),
                "id": np.int64,
                "area": np.float32,
                "is_crowd": np.bool_,
                "is_difficult": np.bool_,
                "segmentation": tfds.features.Text(),
            }
        )
    return tfds.features.FeaturesDict(kinds)


def printable(name: str) -> str:
    """The name as TFDS can store it: names that are not UTF-8 or hold line breaks are escaped."""
    return name if name.isprintable() else ascii(name)[1:-1]


def shrink(data: bytes, sizes: Sizes) -> tuple[bytes, tuple[int, int], tuple[int, int]]:
    """The file to store, its (height, width), and the (height, width) before.

    With a limit every image becomes a JPEG (4:2:0) whose longer side is at most `max_side`, by Pillow's antialiased bicubic; a file
    within the limit stays what it is where that is no larger. Every image is decoded, so that none in a prepared set is bad.
    """
    pixels = decode(data, ImageReading(max_pixels=sizes.max_pixels))
    height, width = pixels.shape[:2]
    if not sizes.max_side:
        return data, (height, width), (height, width)
    factor = min(1.0, sizes.max_side / max(height, width))
    size = (height, width) if factor == 1 else (max(1, round(height * factor)), max(1, round(width * factor)))
    if factor < 1:
        pixels = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC))
    encoded = _jpeg(pixels, sizes.quality)
    return (data if factor == 1 and len(data) <= len(encoded) else encoded), size, (height, width)


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """4:2:0, with Huffman tables made for this image: 4 % fewer bytes to store and to decode."""
    options = {
        cv2.IMWRITE_JPEG_QUALITY: quality,
        cv2.IMWRITE_JPEG_OPTIMIZE: 1,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR: cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    }
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [number for pair in options.items() for number in pair])
    if not done:
        raise BadImage(f"{pixels.shape[1]} x {pixels.shape[0]} pixels cannot be a JPEG")
    return encoded.tobytes()


def label_map(record: Record, coding: Coding, original: Size, stored: Size) -> bytes:
    """The label map as a 16-bit grey PNG in the size of the stored image, by the nearest neighbour; all NO_MAP where there is none.

    `coding` says how the source stores a class. Raises BadImage for a map that cannot be read, or whose size is not the image's.
    """
    if record.label_map is None:
        classes = np.full(original, NO_MAP, np.uint16)
    else:
        classes = decode_label_map(record.label_map.read(), coding=coding)
    if classes.shape != tuple(original):
        raise BadImage(f"its label map has {classes.shape[1]} x {classes.shape[0]} pixels, the image {original[1]} x {original[0]}")
    buffer = io.BytesIO()
    Image.fromarray(crop_map(classes, (0, 0, *original[::-1]), False, stored)).save(buffer, "PNG")
    return buffer.getvalue()


def check_frame(frame: Size, image: Size) -> None:
    """Raises BadImage where an image is no smaller or larger copy of the frame that its boxes are measured in, up to a pixel.

    A turned photograph is one: some tools apply an EXIF tag and some do not.
    """
    factor = max(image) / max(frame)
    if any(abs(side - factor * whole) > 1 for side, whole in zip(image, frame, strict=True)):
        raise BadImage(f"an image of {image[1]} x {image[0]} pixels, its boxes are measured in one of {frame[1]} x {frame[0]}")


def objects(instances: tuple[Instance, ...], frame: Size) -> list[dict[str, Any]]:
    """Objects with boxes as shares (top, left, bottom, right) of `frame` (height, width), cut at its edges."""
    import tensorflow_datasets as tfds

    height, width = frame

    def share(value: float, whole: int) -> float:
        return min(1.0, max(0.0, value / whole))

    rows = []
    for instance in instances:
        left, top, right, bottom = instance.box
        box = tfds.features.BBox(share(top, height), share(left, width), share(bottom, height), share(right, width))
        others = {key: value for key, value in instance._asdict().items() if key != "box"}
        rows.append({"bbox": box} | others)
    return rows


def fingerprint(layout: Layout, spec: str, sizes: Sizes, per_shard: int) -> dict[str, Any]:
    """Everything that the output depends on. A preparation resumes from the shards of another with the same fingerprint."""
    names = {}
    for split, records in layout.splits.items():
        digest = hashlib.sha256()
        for record in records if isinstance(records, list) else ():
            digest.update(printable(record.name).encode() + b"\0%d\0" % record.label)
        names[split] = {"records": len(records), "names_sha256": digest.hexdigest()}
    about = json.dumps(layout.fields(), sort_keys=True)
    return {
        "source": spec,
        "splits": names,
        "features_sha256": hashlib.sha256(about.encode()).hexdigest(),
        "records_per_shard": per_shard,
        **dataclasses.asdict(sizes),
    }
