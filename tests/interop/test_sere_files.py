"""Files as the authors of SERE write them, made here with torch.save to their names: what is read, and that ours are the same."""

from __future__ import annotations

import argparse
import collections

import numpy as np
import pytest

from sere_jax import load_backbone
from sere_jax.commands.export_command import main
from sere_jax.interop import dino
from sere_jax.interop.files import read_tensors
from sere_jax.interop.formats import import_network
from sere_jax.interop.tables import InteropError
from sere_jax.weights.read import read_weights
from tests.interop.test_formats import _masked, _with_relations
from tests.interop.test_timm import _equal

torch = pytest.importorskip("torch")


class Relation(torch.nn.Module):
    """One relation module with the attribute names of the released checkpoints."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = torch.nn.Sequential(torch.nn.BatchNorm1d(width), torch.nn.ReLU())
        self.predictor = torch.nn.Sequential(torch.nn.Conv2d(width, width, 1, bias=False), torch.nn.BatchNorm2d(width), torch.nn.ReLU())


@pytest.fixture(scope="module")
def networks():
    """(student, teacher, their running statistics): {"backbone", "heads_dino", relation heads}; only the student has a mask token."""
    params, statistics = _with_relations()
    return _masked(params), {name: {**tree} for name, tree in params.items()}, statistics


def _tensors(params, statistics, prefix: str = ""):
    named = dino.to_dino(params, layout="sere", with_heads=True, batch_stats=statistics)
    return collections.OrderedDict((prefix + name, torch.from_numpy(np.array(tensor))) for name, tensor in named.items())


@pytest.fixture(scope="module")
def checkpoint(networks, tmp_path_factory):
    """A full training checkpoint: both networks (the student in DistributedDataParallel), optimizer, arguments, the loss's centers."""
    student, teacher, statistics = networks
    path = tmp_path_factory.mktemp("authors") / "checkpoint.pth"
    content = {
        "student": _tensors(student, statistics, "module."),
        "teacher": _tensors(teacher, statistics),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", alpha=0.2, beta=0.5),
        "fp16_scaler": {"scale": 1.0},
        "ibot_loss": {"center": torch.zeros(1, 10), "center2": torch.zeros(1, 1, 10)},
    }
    torch.save(content, path)
    return path


def test_a_relation_module_of_torch_loads_what_is_exported(networks):
    """Strictly: a name too many or too few is an error of torch."""
    _, teacher, statistics = networks
    tensors = _tensors(teacher, statistics)
    for module in ("pixel_sere", "channel_sere", "pixel_sere_local", "channel_sere_local"):
        prefix = f"backbone.{module}."
        Relation(48).load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})


def test_both_networks_of_a_full_checkpoint_come_back(networks, checkpoint):
    student, teacher, statistics = networks
    for network, params in (("student", student), ("teacher", teacher)):
        weights = read_weights(checkpoint, network=network, heads=3)
        assert _equal(weights.params, params)
        assert _equal(weights.batch_stats, statistics)
    text = "\n".join(weights.about["report"])
    assert "recognised   a SERE checkpoint; network teacher" in text
    for name in ("optimizer", "epoch", "args", "ibot_loss.center2"):
        assert name in text
    assert load_backbone(checkpoint, heads=3).about["network"] == "teacher"


def test_a_released_backbone_with_relation_heads_is_recognised(networks, tmp_path):
    """Without `teacher.` and `backbone.` before the names, and without a head."""
    _, teacher, statistics = networks
    named = {k.removeprefix("backbone."): v for k, v in _tensors(teacher, statistics).items() if k.startswith("backbone.")}
    torch.save({"state_dict": named}, tmp_path / "backbone.pth")
    weights = read_weights(tmp_path / "backbone.pth", heads=3)
    assert weights.about["format"] == "sere"
    assert _equal(weights.params, {name: tree for name, tree in teacher.items() if name != "heads_dino"})


def test_what_ours_writes_has_the_names_and_values_of_the_authors_file(networks, checkpoint, tmp_path, capsys):
    arguments = [f"--checkpoint={checkpoint}", "--format=sere", "--network=both", "--with_heads", "--heads=3"]
    assert main([*arguments, f"--output={tmp_path / 'ours.pth'}"]) == 0
    ours, theirs = (torch.load(path, weights_only=False) for path in (tmp_path / "ours.pth", checkpoint))
    for network in ("student", "teacher"):
        assert ours[network].keys() == theirs[network].keys()
        for name, tensor in theirs[network].items():
            assert torch.equal(ours[network][name], tensor), name
    assert "backbone.masked_embed" not in ours["teacher"]
    assert "module.backbone.masked_embed" in ours["student"]


def test_a_head_for_patches_alone_is_refused_and_can_be_ignored(networks, tmp_path):
    student, _, statistics = networks
    tensors = _tensors(student, statistics)
    tensors["head.last_layer2.weight_v"] = tensors["head.last_layer2.weight_v"] + 1
    torch.save({"teacher": tensors}, tmp_path / "x.pth")
    with pytest.raises(InteropError, match="expected a shared head"):
        read_weights(tmp_path / "x.pth", heads=3)
    weights = read_weights(tmp_path / "x.pth", heads=3, ignore=["head.last_layer2.*", "no_such_*"])
    assert _equal(weights.params["heads_dino"], student["heads_dino"])
    text = "\n".join(weights.about["report"])
    assert "teacher.head.last_layer2.weight_g, teacher.head.last_layer2.weight_v" in text
    assert "ignore       'no_such_*' matches no tensor" in text


@pytest.mark.parametrize("pattern", ["dist_token", "*.dist_token", "teacher.backbone.dist_token", "backbone.dist_*"])
def test_a_pattern_may_name_a_tensor_with_its_prefixes_or_without(networks, checkpoint, tmp_path, capsys, pattern):
    tensors, _ = read_tensors(checkpoint)
    extra = tensors | {"teacher.backbone.dist_token": np.zeros((1, 1, 48), np.float32)}
    with pytest.raises(InteropError, match="a distillation token .*: dist_token"):
        import_network(extra)
    imported = import_network(extra, ignore=(pattern,))
    assert _equal(imported.params, networks[1])
    assert "teacher.backbone.dist_token" in imported.left


def test_export_takes_the_list(networks, checkpoint, tmp_path, capsys):
    """The relation heads of local crops stay behind, and it is told."""
    arguments = [f"--checkpoint={checkpoint}", "--format=npz", "--with_heads", "--heads=3", "--ignore=*_sere_local.*,epoch"]
    assert main([*arguments, f"--output={tmp_path / 'x.npz'}"]) == 0
    assert set(read_weights(tmp_path / "x.npz").params) == {"backbone", "heads_dino", "heads_spatial", "heads_channel"}
    assert "'epoch' matches no tensor" in capsys.readouterr().out
