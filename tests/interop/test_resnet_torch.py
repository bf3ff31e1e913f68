"""ResNets of PyTorch: a state_dict gives the same features here, and what is exported loads strictly over there."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sere_jax import load_backbone
from sere_jax.commands.export import export
from sere_jax.interop.files import read_tensors, write_tensors
from tests.deviations import Deviation

torch = pytest.importorskip("torch")

from tests.oracles import torch_resnet  # noqa: E402  (imports torch)
from tests.parity.weights import relative  # noqa: E402

# Norm of the difference from PyTorch in float64 over the norm. ResNet-50 with weights of noise amplifies rounding: PyTorch's own
# float32 is 7e-5 away from its float64.
LIMIT, LIMIT_50 = 1e-5, 2e-4


def _arrays(network: Any) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def _compare(place: Path, network: Any, size: int, what: str, deviation: Deviation, limit: float = LIMIT) -> None:
    """`network`: images [b, 3, H, W] -> the last map."""
    images = np.random.default_rng(2).normal(size=(2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = copy.deepcopy(network).double()(torch.from_numpy(images).double().permute(0, 3, 1, 2))
    expected = expected.permute(0, 2, 3, 1).numpy()
    assert 0.5 < np.abs(expected).max() < 50, "too tame or too wild to show anything"
    features = load_backbone(place)(images)
    assert features.patches.shape == expected.shape
    deviation("features of a ResNet", f"{what}, map", relative(features.patches, expected), limit)
    deviation("features of a ResNet", f"{what}, cls", relative(features.cls, expected.mean((1, 2))), limit)


@pytest.fixture(scope="module")
def oracle() -> Any:
    """Two stages, with a classifier; blocks with and without a projection, with stride 1 and 2."""
    torch.manual_seed(0)
    return torch_resnet.unsettle(torch_resnet.ResNet((2, 1), 8, classes=10), 40)


@pytest.mark.parametrize("name", ["resnet.pth", "resnet.safetensors"])
def test_a_state_dict_gives_the_same_features(oracle, tmp_path, deviation, name):
    if name.endswith(".pth"):
        torch.save(oracle.state_dict(), tmp_path / name)
    else:
        write_tensors(tmp_path / name, _arrays(oracle), {})
    backbone = load_backbone(tmp_path / name)
    assert {"left         fc.weight, fc.bias", "left         fc.bias, fc.weight"} & set(backbone.about["report"])  # as the file has them
    assert "recognised   torchvision's names of a ResNet, which are also timm's" in backbone.about["report"]
    assert (backbone.preprocess.size, backbone.preprocess.resize) == (224, 256)
    _compare(tmp_path / name, oracle, 40, f"oracle, {name}", deviation)


@pytest.mark.parametrize("layout", ["timm", "dino"])
def test_an_export_loads_strictly(oracle, tmp_path, deviation, layout):
    write_tensors(tmp_path / "theirs.safetensors", _arrays(oracle), {})
    export(tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors", layout=layout)
    tensors = {name.removeprefix("backbone."): torch.from_numpy(t) for name, t in read_tensors(tmp_path / "ours.safetensors")[0].items()}
    again = torch_resnet.ResNet((2, 1), 8)
    again.load_state_dict(tensors, strict=True)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, oracle.state_dict()[name]) or name.endswith("num_batches_tracked"), name
    _compare(tmp_path / "ours.safetensors", again.eval(), 32, f"export as {layout}", deviation)


@pytest.mark.slow
@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_resnet_50_of_the_packages(package, tmp_path, deviation):
    """The real thing where it is installed: its state_dict as a file, and our export back into it."""
    made = pytest.importorskip(package, exc_type=(ImportError, RuntimeError))
    torch.manual_seed(0)
    fresh = made.models.resnet50(weights=None) if package == "torchvision" else made.create_model("resnet50")
    network = torch_resnet.unsettle(fresh, 96)
    torch.save(network.state_dict(), tmp_path / "resnet50.pth")
    head = ("avgpool", "fc") if package == "torchvision" else ("global_pool", "fc")
    trunk = torch.nn.Sequential(*(module for name, module in network.named_children() if name not in head))
    _compare(tmp_path / "resnet50.pth", trunk, 224, f"{package}'s resnet50", deviation, LIMIT_50)
    export(tmp_path / "resnet50.pth", tmp_path / "ours.safetensors")
    tensors = {name: torch.from_numpy(tensor) for name, tensor in read_tensors(tmp_path / "ours.safetensors")[0].items()}
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    assert (sorted(missing), unexpected) == (["fc.bias", "fc.weight"], [])
