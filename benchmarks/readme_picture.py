"""The picture of the README, from the checkpoint of a demo: python -m benchmarks.readme_picture --checkpoint=demo

Two figures of `eval.py`, one above the other: the first image of the first batch with its crops and the points of their overlaps,
and the attention of the trained and of the untrained network. `make demo` makes the checkpoint.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 1000  # pixels, about as wide as a README is shown
QUALITY = 85  # of the JPEG, with colours at full resolution: the points of the overlaps are small


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="demo", help="workdir of the demo")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images" / "demo.jpg")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as workdir:
        command = [
            sys.executable,
            "eval.py",
            "--config=configs/eval/figures.py",
            f"--checkpoint={flags.checkpoint}",
            f"--workdir={workdir}",
        ]
        subprocess.run([*command, "--config.which=('crops','attention')", "--config.images=(0,)"], cwd=ROOT, check=True)
        pictures = [Image.open(Path(workdir) / "figures" / f"{name}.png").convert("RGB") for name in ("crops", "attention")]
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    stacked(pictures).save(flags.output, quality=QUALITY, subsampling=0, optimize=True)
    print(f"{flags.output}: {flags.output.stat().st_size / 1000:.0f} kB")


def stacked(pictures: list[Image.Image]) -> Image.Image:
    """The pictures one above the other, each `WIDTH` pixels wide."""
    scaled = [picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS) for picture in pictures]
    page = Image.new("RGB", (WIDTH, sum(picture.height for picture in scaled)), "white")
    top = 0
    for picture in scaled:
        page.paste(picture, (0, top))
        top += picture.height
    return page


if __name__ == "__main__":
    main()
