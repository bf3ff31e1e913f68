"""What is known of an image besides its class: the class of every pixel, and the objects in it."""

from __future__ import annotations

from typing import NamedTuple

Size = tuple[int, int]  # height, width


class Instance(NamedTuple):
    """One object in an image.

    Attributes:
      label: the class, a position in the source's `object_classes`.
      box: left, top, right and bottom, in pixels of the annotation's `frame`. The right and lower edges are exclusive.
      id: the number that the data set gives the object, as COCO's evaluation needs it.
      area: pixels of the object's region in the frame, 0 where it is not known.
      is_crowd: a group of objects that one box stands for (COCO).
      is_difficult: an object that evaluations leave out (PASCAL VOC).
      segmentation: the object's region as the JSON text of COCO's polygons or run lengths, in pixels of the frame; "" where there is none.
    """

    label: int
    box: tuple[float, float, float, float]
    id: int = 0
    area: float = 0.0
    is_crowd: bool = False
    is_difficult: bool = False
    segmentation: str = ""


class Annotation(NamedTuple):
    """The annotation of one image, as it is stored.

    Attributes:
      label_map: the bytes of a PNG whose pixels are class numbers, in the size of the stored image; None where there is none.
      instances: the objects in the image, () where there are none; None where the data set does not annotate objects.
      frame: height and width of the image that boxes and segmentations are measured in, which may be larger than the stored image.
        (1, 1) means that boxes are shares of the image. None where there are no instances.
      image_id: the number that the data set gives the image, -1 where there is none.
    """

    label_map: bytes | None = None
    instances: tuple[Instance, ...] | None = None
    frame: Size | None = None
    image_id: int = -1
