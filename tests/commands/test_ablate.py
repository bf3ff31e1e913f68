"""Ablation tables as a user runs them, on a micro model: rows trained once, kept, shared between tables, and told in one table."""

from __future__ import annotations

import errno
import importlib
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from configs import ablation
from sere_jax.build import pretraining
from sere_jax.commands import ablate, ablation_files, ablation_rows, ablation_table, evaluate
from sere_jax.commands.ablation_table import Measured
from sere_jax.config import check as rules
from sere_jax.evals import protocol
from sere_jax.train import checkpoint
from sere_jax.train.meter import TooManyBadSteps
from tests.evals import micro_network

MICRO = (
    "views.global_size=16,model.width=24,depth=1,model.heads=3,model.patch_size=4,relation.heads=3,global_points=3,scan_blocks=false,"
    "prototypes=16,head.hidden=16,bottleneck=8,data.batch_size=16"
)


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    work = tmp_path_factory.mktemp("ablate")
    views = "views_of=config,random=false,images=16,batch_size=8,points=3,tokens=('post',)"
    near = "configs/eval/knn.py:bundled,tokens=('cls','patches'),neighbours=(10,)"
    return [
        "--size=small",
        "--data=bundled",
        "--steps=2",
        f"--set={MICRO}",
        f"--workdir={work}",
        f"--protocol={near}",
        "--protocol=configs/eval/logistic.py:bundled,cs=(1.0,),max_steps=10",
        "--protocol=configs/eval/linear.py:bundled,cached=True,blocks=(1,),rates=(0.1,)",
        f"--protocol=configs/eval/relations.py:{views},spatial_temperatures=(1.0,),channel_temperatures=(1.0,)",
    ]


def _work(command: list[str]) -> Path:
    return Path(next(part for part in command if part.startswith("--workdir=")).partition("=")[2])


@pytest.mark.slow
def test_a_table_as_a_user_runs_it(command, capsys):
    """Two rows, one of them without training; k-NN, linear classifiers and relation differences of both."""
    assert ablate.main(["--table=8", "--rows=none,image_channel", *command]) == 0
    work = _work(command)
    table = json.loads((work / "table8.json").read_text())
    assert [row["row"] for row in table["rows"]] == ["none", "image_channel"]
    assert [row["runs"][0]["steps"] for row in table["rows"]] == [0, 2]
    values = [row["runs"][0]["values"] for row in table["rows"]]
    names = {"k-NN top-1, cls", "k-NN top-1, mean patch", "spatial relation ratio", "channel relation ratio"}
    names |= {"logistic top-1", "linear top-1"}
    assert all(value.keys() == names for value in values)
    text = (work / "table8.md").read_text()
    assert text in capsys.readouterr().out and "| paper: VOC mIoU |" in text and "python -m sere_jax ablate --table=8" in text
    _assert_nothing_is_done_again(command, table["rows"][1]["runs"], capsys)
    # The row that trains nothing is the initialisation, saved.
    run = table["rows"][0]["runs"][0]["run"]
    assert checkpoint.find_step(run)[1] == 0 and checkpoint.read_config(run)["schedule"]["epochs"] == 0


def _assert_nothing_is_done_again(command: list[str], runs: list, capsys) -> None:
    """Table 11's row is Table 8's."""
    work = _work(command)
    files = {path: path.stat().st_mtime_ns for path in work.rglob("rows/**/*")}
    assert ablate.main(["--table=11", "--rows=sere", *command]) == 0
    assert files and {path: path.stat().st_mtime_ns for path in work.rglob("rows/**/*")} == files
    again = json.loads((work / "table11.json").read_text())["rows"][0]["runs"]
    assert [run | {"row": ""} for run in again] == [run | {"row": ""} for run in runs]
    assert "training in" not in capsys.readouterr().out


_train, _missing = ablation_rows.pretrain.train, ablation_rows._missing


@pytest.fixture
def quick(monkeypatch) -> list[str]:
    """No training and no evaluation, only their traces: which recipes were trained, in order."""
    trained: list[str] = []

    def train(config, workdir, launch):
        trained.append(config.recipe)
        changed = launch.record(config)["changed"]
        assert launch.file.startswith("configs/ablation.py:table=") and changed["data.source"]["by"] == "command line"
        assert ("row=none" in launch.file) == ("schedule.total_steps" not in changed)  # it trains nothing; --steps shortens the others
        if config.recipe == "channel":
            raise TooManyBadSteps("11 bad steps")
        Path(workdir).mkdir(parents=True)

    def run(config, networks, workdir):
        print(f"evaluated: {networks[0].name}")
        classified = {"baseline": False, "scores": {"top1": 0.5}}
        results = {"knn": {"tokens": "cls", "best_top1": len(trained) / 10}, "relations": {"variants": {}}}
        results |= {"logistic": classified, "linear": classified}
        path = workdir / "eval" / f"{config.protocol}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"protocol": config.protocol, "results": [results[config.protocol]]}))

    monkeypatch.setattr(ablation_rows.pretrain, "train", train)
    monkeypatch.setattr(ablation_rows, "_missing", lambda place, total: "" if place.is_dir() else "not begun")
    monkeypatch.setattr(evaluate, "load", lambda path: micro_network.network(Path(path).name))
    monkeypatch.setattr(evaluate, "run", run)
    return trained


def test_rows_are_trained_once_kept_and_shared_between_tables(command, tmp_path, quick, capsys):
    here = [*(part for part in command if not part.startswith("--workdir=")), f"--workdir={tmp_path}"]
    assert ablate.main(["--table=8", "--rows=none,channel,image_channel", *here]) == 1  # one row ended badly
    assert quick == ["dino", "channel", "dino_channel"]
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("evaluated: ")]
    assert told == ["evaluated: row none, seed 0"] * 4 + ["evaluated: row image_channel, seed 0"] * 4  # by four protocols
    assert "channel, seed 0: 11 bad steps" in (tmp_path / "table8.md").read_text()
    table = json.loads((tmp_path / "table8.json").read_text())
    assert [row["runs"][0]["error"] for row in table["rows"]] == ["", "11 bad steps", ""]
    assert table["rows"][1]["paper"]["VOC mIoU"] == 61.4 and "fine-tuned" in table["paper"]
    capsys.readouterr()
    _assert_nothing_is_done_again(here, table["rows"][2]["runs"], capsys)
    ablate.main(["--table=8,15", "--seeds=0,1", "--rows=none", *here])  # not a row of table 15: refused
    assert len(quick) == 3
    ablate.main(["--table=7,10", "--rows=dino,dino_sere", "--seeds=0,1", *here])
    assert quick[3:] == ["dino", "dino", "dino_sere", "dino_sere"]
    row = json.loads((tmp_path / "table10.json").read_text())["rows"][1]
    assert [run["seed"] for run in row["runs"]] == [0, 1]


def test_machines_share_the_rows_and_the_same_command_makes_the_table(command, tmp_path, quick, capsys):
    """Two seeds of two rows, one of which is a row of another table too."""
    here = [*(part for part in command if not part.startswith("--workdir=")), f"--workdir={tmp_path}"]
    whole = ["--table=8", "--seeds=0,1", "--rows=none,image_channel", *here]
    for shard in range(3):
        assert ablate.main([*whole, f"--shard={shard}/3"]) == 0
    assert quick == ["dino", "dino_channel", "dino", "dino_channel"]
    said = capsys.readouterr().out
    assert not list(tmp_path.glob("table8*")) and said.count(": finished") == 4 and said.count("evaluated") == 16
    assert ablate.main(["--table=11", "--seeds=0,1", "--rows=sere", *here, "--shard=0/2"]) == 0 and len(quick) == 4
    assert ablate.main([*whole, "--shard=4/5"]) == 0 and "nothing to do, because there are fewer than 5 runs" in capsys.readouterr().out
    assert ablate.main(whole) == 0 and len(quick) == 4
    table = json.loads((tmp_path / "table8.json").read_text())
    assert [[run["seed"] for run in row["runs"]] for row in table["rows"]] == [[0, 1], [0, 1]]


def test_a_finished_row_with_damaged_arrays_goes_on_from_the_checkpoint_before(command, tmp_path, quick, monkeypatch, capsys):
    loads = []

    def load(path):
        loads.append(path)
        if len(loads) == 1:
            raise checkpoint.DamagedCheckpoint("checkpoints/2: damaged")
        return micro_network.network()

    monkeypatch.setattr(evaluate, "load", load)
    monkeypatch.setattr(
        ablation_rows.pretrain,
        "train",
        lambda config, workdir, launch: (quick.append(workdir), Path(workdir).mkdir(parents=True, exist_ok=True)),
    )
    here = [*(part for part in command if not part.startswith("--workdir=")), f"--workdir={tmp_path}"]
    assert ablate.main(["--table=8", "--rows=none", *here]) == 0
    assert len(quick) == 2 and quick[0] == quick[1]
    assert "checkpoints/2: damaged; going on from the checkpoint before it" in capsys.readouterr().out


def _squares(folder: Path, count: int) -> None:
    for number in range(count):
        path = folder / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (9 * number, 99, 200)).save(path)


def test_changed_images_are_not_taken_for_those_of_a_finished_row(tmp_path, quick, monkeypatch, capsys):
    """Other images to evaluate on: evaluated anew. Other images to train on: refused, with what differs."""
    monkeypatch.setattr(ablation_rows.pretrain, "train", _train)
    monkeypatch.setattr(ablation_rows, "_missing", _missing)
    _squares(tmp_path / "train", 18)
    _squares(tmp_path / "judged", 8)
    near = f"configs/eval/knn.py:gallery=folder:{tmp_path}/judged,query=folder:{tmp_path}/judged,neighbours=(1,)"
    command = ["--table=8", "--rows=none", "--size=small", f"--data=folder:{tmp_path}/train", f"--set={MICRO}", f"--protocol={near}"]
    command.append(f"--workdir={tmp_path}/work")
    evaluated = "evaluated: row none, seed 0"
    assert ablate.main(command) == 0 and capsys.readouterr().out.count(evaluated) == 1
    assert ablate.main(command) == 0 and capsys.readouterr().out.count(evaluated) == 0
    places = {place: (tmp_path / place).rename(tmp_path / f"{place}2") for place in ("train", "judged")}
    moved = [part.replace("/train", "/train2").replace("/judged", "/judged2") for part in command]
    assert ablate.main(moved) == 0
    said = capsys.readouterr().out
    assert said.count(evaluated) == 0 and said.count("training in") == 0 and "moved from" in said
    for place, directory in places.items():
        directory.rename(tmp_path / place)
    _squares(tmp_path / "judged", 9)
    assert ablate.main(command) == 0 and capsys.readouterr().out.count(evaluated) == 1
    _squares(tmp_path / "train", 19)
    assert ablate.main(command) == 2
    message = capsys.readouterr().err
    assert "found 19 images" in message and "expected the 18 of step 0" in message and "class0/18.png" in message
    assert "or --set=run.accept_changed_data=True to go on" in message
    accept = [part + ",run.accept_changed_data=true" if part.startswith("--set") else part for part in command]
    assert ablate.main(accept) == 0 and "changed from 18 to 19 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table=9"], "--table: found 9, expected one of 7, 8, 10"),
        (["--table=12", "--rows=2"], "--rows: found 2, expected some of 1, 3, 6, 12, 16 of table 12"),
        (["--table=8", "--shard=3/3"], "--shard: found '3/3', expected I/N with I from 0 to N - 1"),
        (["--table=8", "--table_only", "--shard=0/3"], "--shard: found '0/3' with --table_only, which makes the tables of all runs"),
        (["--table=8", "--size=tiny"], "size: found 'tiny', expected one of paper, small"),
        (["--table=8", "--set=alfa=1"], "alfa: unknown key"),
        (["--table=8", "--set=model.heads=5"], "model.width: found 24, expected a multiple of model.heads = 5"),
        (["--table=8", "--protocol=configs/eval/knn.py:gallary=x"], "nearest: gallery"),
        (["--table=8", "--config=nowhere.py"], "--config: found 'nowhere.py'"),
        (["--table=8", "--config=configs/small.py"], "configs/small.py does not define TABLES, PROTOCOL; expected"),
        (["--table=8", "--protocol=nowhere.py"], "--protocol: found 'nowhere.py', expected a Python file"),
        (["--table=8", "--protocol=configs/common.py"], "configs/common.py does not define get_config; expected"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(command, tmp_path, capsys, arguments: list[str], message: str):
    given = [part for part in command if part.partition("=")[0] not in ("--workdir", *(a.partition("=")[0] for a in arguments[1:]))]
    if arguments[-1] == "--set=model.heads=5":
        arguments = [arguments[0], f"--set={MICRO.replace('model.heads=3', 'model.heads=5')}"]
    assert ablate.main([*given, f"--workdir={tmp_path}", *arguments]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_shares_of_a_run_stay_shares():
    """300 steps of 10 an epoch are 30 of 100 epochs: 10 epochs of warm-up become 3."""
    config = ablation.get_config("table=7,row=ibot")
    ablate._shorten(config, 300, pretraining.Steps(10, 1000))
    assert (config.schedule.total_steps, config.optimizer.warmup_epochs, config.dino.warmup_teacher_temp_epochs) == (300, 3, 9)
    assert config.optimizer.freeze_last_layer_epochs == 1  # of 1 epoch the share would be 0


@pytest.mark.parametrize("row", ["mocov3", "dino", "ibot_sere"])
def test_a_row_without_warm_up_keeps_the_rules(row: str):
    """MoCo v3's kind of warm-up is not read where the run is too short for one."""
    config = ablation.get_config(f"table=7,row={row},size=small,source=bundled")
    ablate._shorten(config, 2, pretraining.Steps(68, 6800))
    assert config.optimizer.warmup_epochs == 0 and rules.mistakes(config, devices=1, processes=1) == []


def test_several_seeds_and_a_row_that_ended_badly(tmp_path, capsys):
    """A mean with its spread; what failed is told, the others stand."""
    runs = [Measured("1", seed, f"rows/{seed}", 5, 2.0, {"k-NN top-1, cls": value}) for seed, value in ((0, 50.0), (1, 53.0))]
    runs += [Measured("3", 0, "rows/x", 5, 2.0, {}, "too many bad steps")]
    ablation_table.publish(ablation.TABLES[12], 12, runs, note=ablation.PROTOCOL, directory=tmp_path, about={"command": "it"})
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("| 1 | 5 | 2 | 51.5 ±2.1 | 72.4 | 84 |") for line in lines)
    assert any(line.startswith("| 3 | 5 | 2 | - | 72.7") for line in lines) and "3, seed 0: too many bad steps  " in lines


def test_numbers_of_any_other_protocol():
    report = {
        "protocol": "segmentation",
        "results": [{"name": "x", "step": 3, "random": True, "scores": {"miou": 0.5, "per_class": {"cat": 0.25}}}],
    }
    assert protocol.numbers(report) == {
        "segmentation step": 3,
        "segmentation scores miou": 0.5,
        "segmentation scores per_class cat": 0.25,
    }


def test_a_change_for_all_rows_reaches_those_that_read_it(command, tmp_path, capsys):
    """relation.heads is for the rows with a spatial relation; a key that no row reads is a mistake."""
    arguments = ["--table=8", "--data=bundled", "--workdir=w", "--set=relation.heads=3"]
    runs = list(ablate._runs(ablation, 8, ablate._parser().parse_args(arguments)))
    assert {run.row: run.config.relation.heads for run in runs if run.row in ("image", "channel", "all")} == {
        "image": 0,
        "channel": 0,
        "all": 3,
    }
    assert (
        ablate.main(
            [
                *(part for part in command if part[:5] not in ("--wor", "--set")),
                f"--workdir={tmp_path}",
                "--table=8",
                "--set=mae.decoder_depth=3",
            ]
        )
        == 2
    )
    assert "--set: found mae.decoder_depth, which no row of any table reads" in capsys.readouterr().err


@pytest.mark.parametrize("begun", [False, True])
def test_the_table_is_printed_and_saved_after_each_row(command, tmp_path, quick, monkeypatch, capsys, begun: bool):
    """A stop in the second row leaves the table of the first, one that an earlier start had begun (its directory is there) too.

    It is no failure: exit code 0, as of train.py, and the last line says what goes on.
    """

    def stop(run, protocols):
        run.workdir.mkdir(parents=True)
        raise ablate.Stopped("stopped by SIGTERM")

    measured = ablation_rows.measured
    monkeypatch.setattr(ablation_rows, "measured", stop)
    here = [*(part for part in command if not part.startswith("--workdir=")), f"--workdir={tmp_path}"]
    if begun:
        assert ablate.main(["--table=8", "--rows=none", *here]) == 0 and not (tmp_path / "table8.json").exists()
    monkeypatch.setattr(ablation_rows, "measured", lambda run, protocols: (measured if run.row == "none" else stop)(run, protocols))
    assert ablate.main(["--table=8", "--rows=none,image_channel", *here]) == 0
    assert [row["row"] for row in json.loads((tmp_path / "table8.json").read_text())["rows"]] == ["none"]
    output = capsys.readouterr().out
    assert output.index("Table 8") < output.rindex("stopped by SIGTERM")
    assert output.endswith(f"\nfinished rows are in {tmp_path}/table*.md; the same command goes on\n")


def test_config_files_that_cannot_be_used_are_refused_in_a_sentence(tmp_path):
    path = tmp_path / "odd.py"
    for text, message in (
        ("def get_config(:", "--protocol: .*odd.py cannot be imported: invalid syntax"),
        ("import nothing_of_that_name", "--protocol: .*cannot be imported: No module named"),
        ("def get_config(): return 1", "--protocol=.*odd.py: .*takes 0 positional arguments"),
        ("def get_config(argument): return 1", "get_config returned int, expected a ConfigDict"),
    ):
        path.write_text(text)
        importlib.invalidate_caches()
        with pytest.raises(ablation_files.Refused, match=message):
            ablation_files.read_protocol(str(path))


def test_a_disk_that_refuses_the_table_ends_in_a_sentence(command, tmp_path, monkeypatch, capsys):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    here = [
        *(part for part in command if not part.startswith(("--workdir=", "--protocol="))),
        "--evaluate=bundled:query",
        f"--workdir={tmp_path}",
    ]
    monkeypatch.setattr(ablation_table, "write", full)
    monkeypatch.setattr(ablation_rows, "measured", lambda run, evaluations: Measured(run.row, run.seed, str(run.workdir), 2, 1.0, {}))
    monkeypatch.setattr(ablate, "_check_images", lambda runs, source: None)
    assert ablate.main(["--table=8", "--rows=none", *here]) == 1  # it took files at the start
    assert capsys.readouterr().err.endswith(
        f"{tmp_path}: nothing can be written there (No space left on device); expected a directory to write to\n"
    )
    with pytest.raises(SystemExit) as ended:
        ablate.main(["--table=8", *here[:-1], "--workdir=~nobody-of-that-name/a"])
    assert ended.value.code == 2 and "there is no user 'nobody-of-that-name'" in capsys.readouterr().err


def test_every_option_is_explained():
    assert not [action.dest for action in ablate._parser()._actions if not action.help]
