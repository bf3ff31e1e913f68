"""The command line: what absl would refuse one by one is told all at once, and the rest is parsed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from sere_jax.config import check as rules
from sere_jax.config import command_line

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = f"--config={ROOT}/configs/quickstart.py"


def _parse(*tokens: str) -> tuple[list[str], flags.FlagValues]:
    values = flags.FlagValues()
    command_line.define_config(values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_integer("num_processes", 0, "", flag_values=values)
    return command_line.parse(["train.py", *tokens], flag_values=values), values


def test_overrides_of_every_type_and_both_spellings():
    mistakes, values = _parse(
        "--config.data.batch_size", "16", "--workdir=w", "--config.optimizer.decay_bias", QUICKSTART + ":total_steps=9",
        "--config.optimizer.base_lr=1e-3", "--config.views.global_scale=0.2,1", "--config.data.source=folder:a,b",
        "--noconfig.model.scan_blocks",
    )  # fmt: skip
    assert mistakes == []
    config = values.config
    assert (config.data.batch_size, config.schedule.total_steps, config.optimizer.base_lr) == (16, 9, 1e-3)
    assert (config.optimizer.decay_bias, config.model.scan_blocks) == (True, False)
    assert (config.views.global_scale, config.data.source) == ((0.2, 1), "folder:a,b")
    assert values.workdir == "w"


MISTAKES = [
    ("--config.optimizer.lr=1", "optimizer.lr: unknown key; nearest: optimizer.base_lr"),
    ("--lr=1", "--lr: unknown flag; nearest: --config.optimizer.base_lr"),
    ("--output_dir=x", "--output_dir: unknown flag; nearest: --workdir"),
    ("--data_path=x", "--data_path: unknown flag; nearest: --config.data.source"),
    ("--config.data.batch_siz=16", "data.batch_siz: unknown key; nearest: data.batch_size"),
    ("--config.batch_size=16", "batch_size: unknown key; nearest: data.batch_size"),
    ("--config.model.depth=2.5", "model.depth: found '2.5', expected a whole number"),
    ("--config.optimizer.base_lr=fast", "optimizer.base_lr: found 'fast', expected a number"),
    ("--config.optimizer.decay_bias=perhaps", "optimizer.decay_bias: found 'perhaps', expected true or false"),
    ("--config.views.global_scale=a", "views.global_scale: found 'a', expected values as in (0.25, 1.0)"),
    ("--config.model=3", "model: found a value for a group of keys, expected one of model.depth"),
    ("--noconfig.seed", "seed: found --noconfig.seed"),
    ("--config.seed", "seed: found no value"),
    ("--wrkdir=x", "--wrkdir: unknown flag; nearest: --workdir"),
    ("--num_processes=two", "--num_processes: found 'two'"),
    ("stray", "stray: found a positional argument"),
    ("data.batch_size=4", "nearest: --config.data.batch_size=4"),
]


@pytest.mark.parametrize(("token", "line"), MISTAKES)
def test_each_mistake_has_its_line_and_the_rest_is_parsed(token, line):
    mistakes, values = _parse(QUICKSTART, "--workdir=w", token, "--config.seed=7")
    assert len(mistakes) == 1
    assert line in mistakes[0]
    assert (values.workdir, values.config.seed) == ("w", 7)


@pytest.mark.parametrize(
    ("tokens", "name"),
    [
        (("--workdir=v",), "--workdir"),
        (("--config.seed=1", "--config.seed", "2"), "seed"),
        (("--config.optimizer.decay_bias", "--noconfig.optimizer.decay_bias"), "optimizer.decay_bias"),
        (("--config.schedule.total_steps=3",), "schedule.total_steps"),  # the argument gives it too
    ],
)
def test_what_is_given_twice(tokens, name):
    mistakes, _ = _parse(QUICKSTART + ":total_steps=9", "--workdir=w", *tokens)
    assert mistakes == [f"{name}: found twice, expected once"]


def test_both_lengths_in_one_launch_are_a_mistake():
    mistakes, _ = _parse(QUICKSTART + ":total_steps=9", "--workdir=w", "--config.schedule.epochs=3")
    assert len(mistakes) == 1 and "found both in one launch" in mistakes[0]
    mistakes, _ = _parse(QUICKSTART, "--workdir=w", "--config.schedule.epochs=3", "--config.schedule.total_steps=9")
    assert len(mistakes) == 1 and "found both in one launch" in mistakes[0]
    mistakes, _ = _parse(QUICKSTART + ":epochs=3,total_steps=9", "--workdir=w")
    assert len(mistakes) == 1 and "found both in one launch" in mistakes[0]


def test_overrides_settle_what_follows_from_them(capsys):
    mistakes, values = _parse(QUICKSTART + ":source=list:a", "--workdir=w", "--config.schedule.epochs=3", "--config.recipe=dino")
    assert mistakes == [] and capsys.readouterr().out.count("note: eval.gallery, eval.query: switched off") == 1
    config = values.config
    assert (config.schedule.total_steps, config.eval.gallery, config.relation.global_points) == (0, "", 13)
    argv = [QUICKSTART + ":source=list:a", "--config.schedule.epochs=3"]
    assert command_line.said(argv, config) == {"data.source", "schedule.epochs"}


def test_all_at_once():
    mistakes, _ = _parse(QUICKSTART, *(token for token, _ in MISTAKES))
    assert len(mistakes) == len(MISTAKES) + 1  # and the workdir is missing
    assert mistakes[-1] == "--workdir: missing, expected --workdir=DIR"


def test_a_config_file_that_is_not_there():
    mistakes, values = _parse(f"--config={ROOT}/configs/quickstrt.py", "--workdir=w", "--config.seed=3")
    assert len(mistakes) == 1
    assert mistakes[0].endswith("configs/quickstart.py")
    assert values.config is None


def test_a_config_file_that_refuses_its_argument():
    """Its good parts are kept, so that what is wrong with them and with other flags is told as well."""
    mistakes, values = _parse(
        QUICKSTART + ":total_step=3,source=folder:/nowhere, seed=x,batch_size=0,views=3,global_scale=(0.2,a)",
        "--workdir=w",
        "--config.data.workers=x",
        "--config.run.fspd=3",
    )
    assert len(mistakes) == 6
    assert "nearest: schedule.total_steps" in mistakes[0]
    assert [part in line for part, line in zip(("seed: found 'x'", "views: unknown key", "views.global_scale"), mistakes[1:], strict=False)]
    assert "data.workers: found 'x'" in mistakes[4] and "run.fspd: unknown key; nearest: run.fsdp" in mistakes[5]
    config = values.config
    assert (config.data.source, config.data.batch_size, config.seed) == ("folder:/nowhere", 0, 0)
    found = rules.mistakes(config, devices=1, processes=1)
    assert [line.partition(":")[0] for line in found] == ["data.batch_size", "data.source"]


def test_a_config_file_that_refuses_all_of_its_argument():
    """configs/ablation.py has no such row: there is no config to go on with."""
    mistakes, values = _parse(f"--config={ROOT}/configs/ablation.py:row=nothing", "--workdir=w", "--config.seed=3", "--wrkdir=x")
    assert len(mistakes) == 2 and "row: found 'nothing'" in mistakes[0] and "--wrkdir: unknown flag" in mistakes[1]
    assert values.config is None


def test_parts_before_the_argument_of_an_evaluation_stay():
    mistakes, values = _parse(f"--config={ROOT}/configs/eval/knn.py:bundled,sise=3,batch_size=8", "--workdir=w")
    assert len(mistakes) == 1 and "nearest: size" in mistakes[0]
    assert (values.config.query, values.config.batch_size) == ("bundled:query", 8)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (["train.py", QUICKSTART, "--workdir=w", "--config.photometry.mean=(123.7,116.3,103.5)", "--config.data.workers=10000", "--lr=1"], [
            "3 mistakes, nothing was started", "--lr: unknown flag", "photometry.mean: found (123.7", "data.workers: found 10000, expected",
        ]),
        (["eval.py", "--config=configs/eval/knn.py:bundled", "--workdir=README.md", "--config.sise=3", "--checkpont=a"], [
            "4 mistakes, nothing was started", "--checkpoint: missing", "sise: unknown key", "--checkpont: unknown flag",
            "README.md is a file",
        ]),
    ],
)  # fmt: skip
def test_a_single_process_is_refused_before_jax_is_imported(tmp_path: Path, program: list[str], words: list[str]):
    (tmp_path / "jax.py").write_text("raise SystemExit(77)")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "TPU_", "OMPI_"))}
    command = [sys.executable, *program]
    done = subprocess.run(command, cwd=ROOT, env=environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == "" and all(word in done.stderr for word in words), done.stderr


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (["train.py", QUICKSTART, "--workdir=runs/\udce9"], "training in runs/\\udce9: starting JAX\n"),
        (
            ["eval.py", f"--config={ROOT}/configs/eval/knn.py:bundled", "--checkpoint=FILES/a.npz,FILES/\udce9.npz", "--workdir=w"],
            "evaluating FILES/a.npz, FILES/\\udce9.npz: starting JAX\n",
        ),
    ],
)
def test_programs_speak_before_their_slow_imports(tmp_path: Path, program: list[str], words: str):
    """JAX alone takes seconds to import; here it ends the program. Processes other than the first are silent. Names may hold any byte."""
    (tmp_path / "jax.py").write_text("raise SystemExit(77)")
    for name in ("a", "\udce9"):
        (tmp_path / f"{name}.npz").touch()
    program, words = [argument.replace("FILES", str(tmp_path)) for argument in program], words.replace("FILES", str(tmp_path))
    for rank, expected in (("0", words), ("1", "")):
        environ = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONIOENCODING": "utf-8:strict"}
        command = [sys.executable, *program, f"--process_id={rank}"]
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (77, expected, "")
