"""MoCo v3 + SERE, ViT-S/16 of 12 heads, ImageNet-S300, 100 epochs: self-relation helps a contrastive method too.

Paper     TPAMI Table 7, row "MoCo v3 + SERE" (200 effective epochs: 100 x 2 global crops).
Launch    python train.py --config=configs/mocov3_sere_vits16.py:source=classes:S300.txt:tfds:imagenet2012:train --workdir=RUN
          S300.txt holds the 300 classes, a WordNet id a line.
Cost      150,300 steps of 256 images (384,862 in the 300 classes); about 80 GFLOP an image, 3.1e18 in all: an
          estimate, about 7 hours on one A100 at 40 % of its bfloat16 peak.
Expected  hoped for (the paper's): VOC 67.5 mIoU / 80.6 mAcc, ImageNet-S300 29.1 val / 29.9 test.
          measured with this code: nothing yet.

The authors released no MoCo v3 + SERE code: MoCo v3's recipe with the relation losses of their iBOT + SERE code, alpha = beta = 1 and as
many relation heads as the ViT has, 12, are this project's reading. MoCo's predictor stays on the student's side.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments
from configs.common_mocov3 import vit


def get_config(arg: str = "") -> ConfigDict:
    return arguments(vit("mocov3_sere"), arg)
