"""The setting of the paper's ablations: ImageNet-S300, 100 epochs, batches of 256, two global crops and no local ones (TPAMI 4.3).

What the paper leaves open (learning rate, teacher temperatures, clipping) follows each method's own recipe; the iBOT rows follow
the authors' two-view port.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import pretrain


def s300(recipe: str) -> ConfigDict:
    """The config of a recipe of the DINO or iBOT family in this setting. The 300 classes: data.source = classes:LIST:SOURCE."""
    config = pretrain()
    config.recipe = recipe
    config.data.batch_size = 256
    config.views.update({"global_scale": (0.14, 1.0), "local_count": 0})
    config.model.update({"variant": "vits", "patch_size": 16, "drop_path": 0.1})
    config.head.update({"prototypes": 65536, "norm_last_layer": True})
    config.dino.update({"teacher_temp": 0.04, "warmup_teacher_temp": 0.04, "warmup_teacher_temp_epochs": 0})
    config.patch.update({"patch_weight": 1.0, "teacher_patch_temp": 0.04, "warmup_teacher_patch_temp": 0.04})
    # Six heads are the ViT-S's; said here so that they stay six when the model is made smaller.
    config.relation.update({"alpha": 1.0, "beta": 1.0, "heads": 6})
    config.optimizer.update({"base_lr": 5e-4, "min_lr": 1e-6, "warmup_epochs": 10, "weight_decay": 0.04, "weight_decay_end": 0.4})
    config.optimizer.update({"clip_grad": 3.0, "freeze_last_layer_epochs": 1, "decay_bias": False})
    config.teacher.update({"ema_momentum": 0.996, "ema_momentum_end": 1.0})
    config.schedule.epochs = 100
    config.run.checkpoint_every_steps = 1000
    if recipe.startswith("ibot"):
        _ibot(config)
    return config


def _ibot(config: ConfigDict) -> None:
    config.masking.update({"kind": "block", "ratio": (0.0, 0.3), "ratio_var": (0.0, 0.2), "prob": 0.5})
    config.head.update({"prototypes": 8192, "norm_last_layer": False})
    config.dino.update({"teacher_temp": 0.07, "warmup_teacher_temp": 0.04, "warmup_teacher_temp_epochs": 30})
    config.patch.update({"teacher_patch_temp": 0.07, "warmup_teacher_patch_temp": 0.04})
    config.relation.update({"alpha": 0.2, "beta": 0.5})
    config.optimizer.clip_grad = 0.3
