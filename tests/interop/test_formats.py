"""Every kind of file, made by hand as its authors' code would name it: what is recognised, taken and left."""

from __future__ import annotations

import argparse
import collections

import ml_dtypes
import numpy as np
import pytest

from sere_jax import load_backbone
from sere_jax.interop import dino, relation, timm
from sere_jax.interop.files import FileError, read_tensors, write_tensors
from sere_jax.interop.formats import describe, import_network, networks_in, recognise
from sere_jax.interop.tables import InteropError
from tests.interop.test_dino import _network
from tests.interop.test_timm import _equal, _params, _random

RELATION = {"bn": {"scale": 48, "bias": 48}, "predictor_bn": {"scale": 48, "bias": 48}}


def _with_relations(seed: int = 5):
    """A network with DINO's head and the four relation heads, and their running statistics."""
    _, params = _network()
    shapes = {layer: {name: np.zeros(d, np.float32) for name, d in leaves.items()} for layer, leaves in RELATION.items()}
    shapes["predictor"] = {"kernel": np.zeros((48, 48), np.float32)}
    statistics = {layer: {"mean": np.zeros(48, np.float32), "var": np.zeros(48, np.float32)} for layer in RELATION}
    heads = {head: _random(shapes, seed + i) for i, head in enumerate(relation.MODULES)}
    return params | heads, {head: _random(statistics, seed + 9 + i) for i, head in enumerate(relation.MODULES)}


def _masked(params):
    token = np.random.default_rng(8).normal(size=(1, 48)).astype(np.float32)
    return params | {"backbone": params["backbone"] | {"mask_token": token}}


def test_sere_there_and_back_is_bit_exact_with_running_statistics():
    params, statistics = _with_relations()
    for network in (params, _masked(params)):
        found = import_network(dino.to_dino(network, layout="sere", with_heads=True, batch_stats=statistics))
        assert (found.format, found.left) == ("sere", ())
        assert _equal(found.params, network)
        assert _equal(found.batch_stats, statistics)


def test_ibot_repeats_the_last_layer_and_keeps_the_mask_token():
    _, params = _network(norm_last_layer=False)
    params = _masked(params)
    tensors = dino.to_dino(params, layout="ibot", with_heads=True)
    assert tensors["backbone.masked_embed"].shape == (1, 48)
    np.testing.assert_array_equal(tensors["head.last_layer2.weight_v"], tensors["head.last_layer.weight_v"])
    found = import_network(tensors, norm_last_layer=False)
    assert found.format == "ibot"
    assert _equal(found.params, params)
    tensors["head.last_layer2.weight_v"] = tensors["head.last_layer2.weight_v"] + 1
    with pytest.raises(InteropError, match="expected a shared head"):
        import_network(tensors)
    alone = import_network(tensors, with_heads=False)
    assert _equal(alone.params, {"backbone": params["backbone"]})
    assert "head.last_layer2.weight_v" in alone.left


def test_a_networks_own_names_win_over_the_other_networks():
    _, teacher = _network()
    tensors = {f"teacher.{name}": tensor for name, tensor in dino.to_dino(teacher, with_heads=True).items()}
    tensors |= {f"student.module.{name}": tensor + 1 for name, tensor in dino.to_dino(teacher, with_heads=True).items()}
    tensors["dino_loss.center"] = np.zeros((1, 10), np.float32)
    assert networks_in(tensors) == ("teacher", "student")
    found = import_network(tensors)
    assert _equal(found.params, teacher)
    assert {name.partition(".")[0] for name in found.left} == {"student", "dino_loss"}
    text = "\n".join(describe(found, "teacher"))
    assert "a DINO checkpoint; network teacher" in text
    assert "taken        heads_dino: 7 tensors" in text
    assert f"left         student.*: {len(tensors) // 2} tensors" in text
    assert "left         dino_loss.center" in text


AUTHORS = {  # the layers of each of the authors' modules, written out by hand for width 48
    "projection.0.weight": (48,),
    "projection.0.bias": (48,),
    "projection.0.running_mean": (48,),
    "projection.0.running_var": (48,),
    "projection.0.num_batches_tracked": (),
    "predictor.0.weight": (48, 48, 1, 1),
    "predictor.1.weight": (48,),
    "predictor.1.bias": (48,),
    "predictor.1.running_mean": (48,),
    "predictor.1.running_var": (48,),
    "predictor.1.num_batches_tracked": (),
}
MODULES = ("pixel_sere", "channel_sere", "pixel_sere_local", "channel_sere_local")


def test_the_names_of_the_relation_heads_are_the_authors():
    params, statistics = _with_relations()
    tensors = dino.to_dino(params, layout="sere", with_heads=True, batch_stats=statistics)
    shapes = {name: tensor.shape for name, tensor in tensors.items() if "_sere" in name}
    assert shapes == {f"backbone.{module}.{name}": shape for module in MODULES for name, shape in AUTHORS.items()}
    # With or without a mask token the last layer is there twice, as in the authors' files.
    for leaf in ("weight_g", "weight_v"):
        np.testing.assert_array_equal(tensors[f"head.last_layer2.{leaf}"], tensors[f"head.last_layer.{leaf}"])
    np.testing.assert_array_equal(
        tensors["backbone.pixel_sere.predictor.0.weight"][:, :, 0, 0], params["heads_spatial"]["predictor"]["kernel"].T
    )
    np.testing.assert_array_equal(tensors["backbone.channel_sere.projection.0.running_var"], statistics["heads_channel"]["bn"]["var"])


def test_the_earlier_spelling_of_relation_heads_is_read():
    params, statistics = _with_relations()
    tensors = dino.to_dino(params, layout="sere", with_heads=True, batch_stats=statistics)
    earlier = {name.replace("_sere", "").replace("projection.", "projector."): tensor for name, tensor in tensors.items()}
    assert "backbone.channel_local.projector.0.weight" in earlier
    imported = import_network(earlier)
    assert imported.format == "sere"
    assert _equal(imported.params, params)
    assert _equal(imported.batch_stats, statistics)


def test_a_relation_head_that_lacks_a_layer_is_named():
    params, statistics = _with_relations()
    tensors = relation.to_sere(params, statistics)
    with pytest.raises(InteropError, match=r"(?s)missing  predictor\.1\.bias.*unused   predictor\.2\.bias"):
        relation.from_sere({name.replace("predictor.1.bias", "predictor.2.bias"): tensor for name, tensor in tensors.items()})
    with pytest.raises(InteropError, match=r"pixel_sere: found no projection\.0\.weight"):
        relation.from_sere({name.replace("projection.0", "projection.1"): tensor for name, tensor in tensors.items()})


def test_a_symmetric_relation_head_has_no_predictor():
    params, statistics = _with_relations()
    heads = {"heads_channel": {"bn": params["heads_channel"]["bn"]}}
    own = {"heads_channel": {"bn": statistics["heads_channel"]["bn"]}}
    assert _equal(relation.from_sere(relation.to_sere(heads, own))[0], heads)


def test_mocov3_gives_base_and_momentum_encoder_with_twelve_heads(tmp_path):
    """Names as in MoCo v3's `vit-s-300ep.pth.tar`: projector in `head`, predictor beside the encoders."""
    _, base = _params(depth=1, width=384, heads=12)
    momentum = _random(base, 7)
    tensors = {}
    for encoder, params in (("base_encoder", base), ("momentum_encoder", momentum)):
        tensors |= {f"module.{encoder}.{name}": tensor for name, tensor in timm.to_timm(params).items()}
        tensors |= {f"module.{encoder}.head.{i}.weight": np.zeros((8, 8), np.float32) for i in (0, 3, 6)}
    tensors |= {"module.predictor.0.weight": np.zeros((8, 8), np.float32)}
    write_tensors(tmp_path / "moco.safetensors", tensors, {})
    student, teacher = (import_network(tensors, network=name) for name in ("student", "teacher"))
    assert _equal(student.params["backbone"], base)
    assert _equal(teacher.params["backbone"], momentum)
    assert (student.format, student.heads) == ("mocov3", 12)
    assert "predictor.0.weight" in student.left
    assert "base_encoder.head.0.weight" in student.left
    backbone = load_backbone(tmp_path / "moco.safetensors")
    assert (backbone.module.heads, backbone.about["network"]) == (12, "student")  # MoCo v3 evaluates its base encoder
    np.testing.assert_array_equal(backbone.params["cls_token"], base["cls_token"])
    with pytest.raises(InteropError, match="heads: found 6, expected 12, as the ViTs of a MoCo v3 checkpoint have"):
        load_backbone(tmp_path / "moco.safetensors", heads=6)
    with pytest.raises(InteropError, match="found no momentum_encoder"):
        import_network({name: tensor for name, tensor in tensors.items() if "base_encoder" in name})


def test_a_classifier_is_left_but_layer_scale_is_refused():
    _, params = _params()
    tensors = timm.to_timm(params) | {"head.weight": np.zeros((10, 48), np.float32), "head.bias": np.zeros(10, np.float32)}
    found = import_network(tensors)
    assert (found.format, found.left) == ("timm", ("head.weight", "head.bias"))
    with pytest.raises(InteropError, match=r"layer scale .*: blocks\.0\.ls1\.gamma"):
        import_network(tensors | {"blocks.0.ls1.gamma": np.zeros(48, np.float32)})


def test_what_is_no_known_format_is_named_with_all_that_are():
    with pytest.raises(InteropError) as error:
        recognise(["features.0.weight", "classifier.1.weight"])
    assert "not recognised from features.0.weight, classifier.1.weight" in str(error.value)
    for word in ("timm", "mocov3", "hf_vit", "ibot", "sere"):
        assert word in str(error.value)


@pytest.mark.parametrize("ending", ["pth", "pth.tar", "pt"])
def test_a_checkpoint_as_dino_saves_it(tmp_path, ending):
    """`torch.save` with arguments in a Namespace, an optimizer, a loss scaler and a loss's center."""
    torch = pytest.importorskip("torch")
    _, teacher = _network()
    named = {name: torch.from_numpy(tensor) for name, tensor in dino.to_dino(teacher, with_heads=True).items()}
    moments = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    saved = {
        "student": collections.OrderedDict({f"module.{name}": tensor + 1 for name, tensor in named.items()}),
        "teacher": collections.OrderedDict(named),
        "optimizer": moments,
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", lr=0.0005),
        "dino_loss": {"center": torch.zeros(1, 10)},
    }
    path = tmp_path / f"checkpoint.{ending}"
    torch.save(saved, path)
    tensors, metadata = read_tensors(path)
    assert metadata == {"left": ["optimizer", "epoch", "args"], "arguments": {"arch": "vit_small", "lr": 0.0005}}
    assert _equal(import_network(tensors).params, teacher)
    backbone = load_backbone(path, heads=3)
    assert backbone.about["network"] == "teacher"
    text = "\n".join(backbone.about["report"])
    assert "optimizer" in text
    assert "dino_loss.center" in text


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_wrappers_and_half_precision(tmp_path, wrapper):
    torch = pytest.importorskip("torch")
    _, params = _params()
    named = {name: torch.from_numpy(tensor).to(torch.bfloat16) for name, tensor in timm.to_timm(params).items()}
    torch.save({wrapper: named, "epoch": 3}, tmp_path / "x.pth")
    tensors, _ = read_tensors(tmp_path / "x.pth")
    expected = timm.to_timm(params)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, expected[name].astype(ml_dtypes.bfloat16))


def test_a_file_that_holds_code_is_refused_and_not_run(tmp_path):
    torch = pytest.importorskip("torch")

    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"teacher": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(FileError, match=r"evil\.pth: cannot be read as pth: it holds objects of Python code"):
        read_tensors(tmp_path / "evil.pth")
    (tmp_path / "page.pth").write_bytes(b"<html>404</html>")
    with pytest.raises(FileError, match=r"page\.pth: cannot be read"):
        read_tensors(tmp_path / "page.pth")
