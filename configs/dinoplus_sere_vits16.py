"""DINO+ with SERE, ViT-S/16, ImageNet-S300, 100 epochs: self-relations beside patch-level clustering.

Paper     TPAMI Table 10, row "DINO+ and SERE" (200 effective epochs: 100 x 2 global crops).
Launch    python train.py --config=configs/dinoplus_sere_vits16.py:source=classes:S300.txt:tfds:imagenet2012:train --workdir=RUN
          S300.txt holds the 300 classes, a WordNet id a line
Cost      150,300 steps of 256 images (384,862 in the 300 classes); about 93 GFLOP an image, 3.6e18 in all: an
          estimate, about 8 hours on one A100 at 40 % of its bfloat16 peak.
Expected  hoped for (the paper's): VOC 75.0 mIoU / 86.1 mAcc, ImageNet-S300 44.8 val / 46.0 test.
          measured with this code: nothing yet.

What DINO+ is here: `dinoplus_vits16.py`. The relations have the weights that they have beside DINO.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments
from configs.common_s300 import s300


def get_config(arg: str = "") -> ConfigDict:
    return arguments(s300("dinoplus_sere"), arg)
