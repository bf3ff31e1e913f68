"""torchvision's ResNet-50: names and shapes written out by the paper's table, there and back, what is left."""

from __future__ import annotations

import numpy as np
import pytest

from sere_jax.interop import resnet
from sere_jax.interop.formats import import_network
from sere_jax.interop.tables import InteropError, flatten, nest
from tests.interop.test_timm import _equal


def _tensors(width: int = 8, stages: tuple[int, ...] = (2, 1), seed: int = 0) -> dict[str, np.ndarray]:
    """A small ResNet's state_dict, made from its definition: 7x7 stem, blocks 1x1, 3x3, 1x1 with four times the channels at the end."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (width, 3, 7, 7)}
    norms = {"bn1": width}
    channels = width
    for stage, blocks in enumerate(stages):
        inner = width << stage
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            shapes |= {f"{name}.conv1.weight": (inner, channels, 1, 1), f"{name}.conv2.weight": (inner, inner, 3, 3)}
            shapes |= {f"{name}.conv3.weight": (4 * inner, inner, 1, 1)}
            norms |= {f"{name}.bn1": inner, f"{name}.bn2": inner, f"{name}.bn3": 4 * inner}
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * inner, channels, 1, 1)
                norms[f"{name}.downsample.1"] = 4 * inner
            channels = 4 * inner
    for name, d in norms.items():
        shapes |= {f"{name}.{leaf}": (d,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    rng = np.random.default_rng(seed)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return tensors | {f"{name}.num_batches_tracked": np.zeros((), np.int64) for name in norms}


def test_there_and_back_is_bit_exact():
    tensors = _tensors()
    params, batch_stats = resnet.from_resnet(tensors)
    back = resnet.to_resnet(params, batch_stats)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)
    np.testing.assert_array_equal(
        params["layer2_0"]["downsample_conv"]["kernel"][0, 0], tensors["layer2.0.downsample.0.weight"][..., 0, 0].T
    )
    np.testing.assert_array_equal(batch_stats["layer1_1"]["bn3"]["var"], tensors["layer1.1.bn3.running_var"])


def test_resnet_50_has_the_published_number_of_parameters():
    """25,557,032 with the classifier of 2048 x 1000 + 1000; 161 tensors with it, and 53 BatchNorms."""
    table = resnet.lines()
    params = [line for line in table if line.ours.startswith("params/")]
    assert sum(int(np.prod(line.shape)) for line in params) == 25_557_032 - 2048 * 1000 - 1000
    assert (len(params), sum(line.ours.endswith("/mean") for line in table)) == (159, 53)
    expected = {name: tensor.shape for name, tensor in _tensors(64, (3, 4, 6, 3)).items() if "num_batches" not in name}
    theirs = {line.theirs: (line.shape[3], line.shape[2], *line.shape[:2]) if line.layout == "conv" else line.shape for line in table}
    assert theirs == expected


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_classifier_is_left_and_told(prefix):
    tensors = _tensors() | {"fc.weight": np.zeros((10, 64), np.float32), "fc.bias": np.zeros(10, np.float32)}
    found = import_network({prefix + name: tensor for name, tensor in tensors.items()})
    params, batch_stats = resnet.from_resnet(_tensors())
    assert found.format == "resnet50"
    assert _equal(found.params, {"backbone": params})
    assert _equal(found.batch_stats, {"backbone": batch_stats})
    assert {name for name in found.left if "num_batches" not in name} == {"fc.weight", "fc.bias"}


def test_moco_v3_and_dino_hold_resnets_too():
    params, _ = resnet.from_resnet(_tensors())
    moco = {f"module.base_encoder.{name}": tensor for name, tensor in _tensors().items()}
    moco |= {"module.base_encoder.fc.0.weight": np.zeros((8, 64), np.float32), "module.predictor.0.weight": np.zeros((8, 8), np.float32)}
    found = import_network(moco, network="student")
    assert (found.format, found.heads) == ("mocov3", 0)
    assert _equal(found.params["backbone"], params)
    assert {"base_encoder.fc.0.weight", "predictor.0.weight"} <= set(found.left)
    dino = {f"teacher.module.backbone.{name}": tensor for name, tensor in _tensors().items()}
    assert _equal(import_network(dino).params["backbone"], params)


def test_misfits_are_listed_with_the_nearest_name():
    tensors = _tensors()
    tensors["layer2.0.bn2.wieght"] = tensors.pop("layer2.0.bn2.weight")
    tensors["conv1.bias"] = np.zeros(8, np.float32)
    with pytest.raises(InteropError) as error:
        resnet.from_resnet(tensors)
    assert "missing  layer2.0.bn2.weight [16]; nearest: layer2.0.bn2.wieght" in str(error.value)
    assert "unused   conv1.bias [8]" in str(error.value)
    params, batch_stats = resnet.from_resnet(_tensors())
    broken = nest({name: leaf for name, leaf in flatten(params).items() if name != "layer1_0/conv2/kernel"})
    with pytest.raises(InteropError, match="missing  params/layer1_0/conv2/kernel"):
        resnet.to_resnet(broken, batch_stats)
    with pytest.raises(InteropError, match="not the parameters of a ResNet"):
        resnet.to_resnet({}, {})
