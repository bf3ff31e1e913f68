"""Fine-tuning on 1 % or 10 % of the labels, from the first layer of the projection head: iBOT's semi-supervised evaluation.

Paper     TPAMI Tab. 4: ViT-S/16 on SimCLR's lists of ImageNet-1k (12,811 and 128,116 images), 1000 epochs, AdamW, batch 1024, rate 1e-5.
Launch    python eval.py --config=configs/eval/semi.py:train=tfds:imagenet2012_subset/1pct:train,test=tfds:imagenet2012:validation \
            --checkpoint=RUN --workdir=RUN
          the images may also be named by a file: train=list:FILE, a path, a tab and a class a line
Cost      1000 epochs of the listed images at 224 pixels, and as much for the row of the random initialisation.
Expected  DINO 52.1 (1 %), 70.0 (10 %) -> DINO + SERE 55.9, 71.5 top-1; hoped for, not measured with this code.

The rate is 1e-5 throughout, since iBOT's lowest is 1e-5 too. Each image is shown three times in a row (repeated augmentation), and an
epoch holds a third of the images.
A file that holds the backbone alone needs head_layer=0.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments
from configs.common_fine_tune import fine_tuning


def get_config(arg: str = "") -> ConfigDict:
    config = fine_tuning("semi")
    config.update(
        {
            "pool": "cls",
            "head_layer": 1,
            "head_std": 0.02,
            "epochs": 1000,
            "base_lr": 2.5e-6,
            "min_lr": 1e-5,
            "batch_size": 1024,
            "layer_decay": 1.0,
            "repeats": 3,
            "eval_every_epochs": 10,
        }
    )
    return arguments(config, arg)
