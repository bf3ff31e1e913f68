"""DINO with Barlow Twins' batch relation, ViT-S/16, ImageNet-S300, 100 epochs: what self-relation is compared with.

Paper     TPAMI Table 11, row "Barlow" (200 effective epochs: 100 x 2 global crops).
Launch    python train.py --config=configs/dino_barlow_vits16.py:source=classes:S300.txt:tfds:imagenet2012:train --workdir=RUN
          S300.txt holds the 300 classes, a WordNet id a line
Cost      150,300 steps of 256 images (384,862 in the 300 classes); about 75 GFLOP an image, 2.9e18 in all: an
          estimate, about 7 hours on one A100 at 40 % of its bfloat16 peak.
Expected  hoped for (the paper's): VOC 69.5 mIoU / 82.2 mAcc, ImageNet-S300 33.2 val / 32.9 test.
          measured with this code: nothing yet.

The paper's "SERE" row of that table has the figures of DINO with the channel relation alone (Table 8): compare with recipe=dino_channel.
Weight, embedding and projector are not said anywhere; the mean patch behind BatchNorm and ReLU is nearest to the channel relation.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments
from configs.common_s300 import s300


def get_config(arg: str = "") -> ConfigDict:
    return arguments(s300("dino_barlow"), arg)
