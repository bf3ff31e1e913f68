"""A network as a detector: first weights, loss, optimizer steps on one and on eight devices, and detections of padded images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from sere_jax.data.images.reading import ImageReading
from sere_jax.evals.network import EvalError, Network
from sere_jax.evals.trained.detection_settings import Settings
from sere_jax.evals.trained.detector import Model
from sere_jax.models.norm import join_statistics
from sere_jax.models.resnet import ResNet
from sere_jax.train import optim
from sere_jax.train.state import State
from sere_jax.train.update import make_update
from sere_jax.types import DetectionBatch, Objects
from tests import micro
from tests.evals import micro_network
from tests.models.dense.micro_detector import VIT

CLASSES = 3
SMALL = {
    "blocks": (0, 0, 1, 1),
    "channels": 8,
    "hidden": 16,
    "anchors": 16,
    "proposals": 8,
    "test_proposals": 8,
    "regions": 12,
    "detections": 5,
    "drop_path": 0.0,
    "dtype": "float32",
    "seed": 0,
}


def settings(**changes) -> Settings:
    """What the model reads; the rest concerns data and schedule."""
    rest = dict.fromkeys(Settings._fields) | {"reading": ImageReading()}
    return Settings(**{**rest, **SMALL, **changes})


def network(module, params) -> Network:
    heads = {"whole_patches": bool(module.heads), "depth": module.depth if module.heads else 0}
    return Network("micro", module.apply, params, 32, 36, module.patch_size, micro_network.MEAN, micro_network.STD, module=module, **heads)


def vit() -> Network:
    params = micro.random_like(jax.eval_shape(lambda: VIT.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))["params"], 1, 0.1)
    return network(VIT, params)


def batch(rows: int = 2) -> DetectionBatch:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 20, (rows, 2, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(16, 36, (rows, 2, 2))], axis=-1).astype(np.float32)
    objects = Objects(boxes, rng.integers(0, CLASSES, (rows, 2)), rng.random((rows, 2)) < 0.7, rng.random((rows, 2, 8, 8)) < 0.6)
    images = rng.integers(0, 256, (rows, 64, 64, 3), dtype=np.uint8)
    return DetectionBatch(images, np.array([[64, 60], [58, 64]] * (rows // 2)), objects, np.arange(rows))


def test_the_backbone_starts_from_the_networks_weights_under_fresh_heads():
    ours = vit()
    params, running = Model(ours, settings(), CLASSES, masks=True).init()
    micro.assert_equal(params["backbone"], ours.params)
    heads = {f"{kind}_heads_{i}" for kind in ("box", "mask") for i in range(3)}
    assert set(params) == heads | {"backbone", "necks", "fpn", "rpn"} and set(running) == {"necks"} | {f"box_heads_{i}" for i in range(3)}
    assert not params["rpn"]["codes"]["bias"].any() and params["box_heads_0"]["codes"]["kernel"].std() == pytest.approx(0.001, rel=0.25)
    assert params["rpn"]["conv"]["kernel"].std() == pytest.approx(0.01, rel=0.15)
    boxes_alone, _ = Model(ours, settings(), CLASSES, masks=False).init()
    assert set(boxes_alone) == {name for name in params if not name.startswith("mask_")}


def test_a_resnet_keeps_its_running_statistics_and_has_no_necks():
    module = ResNet(stages=(1, 1, 1, 1), stem=2)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    joined = join_statistics(*(micro.random_like(shapes[kind], 1) for kind in ("params", "batch_stats")))
    model = Model(network(module, joined), settings(), CLASSES, masks=True)
    assert model.multiple == 32 and model.training.strides == (4, 8, 16, 32, 64)
    params, running = model.init()
    assert "necks" not in params and "backbone" in running
    value, output = jax.eval_shape(lambda p, r: model.loss(p, r, batch(), jax.random.split(jax.random.key(0), 2)), params, running)
    assert value.shape == () and jax.tree.structure(output.running) == jax.tree.structure(running)


def test_networks_that_do_not_suit_are_refused():
    with pytest.raises(EvalError, match="blocks: found 5, expected at most 1"):
        Model(vit(), settings(blocks=(0, 1, 1, 5)), CLASSES, masks=True)
    with pytest.raises(EvalError, match="3 stages, expected four"):
        Model(network(ResNet(stages=(1, 1, 1), stem=2), {}), settings(), CLASSES, masks=True)


@pytest.mark.slow  # compiles the whole test of a detector
def test_what_lies_in_the_padding_changes_nothing():
    model, one = Model(vit(), settings(), CLASSES, masks=True), batch()
    params, running = model.init()
    params = micro.random_like(params, 2, 0.1)
    detect = micro.jit(model.detections)
    noise = one.images.copy()
    for image, (height, width) in zip(noise, one.sizes, strict=True):
        image[height:], image[:, width:] = 255, 255
    clean, changed = (detect(params, running, images, one.sizes) for images in (one.images, noise))
    assert clean.valid.any()
    micro.assert_equal(clean, changed)


@pytest.mark.slow  # two compilations of a whole training step
def test_five_steps_are_the_same_on_one_and_on_eight_devices():
    model, one = Model(vit(), settings(drop_path=0.1), CLASSES, masks=True), batch(8)
    optimizer = optim.adamw(optim.Rules(lambda step: jnp.float32(1e-3), lambda step: jnp.float32(0.05)))
    update, results = make_update(loss=model.loss, optimizer=optimizer), []
    params, running = (jax.tree.map(jnp.asarray, tree) for tree in model.init())
    for devices in (1, 8):
        mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        everywhere, rows = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in ((), ("data",)))
        state = jax.device_put(State(jnp.int32(0), params, running, optimizer.init(params), jnp.int32(0), {}), everywhere)
        step = jax.jit(update, in_shardings=(everywhere, rows), out_shardings=everywhere, compiler_options=micro.FAST_COMPILE)
        losses = []
        for _ in range(5):
            state, metrics = step(state, jax.device_put(one, rows))
            losses.append(float(metrics["loss"]))
        results.append(losses)
    assert results[0][-1] < results[0][0]
    np.testing.assert_allclose(results[0], results[1], rtol=1e-4)
