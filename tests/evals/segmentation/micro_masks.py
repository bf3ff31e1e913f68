"""Images of coloured rectangles whose label maps say the colour: a segmentation that patches alone can solve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = np.array([[40, 40, 40], [220, 60, 50], [60, 200, 80]])
CLASSES = ("ground", "red", "green")


def scene(rng: np.random.Generator, height: int = 40, width: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """An image and its label map: two rectangles on a ground, some noise, one ignored column at the border."""
    label_map = np.zeros((height, width), np.uint8)
    for number in (1, 2):
        top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
        label_map[top : top + height // 2, left : left + width // 2] = number
    image = np.clip(COLOURS[label_map] + rng.integers(-20, 21, (height, width, 3)), 0, 255).astype(np.uint8)
    label_map[:, -1] = 255
    return image, label_map


def masked(directory: Path, count: int, seed: int = 0) -> str:
    """The text of a source of such images, in two classes' folders as label maps of real sets lie."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        image, label_map = scene(rng)
        for folder, pixels in (("images", image), ("masks", label_map)):
            (directory / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(directory / folder / f"{number:02}.png")
    (directory / "masks" / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return f"masks:{directory / 'masks'}:folder:{directory / 'images'}"
