"""Weighted k-NN on frozen features: how good is a network before anything is fitted to labels?

Paper     not in SERE's tables; the DINO evaluation (T = 0.07, k = 10, 20, 100, 200; shorter side 256, centre 224).
Launch    python eval.py --config=configs/eval/knn.py:bundled --checkpoint=RUN --workdir=RUN --config.baselines=True
          python eval.py --config=configs/eval/knn.py:gallery=tfds:imagenet2012:train,query=tfds:imagenet2012:validation \
            --checkpoint=RUN --workdir=RUN
Cost      one forward pass an image: seconds for the bundled photographs; 1.33 M images for ImageNet-1k.
Expected  DINO ViT-S/16, 100 epochs: 69.3 top-1 on ImageNet-1k (Caron et al.); measured with this code: docs/results.md.

The argument is `bundled`, or `key=value,...` as everywhere. Several checkpoints (--checkpoint=A,B) share one table.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict(
        {
            "protocol": "knn",
            "gallery": "",  # labelled images that vote: bundled:gallery | folder:DIR | tfds:NAME[/CONFIG]:SPLIT
            "query": "",  # labelled images to be classified
            "tokens": ("cls",),  # one row each: cls | patches (the mean patch token) | cls+patches
            "neighbours": (10, 20, 100, 200),  # k; those larger than the gallery are clipped to it
            "temperature": 0.07,  # a neighbour's weight is exp(cosine / temperature)
            "size": 0,  # pixels of the centre crop; 0: what the network was trained on
            "resize": 0,  # pixels of the shorter side before it; 0: the network's, or size x 256 / 224
            "batch_size": 64,
            "workers": 0,  # threads that decode
            "backend": "fast",  # decoder of JPEGs: fast | pil; resizing is Pillow's bicubic with either
            "max_pixels": 50_000_000,  # larger images count as unreadable
            "baselines": False,  # also raw pixels, a colour histogram and the randomly initialised network
            "seed": 0,  # of that network
        }
    )
    if arg == "bundled" or arg.startswith("bundled,"):
        config.update({"gallery": "bundled:gallery", "query": "bundled:query"})
        arg = arg.removeprefix("bundled").removeprefix(",")
    return arguments(config, arg)
