"""DINO, ResNet-50, ImageNet-S300, 100 epochs: the baseline of self-relation with a convolutional network.

Paper     TPAMI Table 16, row "DINO" (200 effective epochs: 100 x 2 global crops).
Launch    python train.py --config=configs/dino_resnet50.py:source=classes:S300.txt:tfds:imagenet2012:train --workdir=RUN
          S300.txt holds the 300 classes, a WordNet id a line
Cost      150,300 steps of 256 images (384,862 in the 300 classes); about 70 GFLOP an image, 2.7e18 in all: an
          estimate, about 8 hours on one A100 at 30 % of its bfloat16 peak.
Expected  hoped for (the paper's): VOC 61.6 mIoU / 74.6 mAcc, ImageNet-S300 20.2 val / 19.9 test.
          measured with this code: nothing yet.

Optimizer and crops are those of DINO's own ResNet-50; that the paper's run had two views is this project's reading.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments
from configs.common_resnet import dino


def get_config(arg: str = "") -> ConfigDict:
    return arguments(dino("dino"), arg)
