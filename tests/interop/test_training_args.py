"""What the arguments in a PyTorch file state about attention heads, and where they contradict the tensors."""

from __future__ import annotations

import argparse

import pytest

from sere_jax import load_backbone
from sere_jax.interop import timm, training_args
from sere_jax.interop.tables import InteropError
from tests.interop.test_timm import _params


def _sizes(width):
    return timm.Architecture(width, 12, 1, 16, 224)


@pytest.mark.parametrize(
    ("arguments", "kind", "width", "heads"),
    [
        ({"arch": "vit_small"}, "dino", 384, 6),
        ({"arch": "deit_tiny"}, "ibot", 192, 3),
        ({"model": "mae_vit_large_patch16"}, "timm", 1024, 16),  # MAE
        ({"arch": "vit_small"}, "mocov3", 384, 12),
        ({"arch": "vit_small", "num_heads": 12}, "dino", 384, 12),
        ({"lr": 0.1}, "dino", 384, 6),  # nothing stated: the format's
        ({"arch": "vit_twelve_heads"}, "dino", 384, 0),  # another architecture: not the format's
        ({"arch": "vit_base"}, "dino", 384, 6),  # a contradiction; the format's
    ],
)
def test_heads_are_those_of_the_arguments(arguments, kind, width, heads):
    assert training_args.stated(arguments, kind, 6, _sizes(width)).heads == heads


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"arch": "vit_base"}, "the architecture 'vit_base' of width 768; the tensors have 384"),
        ({"arch": "vit_twelve_heads"}, "'vit_twelve_heads', which is not known"),
        ({"arch": "vit_small", "patch_size": 8}, "patch_size 8; the tensors have 16"),
    ],
)
def test_contradictions_are_told(arguments, line):
    (told,) = training_args.stated(arguments, "dino", 6, _sizes(384)).notes
    assert line in told


def test_heads_that_cannot_be_are_refused():
    with pytest.raises(InteropError, match=r"args\.num_heads: found 5, expected a divisor of the width 384"):
        training_args.stated({"num_heads": 5}, "dino", 0, _sizes(384))


@pytest.mark.parametrize("as_dict", [True, False])
def test_the_arguments_of_a_file_are_read(tmp_path, as_dict):
    torch = pytest.importorskip("torch")
    named = {name: torch.from_numpy(tensor) for name, tensor in timm.to_timm(_params()[1]).items()}
    arguments = {"arch": "vit_micro", "num_heads": 4, "patch_size": 8, "data_path": None}
    torch.save({"model": named, "args": arguments if as_dict else argparse.Namespace(**arguments)}, tmp_path / "x.pth")
    backbone = load_backbone(tmp_path / "x.pth")
    assert backbone.module.heads == 4
    report = "\n".join(backbone.about["report"])
    assert "patch_size 8; the tensors have 4" in report
    assert "ImageNet's mean and std" in report
    with pytest.raises(InteropError, match="heads: found 3, expected 4, which the file states"):
        load_backbone(tmp_path / "x.pth", heads=3)
