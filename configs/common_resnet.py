"""What the experiments of DINO with a ResNet-50 share: DINO's SGD recipe in the setting of Table 16."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import pretrain


def dino(recipe: str) -> ConfigDict:
    """ImageNet-S300, 100 epochs, batches of 256, two global crops and no local ones."""
    config = pretrain()
    config.recipe = recipe
    config.data.batch_size = 256
    # Local crops, where they are wanted, are DINO's for a ResNet: local_count=6,local_scale=(0.05,0.14).
    config.views.update({"global_scale": (0.14, 1.0), "local_count": 0})
    config.model.update({"name": "resnet", "variant": "resnet50", "drop_path": 0.0})
    config.optimizer.update({"name": "sgd", "base_lr": 0.03, "weight_decay": 1e-4, "weight_decay_end": 1e-4})
    config.run.checkpoint_every_steps = 1000
    return config
