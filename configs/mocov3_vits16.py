"""MoCo v3, ViT-S/16 of 12 heads, ImageNet-S300, 100 epochs: the baseline of MoCo v3 + SERE.

Paper     TPAMI Table 7, row "MoCo v3" (200 effective epochs: 100 x 2 global crops).
Launch    python train.py --config=configs/mocov3_vits16.py:source=classes:S300.txt:tfds:imagenet2012:train --workdir=RUN
          S300.txt holds the 300 classes, a WordNet id a line. MoCo v3's own 300-epoch recipe on ImageNet-1K:
          configs/mocov3_vits16.py:source=tfds:imagenet2012:train,epochs=300,data.batch_size=4096,warmup_epochs=40
Cost      150,300 steps of 256 images (384,862 in the 300 classes); about 75 GFLOP an image, 2.9e18 in all: an
          estimate, about 6 hours on one A100 at 40 % of its bfloat16 peak.
Expected  hoped for (the paper's): VOC 65.7 mIoU / 78.7 mAcc, ImageNet-S300 24.0 val / 24.8 test.
          measured with this code: nothing yet.

Architecture, start, augmentation, optimizer and momentum are those of MoCo v3's own code. The paper does not say how it was shortened:
batch 256 and a warm-up of 10 epochs are this project's reading.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments
from configs.common_mocov3 import vit


def get_config(arg: str = "") -> ConfigDict:
    return arguments(vit("mocov3"), arg)
