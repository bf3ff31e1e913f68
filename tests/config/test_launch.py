"""What a launch says against its config file: the launch wins, what follows from it is changed and said, contradictions are mistakes."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from ml_collections import ConfigDict

from configs.common import arguments, pretrain
from sere_jax.build import pretraining
from sere_jax.config import check as rules
from sere_jax.config import lengths
from sere_jax.config.arguments import ArgumentError
from sere_jax.config.keys import KEYS
from sere_jax.config.launch import adjustments
from sere_jax.config.names import GUESSES, flatten, unknown_key
from sere_jax.config.unread import READERS, unread


def _launch(file: str, argument: str) -> tuple[ConfigDict, list[str]]:
    with adjustments() as lines:
        config = importlib.import_module(f"configs.{file}").get_config(argument)
    return config, lines


def _mistakes(config: ConfigDict) -> list[str]:
    return rules.mistakes(config, devices=1, processes=1)


@pytest.mark.parametrize("file", ["small", "quickstart"])
@pytest.mark.parametrize("epochs", [0, 50])
def test_epochs_override_a_files_total_steps(file: str, epochs: int):
    config, _ = _launch(file, f"source=bundled,epochs={epochs}")
    assert (config.schedule.epochs, config.schedule.total_steps) == (epochs, 0) and _mistakes(config) == []


def test_total_steps_override_a_files_epochs():
    assert _launch("dino_vits16", "total_steps=50")[0].schedule.total_steps == 50


def test_both_lengths_in_one_launch_are_a_mistake():
    with pytest.raises(ArgumentError, match="schedule.epochs, schedule.total_steps: found both in one launch"):
        _launch("small", "epochs=3,total_steps=5")


@pytest.mark.parametrize("argument", ["alpha=1,relation.alpha=1", "epochs=3,epochs=3"])
def test_a_key_twice_is_a_mistake(argument: str):
    with pytest.raises(ArgumentError, match="found twice, expected once"):
        _launch("small", argument)


def test_a_shorter_run_shortens_the_warmups_that_do_not_fit():
    """20 of 100 epochs: the 30 epochs of the teacher's temperature become 6; the 10 of the learning rate fit and stay."""
    config, lines = _launch("ibot_vits16", "source=bundled,epochs=20")
    assert (config.dino.warmup_teacher_temp_epochs, config.optimizer.warmup_epochs) == (6, 10)
    assert lines == ["dino.warmup_teacher_temp_epochs: 30 -> 6, its share of the shorter run"] and _mistakes(config) == []


def test_a_warmup_of_the_launch_stays_and_is_refused():
    config, lines = _launch("dino_vits16", "source=bundled,epochs=5,warmup_epochs=10")
    assert lines == [] and _mistakes(config) == ["optimizer.warmup_epochs: found 10, expected at most schedule.epochs = 5"]


def test_a_run_in_steps_is_fitted_when_its_data_is_open():
    config, _ = _launch("ibot_vits16", "source=bundled,total_steps=200")
    said = {"data.source", "schedule.total_steps"}
    assert lengths.fitted(config, per_epoch=10, total=200, said=said) == [
        "dino.warmup_teacher_temp_epochs: 30 -> 6, its share of the shorter run"
    ]
    assert lengths.length_mistakes(config, per_epoch=10, total=200) == []
    config, _ = _launch("ibot_vits16", "source=bundled,total_steps=200")
    assert lengths.fitted(config, per_epoch=10, total=200, said={"data.source"}) == []  # a file's own contradiction is refused
    assert len(lengths.length_mistakes(config, per_epoch=10, total=200)) == 1


def test_other_images_are_not_judged_by_the_bundled_ones(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    config, lines = _launch("quickstart", f"source=folder:{tmp_path}")
    assert (config.eval.gallery, config.eval.query, config.run.eval_every_steps) == ("", "", 0) and _mistakes(config) == []
    assert len(lines) == 1 and lines[0].startswith("eval.gallery, eval.query: switched off, because the bundled photographs say little")
    config, lines = _launch("quickstart", f"source=folder:{tmp_path},gallery=bundled:gallery,query=bundled:query")
    assert config.eval.gallery == "bundled:gallery" and lines == []  # the launch asked for it
    assert _launch("quickstart", "source=bundled:train")[0].eval.gallery == "bundled:gallery"


def test_evaluations_by_epochs_and_the_best_step_are_switched_off_with_their_images(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    config, _ = _launch("quickstart", "")
    config.run.update(eval_every_steps=0, eval_every_epochs=1, keep_best="knn/k20/top1")
    with adjustments() as lines:
        config = arguments(config, f"source=folder:{tmp_path}")
    assert len(lines) == 1 and _mistakes(config) == []
    assert (config.run.eval_every_epochs, config.run.keep_best, config.eval.gallery) == (0, "", "")


def test_what_the_launch_switches_off_goes_back_to_its_default():
    config, lines = _launch("small", "source=bundled,recipe=dino,local_count=0")
    assert lines == [] and _mistakes(config) == []
    assert (config.relation.global_points, config.views.local_size) == (13, 96)
    config, _ = _launch("ibot_vits16", "source=bundled,recipe=dino")
    assert config.masking.kind == "none" and _mistakes(config) == []


def test_what_a_launch_or_a_file_says_in_vain_is_a_mistake():
    config, _ = _launch("small", "source=bundled,recipe=dino,alpha=0.3")
    [line] = _mistakes(config)
    assert line.startswith("relation.alpha: found 0.3, which is never read: no loss of recipe = dino reads it; expected its default, 1.0")
    config = pretrain()
    config.data.source, config.optimizer.momentum = "bundled", 0.5
    [line] = _mistakes(config)
    assert "optimizer.momentum: found 0.5" in line and "teacher.ema_momentum" in line


def _built(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The keys that the objective, the networks and the optimizer of these values read when they are made."""
    config = pretrain()
    config.update_from_flattened_dict(values)
    names = {id(group): f"{name}." for name, group in config.items() if isinstance(group, ConfigDict)}
    seen: set[str] = set()
    get = ConfigDict.__getitem__

    def recorded(self: ConfigDict, key: str) -> Any:
        seen.add(names.get(id(self), "") + key)
        return get(self, key)

    monkeypatch.setattr(ConfigDict, "__getitem__", recorded)
    pretraining.optimizer(config, pretraining.Steps(10, 100))
    pretraining.objective(config, pretraining.Steps(10, 100))
    pretraining.network(config)
    return seen


_RESNET = {"model.name": "resnet", "model.variant": "resnet50", "model.drop_path": 0.0, "relation.heads": 8}


@pytest.mark.parametrize(
    "values",
    [
        *({"recipe": recipe} for recipe in ("dino", "dino_spatial", "dino_channel", "dino_barlow", "dinoplus", "ibot", "mocov3", "mae")),
        {"recipe": "dino_sere", "optimizer.name": "lars"},
        {"recipe": "dino_sere", "optimizer.name": "sgd", **_RESNET},
    ],
    ids=str,
)
def test_what_nothing_reads_when_a_run_is_built_is_known(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """Of the groups that the parts of a run are made from: what no part reads is listed as unread, whatever its value."""
    groups = ("dino.", "patch.", "barlow.", "mocov3.", "mae.", "optimizer.", "model.")
    config = pretrain()
    config.update_from_flattened_dict(values)
    listed = unread(flatten(config))
    never = {key for key in KEYS if key.startswith(groups)} - _built(values, monkeypatch)
    # A ResNet is refused any drop path but 0, which is not the default.
    assert never and never - listed.keys() - {"model.drop_path"} == set()


def test_readers_name_keys_of_the_table():
    assert {key for reader in READERS for key in reader.keys} <= KEYS.keys()


@pytest.mark.parametrize("guess", GUESSES)
def test_usual_guesses_have_their_nearest_key(guess: str):
    nearest = unknown_key(guess, KEYS).removeprefix("unknown key; nearest: ")
    assert GUESSES[guess] in KEYS and nearest in KEYS
    if guess not in {path.rpartition(".")[2] for path in KEYS}:
        assert nearest == GUESSES[guess]


def test_evaluations_by_epochs_read_their_settings():
    config, _ = _launch("quickstart", "eval_every_steps=0,eval_every_epochs=1")
    assert config.eval.gallery == "bundled:gallery" and _mistakes(config) == []
