"""Evaluation configs: the shipped ones keep their rules, mistakes are told with their keys, and the rules fit the protocols."""

from __future__ import annotations

import importlib
import inspect

import pytest

from configs.common import pretrain
from sere_jax import config_eval
from sere_jax.evals import classification, relations, retrieval
from sere_jax.evals.figures import protocol as figures

RUNS = {"knn": classification.run, "retrieval": retrieval.run, "relations": relations.run, "figures": figures.run}


def shipped(name: str, argument: str = ""):
    return importlib.import_module(f"configs.eval.{name}").get_config(argument)


@pytest.mark.parametrize("name", RUNS)
def test_shipped_configs_keep_the_rules_and_are_what_the_protocol_takes(name):
    config = shipped(name)
    assert config.protocol == name and config_eval.mistakes(config) == []
    given = set(config.keys()) - {"protocol", "views_of"}
    assert given == set(inspect.signature(RUNS[name]).parameters) - {"networks", "workdir"}


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
    lines = config_eval.mistakes(config)
    assert len(lines) == 3
    assert any(line.startswith("which: found ('crops', 'atention'), expected") for line in lines)
    assert any("points: found 1" in line and "at least 2" in line for line in lines)
    assert any("views.flip_prob: found 2.0" in line for line in lines)


def test_a_config_of_training_is_no_evaluation():
    assert config_eval.mistakes(pretrain()) == ["protocol: found None, expected one of knn, retrieval, relations, figures"]
    config = shipped("knn")
    config.protocol = "kn"
    assert "nearest: knn" in config_eval.mistakes(config)[0]
