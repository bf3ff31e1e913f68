"""What the experiments of DINO with a ResNet-50 share: DINO's SGD recipe in the setting of Table 16."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import pretrain


def dino(recipe: str) -> ConfigDict:
    """ImageNet-S300, 100 epochs, batches of 256, two global crops and no local ones."""
    config = pretrain()
    config.recipe = recipe
    config.data.batch_size = 256
    # Local crops, where they are wanted, are DINO's for a ResNet.
    config.views.update({"global_scale": (0.14, 1.0), "local_count": 0, "local_scale": (0.05, 0.14)})
    config.model.update({"name": "resnet", "variant": "resnet50", "drop_path": 0.0})
    config.head.update({"prototypes": 65536, "norm_last_layer": True})
    config.dino.update({"teacher_temp": 0.04, "warmup_teacher_temp": 0.04, "warmup_teacher_temp_epochs": 0})
    config.optimizer.update({"name": "sgd", "momentum": 0.9, "base_lr": 0.03, "min_lr": 1e-6, "warmup_epochs": 10})
    config.optimizer.update({"weight_decay": 1e-4, "weight_decay_end": 1e-4, "decay_bias": False})
    config.optimizer.update({"clip_grad": 3.0, "freeze_last_layer_epochs": 1})
    config.teacher.update({"ema_momentum": 0.996, "ema_momentum_end": 1.0})
    config.schedule.epochs = 100
    config.run.checkpoint_every_steps = 1000
    return config
