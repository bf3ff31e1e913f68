"""A small ViT on images of CIFAR-10, 32 pixels each: what the classification protocols are measured with.

Paper     none: at 32 pixels an hour of one CPU core is long enough to learn something.
Launch    python train.py --config=configs/cifar10.py:recipe=dino,source=folder:CIFAR10/train --workdir=runs/cifar_dino
          python train.py --config=configs/cifar10.py:recipe=dino_sere,source=folder:CIFAR10/train --workdir=runs/cifar_dino_sere
Cost      docs/results.md.
Expected  measured with this code: docs/results.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments, pretrain


def get_config(arg: str = "") -> ConfigDict:
    config = pretrain()
    config.data.update({"batch_size": 32, "workers": 0})
    config.views.update({"global_size": 32, "local_size": 16, "local_count": 2, "local_scale": (0.1, 0.4)})
    config.model.update({"variant": "custom", "width": 128, "depth": 4, "heads": 4, "patch_size": 4, "drop_path": 0.0, "dtype": "float32"})
    config.model.update({"scan_blocks": True, "remat": "dots"})
    # A blur of up to two pixels leaves nothing of an image of 32.
    config.photometry.blur_prob = (0.0, 0.0, 0.0)
    config.relation.update({"sampling_impl": "separable", "global_points": 8, "local_points": 4})
    config.head.update({"prototypes": 1024, "hidden": 512, "bottleneck": 128})
    # A short run: the teacher must follow faster than over 250,000 steps. From 0.97 and at three times the rate, its entropy neared ln K.
    config.teacher.update({"ema_momentum": 0.99, "ema_momentum_end": 0.998})
    config.optimizer.update({"base_lr": 4e-3, "warmup_epochs": 1})
    config.schedule.total_steps = 1700
    config.run.update({"log_every_steps": 50, "keep_checkpoints": 1})
    return arguments(config, arg)
