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

from sere_jax.config import keys, unread
from sere_jax.config.arguments import arguments
from sere_jax.config.names import flatten

__all__ = ["arguments", "change_read", "full_size", "pretrain"]


def pretrain() -> ConfigDict:
    """The defaults of all keys: ViT-S/16, DINO + SERE, ImageNet sizes. A run needs a `data.source` as well."""
    return ConfigDict(keys.defaults())


def full_size() -> ConfigDict:
    """`pretrain()` for a ViT-S or larger: one compiled block, whose activations other than matrix products are computed again.

    The step compiles in a fraction of the time and needs less memory; it trains the same. `python -m sere_jax aot` says what a step
    needs with and without.
    """
    config = pretrain()
    config.model.update({"scan_blocks": True, "remat": "dots"})
    return config


def change_read(config: ConfigDict, changes: dict[str, object]) -> None:
    """Change those of these keys that the config's recipe, model and views read: a setting that several recipes share."""
    ignored = unread.unread(flatten(config))
    config.update_from_flattened_dict({key: value for key, value in changes.items() if key not in ignored})
