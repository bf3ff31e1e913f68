"""What the time limit of decoding costs an image: processor time with and without it, in alternating rounds.

    python -m benchmarks.decode_time_limit [--rounds=9] [--images=200]

JPEGs of noise that is smooth over eight pixels, quality 90. A round decodes one image many times with the limit and as often without.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from sere_jax.data.images import decode
from sere_jax.data.images.reading import DEFAULT_READING


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=200, help="decoded in a round by each")
    options = parser.parse_args()
    for side in (500, 128, 32):
        data = jpeg(side)
        rounds = [(timed(limited, data, options.images), timed(unlimited, data, options.images)) for _ in range(options.rounds)]
        limit, free = (statistics.median(times) for times in zip(*rounds, strict=True))
        cost = statistics.median(a - b for a, b in rounds)
        print(f"{side:4} x {side:3}: {limit:.3f} ms with the limit, {free:.3f} ms without, the limit costs {cost:.3f} ms", flush=True)


def jpeg(side: int) -> bytes:
    coarse = np.random.default_rng(0).integers(0, 256, (-(-side // 8), -(-side // 8), 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(file := io.BytesIO(), "JPEG", quality=90)
    return file.getvalue()


def limited(data: bytes) -> object:
    return decode.decode(data, DEFAULT_READING)


def unlimited(data: bytes) -> object:
    return decode._decode(data, DEFAULT_READING, False)


def timed(function: Callable[[bytes], object], data: bytes, images: int) -> float:
    """Processor time of an image in milliseconds, all threads together."""
    began = time.process_time()
    for _ in range(images):
        function(data)
    return 1000 * (time.process_time() - began) / images


if __name__ == "__main__":
    main()
