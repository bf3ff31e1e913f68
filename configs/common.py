"""What every pre-training config starts from, and how a config file reads its argument.

`pretrain()` holds every key with its default; docs/config.md explains them. An experiment file changes what makes it
that experiment and says why.

A config file takes typed arguments after a colon, `key=value` joined by commas:

    python train.py --config=configs/dino_vits16.py:source=folder:/data/imagenet/train,epochs=300 --workdir=/runs/a

A key is a full path (`data.source`), or its last part where only one path ends with it (`source`). Keys of `data` come
first: `batch_size` is `data.batch_size`, though there is an `eval.batch_size` too. `--config.data.source=...` says the
same with the full path, and also takes a text with a comma in it.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common_arguments import arguments
from sere_jax.config import keys

__all__ = ["arguments", "pretrain"]


def pretrain() -> ConfigDict:
    """The defaults of all keys: ViT-S/16, DINO + SERE, ImageNet sizes. A run needs a `data.source` as well."""
    return ConfigDict(keys.defaults())
