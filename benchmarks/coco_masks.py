"""How far masks differ from pycocotools': those of `sere_jax`, and OpenCV's fillPoly with corners rounded to pixels.

    python -m benchmarks.coco_masks DIR/instances.json

Needs requirements-test.txt. Images are not read.
"""

from __future__ import annotations

import json
import sys
import time

import cv2
import numpy as np
from pycocotools import mask as coco

from sere_jax.data.annotations.coco import read_coco
from sere_jax.data.annotations.regions import decode_region


def main(path: str) -> None:
    objects = pixels = ours = opencv = 0
    seconds = 0.0
    for image in read_coco(path).images:
        for instance in image.instances:
            segmentation = json.loads(instance.segmentation or "[]")
            if not segmentation:
                continue
            runs = coco.frPyObjects(segmentation, *image.frame)
            expected = coco.decode(coco.merge(runs) if isinstance(runs, list) else runs).astype(bool)
            start = time.perf_counter()
            decoded = decode_region(instance.segmentation, *image.frame)
            seconds += time.perf_counter() - start
            filled = np.zeros(image.frame, np.uint8)
            for polygon in segmentation if isinstance(segmentation, list) else ():
                cv2.fillPoly(filled, [np.round(np.reshape(polygon, (-1, 2))).astype(np.int32)], 1)
            objects, pixels = objects + 1, pixels + int(expected.sum())
            ours += int((decoded != expected).sum())
            opencv += int((filled.astype(bool) != expected).sum()) if isinstance(segmentation, list) else 0
    print(f"{objects:,} objects, {pixels:,} pixels inside, {1000 * seconds / max(objects, 1):.2f} ms an object")
    print(f"pixels that differ from pycocotools': sere_jax {ours:,}, OpenCV {opencv:,}")


if __name__ == "__main__":
    main(sys.argv[1])
