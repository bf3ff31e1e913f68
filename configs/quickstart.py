"""A small ViT learns from the photographs inside the scikit-image and scikit-learn wheels, on a laptop's CPU.

Paper     none: the method of `dino_sere_vits16.py` at a size that a few minutes on two cores can show.
Launch    python train.py --config=configs/quickstart.py --workdir=RUN
          shorter: configs/quickstart.py:total_steps=50
Cost      at most 4 minutes on 2 cores, no accelerator, no download.
Expected  hoped for: k-NN error on held-out regions at most 0.8 x the best of raw pixels, colour histogram and
          random initialisation.
          measured with this code: nothing yet.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments, pretrain


def get_config(arg: str = "") -> ConfigDict:
    config = pretrain()
    config.recipe = "dino_sere"
    config.data.update({"source": "bundled", "batch_size": 32, "workers": 0})
    config.views.update({"global_size": 64, "local_size": 32, "local_count": 4})
    config.views.update({"global_scale": (0.35, 1.0), "local_scale": (0.05, 0.35)})
    # float32: bfloat16 gains nothing on a CPU.
    config.model.update({"variant": "custom", "width": 128, "depth": 4, "heads": 4, "patch_size": 8, "drop_path": 0.0, "dtype": "float32"})
    config.head.update({"prototypes": 1024, "hidden": 512, "bottleneck": 128})
    config.relation.update({"global_points": 8, "local_points": 4})  # as many as the patch grids have
    # A short run: the teacher must follow faster than over 250,000 steps.
    config.teacher.ema_momentum = 0.99
    config.optimizer.update({"base_lr": 4e-3, "warmup_epochs": 1, "freeze_last_layer_epochs": 1})
    config.schedule.total_steps = 400
    config.run.update({"checkpoint_every_steps": 100, "eval_every_steps": 200})
    config.eval.update({"gallery": "bundled:gallery", "query": "bundled:query", "neighbours": (10, 20)})
    return arguments(config, arg)
