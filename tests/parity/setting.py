"""The same run twice: a config's state and views for our step, and the PyTorch oracle with the same weights, rules and pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict

from sere_jax.build import pretraining
from sere_jax.data.crops.masks import sample_masks
from sere_jax.train.state import State
from sere_jax.types import Views
from tests import micro
from tests.oracles.torch_heads import Network, PrototypeHead, RelationHead
from tests.oracles.torch_sere import Batch, Rules
from tests.oracles.torch_training import Trainer, Training
from tests.oracles.torch_vit import ViT
from tests.parity import weights

LENGTH = pretraining.Steps(per_epoch=2, total=8)
GEOMETRIES = ("ordinary", "flipped", "disjoint", "nested", "identical", "mixed")


def views(config: ConfigDict, geometry: str, seed: int = 0, batch: int = 8) -> Views:
    """Noise images; `geometry` says how an example's crops lie to one another ("mixed": each example another way)."""
    found = micro.views(config, seed, batch)
    rng = np.random.default_rng(seed + 100)
    count = found.boxes.shape[1]
    apart = np.concatenate([200 * np.arange(count)[:, None] * np.ones((1, 2)), np.full((count, 2), 60)], -1)
    inside = np.stack([[6.5 * i, 4.25 * i, 300 - 11 * i, 250 - 9.5 * i] for i in range(count)])
    same = np.tile([[12.5, 30.25, 90, 70]], (count, 1))
    one_flipped, all_flipped, drawn_flips = np.arange(count) == 0, np.ones(count, bool), rng.random((8, count)) < 0.5
    drawn_boxes = micro.views(config, seed + 1, 8).boxes
    ways = {
        "flipped": (drawn_boxes[1], one_flipped),
        "disjoint": (apart, drawn_flips[2]),
        "nested": (inside, drawn_flips[3]),
        "identical": (same, drawn_flips[4]),
    }
    if (recipe := pretraining.mask_recipe(config)) is not None:
        drawn = [sample_masks(recipe, 2, rng) for _ in range(batch)]
        masks, indices = (np.stack(part) for part in zip(*drawn, strict=True))
        assert masks.any() and not masks.any((2, 3)).all(), "some views masked, some not"
        found = found._replace(masks=masks, mask_indices=indices)
    if geometry == "ordinary":
        return found
    if geometry == "mixed":
        chosen = [*ways.values(), (same, one_flipped), (inside[::-1], all_flipped)]
        chosen += [(drawn_boxes[e], drawn_flips[e]) for e in (6, 7)]
        # Small batches meet other ways with another seed.
        boxes, flips = (np.stack(part) for part in zip(*(chosen[(seed * batch + e) % 8] for e in range(batch)), strict=True))
    else:
        boxes, flips = (np.stack([part] * batch) for part in ways[geometry])
        boxes[:, :, :2] += rng.uniform(0, 5, (batch, 1, 2))
    return found._replace(boxes=boxes.astype(np.float32), flips=flips)


def rules(config: ConfigDict) -> Rules:
    """The method of the config in the oracle's words."""
    relation = config.relation
    same = ("alpha", "beta", "image_weight", "teacher_temp_spatial", "teacher_temp_channel", "temperature_side", "sampling", "padding")
    same += ("disjoint", "scale", "tokens", "local_heads", "student_tokens", "global_points", "local_points")
    return Rules(
        losses=pretraining.recipe(config).losses,
        heads=relation.heads or config.model.heads or 6,
        student_temp=config.dino.student_temp,
        student_temp_relation=relation.student_temp,
        **{name: relation[name] for name in same},
    )


def training(config: ConfigDict, length: pretraining.Steps) -> Training:
    """The optimiser's rules of the config in the oracle's words."""
    optimizer, dino, patch = config.optimizer, config.dino, config.patch
    return Training(
        per_epoch=length.per_epoch,
        total=length.total,
        peak_lr=optimizer.base_lr * config.data.batch_size / 256,
        min_lr=optimizer.min_lr,
        warmup=optimizer.warmup_epochs * length.per_epoch,
        weight_decay=optimizer.weight_decay,
        weight_decay_end=optimizer.weight_decay_end,
        clip=optimizer.clip_grad,
        freeze=optimizer.freeze_last_layer_epochs * length.per_epoch,
        decay_bias=optimizer.decay_bias,
        momentum=config.teacher.ema_momentum,
        momentum_end=config.teacher.ema_momentum_end,
        teacher_temps={
            "dino": (dino.warmup_teacher_temp, dino.teacher_temp),
            "patch": (patch.warmup_teacher_patch_temp, patch.teacher_patch_temp),
        },
        warmup_teacher_temp_epochs=dino.warmup_teacher_temp_epochs,
        center_momentum={"dino": dino.center_momentum, "patch": patch.patch_center_momentum},
        parts=optimizer.accumulate_steps,
    )


def network(config: ConfigDict, params: Any, batch_stats: Any) -> Network:
    """An oracle network, in float64, with our parameters and running statistics."""
    backbone, head = pretraining.backbone(config), config.head
    shape = (backbone.width, backbone.depth, backbone.heads, backbone.patch_size, backbone.image_size)
    vit = ViT(*shape, masking=backbone.mask_token)
    names = [key.removeprefix("heads_") for key in params if key.startswith("heads_") and key != "heads_dino"]
    relations = {name: RelationHead(backbone.width, config.relation.symmetric) for name in names}
    dino = None
    if "heads_dino" in params:
        dino = PrototypeHead(backbone.width, head.hidden, head.bottleneck, head.layers, head.prototypes, head.norm_last_layer)
    found = Network(vit, dino, relations).double().train()
    weights.load(found, params, batch_stats)
    return found


def trainer(config: ConfigDict, state: State, length: pretraining.Steps = LENGTH) -> Trainer:
    """The oracle at the same state (its optimiser fresh, its center zero, as at step 0)."""
    student = network(config, state.params, state.batch_stats)
    teacher = network(config, state.method.teacher, state.method.teacher_batch_stats)
    return Trainer(rules(config), training(config, length), student, teacher, config.head.prototypes)


def batch_of(config: ConfigDict, views: Views) -> Batch:
    """The views as the oracle takes them, normalised."""
    mean, std = (np.array(config.photometry[name]) for name in ("mean", "std"))
    crops = [(np.asarray(x, np.float64) / 255 - mean) / std for x in (views.global_views, views.local_views)]
    tensors = [torch.from_numpy(np.ascontiguousarray(x.transpose(0, 1, 4, 2, 3))) for x in crops]
    masks = None if views.masks is None else torch.from_numpy(views.masks)
    return Batch(*tensors, np.asarray(views.boxes, np.float64).tolist(), np.asarray(views.flips).tolist(), masks)
