"""UperNet's heads against those of transformers with the same weights; necks, pooling and interpolation against torch; the loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sere_jax.losses.segmentation import pixel_cross_entropy
from sere_jax.models.dense.segmenter import Keep, Segmenter
from sere_jax.models.dense.upernet import FcnHead, LinearHead, Necks, UperNet
from sere_jax.models.resnet import ResNet
from sere_jax.ops.pooling import adaptive_mean, resize_bilinear
from tests import micro
from tests.evals.micro_network import VIT

WIDTH, CHANNELS, CLASSES = 8, 6, 5
NAMES = {"fpn_bottleneck": "fpn_bottleneck", "bottleneck": "bottleneck"}
NAMES |= {f"lateral_{i}": f"lateral_convs.{i}" for i in range(3)} | {f"fpn_{i}": f"fpn_convs.{i}" for i in range(3)}
NAMES |= {f"pool_{side}": f"psp_modules.{i}.1" for i, side in enumerate((1, 2, 3, 6))} | {"conv_0": "convs.0"}


def maps(*sides: tuple[int, int], width: int = WIDTH) -> list[jax.Array]:
    rng = np.random.default_rng(1)
    return [jnp.asarray(rng.normal(size=(2, *side, width)).astype(np.float32)) for side in sides]


def torch_map(x: jax.Array) -> torch.Tensor:
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def variables(module: nn.Module, *inputs: object) -> dict:
    """Noise as parameters and running means; running variances around 1."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    noise = micro.random_like(shapes, 3)
    stats = jax.tree_util.tree_map_with_path(lambda path, x: 1 + jnp.abs(x) if path[-1].key == "var" else x, noise.get("batch_stats", {}))
    return {"params": noise["params"], "batch_stats": stats}


def load(module: nn.Module, ours: dict) -> None:
    """Copy our weights into transformers' head, under its names."""
    state = {}
    for name, leaf in ours["params"].items():
        if name == "classifier":
            state |= {"classifier.weight": np.asarray(leaf["kernel"]).T[..., None, None], "classifier.bias": np.asarray(leaf["bias"])}
            continue
        prefix, stats = NAMES[name], ours["batch_stats"][name]["bn"]
        state[f"{prefix}.conv.weight"] = np.asarray(leaf["conv"]["kernel"]).transpose(3, 2, 0, 1)
        values = {"weight": leaf["bn"]["scale"], "bias": leaf["bn"]["bias"], "running_mean": stats["mean"], "running_var": stats["var"]}
        state |= {f"{prefix}.batch_norm.{key}": np.asarray(value) for key, value in values.items()}
    result = module.load_state_dict({key: torch.tensor(np.asarray(value)) for key, value in state.items()}, strict=False)
    assert not result.unexpected_keys and all(key.endswith("num_batches_tracked") for key in result.missing_keys)


@pytest.fixture(scope="module")
def config():
    transformers = pytest.importorskip("transformers")
    backbone = transformers.ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    return transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=CHANNELS, num_labels=CLASSES, auxiliary_channels=7, auxiliary_in_channels=WIDTH
    )


@pytest.mark.parametrize("training", [False, True])
def test_upernet_is_transformers_with_the_same_weights(config, training):
    from transformers.models.upernet.modeling_upernet import UperNetHead

    theirs = UperNetHead(config, [WIDTH] * 4).train(training)
    ours, pyramid = UperNet(CLASSES, CHANNELS, running=not training), maps((12, 16), (6, 8), (3, 4), (7, 5))
    weights = variables(ours, pyramid)
    load(theirs, weights)
    with torch.no_grad():
        expected = theirs([torch_map(x) for x in pyramid]).permute(0, 2, 3, 1)
    found, updated = micro.jit(lambda v: ours.apply(v, pyramid, mutable=["batch_stats"]))(weights)
    np.testing.assert_allclose(np.asarray(found), expected.numpy(), atol=1e-4, rtol=1e-4)
    if training:
        moved = theirs.bottleneck.batch_norm.running_mean.numpy()
        np.testing.assert_allclose(np.asarray(updated["batch_stats"]["bottleneck"]["bn"]["mean"]), moved, atol=1e-5)


def test_the_auxiliary_head_is_transformers_with_the_same_weights(config):
    from transformers.models.upernet.modeling_upernet import UperNetFCNHead

    theirs = UperNetFCNHead(config, [WIDTH] * 4, in_index=0).eval()
    ours, (x,) = FcnHead(CLASSES, 7, running=True), maps((5, 6))
    weights = variables(ours, x)
    load(theirs, weights)
    with torch.no_grad():
        expected = theirs([torch_map(x)]).permute(0, 2, 3, 1)
    np.testing.assert_allclose(np.asarray(ours.apply(weights, x)), expected.numpy(), atol=1e-4, rtol=1e-4)


def test_necks_are_torchs():
    module, inputs = Necks(running=True), maps((3, 4), (3, 4), (3, 4), (4, 6))
    weights = variables(module, inputs)
    params, stats = weights["params"], weights["batch_stats"]["up4_bn"]

    def doubled(x: torch.Tensor, name: str) -> torch.Tensor:
        kernel = np.asarray(params[name]["kernel"])[::-1, ::-1].copy()  # Flax correlates where torch convolves
        return F.conv_transpose2d(x, torch.tensor(kernel.transpose(2, 3, 0, 1)), torch.tensor(np.asarray(params[name]["bias"])), stride=2)

    with torch.no_grad():
        x = doubled(torch_map(inputs[0]), "up4_0")
        norm = [
            torch.tensor(np.asarray(value)) for value in (stats["mean"], stats["var"], params["up4_bn"]["scale"], params["up4_bn"]["bias"])
        ]
        x = doubled(F.gelu(F.batch_norm(x, *norm)), "up4_1")
        expected = [x, doubled(torch_map(inputs[1]), "up2"), torch_map(inputs[2]), F.max_pool2d(torch_map(inputs[3]), 2)]
    found = module.apply(weights, inputs)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(ours), theirs.permute(0, 2, 3, 1).numpy(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(7, 5), (6, 12), (1, 3)])
def test_pooling_and_interpolation_are_torchs(shape):
    (x,) = maps(shape, width=3)
    for side in (1, 2, 3, 6):
        expected = F.adaptive_avg_pool2d(torch_map(x), side).permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(np.asarray(adaptive_mean(x, side)), expected, atol=1e-6)
    for target in ((14, 10), (4, 9), shape):
        expected = F.interpolate(torch_map(x), target, mode="bilinear").permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(np.asarray(resize_bilinear(x, target)), expected, atol=1e-6)


def test_ignored_pixels_make_the_loss_smaller_or_do_not_count():
    logits = maps((4, 6), width=CLASSES)[0]
    targets = np.random.default_rng(0).integers(0, CLASSES, (2, 8, 12))
    large = F.interpolate(torch_map(logits), (8, 12), mode="bilinear")
    whole = float(pixel_cross_entropy(logits, jnp.asarray(targets)))
    assert whole == pytest.approx(float(F.cross_entropy(large, torch.tensor(targets))), rel=1e-5)
    targets[:, :, ::2] = -1
    each = F.cross_entropy(large, torch.tensor(targets), ignore_index=-1, reduction="none")
    assert float(pixel_cross_entropy(logits, jnp.asarray(targets))) == pytest.approx(float(each.mean()), rel=1e-5)
    counted = float(F.cross_entropy(large, torch.tensor(targets), ignore_index=-1))
    assert float(pixel_cross_entropy(logits, jnp.asarray(targets), "counted")) == pytest.approx(counted, rel=1e-5)
    half = jnp.asarray(np.where(np.arange(12) < 6, 0, -1) * np.ones((2, 8, 1), int))
    same = jnp.zeros((2, 4, 6, CLASSES))
    assert float(pixel_cross_entropy(same, half)) == pytest.approx(np.log(CLASSES) / 2, rel=1e-6)  # SPEC: half ignored, half the loss


def test_a_segmenter_has_its_parts_and_a_frozen_backbone_no_gradient():
    images = jax.random.normal(jax.random.key(0), (1, 16, 24, 3))
    upernet = Segmenter(VIT, CLASSES, taps=(0, 0, 1, 1), channels=CHANNELS)
    shapes = jax.eval_shape(lambda: upernet.init(jax.random.key(0), images))
    assert set(shapes["params"]) == {"backbone", "necks", "head", "auxiliary"}
    answer = jax.eval_shape(lambda: upernet.init_with_output(jax.random.key(0), images)[0])
    assert answer.main.shape == (1, 16, 24, CLASSES) and answer.auxiliary.shape == (1, 4, 6, CLASSES)

    linear = Segmenter(VIT, CLASSES, "linear", taps=(0, 1), frozen=True)
    weights = variables(linear, images)
    keep = Keep(jnp.ones((1, 96)), jnp.ones((1, 1)))

    def loss(params):
        return jnp.sum(linear.apply({**weights, "params": params}, images, keep=keep, mutable=["batch_stats"])[0].main ** 2)

    gradients = micro.jit(jax.grad(loss))(weights["params"])
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients["backbone"]))
    assert all(jnp.any(leaf) for leaf in jax.tree.leaves(gradients["head"]))


def test_the_linear_head_normalises_and_dropout_removes_channels():
    (x,) = maps((3, 4))
    head = LinearHead(CLASSES, running=True)
    weights = variables(head, x)
    params, stats = weights["params"], weights["batch_stats"]["bn"]
    normal = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["bn"]["scale"] + params["bn"]["bias"]
    keep = jnp.asarray(np.array([[2.0, 0] * 4, [0, 2.0] * 4], np.float32))
    expected = (normal * keep[:, None, None]) @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    np.testing.assert_allclose(np.asarray(head.apply(weights, x, keep)), np.asarray(expected), atol=1e-5)


def _resnet_segmenter(head: str, **changes: int) -> tuple[dict, Segmenter]:
    backbone = ResNet((1, 1, 1, 1), 4, running_statistics=True, **changes)
    module = Segmenter(backbone, CLASSES, head, taps=(), channels=CHANNELS, running=True)
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 96, 3))), module


def test_a_resnets_stages_are_the_pyramid():
    shapes, module = _resnet_segmenter("upernet")
    assert set(shapes["params"]) == {"backbone", "head", "auxiliary"}  # no necks
    widths = {f"lateral_{i}": 16 * 2**i for i in range(3)} | {"pool_1": 128}
    assert {name: shapes["params"]["head"][name]["conv"]["kernel"].shape[2] for name in widths} == widths
    assert shapes["params"]["auxiliary"]["conv_0"]["conv"]["kernel"].shape[2] == 64  # the third map
    logits = jax.eval_shape(module.apply, shapes, jnp.zeros((1, 64, 96, 3)))
    assert (logits.main.shape, logits.auxiliary.shape) == ((1, 16, 24, CLASSES), (1, 4, 6, CLASSES))
    dilated, module = _resnet_segmenter("upernet", dilated_stages=2)
    assert jax.tree.map(jnp.shape, dilated) == jax.tree.map(jnp.shape, shapes)
    assert jax.eval_shape(module.apply, dilated, jnp.zeros((1, 64, 96, 3))).auxiliary.shape == (1, 8, 12, CLASSES)


def test_logits_of_a_resnets_last_map_are_doubled_then_interpolated_to_the_targets():
    """ImageNet-S: 7 x 7 -> 14 x 14 -> 28 x 28. Two interpolations differ from one."""
    shapes, module = _resnet_segmenter("tokens")
    assert set(shapes["params"]["head"]) == {"classifier"}  # no LayerNorm
    weights = {"params": micro.random_like(shapes["params"], 2, 0.3), "batch_stats": shapes["batch_stats"]}
    weights["batch_stats"] = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.full(x.shape, path[-1].key == "var", x.dtype), weights["batch_stats"]
    )
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 96, 3)), jnp.float32)
    logits, last = micro.jit(lambda v, x: (module.apply(v, x).main, module.backbone.apply(inner(v), x).patches))(weights, images)
    classifier = weights["params"]["head"]["classifier"]
    small = torch_map(last @ classifier["kernel"] + classifier["bias"])
    doubled = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(torch_map(logits), doubled, rtol=1e-4, atol=1e-4)
    targets = np.random.default_rng(1).integers(-1, CLASSES, (2, 8, 12))
    again = F.interpolate(doubled, scale_factor=2, mode="bilinear", align_corners=False)
    expected = F.cross_entropy(again, torch.tensor(targets), ignore_index=-1)
    np.testing.assert_allclose(pixel_cross_entropy(logits, jnp.asarray(targets), "counted"), expected, rtol=1e-4)


def inner(variables: dict) -> dict:
    """The variables of the backbone alone."""
    return {kind: leaves["backbone"] for kind, leaves in variables.items()}
