"""DINO's checkpoint layout: prefixes, head, weight normalisation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.interop import dino
from sere_jax.interop.tables import InteropError, flatten
from sere_jax.models.heads import PrototypeHead
from tests.interop.test_timm import _equal, _params, _random
from tests.oracles import timm_vit


def _network(norm_last_layer: bool = True, layers: int = 3):
    _, backbone = _params(depth=1)
    head = PrototypeHead(prototypes=10, hidden=24, bottleneck=16, layers=layers, norm_last_layer=norm_last_layer)
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), jnp.zeros((2, 48)), student=True))
    return head, {"backbone": backbone, "heads_dino": _random(shapes["params"], 3)}


def _read(tensors, **chosen):
    return dino.read_dino(tensors, **chosen).params


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_there_and_back_is_bit_exact(norm_last_layer, layers):
    _, params = _network(norm_last_layer, layers)
    assert _equal(_read(dino.to_dino(params, with_heads=True)), params)


def test_without_heads_only_the_backbone_is_written():
    _, params = _network()
    tensors = dino.to_dino(params)
    assert all(name.startswith("backbone.") for name in tensors)
    assert _equal(_read(tensors), {"backbone": params["backbone"]})


def test_names_of_the_head_are_dinos():
    _, params = _network()
    tensors = dino.to_dino(params, with_heads=True)
    assert {name: tensor.shape for name, tensor in tensors.items() if name.startswith("head.")} == {
        "head.mlp.0.weight": (24, 48),
        "head.mlp.0.bias": (24,),
        "head.mlp.2.weight": (24, 24),
        "head.mlp.2.bias": (24,),
        "head.mlp.4.weight": (16, 24),
        "head.mlp.4.bias": (16,),
        "head.last_layer.weight_g": (10, 1),
        "head.last_layer.weight_v": (10, 16),
    }


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_the_exported_head_gives_the_same_logits(norm_last_layer):
    head, params = _network(norm_last_layer)
    cls = np.random.default_rng(4).normal(size=(3, 48)).astype(np.float32)
    out = head.apply({"params": params["heads_dino"]}, jnp.asarray(cls), student=True)
    expected = timm_vit.dino_logits(dino.to_dino(params, with_heads=True), cls)
    np.testing.assert_allclose(out.bottleneck @ out.prototypes.T, expected, atol=1e-5)  # float32; cosines


def test_a_full_checkpoint_holds_two_networks():
    _, teacher = _network()
    student = jax.tree.map(lambda leaf: leaf + 1, teacher)
    tensors = {f"teacher.{name}": tensor for name, tensor in dino.to_dino(teacher, with_heads=True).items()}
    tensors |= {f"student.module.{name}": tensor for name, tensor in dino.to_dino(student, with_heads=True).items()}
    tensors |= {"epoch": np.asarray(3)}
    assert _equal(_read(tensors), teacher)
    assert _equal(_read(tensors, network="student"), student)
    with pytest.raises(InteropError, match="network: found 'momentum', expected one of student, teacher"):
        _read(tensors, network="momentum")


def test_newer_names_of_weight_normalisation():
    _, params = _network(norm_last_layer=False)
    tensors = dino.to_dino(params, with_heads=True)
    tensors["head.last_layer.parametrizations.weight.original0"] = tensors.pop("head.last_layer.weight_g")
    tensors["head.last_layer.parametrizations.weight.original1"] = tensors.pop("head.last_layer.weight_v")
    assert _equal(_read(tensors), params)


def test_trained_lengths_are_not_dropped_in_silence():
    _, params = _network(norm_last_layer=False)
    with pytest.raises(InteropError, match="expected 1 with norm_last_layer=True"):
        _read(dino.to_dino(params, with_heads=True), norm_last_layer=True)


def test_a_missing_layer_of_the_head_is_named():
    _, params = _network()
    tensors = dino.to_dino(params, with_heads=True)
    del tensors["head.mlp.2.bias"]
    with pytest.raises(InteropError, match=r"missing  mlp\.2\.bias \[24\]"):
        _read(tensors)


def test_another_kind_of_head_is_refused():
    _, params = _network()
    tensors = dino.to_dino(params) | {"head.fc.weight": np.zeros((3, 48), np.float32)}
    with pytest.raises(InteropError, match=r"found fc\.weight, expected DINO's"):
        _read(tensors)


def test_there_may_be_no_head_to_export():
    _, params = _network()
    with pytest.raises(InteropError, match="no heads_dino"):
        dino.to_dino({"backbone": params["backbone"]}, with_heads=True)
    assert flatten(params["backbone"])
