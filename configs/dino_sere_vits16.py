"""DINO + SERE, ViT-S/16, ImageNet-1K, 100 epochs: the paper's main result with DINO.

Paper     TPAMI section 4.1; Tables 1, 2, 4 and 5, row "DINO + SERE, ViT-S/16" (300 effective epochs).
Launch    python train.py --config=configs/dino_sere_vits16.py:source=tfds:imagenet2012:train --workdir=RUN
          another source or weights: configs/dino_sere_vits16.py:source=folder:DIR,alpha=0.2,beta=0.5
Cost      250,200 steps of 512 images; about 100 GFLOP an image, 1.3e19 in all: an estimate, about 28 hours on one
          A100 at 40 % of its bfloat16 peak.
Expected  hoped for (the paper's): fine-tuned top-1 / top-5 80.9 / 95.5; VOC 79.7 mIoU, ADE20K 43.8 mIoU.
          measured with this code: nothing yet.

The authors released no DINO + SERE code: the recipe is DINO's with the relation losses as their iBOT + SERE code
computes them. alpha = beta = 1 gives the image loss weight (4 - 1 - 1) / 2 = 1, where code and paper agree.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments, full_size


def get_config(arg: str = "") -> ConfigDict:
    config = full_size()
    config.run.checkpoint_every_steps = 1000
    return arguments(config, arg)
