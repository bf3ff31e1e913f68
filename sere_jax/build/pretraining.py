"""From a config to the parts of a run. The only reader of ConfigDicts besides `config` and the programs.

Everything below takes keyword arguments, so that signatures tell what a part depends on.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sere_jax.build.model import backbone, heads
from sere_jax.build.objective import Steps, objective, recipe, requests
from sere_jax.build.optimizer import OptimizerSchedules, optimizer, optimizer_rules, optimizer_schedules
from sere_jax.config.check import ConfigError
from sere_jax.config.cross import batch_multiple
from sere_jax.data.crops.masks import MaskRecipe
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.crops.views import ViewRecipe
from sere_jax.models.network import Alignment, Network
from sere_jax.ops.photometric import PhotometryParams
from sere_jax.train.crossing import Crossing
from sere_jax.train.forward import Augment, make_augment, make_drop_path_noise, make_forward
from sere_jax.train.state import PretrainMethod, State, without
from sere_jax.train.step import PretrainStep
from sere_jax.types import PyTree, Views

__all__ = [
    "OptimizerSchedules",
    "Steps",
    "abstract_state",
    "abstract_views",
    "augment",
    "backbone",
    "effective_epochs",
    "init_state",
    "mask_recipe",
    "network",
    "objective",
    "optimizer",
    "optimizer_rules",
    "optimizer_schedules",
    "photometry",
    "recipe",
    "requests",
    "steps",
    "train_step",
    "view_recipe",
]


def steps(config: ConfigDict, examples: int) -> Steps:
    """The length of a run on that many examples. Raises ConfigError where they are fewer than a batch."""
    size = config.data.batch_size
    per_epoch = examples // size
    if not per_epoch:
        step = batch_multiple(config.optimizer.accumulate_steps, jax.device_count(), jax.process_count())
        near = f"nearest: {examples // step * step}" if examples >= step else f"the smallest batch that can be cut here has {step}"
        raise ConfigError([f"data.batch_size: found {size}, expected at most the {examples} images of {config.data.source!r}; {near}"])
    return Steps(per_epoch, config.schedule.total_steps or config.schedule.epochs * per_epoch)


def effective_epochs(config: ConfigDict, length: Steps) -> float:
    """Epochs times the pixels of an image's crops in those of one global crop, rounded up: 100 epochs of 2 + 4 crops are 300.

    Source: the papers' Table 6, after iBOT. Masked patches count as seen.
    """
    views = view_recipe(config)
    one, local = math.prod(views.global_shape), math.prod(views.local_shape)
    pixels = views.global_count * one + views.local_count * local
    return length.total / length.per_epoch * -(-pixels // one)


def network(config: ConfigDict) -> Network:
    """The backbone with the heads that the recipe's losses ask for."""
    names = {request.head for request in requests(config) if request.head}
    relation = config.relation
    alignment = Alignment(relation.global_points, relation.sampling, relation.padding, relation.sampling_impl)
    return Network(backbone(config), heads(config, names), alignment, views_apart=recipe(config).views_apart)


def view_recipe(config: ConfigDict) -> ViewRecipe:
    """The multi-crop recipe."""
    return ViewRecipe(**config.views)


def image_reading(config: ConfigDict) -> ImageReading:
    """How the run's images are decoded, with as many channels as the model takes."""
    data = config.data
    return ImageReading(data.backend, data.max_pixels, config.model.in_channels, tuple(data.value_range), float(data.max_decode_seconds))


def mask_recipe(config: ConfigDict, length: Steps | None = None) -> MaskRecipe | None:
    """The masking recipe, or None where no patch is hidden; with the run's length it knows when masking starts."""
    masking = config.masking
    if masking.kind == "none":
        return None
    rows, columns = (side // config.model.patch_size for side in view_recipe(config).global_shape)
    return MaskRecipe(
        grid=rows,
        columns=columns,
        kind=masking.kind,
        ratio=masking.ratio,
        ratio_var=masking.ratio_var,
        prob=masking.prob,
        start_step=masking.start_epoch * length.per_epoch if length else 0,
    )


def abstract_views(config: ConfigDict) -> Any:
    """`Views` of `jax.ShapeDtypeStruct`: shapes and types of a global batch."""
    views, masking, b = view_recipe(config), mask_recipe(config), config.data.batch_size

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((b, *shape), dtype)

    def crops(count: int, shape: tuple[int, int]) -> Any:
        return array(jnp.uint8, count, *shape, config.model.in_channels)

    return Views(
        global_views=crops(views.global_count, views.global_shape),
        local_views=crops(views.local_count, views.local_shape),
        boxes=array(jnp.float32, views.count, 4),
        flips=array(jnp.bool_, views.count),
        index=array(jnp.int32),
        replaced=array(jnp.bool_),
        masks=None if masking is None else array(jnp.bool_, views.global_count, *masking.shape),
        mask_indices=None if masking is None else array(jnp.int32, views.global_count, masking.cap),
    )


def photometry(config: ConfigDict) -> tuple[PhotometryParams, PhotometryParams, PhotometryParams]:
    """The photometric augmentation of the first global crop, of the second, and of local crops."""
    shared = {key: value for key, value in config.photometry.items() if key not in ("blur_prob", "solarize_prob")}
    pairs = zip(config.photometry.blur_prob, config.photometry.solarize_prob, strict=True)
    first, second, local = (PhotometryParams(**shared, blur_prob=blur, solarize_prob=solarize) for blur, solarize in pairs)
    return first, second, local


def augment(config: ConfigDict) -> Augment:
    """The photometric part of the augmentation: uint8 views and one key an example -> normalised float32 crops."""
    *global_kinds, local_kind = photometry(config)
    return make_augment(global_kinds, local_kind)


def crossing(config: ConfigDict, mesh: Mesh | None) -> Crossing | None:
    """How gradients are summed over the devices of a mesh; None where there is one device."""
    return Crossing(mesh, jnp.dtype(config.optimizer.grad_dtype)) if mesh is not None and mesh.size > 1 else None


def train_step(config: ConfigDict, length: Steps, mesh: Mesh | None = None) -> PretrainStep:
    """The pure train step of the config, not yet compiled. With a `mesh` of several devices each runs the networks on its own rows."""
    rules = optimizer_schedules(config, length)
    between = crossing(config, mesh)
    return PretrainStep(
        forward=make_forward(network(config), moves_from=optimizer_rules(config, length).moves_from, crossing=between),
        objective=objective(config, length),
        optimizer=optimizer(config, length),
        augment=augment(config),
        drop_path_noise=make_drop_path_noise(rate=config.model.drop_path, depth=backbone(config).depth),
        ema_momentum=rules.ema_momentum,
        ema_timing=recipe(config).ema_timing,
        accumulate_steps=config.optimizer.accumulate_steps,
        crossing=between,
        seed=config.seed,
        logged={"learning_rate": rules.learning_rate, "weight_decay": rules.weight_decay},
    )


def init_state(config: ConfigDict, length: Steps) -> State:
    """The state at step 0: a function of the config's seed alone. The teacher starts as a copy of the student, or is empty."""
    views = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), abstract_views(config))
    crops = [x.astype(jnp.float32) for x in (views.global_views, views.local_views)]
    of_student = tuple(request for request in requests(config) if request.side == "student")
    variables = network(config).init(jax.random.key(config.seed), *crops, of_student, views=views)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    rules = recipe(config)

    def of_teacher(tree: PyTree) -> PyTree:
        return {} if rules.ema_timing == "none" else jax.tree.map(jnp.copy, without(tree, rules.student_only))

    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer(config, length).init(params),
        bad_steps=jnp.zeros((), jnp.int32),
        method=PretrainMethod(of_teacher(params), of_teacher(batch_stats), objective(config, length).init()),
    )


def abstract_state(config: ConfigDict, length: Steps) -> Any:
    """Shapes and types of the state, without computing it."""
    return jax.eval_shape(lambda: init_state(config, length))
