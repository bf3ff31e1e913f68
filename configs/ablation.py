"""Every row of the paper's pre-training ablations, by table and row: ImageNet-S300, ViT-S/16, 100 epochs (Table 14: ImageNet-1K).

Paper     TPAMI Tables 7, 8 and 10 to 16; the rows of a table are listed by configs/ablation.py:table=8,row=?
Launch    python train.py --config=configs/ablation.py:table=8,row=spatial,source=classes:S300.txt:tfds:imagenet2012:train --workdir=RUN
          all rows of a table, on any images: python -m sere_jax ablate --table=8 --data=folder:PHOTOS --steps=300 --workdir=DIR
          size=small makes of any row a run for a CPU: 112 pixels, 6 blocks of width 192 (of a ResNet 128 pixels, 4 blocks, width 512)
Cost      a row: 150,300 steps of 256 images (384,862 in the 300 classes), about 7 hours on one A100 (an estimate); Table 14's
          rows: see `ibot_sere_vits16.py`.
Expected  hoped for: `TABLES` below holds the paper's figures. measured with this code: docs/results.md.

A row is a recipe and the keys that make it that row; nothing here defines a method. The row `none` of Table 8 trains nothing: its
run is the random initialisation, saved.
"""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs.common import arguments, change_read
from configs.common_mocov3 import vit as mocov3
from configs.common_resnet import dino as resnet
from configs.common_s300 import s300


class Row(NamedTuple):
    """`recipe` with `changes` to the setting of its table, and the paper's figures in the order of the table's columns."""

    recipe: str
    paper: tuple[float, ...]
    changes: dict[str, Any] = {}


class Table(NamedTuple):
    """`columns` are the paper's measures; `rows` are in the paper's order."""

    title: str
    columns: tuple[str, ...]
    rows: dict[str, Row]
    setting: str = "s300"


_S300 = ("VOC mIoU", "VOC mAcc", "ImageNet-S300 val", "ImageNet-S300 test")
# What the paper's figures are, which is not what `ablate` measures.
PROTOCOL = (
    "100 epochs of ImageNet-S300 (Table 14: ImageNet-1K), then fine-tuned: UperNet on VOC, semi-supervised segmentation on ImageNet-S"
)

_DINO = Row("dino", (68.1, 81.1, 28.8, 29.6))
_SERE = Row("dino_sere", (73.5, 84.7, 41.2, 42.0))
_NOTHING = {"schedule.epochs": 0, "optimizer.warmup_epochs": 0, "optimizer.freeze_last_layer_epochs": 0}


def _heads(count: int, *paper: float) -> Row:
    return Row("dino_sere", paper, {"relation.heads": count})


def _temperatures(spatial: float, channel: float, *paper: float) -> Row:
    return Row("dino_sere", paper, {"relation.teacher_temp_spatial": spatial, "relation.teacher_temp_channel": channel})


def _weights(alpha: float, beta: float, *paper: float) -> Row:
    return Row("ibot_sere", paper, {"relation.alpha": alpha, "relation.beta": beta})


TABLES: dict[int, Table] = {
    7: Table(
        "Cooperating with more self-supervised methods",
        _S300,
        {
            "mocov3": Row("mocov3", (65.7, 78.7, 24.0, 24.8)),
            "mocov3_sere": Row("mocov3_sere", (67.5, 80.6, 29.1, 29.9)),
            "dino": _DINO,
            "dino_sere": _SERE,
            "ibot": Row("ibot", (74.5, 85.5, 41.5, 42.0)),
            "ibot_sere": Row("ibot_sere", (75.9, 86.3, 45.3, 45.6)),
        },
    ),
    8: Table(
        "Representations: image-level (L_I), spatial (L_p) and channel (L_c) self-relation",
        _S300,
        {
            "none": Row("dino", (25.6, 35.7, 0.2, 0.2), _NOTHING),
            "image": _DINO,
            "spatial": Row("spatial", (71.5, 83.0, 23.7, 23.7)),
            "channel": Row("channel", (61.4, 75.6, 22.5, 22.3)),
            "image_spatial": Row("dino_spatial", (70.7, 82.6, 33.3, 34.5)),
            "image_channel": Row("dino_channel", (69.8, 82.9, 36.5, 38.3)),
            "spatial_channel": Row("spatial_channel", (71.5, 83.3, 30.6, 30.3)),
            "all": _SERE,
        },
    ),
    10: Table(
        "Self-relation and patch-level embeddings",
        _S300,
        {
            "dino": _DINO,
            "dinoplus": Row("dinoplus", (72.6, 84.3, 40.0, 40.4)),
            "dino_sere": _SERE,
            "dinoplus_sere": Row("dinoplus_sere", (75.0, 86.1, 44.8, 46.0)),
        },
    ),
    11: Table(
        "Batch relation (Barlow) and channel self-relation",
        _S300,
        {"barlow": Row("dino_barlow", (69.5, 82.2, 33.2, 32.9)), "sere": Row("dino_channel", (69.8, 82.9, 36.5, 38.3))},
    ),
    12: Table(
        "Heads M of the spatial self-relation",
        _S300,
        {
            "1": _heads(1, 72.4, 84.0, 38.7, 39.3),
            "3": _heads(3, 72.7, 84.8, 38.9, 39.4),
            "6": _SERE,
            "12": _heads(12, 73.4, 85.1, 40.8, 41.7),
            "16": _heads(16, 72.5, 84.3, 39.3, 39.8),
        },
    ),
    13: Table(
        "Temperatures t_p of the spatial and t_c of the channel self-relation",
        _S300,
        {
            "0.5_0.5": _temperatures(0.5, 0.5, 72.0, 84.2, 36.7, 36.7),
            "0.5_0.1": _SERE,
            "0.5_0.01": _temperatures(0.5, 0.01, 70.4, 82.7, 33.6, 34.6),
            "1.0_0.1": _temperatures(1.0, 0.1, 70.2, 83.1, 36.7, 38.2),
            "0.1_0.1": _temperatures(0.1, 0.1, 73.7, 85.0, 39.9, 40.8),
        },
    ),
    14: Table(
        "Weights alpha and beta beside iBOT",
        ("ImageNet top-1", "ImageNet top-5", "VOC mIoU", "VOC mAcc", "ImageNet-S val", "ImageNet-S test"),
        {
            "0.2_0.2": _weights(0.2, 0.2, 81.3, 95.7, 80.7, 89.9, 39.9, 39.3),
            "0.2_0.5": _weights(0.2, 0.5, 81.5, 95.8, 81.2, 90.0, 41.0, 40.3),
            "0.2_1.0": _weights(0.2, 1.0, 81.3, 95.8, 80.9, 89.8, 41.7, 41.8),
            "0.1_0.5": _weights(0.1, 0.5, 81.3, 95.8, 80.9, 89.5, 40.7, 40.5),
            "0.8_0.5": _weights(0.8, 0.5, 81.3, 95.8, 80.8, 89.7, 40.3, 40.1),
        },
        setting="imagenet",
    ),
    15: Table(
        "Asymmetric losses: the student with a predictor and without",
        _S300,
        {
            "dino": _DINO,
            "symmetric": Row("dino_sere", (72.1, 84.4, 37.1, 37.9), {"relation.symmetric": True}),
            "asymmetric": _SERE,
        },
    ),
    16: Table(
        "Self-relation on a convolutional network, ResNet-50",
        _S300,
        {
            "dino": Row("dino", (61.6, 74.6, 20.2, 19.9)),
            "dino_sere": Row("dino_sere", (62.5, 75.0, 20.9, 20.7), {"relation.heads": 8}),
        },
        setting="resnet",
    ),
}


SIZES = ("paper", "small")


def get_config(arg: str = "") -> ConfigDict:
    """The config of `table=N,row=NAME,size=paper|small`, then `key=value` as everywhere.

    Raises ValueError that names the tables, the rows or the sizes there are.
    """
    own = ("table=", "row=", "size=")
    parts = dict(part.split("=", 1) for part in arg.split(",") if part.startswith(own))
    rest = ",".join(part for part in arg.split(",") if not part.startswith(own))
    table = parts.get("table", "8")
    if not table.isdigit() or int(table) not in TABLES:
        raise ValueError(f"table: found {table!r}, expected one of {', '.join(map(str, TABLES))}")
    rows = TABLES[int(table)].rows
    row = parts.get("row", next(reversed(rows)))
    if row not in rows:
        near = difflib.get_close_matches(row, rows, n=1, cutoff=0.3)
        hint = f"; nearest: {near[0]}" if near else ""
        raise ValueError(f"row: found {row!r}, expected one of {', '.join(rows)} of table {table}{hint}")
    size = parts.get("size", "paper")
    if size not in SIZES:
        raise ValueError(f"size: found {size!r}, expected one of {', '.join(SIZES)}")
    return arguments(row_config(int(table), row, size), rest)


def row_config(table: int, row: str, size: str = "paper") -> ConfigDict:
    """The config of one row, in the setting of its table and in one of the `SIZES`."""
    chosen = TABLES[table].rows[row]
    setting = TABLES[table].setting
    if setting == "resnet":
        config = resnet(chosen.recipe)
    else:
        config = mocov3(chosen.recipe) if chosen.recipe.startswith("mocov3") else s300(chosen.recipe)
    if setting == "imagenet":
        _imagenet(config)
    if size == "small":
        _small(config)
    config.update_from_flattened_dict(chosen.changes)
    return config


def _imagenet(config: ConfigDict) -> None:
    """iBOT + SERE on ImageNet-1K: from the two-view setting to the numbers of `ibot_sere_vits16.py`."""
    config.data.batch_size = 1024
    config.views.update({"global_scale": (0.4, 1.0), "local_scale": (0.05, 0.4), "local_count": 10})
    config.relation.heads = 0
    config.optimizer.decay_bias = True


def _small(config: ConfigDict) -> None:
    """A few minutes on two cores: crops of 112 pixels, local ones of 48. Shares of a run stay shares."""
    config.data.update({"batch_size": 32, "workers": 0})
    resnet_model = config.model.name == "resnet"
    global_size, local_size = (128, 64) if resnet_model else (112, 48)  # a ResNet's map spans the view where 32 divides the side
    change_read(config, {"views.global_size": global_size, "views.local_size": local_size})
    config.model.update({"variant": "custom", "drop_path": 0.0, "dtype": "float32"})
    if resnet_model:
        config.model.update({"width": 512, "depth": 1})  # one block in each of the four stages
    else:
        # Heads as wide as at full size: 64, of MoCo v3's ViT 32.
        config.model.update({"width": 192, "depth": 6, "heads": (config.model.heads or 6) // 2})
    # The cheaper form of the overlap sampling, at as many points as the patch grids have.
    change_read(config, {"relation.sampling_impl": "separable", "relation.global_points": 7, "relation.local_points": 3})
    change_read(config, {"head.prototypes": 512, "head.hidden": 512, "head.bottleneck": 128})
    change_read(config, {"mocov3.hidden": 512, "mocov3.width": 128})
    # A short run: the teacher must follow faster than over 150,000 steps, and the rate is 8 times the recipe's.
    config.teacher.update({"ema_momentum": 0.99, "ema_momentum_end": 1.0})
    config.optimizer.base_lr *= 8
