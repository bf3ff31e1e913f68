"""What the MoCo v3 experiments share: its views, colours, momentum and schedule, with a ViT."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import full_size


def views(config: ConfigDict, smallest: float) -> None:
    """Two crops. MoCo v3 mirrors them last, after the colours; colours and mirroring commute, so here the crop is mirrored."""
    config.views.update({"global_scale": (smallest, 1.0), "local_count": 0})
    # Cosine over the run; the teacher moves before its keys are made.
    config.teacher.ema_momentum = 0.99
    config.model.drop_path = 0.0


def vit(recipe: str) -> ConfigDict:
    """MoCo v3's ViT-S recipe in the setting of Table 7: ImageNet-S300, 100 epochs, batches of 256."""
    config = full_size()
    config.recipe = recipe
    config.data.batch_size = 256
    views(config, smallest=0.08)
    config.model.update({"heads": 12, "init": "mocov3", "positions": "sincos_rows", "freeze_patch_embed": True})
    # Weight decay reaches every parameter, biases and scales too.
    config.optimizer.update({"base_lr": 1.5e-4, "min_lr": 0.0, "warmup": "exclusive"})
    config.optimizer.update({"weight_decay": 0.1, "weight_decay_end": 0.1, "decay_bias": True, "decay_scale": True, "clip_grad": 0.0})
    config.run.checkpoint_every_steps = 1000
    return config
