"""Checkpoints: what is read is what was written, on any devices, or an error that names what is wrong."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils

from sere_jax import sharding
from sere_jax.train import checkpoint
from sere_jax.train.checkpoint import CheckpointError, DamagedCheckpoint, UnsoundState, UnwritableCheckpoint
from sere_jax.train.checkpoint_manager import Checkpoints
from sere_jax.train.saved_steps import json_digest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {"recipe": "dino_sere", "views": {"scale": (0.1, 1.0)}, "seed": 3, "name": None}


class State(NamedTuple):
    step: jax.Array
    params: Any
    opt_state: Any
    objective: Any
    bad_steps: jax.Array


def make_state(seed: int = 0) -> State:
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "backbone": {"kernel": jax.random.normal(keys[0], (24, 16)), "half": jax.random.normal(keys[1], (5, 8)).astype(jnp.bfloat16)},
        "head": {"bias": jax.random.normal(keys[2], (3,))},
    }
    moments = optax.adamw(1e-3, mask={"backbone": True, "head": {"bias": False}}).init(params)
    objective = {
        "center": jnp.full((8,), -0.0),
        "seen": jnp.array([True, False]),
        "empty": jnp.zeros((0, 4)),
        "none": None,
        "ids": jnp.arange(4, dtype=jnp.uint8),
    }
    return State(jnp.int32(7), params, moments, objective, jnp.int32(0))


def place(state: State, fsdp: int | None) -> State:
    if fsdp is None:
        return state
    return jax.device_put(state, sharding.state_shardings(state, sharding.make_mesh(fsdp), min_size=8))


def abstract(state: State) -> State:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same_bits(left: Any, right: Any) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def saved(directory: Path, state: State, *steps: int, keep: int = 5) -> None:
    checkpoints = Checkpoints(directory, every_steps=1, keep=keep)
    for step in steps:
        checkpoints.save(step, state._replace(step=jnp.int32(step)), CONFIG)
    checkpoints.close()


def flip_a_bit(step_directory: Path, where: int = 0) -> None:
    """One bit in the largest file of arrays, away from its ends."""
    path = max((step_directory / "state").rglob("d/*"), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 + where] ^= 4
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(("before", "after"), [(None, None), (2, None), (None, 4), (2, 8), (8, 1)])
def test_round_trip_is_bit_identical_on_any_devices(tmp_path: Path, before: int | None, after: int | None):
    state = place(make_state(), before)
    saved(tmp_path, state, 7)
    target = abstract(place(make_state(1), after))
    read = Checkpoints(tmp_path, every_steps=1).restore(target, 7)
    assert_same_bits(read, state)
    assert all(a.sharding == b.sharding for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(target), strict=True))


def test_what_is_saved_is_the_state_at_the_call_though_it_is_donated_at_once(tmp_path: Path):
    state = place(make_state(), 2)
    expected = jax.tree.map(np.array, state)
    advance = jax.jit(lambda s: jax.tree.map(lambda x: ~x if x.dtype == bool else x + 1, s), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path, every_steps=1)
    checkpoints.save(1, state, CONFIG)
    for _ in range(5):
        state = advance(state)
    checkpoints.wait()
    assert_same_bits(checkpoints.restore(abstract(state), 1), expected)


def test_cadence_and_what_is_kept(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, every_steps=2, keep=2, keep_every_steps=4)
    state = make_state()
    made = [step for step in range(11) if checkpoints.save(step, state, CONFIG)]
    assert made == [2, 4, 6, 8, 10]
    assert checkpoints.save(11, state, CONFIG, force=True) and not checkpoints.save(11, state, CONFIG, force=True)
    checkpoints.close()
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [4, 8, 10, 11]
    assert checkpoints.newest() == 11


def test_saving_takes_no_part_in_the_agreement_on_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """JAX compares the numbers of all callers for equality; only `Signals.reached` may give it some."""
    asked: list[int] = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda number: bool(asked.append(number)))
    saved(tmp_path, make_state(), 1, 2)
    assert not asked


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("leaf", ["params/backbone/half", "opt_state/0/mu/backbone/kernel"])
def test_a_state_with_a_value_that_is_lost_is_never_saved(tmp_path: Path, leaf: str, value: float):
    good = make_state()
    named = checkpoint.named_leaves(good)
    structure = jax.tree.structure(good)
    bad = jax.tree.unflatten(structure, [x.at[1, 2].set(value) if name == leaf else x for name, x in named.items()])
    checkpoints = Checkpoints(tmp_path, every_steps=1)
    checkpoints.save(1, good, CONFIG)
    with pytest.raises(UnsoundState, match=rf"step 2 is not saved: found values .* in {leaf}$"):
        checkpoints.save(2, bad, CONFIG)
    checkpoints.close()
    assert checkpoint.find_step(tmp_path)[1] == 1


def test_the_config_comes_back(tmp_path: Path):
    saved(tmp_path / "checkpoints", make_state(), 3, 5)
    expected = json.loads(json.dumps(CONFIG))
    for directory in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "3"):
        assert checkpoint.read_config(directory) == expected
    versions = json.loads((tmp_path / "checkpoints" / "3" / "meta" / "metadata").read_text())["versions"]
    assert versions["jax"] == jax.__version__


def test_reading_without_a_target(tmp_path: Path):
    state = place(make_state(), 4)
    saved(tmp_path / "checkpoints", state, 3, 5)
    read, step = checkpoint.read_state(tmp_path)
    assert step == 5 and int(read["step"]) == 5
    assert checkpoint.read_state(tmp_path / "checkpoints" / "3")[1] == 3
    flat = checkpoint.named_leaves(read)
    wanted = checkpoint.named_leaves(state._replace(step=jnp.int32(5)))
    assert flat.keys() == wanted.keys() and "opt_state/0/mu/backbone/kernel" in flat
    for name, leaf in flat.items():
        assert isinstance(leaf, np.ndarray) and leaf.dtype == wanted[name].dtype, name
        assert leaf.tobytes() == np.asarray(wanted[name]).tobytes(), name
    part, _ = checkpoint.read_state(tmp_path, only=("params", "opt_state/0/mu"))
    assert part.keys() == {"params", "opt_state"} and part["opt_state"]["0"].keys() == {"mu"}
    assert checkpoint.holds(tmp_path, "opt_state/0/mu") and not checkpoint.holds(tmp_path, "opt_state/0/m")
    with pytest.raises(CheckpointError, match=r"found no opt_state/0/m; expected paths below bad_steps, objective"):
        checkpoint.read_state(tmp_path, only=("opt_state/0/m",))


def test_reading_on_one_device_what_eight_saved(tmp_path: Path):
    saved(tmp_path, place(make_state(), 8), 7)
    code = (
        "import sys, jax; from sere_jax.train.checkpoint import read_state; state, step = read_state(sys.argv[1]);"
        "print(jax.device_count(), step, state['params']['backbone']['kernel'].sum())"
    )
    environ = {**os.environ, "XLA_FLAGS": ""}
    output = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environ, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    devices, step, total = output.split()
    assert (devices, step) == ("1", "7")
    assert float(total) == pytest.approx(float(np.asarray(make_state().params["backbone"]["kernel"]).sum()), rel=1e-6)


@pytest.mark.parametrize("where", [0, -3, 11])
def test_a_flipped_bit_is_found_and_older_steps_are_told(tmp_path: Path, where: int):
    saved(tmp_path, make_state(), 1, 2, 3)
    flip_a_bit(tmp_path / "3", where)
    checkpoints = Checkpoints(tmp_path, every_steps=1)
    with pytest.raises(DamagedCheckpoint, match=r"step 3 in .* is damaged.*other steps here: 1, 2, such as .*/2") as error:
        checkpoints.restore(abstract(make_state()), 3)
    assert "/" in str(error.value)
    with pytest.raises(DamagedCheckpoint, match="step 3 in .* is damaged"):
        checkpoint.read_state(tmp_path)
    assert int(checkpoints.restore(abstract(make_state()), step=2).step) == 2


def test_the_damaged_leaf_is_named(tmp_path: Path):
    """The bytes of one leaf exchanged for another's: each is a sound array of the right shape, as a flipped bit is."""
    state = make_state()
    saved(tmp_path, state, 1)
    path = tmp_path / "1" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    meta.pop("digest")
    meta["leaves"]["params/head/bias"][2] ^= 1
    path.write_text(json.dumps({**meta, "digest": json_digest(meta)}))
    with pytest.raises(CheckpointError, match=r"not what was written: params/head/bias \(1 of \d+ leaves\); no other step is here"):
        Checkpoints(tmp_path, every_steps=1).restore(abstract(state), 1)


def test_a_changed_config_is_found(tmp_path: Path):
    saved(tmp_path, make_state(), 1)
    path = tmp_path / "1" / "meta" / "metadata"
    path.write_text(path.read_text().replace("dino_sere", "dino_serf"))
    with pytest.raises(CheckpointError, match="metadata is not what was written"):
        checkpoint.read_config(tmp_path)
    path.write_text(path.read_text()[:50])
    with pytest.raises(CheckpointError, match="metadata cannot be read"):
        checkpoint.read_config(tmp_path)


def test_all_differences_of_another_state_are_listed(tmp_path: Path):
    saved(tmp_path, make_state(), 1)
    other = make_state()
    other = other._replace(
        params={"backbone": {"kernel": jnp.zeros((24, 17)), "half": jnp.zeros((5, 8))}, "extra": jnp.zeros(2)}, bad_steps=jnp.float32(0)
    )
    with pytest.raises(CheckpointError) as error:
        Checkpoints(tmp_path, every_steps=1).restore(abstract(other), 1)
    assert sorted(str(error.value).split("\n  ")[1:]) == [
        "bad_steps: saved int32[], wanted float32[]",
        "params/backbone/half: saved bfloat16[5, 8], wanted float32[5, 8]",
        "params/backbone/kernel: saved float32[24, 16], wanted float32[24, 17]",
        "params/extra: wanted, but not saved",
        "params/head/bias: saved, but not wanted",
    ]


def test_nothing_there_says_what_is_there(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*/gone: it does not exist"):
        checkpoint.read_state(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="found an empty directory"):
        checkpoint.read_state(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"found notes\.txt; expected STEP/state"):
        checkpoint.read_config(tmp_path)
    with pytest.raises(CheckpointError, match="it is a file"):
        checkpoint.read_state(tmp_path / "notes.txt")
    saved(tmp_path / "checkpoints", make_state(), 1, 2)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 5 in .*there are 1, 2"):
        checkpoint.read_state(tmp_path, 5)
    assert Checkpoints(tmp_path / "fresh", every_steps=1).newest() is None


def test_a_full_disk_is_told_and_older_steps_stand(tmp_path: Path):
    """The limit on a file's size stands in for the disk's. The system's reason is given, not TensorStore's page of settings."""
    code = """
import resource, signal, sys, jax
from sere_jax.train.checkpoint import CheckpointError, read_state
from sere_jax.train.checkpoint_manager import Checkpoints
from sere_jax.train.saved_steps import json_digest
checkpoints = Checkpoints(sys.argv[1], every_steps=1)
checkpoints.save(1, {'a': jax.numpy.ones(4)}, {})
checkpoints.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))
checkpoints.save(2, {'a': jax.random.normal(jax.random.key(0), (300, 300))}, {})
try:
    checkpoints.wait()
except CheckpointError as error:
    print(error)
print('step', read_state(sys.argv[1])[1], sorted(name for name in __import__('os').listdir(sys.argv[1]) if 'tmp' in name))
"""
    output = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True).stdout
    assert output.endswith(f"a checkpoint in {tmp_path} could not be written: File too large; complete steps: 1\nstep 1 []\n"), output


def test_a_workdir_that_vanished_is_told_and_not_made_anew(tmp_path: Path):
    """As when its disk is unmounted: a run must not go on writing to what lies below."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    checkpoints = Checkpoints(workdir / "checkpoints", every_steps=1)
    checkpoints.save(1, {"a": jnp.ones(3)}, {})
    checkpoints.wait()
    workdir.rename(tmp_path / "elsewhere")
    with pytest.raises(UnwritableCheckpoint, match=f"could not be written: {workdir} has vanished: it was removed, or its disk"):
        checkpoints.save(2, {"a": jnp.ones(3)}, {})
    with pytest.raises(UnwritableCheckpoint, match="No such file or directory"):
        checkpoints.scores.add(2, "knn", {"top1": 1.0})
    assert not workdir.exists()
    checkpoints.close()


def test_nothing_is_left_of_a_save_that_failed_while_its_thread_still_made_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UnwritableCheckpoint, match="File too large"), Checkpoints(tmp_path, every_steps=1) as checkpoints:
        manager = checkpoints._manager

        def fail(*_: object, **__: object) -> None:
            raise OSError(errno.EFBIG, "File too large")

        monkeypatch.setattr(manager, "save", fail)
        monkeypatch.setattr(manager, "close", lambda: (tmp_path / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True))
        checkpoints.save(2, {"a": jnp.ones(3)}, {})
    assert list(tmp_path.iterdir()) == []
