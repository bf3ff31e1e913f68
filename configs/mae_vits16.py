"""MAE, ViT-S/16, ImageNet-1K, 800 epochs: the masked autoencoder that the papers compare with.

Paper     TPAMI Table 6, row "MAE, ViT-S/16" (800 effective epochs: one crop an image).
Launch    python train.py --config=configs/mae_vits16.py:source=tfds:imagenet2012:train --workdir=RUN
          a smaller batch keeps the peak in proportion: configs/mae_vits16.py:source=folder:DIR,data.batch_size=1024
Cost      249,600 steps of 4,096 images; about 40 GFLOP an image, 4.1e19 in all: an
          estimate, about 4 days on one A100 at 40 % of its bfloat16 peak, if it could
          hold the batch: meant for a few dozen.
Expected  hoped for (the paper's): fine-tuned top-1 80.9 (200 epochs of fine-tuning).
          measured with this code: nothing yet.

Masking, decoder, optimizer and crops are those of MAE's public recipe.
The ViT-S is the papers' comparison: MAE itself has none, and its decoder of 512 channels is kept.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments
from configs.common_mae import mae


def get_config(arg: str = "") -> ConfigDict:
    return arguments(mae("vits", epochs=800), arg)
