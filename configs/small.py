"""A small ViT for a few hundred photographs on a CPU: what DINO and DINO + SERE are worth at equal steps.

Paper     none: a size between quickstart and the paper's, at which the recipes can be compared without an accelerator.
Launch    python train.py --config=configs/small.py:recipe=dino,source=folder:PHOTOS --workdir=runs/dino
          python train.py --config=configs/small.py:recipe=dino_sere,source=folder:PHOTOS --workdir=runs/dino_sere
Cost      21 to 23 minutes on one core (docs/results.md).
Expected  measured with this code: docs/results.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments, pretrain


def get_config(arg: str = "") -> ConfigDict:
    config = pretrain()
    config.data.update({"batch_size": 32, "workers": 0})
    config.views.update({"global_size": 112, "local_size": 48, "local_count": 2, "local_scale": (0.1, 0.35)})
    config.model.update({"variant": "custom", "width": 192, "depth": 6, "heads": 3, "drop_path": 0.0, "dtype": "float32"})
    # One compiled block, and the cheaper form of the overlap sampling: both are equal in value and faster on a CPU.
    config.model.update({"scan_blocks": True, "remat": "dots"})
    config.relation.update({"sampling_impl": "separable", "global_points": 7, "local_points": 3})  # the patch grids' own sizes
    config.head.update({"prototypes": 512, "hidden": 512, "bottleneck": 128})
    # A short run: the teacher must follow faster than over 250,000 steps.
    config.teacher.ema_momentum = 0.99
    config.optimizer.update({"base_lr": 4e-3, "warmup_epochs": 5})
    config.schedule.total_steps = 1200
    config.run.update({"checkpoint_every_steps": 400, "keep_checkpoints": 1})
    return arguments(config, arg)
