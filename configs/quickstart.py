"""A small ViT learns from the photographs inside the scikit-image and scikit-learn wheels, on a laptop's CPU.

Paper     none: the method of `dino_sere_vits16.py` at a size that a few minutes on two cores can show.
Launch    python train.py --config=configs/quickstart.py --workdir=RUN
          shorter: configs/quickstart.py:total_steps=50
Cost      2 to 5 minutes on 2 cores, no accelerator, no download.
Expected  hoped for: k-NN error on held-out regions at most 0.8 x the best of raw pixels, colour histogram and
          random initialisation.
          on other photographs it can collapse (README, "Train on your images"); small.py did not.
          measured with this code: 0.75 x, mean of three seeds (make demo-seeds; docs/results.md).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments, pretrain


def get_config(arg: str = "") -> ConfigDict:
    config = pretrain()
    config.data.update({"source": "bundled", "batch_size": 32, "workers": 0})
    # Regions of a photograph are small already: local crops smaller than a sixth of one show nothing that can be told apart.
    config.views.update({"global_size": 40, "local_size": 24, "local_count": 2})
    config.views.update({"global_scale": (0.25, 1.0), "local_scale": (0.15, 0.5)})
    # Stronger colours than the paper's: the photographs differ by colour above all, and the k-NN asks for more.
    config.photometry.update({"brightness": 0.5, "contrast": 0.5, "saturation": 0.4, "hue": 0.15})
    # float32: bfloat16 gains nothing on a CPU. One scanned block compiles in half the time.
    config.model.update({"variant": "custom", "width": 64, "depth": 3, "heads": 2, "patch_size": 8, "drop_path": 0.0, "dtype": "float32"})
    config.model.update({"scan_blocks": True, "remat": "dots"})
    config.head.update({"prototypes": 512, "hidden": 256, "bottleneck": 128})
    # As many points as the patch grids have, sampled by matrix products: twice as fast a step on a CPU.
    config.relation.update({"global_points": 5, "local_points": 3, "sampling_impl": "separable"})
    # A short run: the teacher must follow faster than over 250,000 steps.
    config.teacher.update({"ema_momentum": 0.96, "ema_momentum_end": 0.99})
    config.optimizer.update({"base_lr": 16e-3, "warmup_epochs": 1})
    config.schedule.total_steps = 1400
    config.run.update({"log_every_steps": 20, "checkpoint_every_steps": 350, "eval_every_steps": 350})
    config.eval.update({"gallery": "bundled:gallery", "query": "bundled:query", "neighbours": (10, 20), "resize": 40})
    return arguments(config, arg)
