"""The setting of the paper's ablations: ImageNet-S300, 100 epochs, batches of 256, two global crops and no local ones (TPAMI 4.3).

What the paper leaves open (learning rate, teacher temperatures, clipping) follows each method's own recipe; the iBOT rows follow
the authors' two-view port.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import full_size


def s300(recipe: str) -> ConfigDict:
    """The config of a recipe of the DINO or iBOT family in this setting. The 300 classes: data.source = classes:LIST:SOURCE."""
    config = full_size()
    config.recipe = recipe
    config.data.batch_size = 256
    config.views.update({"global_scale": (0.14, 1.0), "local_count": 0})
    if "spatial" in recipe or "sere" in recipe:
        config.relation.heads = 6  # the ViT-S's, which stay six when the model is made smaller
    config.run.checkpoint_every_steps = 1000
    if recipe.startswith("ibot"):
        _ibot(config)
    return config


def _ibot(config: ConfigDict) -> None:
    config.masking.kind = "block"
    config.head.update({"prototypes": 8192, "norm_last_layer": False})
    config.dino.update({"teacher_temp": 0.07, "warmup_teacher_temp_epochs": 30})
    config.patch.teacher_patch_temp = 0.07
    if config.recipe == "ibot_sere":
        config.relation.update({"alpha": 0.2, "beta": 0.5})
    config.optimizer.clip_grad = 0.3
