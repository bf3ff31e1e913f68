"""DINO, ViT-S/16, ImageNet-1K, 100 epochs: the baseline of SERE.

Paper     TPAMI Tables 1, 2, 4 and 5, row "DINO, ViT-S/16" (300 effective epochs: 100 x 2 global and 4 local crops).
Launch    python train.py --config=configs/dino_vits16.py:source=tfds:imagenet2012:train --workdir=RUN
          another source or length: configs/dino_vits16.py:source=folder:DIR,epochs=300
Cost      250,200 steps of 512 images; about 95 GFLOP an image, 1.2e19 in all: an estimate, about 27 hours on one
          A100 at 40 % of its bfloat16 peak.
Expected  hoped for (the paper's): fine-tuned top-1 / top-5 79.7 / 95.1; VOC 77.1 mIoU, ADE20K 42.6 mIoU.
          measured with this code: nothing yet.

Teacher temperature (0.04, constant) and norm_last_layer (True) are DINO's defaults: the paper names neither.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments, full_size


def get_config(arg: str = "") -> ConfigDict:
    config = full_size()
    config.recipe = "dino"
    config.run.checkpoint_every_steps = 1000
    return arguments(config, arg)
