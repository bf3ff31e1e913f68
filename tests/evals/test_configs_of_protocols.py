"""Evaluation configs: the shipped ones keep their rules, mistakes are told with their keys, and the rules fit the protocols."""

from __future__ import annotations

import importlib

import pytest

from configs.common import pretrain
from sere_jax.commands import evaluate
from sere_jax.evals import protocols


def shipped(name: str, argument: str = ""):
    return importlib.import_module(f"configs.eval.{name}").get_config(argument)


@pytest.mark.parametrize("name", [entry.name for entry in protocols.PROTOCOLS])
def test_shipped_configs_keep_the_rules_and_are_what_the_protocol_takes(name):
    config = shipped(name)
    assert config.protocol == name and protocols.mistakes(config) == []
    settings = evaluate.settings(config, [])
    assert isinstance(settings, protocols.protocol(name).settings)
    kept = set(config.keys()) & set(settings._fields) - {"views", "photometry"}
    assert {key: config[key] for key in kept} == {key: getattr(settings, key) for key in kept}
    assert set(settings._fields) - kept <= {"views", "photometry", "feed", "reading"}


def test_arguments_of_the_knn_config():
    assert shipped("knn", "bundled").query == "bundled:query"
    both = shipped("knn", "bundled,batch_size=8")
    assert (both.gallery, both.batch_size) == ("bundled:gallery", 8)
    assert shipped("knn", "gallery=folder:a,query=folder:b").query == "folder:b"
    with pytest.raises(ValueError, match="bundle"):
        shipped("knn", "bundle")


def test_mistakes_name_key_value_and_what_would_do():
    config = shipped("figures")
    config.which = ("crops", "atention")
    config.points = 1
    config.views.flip_prob = 2.0
    lines = protocols.mistakes(config)
    assert len(lines) == 3
    assert any(line.startswith("which: found ('crops', 'atention'), expected") for line in lines)
    assert any("points: found 1" in line and "at least 2" in line for line in lines)
    assert any("views.flip_prob: found 2.0" in line for line in lines)


def test_images_that_are_smaller_than_their_crop_and_batches_that_cannot_be_shared():
    config = shipped("knn", "bundled,size=40,resize=10,batch_size=63")
    assert protocols.mistakes(config) == [
        "resize: found 10, expected 0 or at least the 40 pixels of the crop that follows; nearest: 40",
    ]
    assert protocols.mistakes(config, processes=2)[1:] == ["batch_size: found 63, expected a multiple of the 2 processes; nearest: 62"]
    assert protocols.mistakes(shipped("knn", "resize=10")) == []  # beside the network's own size, which is not known yet
    config.resize, config.batch_size = -1, 0
    assert len(protocols.mistakes(config, processes=2)) == 2  # each by itself, without the rules among them


def test_a_config_of_training_is_no_evaluation():
    names = ", ".join(entry.name for entry in protocols.PROTOCOLS)
    assert protocols.mistakes(pretrain()) == [f"protocol: found None, expected one of {names}"]
    config = shipped("knn")
    config.protocol = "kn"
    assert "nearest: knn" in protocols.mistakes(config)[0]
