"""MoCo v3, ResNet-50, ImageNet-1K, 100 epochs: the contrastive baseline with a convolutional network, by LARS.

Paper     none of SERE's tables; MoCo v3's own 100-epoch recipe (its repository).
Launch    python train.py --config=configs/mocov3_resnet50.py:source=tfds:imagenet2012:train --workdir=RUN
          300 epochs: configs/mocov3_resnet50.py:source=tfds:imagenet2012:train,epochs=300,base_lr=0.3
Cost      31,200 steps of 4,096 images; about 70 GFLOP an image, 8.9e18 in all: an estimate, about 26 hours on one
          A100 at 30 % of its bfloat16 peak, if it could hold the batch: meant for a few dozen.
Expected  hoped for (MoCo v3's repository): linear probe 68.9 top-1.
          measured with this code: nothing yet.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments, pretrain
from configs.common_mocov3 import views


def get_config(arg: str = "") -> ConfigDict:
    config = pretrain()
    config.recipe = "mocov3"
    config.data.batch_size = 4096
    views(config, smallest=0.2)
    config.model.update({"name": "resnet", "variant": "resnet50", "zero_init_residual": True})
    config.mocov3.update({"temperature": 1.0, "projector_layers": 2, "predictor_last_norm": False})
    # Peak 9.6 at 4,096 images. Biases and scales are neither decayed nor rescaled by LARS.
    config.optimizer.update({"name": "lars", "base_lr": 0.6, "min_lr": 0.0, "warmup": "exclusive"})
    config.optimizer.update({"weight_decay": 1e-6, "weight_decay_end": 1e-6, "clip_grad": 0.0})
    return arguments(config, arg)
