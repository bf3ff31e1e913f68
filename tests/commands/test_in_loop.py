"""The evaluations of a training loop come from the protocols that have one."""

from __future__ import annotations

from typing import Any

from sere_jax.build import pretraining
from sere_jax.commands import in_loop
from sere_jax.evals.frozen import classification
from sere_jax.evals.network import Network
from tests import micro
from tests.evals import micro_network

_NEIGHBOURS = {"neighbours": (1,), "batch_size": 4}


def test_a_config_with_a_cadence_and_images_runs_the_knn(tmp_path: Any):
    folder = f"folder:{micro_network.photographs(tmp_path, count=6, classes=2)}"
    images = {"gallery": folder, "query": folder, **_NEIGHBOURS}
    config = micro.config({"run": {"eval_every_steps": 3}, "eval": images})
    evaluations = in_loop.evaluations(config)
    assert set(evaluations) == {"knn"}
    params = micro.random_like(pretraining.abstract_state(config, micro.LENGTH).params)
    scores = dict(evaluations["knn"](params["backbone"]))
    # Queries that are the gallery leave no image to fit the probe to.
    names = {"knn/k1/top1", "rank/rankme", "rank/lidar"}
    assert set(scores) == names | {f"{name}/random" for name in names} and 0 <= scores["knn/k1/top1"] <= 1
    other = micro.random_like(pretraining.abstract_state(config, micro.LENGTH).params, seed=1)
    again = dict(evaluations["knn"](other["backbone"]))
    assert {name: again[f"{name}/random"] for name in names} == {name: scores[f"{name}/random"] for name in names}
    assert in_loop.evaluations(micro.config({"run": {"eval_every_steps": 0}, "eval": images})) == {}
    assert in_loop.evaluations(micro.config({"run": {"eval_every_epochs": 1}, "eval": {"gallery": "", "query": ""}})) == {}


def test_a_protocol_of_the_tuple_gets_the_network_and_its_settings(tmp_path: Any, monkeypatch: Any):
    """Nothing but the tuple names the k-NN: another protocol with `periodic` runs beside it, and one without does not."""

    folder = f"folder:{micro_network.photographs(tmp_path, count=2, classes=2)}"

    def periodic(network: Network, settings: classification.Settings) -> Any:
        assert network.params is None and settings.gallery == folder and settings.tokens == ("patches",)
        return lambda params: [("toy/size", float(network.size))]

    toy = classification.PROTOCOL._replace(name="toy", periodic=periodic)
    monkeypatch.setattr(in_loop, "PROTOCOLS", (toy, toy._replace(name="silent", periodic=None)))
    images = {"gallery": folder, "query": folder, "tokens": "patches", "size": 16}
    evaluations = in_loop.evaluations(micro.config({"run": {"eval_every_epochs": 1}, "eval": images}))
    assert {name: list(evaluation({})) for name, evaluation in evaluations.items()} == {"toy": [("toy/size", 16.0)]}
