"""Campaigns on files, without processes: damaged checkpoints, mutated weights, fuzzed images, states with lost values, failing disks."""

from __future__ import annotations

import random
import resource
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sere_jax.data.images.decode import BadImage, decode
from sere_jax.data.images.reading import Backend, ImageReading
from sere_jax.interop.files import FileError, read_tensors
from sere_jax.train import checkpoint
from sere_jax.train.checkpoint import CheckpointError
from sere_jax.train.checkpoint_manager import Checkpoints
from sere_jax.train.state import State
from sere_jax.train.update import LossOutput, make_update
from tests import micro
from tests.data.images import corpus
from tests.interop.test_integrity import ENDINGS, _write
from tests.reliability.outcome import Row, row
from tests.train.test_damage import TARGET, assert_sound, save

_SLOWEST = 2.0  # seconds of one decode or one refusal


def damaged_checkpoints(count: int, rng: random.Random, work: Path) -> Row:
    """One change in one file of the newest of two checkpoints: the state is right, or the one before is taken, or an error says why."""
    sound, outcomes, failures = work / "sound", [], []
    save(sound, 1, 2)
    files = sorted(path for path in (sound / "2").rglob("*") if path.is_file())
    for trial in range(count):
        directory = Path(shutil.copytree(sound, work / f"damaged{trial}"))
        how = _damage(directory / "2" / rng.choice(files).relative_to(sound / "2"), rng)
        try:
            with Checkpoints(directory, every_steps=1) as checkpoints:
                restored = checkpoints.restore_newest(TARGET)
                assert_sound(restored, restored.step if restored else -1)
            outcomes.append("resumed from the newest" if restored and restored.step == 2 else "resumed from the one before")
        except CheckpointError:
            outcomes.append("refused")
        except BaseException as error:
            outcomes.append("failed")
            failures.append(f"{how}: {type(error).__name__}: {str(error)[:200]}")
        shutil.rmtree(directory)
    return row("one change in a file of the newest of two checkpoints", outcomes, failures)


def _damage(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    how = rng.choice(["flip", "cut", "zeros", "removed", "grown"])
    place = rng.randrange(len(data)) if data else 0
    if how == "flip" and data:
        data[place] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del data[place:]
    elif how == "zeros":
        data[place : place + 64] = bytes(len(data[place : place + 64]))
    elif how == "grown":
        data += rng.randbytes(10)
    path.unlink() if how == "removed" else path.write_bytes(data)
    return f"{how} at {place} of {path.name}"


def hostile_weights(count: int, rng: random.Random, work: Path) -> Row:
    """Changes of whole files of weights of all three kinds: what was written is read, or FileError says why."""
    outcomes, failures = [], []
    whole = {ending: _write(work / f"whole{ending}") for ending in ENDINGS}
    expected = {ending: read_tensors(path)[0] for ending, path in whole.items()}
    for trial in range(count):
        ending = ENDINGS[trial % len(ENDINGS)]
        path = Path(shutil.copy(whole[ending], work / f"hostile{ending}"))
        how = _damage(path, rng)
        began = time.monotonic()
        try:
            tensors, _ = read_tensors(path)
            same = tensors.keys() == expected[ending].keys() and all(np.array_equal(tensors[k], expected[ending][k]) for k in tensors)
            outcomes.append("read rightly" if same else "failed")
            failures += [] if same else [f"{how}: silently wrong"]
        except FileError:
            outcomes.append("refused")
        except BaseException as error:
            outcomes.append("failed")
            failures.append(f"{how}: {type(error).__name__}: {str(error)[:200]}")
        if time.monotonic() - began > _SLOWEST:
            failures.append(f"{how}: took {time.monotonic() - began:.1f} s")
    return row("one change in a file of weights (safetensors, npz, pth)", outcomes, failures)


def fuzzed_images(count: int, rng: random.Random, work: Path) -> Row:
    """Changes in the files of the corpus, by both readers and three ranges: pixels or BadImage, soon and in little memory."""
    outcomes, failures = [], []
    seeds = [case for case in corpus.cases() if len(case.data) < 1 << 20]
    backends: tuple[Backend, ...] = ("fast", "pil")
    for trial in range(count):
        case = rng.choice(seeds)
        data = bytearray(case.data)
        for _ in range(rng.choice([1, 1, 2, 8])):
            if data:
                place = rng.randrange(len(data))
                data[place : place + rng.choice([0, 1, 1, 4])] = rng.randbytes(rng.choice([0, 1, 1, 4]))
        reading = ImageReading(backends[trial % 2], value_range=rng.choice([(0.0, 0.0), (0.0, 4095.0), (-1.0, 1.0)]))
        began = time.monotonic()
        try:
            pixels = decode(bytes(data), reading)
            right = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size > 0
            outcomes.append("read" if right else "failed")
            failures += [] if right else [f"{case.name}: {pixels.dtype} {pixels.shape}"]
        except BadImage:
            outcomes.append("refused")
        except BaseException as error:
            outcomes.append("failed")
            failures.append(f"{case.name}: {type(error).__name__}: {str(error)[:200]}")
        if (seconds := time.monotonic() - began) > _SLOWEST:
            failures.append(f"{case.name}: took {seconds:.1f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return row(f"changed images, decoded (process peak {peak:,.0f} MB)", outcomes, failures)


def lost_values(count: int, rng: random.Random, work: Path) -> Row:
    """NaN, infinity and 3e38 in one number of the state: no update takes it in, and it is never saved."""
    outcomes, failures = [], []
    optimizer = optax.with_extra_args_support(optax.adamw(0.1))

    def loss(params, running, batch, keys):
        return jnp.mean((jnp.tanh(batch @ params["w"]) @ params["v"] - 1.0) ** 2), LossOutput(running, {})

    params = {"w": jnp.ones((3, 4)) / 3, "v": jnp.ones((4, 1)) / 4, "unused": jnp.zeros(5)}
    good = State(jnp.int32(3), params, {}, optimizer.init(params), jnp.int32(0), {"teacher": params, "center": jnp.zeros(4)})
    update = jax.jit(make_update(loss=loss, optimizer=optimizer))
    named = {name: leaf for name, leaf in checkpoint.named_leaves(good).items() if jnp.issubdtype(leaf.dtype, jnp.floating)}
    checkpoints = Checkpoints(work / "lost", every_steps=1)
    for trial in range(count):
        name, value = rng.choice(sorted(named)), rng.choice([np.nan, np.inf, -np.inf, 3e38, -3e38])
        place = rng.randrange(named[name].size)
        leaves = checkpoint.named_leaves(good)
        leaves[name] = leaves[name].ravel().at[place].set(value).reshape(leaves[name].shape)
        bad = jax.tree.unflatten(jax.tree.structure(good), list(leaves.values()))
        after, metrics = update(bad, jnp.ones((2, 3)))
        try:
            assert float(metrics["bad_step"]) == 1, "counted as a good step"
            micro.assert_equal(after, bad._replace(step=bad.step + 1, bad_steps=bad.bad_steps + 1))
            checkpoints.save(trial + 1, after, {})
            raise AssertionError("it was saved")
        except CheckpointError:
            outcomes.append("skipped and not saved")
        except AssertionError as error:
            outcomes.append("failed")
            failures.append(f"{value} in {name}[{place}]: {str(error)[:200]}")
    checkpoints.close()
    return row("a value that is lost, in one place of the state", outcomes, failures)


def failing_disks(count: int, rng: random.Random, work: Path) -> Row:
    """A limit on files' sizes at a random number of bytes: the save fails with one error, leaves the older step and no temporary one."""
    outcomes, failures = [], []
    state = {"a": jnp.asarray(np.random.default_rng(0).normal(size=(300, 300)), jnp.float32)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for trial in range(count):
        directory = work / f"disk{trial}"
        checkpoints = Checkpoints(directory, every_steps=1)
        checkpoints.save(1, {"a": jnp.ones(4)}, {})
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (rng.randrange(1, 320_000), hard))
        try:
            checkpoints.save(2, state, {})
            checkpoints.wait()
            outcomes.append("saved")
        except CheckpointError:
            outcomes.append("told in a sentence")
        except BaseException as error:
            outcomes.append("failed")
            failures.append(f"{type(error).__name__}: {str(error)[:200]}")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        newest = checkpoint.find_step(directory)[1]
        left = [path.name for path in directory.iterdir() if "tmp" in path.name]
        if newest != (2 if outcomes[-1] == "saved" else 1) or left:
            failures.append(f"after '{outcomes[-1]}': newest step {newest}, left {left}")
        shutil.rmtree(directory)
    return row("a disk that is full while a checkpoint is written", outcomes, failures)
