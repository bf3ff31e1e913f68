"""MAE, ViT-B/16, ImageNet-1K, 800 epochs: the masked autoencoder that the papers compare with.

Paper     TPAMI Table 6, row "MAE, ViT-B/16" (800 effective epochs: one crop an image).
Launch    python train.py --config=configs/mae_vitb16.py:source=tfds:imagenet2012:train --workdir=RUN
          a smaller batch keeps the peak in proportion: configs/mae_vitb16.py:source=folder:DIR,data.batch_size=1024
Cost      249,600 steps of 4,096 images; about 60 GFLOP an image, 6.1e19 in all: an
          estimate, about 6 days on one A100 at 40 % of its bfloat16 peak, if it could
          hold the batch: meant for a few dozen.
Expected  hoped for (the paper's): fine-tuned top-1 83.3.
          measured with this code: nothing yet.

Masking, decoder, optimizer and crops are those of MAE's public recipe.
MAE's longest public run has 1,600 epochs: configs/mae_vitb16.py:epochs=1600 (fine-tuned top-1 83.6, He et al. 2022, table 3).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments
from configs.common_mae import mae


def get_config(arg: str = "") -> ConfigDict:
    return arguments(mae("vitb", epochs=800), arg)
