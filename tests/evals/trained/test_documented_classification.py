"""The commands of docs/evaluation.md prepare the labelled sets of the papers and name the splits that are then there: miniatures."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from sere_jax.commands import prepare
from sere_jax.evals import protocols
from sere_jax.evals.trained.images import Parts, open_parts
from tests.data.prepare import layouts

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "evaluation.md").read_text()
# Set -> images of the training and the test split of its miniature, and their classes.
IMAGENET = (6, 3, layouts.WNIDS)
SETS: dict[str, dict[str, tuple[int, int, tuple[str, ...]]]] = {
    "imagenet": {"finetune.py:train=tfds:IN:train,test=tfds:IN:validation": IMAGENET},
    "cars": {"transfer.py:cars": (4, 2, tuple(sorted(layouts.CARS)))},
    "inat2019": {"transfer.py:inat19": (2, 1, ("Anolis", "Bufo", "Corvus"))},
}
SETS["imagenet"]["semi.py:train=tfds:IN1:train,test=tfds:IN:validation"] = (3, 3, layouts.WNIDS)


def opened(command: str) -> Parts:
    """The images of a documented evaluation."""
    assert f"--config=configs/eval/{command} --checkpoint=RUN --workdir=RUN" in TEXT
    name, _, argument = command.partition(".py:")
    config = importlib.import_module(f"configs.eval.{name}").get_config(argument)
    assert protocols.mistakes(config) == []
    return open_parts(config.train, config.validation, config.test, select=config.select, share=config.held_out, seed=0)


@pytest.mark.parametrize("kind", SETS)
def test_a_set_is_prepared_and_opened_as_documented(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    getattr(layouts, kind)(tmp_path / "DIR")
    (tmp_path / "1percent.txt").write_text("".join(f"{wnid}_1.JPEG\n" for wnid in layouts.WNIDS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    commands = re.findall(rf"^    python -m sere_jax prepare (--source={kind}:.*)$", TEXT, re.MULTILINE)
    assert len(commands) == len(SETS[kind])
    for command in commands:
        assert prepare.main(shlex.split(command)) == 0
    for command, (training, test, classes) in SETS[kind].items():
        parts = opened(command)
        assert (len(parts.train.source), len(parts.test.source), parts.classes) == (training, test, classes)
