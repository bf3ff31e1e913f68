"""DINO + SERE, ResNet-50, ImageNet-S300, 100 epochs: self-relation helps a convolutional network too.

Paper     TPAMI Table 16, row "DINO + SERE" (200 effective epochs: 100 x 2 global crops).
Launch    python train.py --config=configs/dino_sere_resnet50.py:source=classes:S300.txt:tfds:imagenet2012:train --workdir=RUN
          S300.txt holds the 300 classes, a WordNet id a line
Cost      150,300 steps of 256 images (384,862 in the 300 classes); about 75 GFLOP an image, 2.9e18 in all: an
          estimate, about 9 hours on one A100 at 30 % of its bfloat16 peak. A channel relation has 2048 x 2048 entries.
Expected  hoped for (the paper's): VOC 62.5 mIoU / 75.0 mAcc, ImageNet-S300 20.9 val / 20.7 test.
          measured with this code: nothing yet.

The relation losses look at the last map, 7 x 7 x 2048 for 224 pixels, before pooling. The paper's 6 relation heads do not divide 2048
channels: 8 here. Never released, like all of the paper but iBOT + SERE.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments
from configs.common_resnet import dino


def get_config(arg: str = "") -> ConfigDict:
    config = dino("dino_sere")
    config.relation.heads = 8
    return arguments(config, arg)
