"""DINO+, ViT-S/16, ImageNet-S300, 100 epochs: DINO with a clustering loss on the patches that two crops share.

Paper     TPAMI Table 10, row "DINO+" (200 effective epochs: 100 x 2 global crops).
Launch    python train.py --config=configs/dinoplus_vits16.py:source=classes:S300.txt:tfds:imagenet2012:train --workdir=RUN
          S300.txt holds the 300 classes, a WordNet id a line
Cost      150,300 steps of 256 images (384,862 in the 300 classes); about 90 GFLOP an image, 3.5e18 in all: an
          estimate, about 8 hours on one A100 at 40 % of its bfloat16 peak.
Expected  hoped for (the paper's): VOC 72.6 mIoU / 84.3 mAcc, ImageNet-S300 40.0 val / 40.4 test.
          measured with this code: nothing yet.

The paper says no more than "clustering loss using patch-level embeddings": the alignment, the shared head, the separate center and
the weight 1 are this project's reading (docs/recipes.md).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments
from configs.common_s300 import s300


def get_config(arg: str = "") -> ConfigDict:
    return arguments(s300("dinoplus"), arg)
