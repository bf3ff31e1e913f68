"""Images a second of feature extraction: `python -m sere_jax extract`'s path, and a PyTorch loop over a ViT of the same size.

    taskset -c 0 python -m benchmarks.extraction --rounds=5                    # ViT-S/16 at 224 pixels, on one core
    taskset -c 0 python -m benchmarks.extraction --rounds=5 --compute_only     # images decoded beforehand

Both read the same JPEG files, resize the shorter side, cut the centre, normalise, and compute the cls token in float32. The PyTorch
loop is what people write: Pillow's bicubic resize, a batch, `model(batch)` under `inference_mode`. Its attention is
`scaled_dot_product_attention`. Rounds alternate; medians of images a second of CPU time, which other work on the machine disturbs less
than wall time, and ratios of each round. The first round of both, with compilation, is not measured.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from sere_jax.commands.extract import extract
from sere_jax.data.sources.open import open_source
from sere_jax.data.sources.subset import Selection
from sere_jax.evals.features import Extractor
from sere_jax.models.vit import ViT
from sere_jax.weights.backbone import Backbone
from sere_jax.weights.beside import IMAGENET_MEAN, IMAGENET_STD, Preprocess


class Block(nn.Module):
    """A pre-norm block, as timm's."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        return x + self.mlp(self.norm2(x))


class TorchViT(nn.Module):
    """A plain ViT with a cls token."""

    def __init__(self, width: int, depth: int, heads: int, patch: int, size: int):
        super().__init__()
        self.patch = nn.Conv2d(3, width, patch, stride=patch)
        self.cls, self.positions = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 1 + (size // patch) ** 2, width))
        self.blocks, self.norm = nn.Sequential(*(Block(width, heads) for _ in range(depth))), nn.LayerNorm(width, eps=1e-6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2)
        return self.norm(self.blocks(torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.positions))[:, 0]


def by_pillow(data: bytes, size: int, resize: int) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGB")
    scale = resize / min(image.size)
    image = image.resize((max(resize, int(image.width * scale)), max(resize, int(image.height * scale))), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


class Ours:
    """The command's own function, which also writes its Parquet files; or, on decoded images, its compiled network."""

    def __init__(self, options: argparse.Namespace, source: Selection, decoded: list[np.ndarray]) -> None:
        module = ViT(options.width, options.depth, options.heads, options.patch, options.size)
        size, resize = options.size, options.size * 256 // 224
        prepare = Preprocess(size, resize)
        shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))["params"]
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.02, leaf.shape), jnp.float32), shapes)
        self._backbone, self._source, self._batch = Backbone(module, params, prepare), source, options.batch_size
        self._decoded = [self._batch_of(decoded, start) for start in range(0, len(decoded), self._batch)]
        self._workers = options.workers
        self._extractor = Extractor(self._backbone.apply, mean=IMAGENET_MEAN, std=IMAGENET_STD, tokens=("cls",))
        self._directory = tempfile.TemporaryDirectory()
        self._round = 0

    def __call__(self) -> int:
        if self._decoded:
            return len(self._extractor(self._backbone.params, self._decoded).labels)
        self._round += 1
        output = Path(self._directory.name) / str(self._round)
        return extract(self._backbone, self._source, output, batch_size=self._batch, workers=self._workers).images

    def _batch_of(self, decoded: list[np.ndarray], start: int) -> EvalBatch:
        images = np.stack(decoded[start : start + self._batch])
        return EvalBatch(images, np.zeros(len(images), np.int32), start + np.arange(len(images)), np.ones(len(images), bool))


class Theirs:
    """The PyTorch loop."""

    def __init__(self, options: argparse.Namespace, source: Selection, decoded: list[np.ndarray]) -> None:
        self._model = TorchViT(options.width, options.depth, options.heads, options.patch, options.size).eval()
        self._size, self._resize, self._batch = options.size, options.size * 256 // 224, options.batch_size
        self._source, self._decoded = source, decoded
        self._mean, self._std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))

    def __call__(self) -> int:
        features = []
        with torch.inference_mode():
            for start in range(0, len(self._source), self._batch):
                numbers = range(start, min(start + self._batch, len(self._source)))
                images = [self._decoded[i] if self._decoded else by_pillow(self._source[i].data, self._size, self._resize) for i in numbers]
                pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
                features.append(self._model((pixels / 255 - self._mean) / self._std).numpy())
        return sum(map(len, features))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"images": 128, "width": 384, "depth": 12, "heads": 6, "patch": 16, "size": 224, "batch_size": 32, "rounds": 5, "workers": 0}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--data", default="bundled", help="any source; the first --images of it")
    parser.add_argument("--compute_only", action="store_true", help="images are decoded beforehand, and nothing is written")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; JAX takes the cores that it may use")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    source = Selection(open_source(options.data), np.arange(options.images))
    decoded = []
    if options.compute_only:
        decoded = [by_pillow(source[i].data, options.size, options.size * 256 // 224) for i in range(options.images)]
    contestants: dict[str, Callable[[], int]] = {
        "this project": Ours(options, source, decoded),
        "PyTorch": Theirs(options, source, decoded),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds + 1):
        for name, run in contestants.items():
            began = time.process_time()
            count = run()
            rates[name].append(count / (time.process_time() - began))
    network = f"ViT of width {options.width}, {options.depth} blocks"
    print(f"{options.images} images of {options.size} pixels, {network}, batches of {options.batch_size}; images per CPU second, medians")
    for name, values in rates.items():
        print(f"{name:14} {statistics.median(values[1:]):8.2f}   rounds {' '.join(f'{value:.2f}' for value in values[1:])}")
    ratios = [ours / theirs for ours, theirs in zip(rates["this project"][1:], rates["PyTorch"][1:], strict=True)]
    print(f"ours / PyTorch {statistics.median(ratios):8.2f}   rounds {' '.join(f'{value:.2f}' for value in ratios)}")


if __name__ == "__main__":
    main()
