"""What the MAE experiments share: MAE's public pre-training recipe on ImageNet-1K."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import full_size


def mae(variant: str, *, epochs: int) -> ConfigDict:
    """One crop an image, 75 % of its patches hidden, no colours changed, no teacher."""
    config = full_size()
    config.recipe = "mae"
    config.data.batch_size = 4096
    config.views.update({"global_count": 1, "global_scale": (0.2, 1.0), "local_count": 0})
    config.photometry.update({"jitter_prob": 0.0, "gray_prob": 0.0, "blur_prob": (0.0, 0.0, 0.0), "solarize_prob": (0.0, 0.0, 0.0)})
    config.masking.update({"kind": "random", "ratio": (0.75, 0.75), "ratio_var": (0.0, 0.0)})
    config.model.update({"variant": variant, "init": "mae", "positions": "sincos_columns", "drop_path": 0.0})
    # Peak 2.4e-3 at 4,096 images.
    config.optimizer.update({"base_lr": 1.5e-4, "min_lr": 0.0, "beta2": 0.95, "warmup_epochs": 40, "warmup": "exclusive"})
    config.optimizer.update({"weight_decay": 0.05, "weight_decay_end": 0.05, "clip_grad": 0.0})
    config.schedule.epochs = epochs
    return config
