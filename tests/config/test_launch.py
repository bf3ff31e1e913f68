"""What a launch says against its config file: the launch wins, what follows from it is changed and said, contradictions are mistakes."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest
from absl import flags
from hypothesis import assume, given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from configs.common import arguments, pretrain
from sere_jax.build import pretraining
from sere_jax.build.optimizer import optimizer_rules
from sere_jax.config import check as rules
from sere_jax.config import command_line, lengths
from sere_jax.config.arguments import ArgumentError
from sere_jax.config.keys import KEYS
from sere_jax.config.launch import Launch, adjustments, fitted
from sere_jax.config.names import GUESSES, flatten, unknown_key
from sere_jax.config.unread import READERS, unread
from sere_jax.sharding import make_mesh


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


@pytest.mark.parametrize(
    ("file", "argument", "before", "per_epoch", "lines"),
    [
        # 200 of the file's 100 x 10 steps: a fifth of 30 epochs. The warm-up of 10 epochs fits.
        ("ibot_vits16", "total_steps=200", (100, 0), 10, ["dino.warmup_teacher_temp_epochs: 30 -> 6, its share of the shorter run"]),
        # 300 of the file's 1,200 steps: a quarter of 5 epochs.
        ("small", "total_steps=300", (100, 1200), 100, ["optimizer.warmup_epochs: 5 -> 1, its share of the shorter run"]),
        # 3 epochs of 100 steps are as much.
        ("small", "epochs=3", (100, 1200), 100, ["optimizer.warmup_epochs: 5 -> 1, its share of the shorter run"]),
        # A tenth of 5 epochs is no whole epoch, and no duration becomes 0.
        ("small", "epochs=2", (100, 1200), 60, ["optimizer.warmup_epochs: 5 -> 1, its share of the shorter run"]),
        (
            "small",
            "total_steps=50",
            (100, 1200),
            100,
            [
                "optimizer.warmup_epochs: 5 -> 0, because the run is too short for one epoch of it",
                "optimizer.freeze_last_layer_epochs: 1 -> 0, because the run is too short for one epoch of it",
            ],
        ),
        ("small", "total_steps=300,warmup_epochs=5", (100, 1200), 100, []),  # the launch gives both
        ("small", "epochs=20", (100, 1200), 100, []),  # longer than before
    ],
)
def test_a_run_in_steps_is_fitted_when_its_data_is_open(
    file: str, argument: str, before: tuple[int, int], per_epoch: int, lines: list[str]
):
    config, early = _launch(file, f"source=bundled,{argument}")
    launch = command_line.launch(["train.py", f"--config=configs/{file}.py:source=bundled,{argument}"], config)
    assert (launch.epochs, launch.total_steps) == before and early == []
    assert rules.mistakes(config, devices=1, processes=1, to_fit=launch.to_fit) == []
    total = config.schedule.total_steps or config.schedule.epochs * per_epoch
    assert fitted(config, launch, per_epoch=per_epoch, total=total) == lines
    refused = [line.partition(":")[0] for line in lengths.length_mistakes(config, per_epoch=per_epoch, total=total)]
    assert refused == (["optimizer.warmup_epochs"] if "warmup_epochs" in argument else [])


def test_a_file_s_own_contradiction_is_refused():
    config, _ = _launch("ibot_vits16", "source=bundled")
    config.schedule.total_steps = 200
    assert fitted(config, Launch(frozenset({"data.source"})), per_epoch=10, total=200) == []
    assert len(lengths.length_mistakes(config, per_epoch=10, total=200)) == 1


def test_a_launch_is_read_however_its_flags_are_written():
    config, _ = _launch("small", "source=bundled,total_steps=300")
    for file, argv in (
        ("configs/small.py:source=bundled,total_steps=300", ["--config=configs/small.py:source=bundled,total_steps=300"]),
        ("configs/small.py:total_steps=300", ["--config", "configs/small.py:total_steps=300", "--config.data.source", "bundled"]),
        ("configs/small.py", ["-config=configs/small.py", "--config.schedule.total_steps", "300", "--config.data.source=bundled"]),
    ):
        values = flags.FlagValues()
        command_line.define_config(values)
        launch = command_line.launch(["train.py", *argv], config, values)
        assert launch[:4] == (frozenset({"data.source", "schedule.total_steps"}), 100, 1200, file)
        assert launch.values["schedule.total_steps"] == (300 if "total" in file else 1200)
    config, _ = _launch("ablation", "table=8,row=all,source=bundled,total_steps=300")
    argv = ["train.py", "--config=configs/ablation.py:table=8,row=all,source=bundled,total_steps=300"]
    assert command_line.launch(argv, config)[1:3] == (100, 0)


def test_what_differs_from_the_config_file_is_recorded_with_the_reason():
    """20 of 100 epochs by an override: the temperature's 30 epochs follow. What the file's argument gives is the file's."""
    argv = ["train.py", "--config=configs/ibot_vits16.py:source=bundled,seed=3", "--workdir=w", "--config.schedule.epochs=20"]
    values = flags.FlagValues()
    command_line.define_config(values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    assert command_line.parse(argv, flag_values=values) == []
    config = values["config"].value
    record = json.loads(json.dumps(command_line.launch(argv, config, values).record(config)))
    assert record == {
        "config_file": "configs/ibot_vits16.py:source=bundled,seed=3",
        "changed": {
            "schedule.epochs": {"file": 100, "run": 20, "by": "command line"},
            "dino.warmup_teacher_temp_epochs": {"file": 30, "run": 6, "by": "what follows from it"},
        },
    }
    assert Launch(frozenset({"seed"})).record(config) == {"config_file": "", "changed": {}}


@given(
    epochs=st.integers(1, 40),
    before=st.integers(2, 40),
    per_epoch=st.integers(1, 30),
    duration=st.integers(1, 40),
    key=st.sampled_from(["optimizer.warmup_epochs", "optimizer.freeze_last_layer_epochs"]),
)
def test_a_shortened_duration_fits_and_stays_above_0(epochs: int, before: int, per_epoch: int, duration: int, key: str):
    """Whatever fits into the longer run fits into the shorter one; it is 0 only where one epoch of it is too long."""
    never = key.startswith("optimizer.freeze")
    assume(epochs < before and (duration < before or (duration == before and not never)))
    config = pretrain()
    config.data.source, config.schedule.total_steps = "bundled", epochs * per_epoch
    config.update_from_flattened_dict(dict.fromkeys(lengths.DURATION_KEYS, 0) | {key: duration})
    fitted(config, Launch(frozenset({"schedule.total_steps"}), before), per_epoch=per_epoch, total=epochs * per_epoch)
    after = flatten(config)[key]
    assert lengths.length_mistakes(config, per_epoch=per_epoch, total=epochs * per_epoch) == []
    assert 0 < after <= duration or (never and epochs * per_epoch <= per_epoch)


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
    moves_from = optimizer_rules(config, pretraining.Steps(10, 100)).moves_from  # asked of each path when the state is made
    moves_from("backbone/norm/scale"), moves_from("dino/last_layer/kernel")
    pretraining.objective(config, pretraining.Steps(10, 100))
    pretraining.network(config)
    pretraining.crossing(config, make_mesh())  # of the suite's eight devices
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


@pytest.mark.parametrize(
    "key", ["learning-rate", "optimizer.learning-rate", "batch-size", "num-workers", "data-path", "warmup-epochs", "output-dir"]
)
def test_dashes_are_underscores_in_guesses(key: str):
    assert unknown_key(key, KEYS) == unknown_key(key.replace("-", "_"), KEYS) != "unknown key"


def test_evaluations_by_epochs_read_their_settings():
    config, _ = _launch("quickstart", "eval_every_steps=0,eval_every_epochs=1")
    assert config.eval.gallery == "bundled:gallery" and _mistakes(config) == []
