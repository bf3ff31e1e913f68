"""Linear segmentation on a frozen backbone: BatchNorm and a linear map of each patch token, trained with crops.

Paper     not in SERE's tables; DINOv2 (Oquab et al. 2024) reports it, with the last or the last four blocks.
Launch    python eval.py --config=configs/eval/segmentation_linear.py:train=tfds:VOC:train,test=tfds:VOC:validation --checkpoint=RUN \
            --workdir=RUN
          four blocks of a ViT of depth 12: --config.blocks="(8,9,10,11)"
Cost      a forward pass of 16 crops a step, and nothing for the head.
Expected  above patch_logistic, whose features are not augmented (docs/evaluation.md).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments
from configs.common_segmentation import segmentation


def get_config(arg: str = "") -> ConfigDict:
    config = segmentation("segmentation_linear")
    config.update(
        {
            "head": "linear",
            "blocks": (11,),
            "frozen": True,
            "steps": 10_000,
            "learning_rate": 1e-3,
            "weight_decay": 1e-4,
            "layer_decay": 1.0,
            "drop_path": 0.0,
            "dropout": 0.0,
            "auxiliary_weight": 0.0,
            "average": "counted",
            "eval_every_steps": 1000,
            "random_init": True,
        }
    )
    return arguments(config, arg)
