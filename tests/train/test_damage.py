"""Whatever happens to the files of checkpoints: the newest sound one is taken, the others are told, and nothing wrong is loaded."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.train import checkpoint
from sere_jax.train.checkpoint import CheckpointError, DamagedCheckpoint
from sere_jax.train.checkpoint_manager import Checkpoints, Restored
from sere_jax.train.scores import Scores

STATE = {"params": {"kernel": jnp.arange(12.0).reshape(3, 4), "bias": jnp.ones(2, jnp.bfloat16)}, "step": jnp.int32(0)}
TARGET = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), STATE)


def at(step: int) -> Any:
    return STATE | {"step": jnp.int32(step)}


def save(directory: Path, *steps: int) -> None:
    with Checkpoints(directory, every_steps=1, keep=9) as checkpoints:
        for step in steps:
            checkpoints.save(step, at(step), {"seed": 3})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 1, 2 and 3; never written to."""
    directory = tmp_path_factory.mktemp("saved")
    save(directory, 1, 2, 3)
    return directory


@pytest.fixture
def steps(saved: Path, tmp_path: Path) -> Path:
    """A copy of them."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def restore(directory: Path, **settings: Any) -> tuple[Restored | None, list[str]]:
    with Checkpoints(directory, every_steps=1, **settings) as checkpoints:
        return checkpoints.restore_newest(TARGET), checkpoints.notes


def assert_sound(restored: Restored | None, step: int) -> None:
    assert restored is not None and restored.step == step
    for read, written in zip(jax.tree.leaves(restored.state), jax.tree.leaves(at(step)), strict=True):
        assert read.dtype == written.dtype and np.asarray(read).tobytes() == np.asarray(written).tobytes()


def flip_in_arrays(step: Path) -> None:
    path = max((step / "state").rglob("d/*"), key=lambda file: file.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def flip_in_meta(step: Path) -> None:
    path = step / "meta" / "metadata"
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 2'))


@pytest.mark.parametrize("damage", [flip_in_arrays, flip_in_meta], ids=["arrays", "meta"])
def test_a_damaged_newest_step_is_set_aside_and_the_one_before_is_taken(steps: Path, damage: Callable[[Path], None]):
    damage(steps / "3")
    restored, notes = restore(steps)
    assert_sound(restored, 2)
    assert len(notes) == 1 and "step 3" in notes[0] and notes[0].endswith(f"It was set aside as {steps / '3.damaged'}")
    assert sorted(path.name for path in steps.iterdir()) == ["1", "2", "3.damaged"]
    save(steps, 3)  # its number is free again
    assert checkpoint.read_state(steps)[1] == 3
    damage(steps / "3")
    damage(steps / "2")
    assert_sound(restore(steps)[0], 1)
    assert sorted(path.name for path in steps.iterdir()) == ["1", "2.damaged", "3.damaged", "3.damaged.2"]


@pytest.mark.parametrize("damage", [flip_in_arrays, flip_in_meta], ids=["arrays", "meta"])
def test_strict_restore_refuses_and_leaves_everything_in_its_place(steps: Path, damage: Callable[[Path], None]):
    damage(steps / "3")
    with pytest.raises(CheckpointError, match="step 3 in .* is damaged.*Nothing is set aside, because run.strict_restore is True"):
        restore(steps, strict=True)
    assert sorted(path.name for path in steps.iterdir()) == ["1", "2", "3"]


def test_the_last_checkpoint_is_never_set_aside_for_damage(steps: Path):
    """Otherwise the next start would begin at step 0 without a word."""
    for step in "123":
        flip_in_arrays(steps / step)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="step 1 in .* is damaged.* Move it away to begin again at step 0"):
            restore(steps)
        assert (steps / "1").is_dir()


def test_renamed_and_incomplete_steps_are_set_aside_and_skipped(steps: Path, caplog: pytest.LogCaptureFixture):
    (steps / "3").rename(steps / "40")
    (steps / "50").mkdir()
    (steps / "60").write_text("a file with a step's name")
    (steps / "070").mkdir()
    (steps / "notes").mkdir()
    for _ in range(2):
        assert checkpoint.read_state(steps)[1] == 2, "an export reads the same step as a resumed run"
    told = [record.message.removeprefix(f"skipped: {steps}/") for record in caplog.records]  # each once
    incomplete = "is no complete checkpoint: it lacks its description or its end mark"
    assert told == [f"60 {incomplete}", f"50 {incomplete}", "40 holds step 3: it was renamed or copied"]
    restored, notes = restore(steps)
    assert_sound(restored, 2)
    assert [note.rpartition("/")[2] for note in notes] == ["60.incomplete", "50.incomplete", "40.renamed"]
    assert "holds step 3: it was renamed or copied" in notes[-1]
    save(steps, 40)
    assert_sound(restore(steps)[0], 40)


@pytest.mark.parametrize("part", ["meta", "commit_success.txt"])
def test_a_newest_step_that_lacks_a_part_is_told_and_skipped(steps: Path, part: str, caplog: pytest.LogCaptureFixture):
    target = steps / "3" / part
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert checkpoint.find_step(steps)[1] == 2
    assert [record.message.partition(" is ")[0] for record in caplog.records] == [f"skipped: {steps / '3'}"]
    for directory, step in ((steps, 3), (steps / "3", None)):
        with pytest.raises(CheckpointError, match=rf"{steps / '3'} is no complete checkpoint: .*; there are 1, 2$"):
            checkpoint.find_step(directory, step)


@pytest.mark.parametrize(("name", "step"), [(".", 4), ("4", None)])
def test_a_step_that_does_not_exist_is_told_with_those_that_do(steps: Path, name: str, step: int | None):
    with pytest.raises(CheckpointError, match=rf"^no checkpoint of step 4 in {steps}; there are 1, 2, 3$"):
        checkpoint.find_step(steps / name, step)


def test_a_stray_directory_alone_is_no_checkpoint(tmp_path: Path):
    (tmp_path / "30").mkdir()
    restored, notes = restore(tmp_path)
    assert restored is None and "30.incomplete" in notes[0]
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*found 30\.incomplete"):
        checkpoint.read_state(tmp_path)


def test_the_damage_of_an_older_step_stops_nobody(steps: Path):
    flip_in_arrays(steps / "1")
    shutil.rmtree(steps / "2" / "meta")  # a deletion that was killed midway
    restored, notes = restore(steps)
    assert_sound(restored, 3)
    assert not notes
    shutil.copytree(steps / "3", steps / "4.orbax-checkpoint-tmp")  # what a killed save leaves
    with Checkpoints(steps, every_steps=1, keep=2) as checkpoints:
        assert checkpoints.newest() == 3
        checkpoints.save(4, at(4), {})
        checkpoints.save(5, at(5), {})
    assert sorted(path.name for path in steps.iterdir()) == ["4", "5"]


def test_files_that_the_system_does_not_give_are_no_damage(steps: Path, monkeypatch: pytest.MonkeyPatch):
    """A mount that hangs or a foreign owner must not make a run set its checkpoints aside one after the other."""
    real = type(checkpoint.epath.Path(steps)).read_bytes

    def refusing(path: Any) -> bytes:
        if str(path).endswith("3/meta/metadata"):
            raise OSError(5, "Input/output error", str(path))
        return real(path)

    monkeypatch.setattr(type(checkpoint.epath.Path(steps)), "read_bytes", refusing)
    with pytest.raises(CheckpointError, match="cannot be read: .*Input/output error") as error:
        restore(steps)
    assert not isinstance(error.value, DamagedCheckpoint) and (steps / "3").is_dir()


def test_a_directory_that_the_system_does_not_list_is_one_sentence(steps: Path, monkeypatch: pytest.MonkeyPatch):
    """To resume, to read by hand, and to read what was done already: a run of one process would end in a traceback."""

    def refusing(path: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    (steps / "evaluations.jsonl").write_text("")
    for name, call in (
        ("iterdir", lambda: restore(steps)),
        ("iterdir", lambda: checkpoint.find_step(steps)),
        ("read_bytes", lambda: Scores(checkpoint.epath.Path(steps)).start(3)),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(type(checkpoint.epath.Path(steps)), name, refusing)
            with pytest.raises(CheckpointError, match=f"^{steps}.* cannot be read: PermissionError: .*Permission denied"):
                call()
    assert sorted(path.name for path in steps.iterdir()) == ["1", "2", "3", "evaluations.jsonl"]


def spoil(files: list[Path], chance: random.Random) -> str:
    """One accident to one file; what was done."""
    path = chance.choice(files)
    data = bytearray(path.read_bytes())
    kind = chance.choice(["flip", "flip", "flip", "cut", "delete", "zeros", "garbage"])
    if kind == "flip" and data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del data[chance.randrange(len(data) + 1) :]
    elif kind == "zeros":
        data = bytearray(len(data))
    elif kind == "garbage":
        data = bytearray(chance.randbytes(len(data)))
    path.unlink()
    if kind != "delete":
        path.write_bytes(data)
    return f"{kind} {path}"


@pytest.mark.parametrize(
    ("file", "size", "words"),
    [
        ("_METADATA", 40, "STATE/_METADATA is no JSON"),
        (
            "manifest.ocdbt",
            40,
            r"leaf \w[\w/]*, file STATE/manifest.ocdbt: Error decoding manifest: Length in header .* \(40\)",
        ),
        ("d/*", 40, r"leaf \w[\w/]*, file STATE/d/\w+: Requested byte range \[0, \d+\) is not valid for value of size 40"),
        ("d/*", -1, r"leaf \w[\w/]*, file STATE/d/\w+: it is missing"),
    ],
)
def test_the_sentence_names_leaf_file_and_reason(steps: Path, file: str, size: int, words: str):
    """-1 deletes the file; otherwise it is cut to `size` bytes."""
    for path in (steps / "3" / "state").glob(file):
        data = path.read_bytes()
        path.unlink()
        if size >= 0:
            path.write_bytes(data[:size])
    with pytest.raises(DamagedCheckpoint) as error:
        checkpoint.read_state(steps)
    start = f"the checkpoint of step 3 in {steps} is damaged: its arrays cannot be read ("
    end = f"); other steps here: 1, 2, such as {steps}/2"
    assert re.fullmatch(words.replace("STATE", str(steps / "3" / "state")), str(error.value).removeprefix(start).removesuffix(end))


def no_accident_goes_unseen(saved: Path, tmp_path: Path, seeds: range) -> None:
    """The last step's very bits (Orbax does not read all that it writes), or those of the step before and a note."""
    for seed in seeds:
        steps = Path(shutil.copytree(saved, tmp_path / str(seed)))
        chance = random.Random(seed)
        files = sorted(path for path in (steps / "3").rglob("*") if path.is_file())
        accident = spoil(files, chance)
        restored, notes = restore(steps)
        assert restored is not None, accident
        assert_sound(restored, 2 if notes else 3)
        # What an export does with the same directory: the same bits, or one clear error.
        steps = Path(shutil.copytree(saved, tmp_path / f"{seed}-read"))
        spoil(sorted(path for path in (steps / "3").rglob("*") if path.is_file()), random.Random(seed))
        try:
            state, step = checkpoint.read_state(steps)
        except CheckpointError as error:
            assert notes, accident
            assert not any(word in str(error) for word in ("tensorstore", "{", '\\"')), "settings in JSON help no reader"
        else:
            assert_sound(Restored(state, step), 3 if step == 3 or not notes else 2)  # NumPy arrays need fewer of the files
        shutil.rmtree(steps)
        shutil.rmtree(tmp_path / str(seed))


def test_no_accident_goes_unseen(saved: Path, tmp_path: Path):
    no_accident_goes_unseen(saved, tmp_path, range(30))


@pytest.mark.slow
def test_no_accident_of_many_goes_unseen(saved: Path, tmp_path: Path):
    no_accident_goes_unseen(saved, tmp_path, range(1000, 1400))
