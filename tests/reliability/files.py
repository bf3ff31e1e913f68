"""Campaigns without processes: hostile files of weights, fuzzed images, and values that are lost in the state of a real step."""

from __future__ import annotations

import importlib.util
import random
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sere_jax import load_backbone
from sere_jax.build import pretraining
from sere_jax.data.images.decode import BadImage, decode
from sere_jax.data.images.deep import PNG
from sere_jax.data.images.reading import BACKENDS, ImageReading
from sere_jax.interop import timm
from sere_jax.interop.files import FileError, read_tensors, write_tensors
from sere_jax.interop.tables import InteropError
from sere_jax.train import checkpoint
from sere_jax.train.checkpoint import CheckpointError
from sere_jax.train.checkpoint_manager import Checkpoints
from tests import micro
from tests.data.images import corpus
from tests.interop import test_integrity, test_timm
from tests.reliability.checkpoints import change
from tests.reliability.outcome import Costs, Row, Trials

_LOST = (np.nan, np.inf, -np.inf, 3e38, -3e38)
_RANGES = ((0.0, 0.0), (0.0, 4095.0), (-1.0, 1.0))


def hostile_weights(trials: Trials, rng: random.Random, work: Path) -> Row:
    """Of three files one has a change in its bytes, one is made to harm, and one holds values that are no weights."""
    costs = Costs()
    kinds = [_Changed(work), _Harmful(work), _NoWeights(work)]
    for trial in trials:
        kind = kinds[trial % 3]
        what, path = kind.make(rng)
        try:
            with costs.of(what, trials.failures):
                kind.check(path)
            trials.ended("read rightly")
        except (FileError, InteropError) as error:
            trials.failures += [f"{what}: {fault}" for fault in _faults(str(error), path)]
            trials.ended("refused")
        except BaseException as error:
            trials.failed(f"{what}: {type(error).__name__}: {str(error)[:200]}")
    return trials.row(f"hostile files of weights (safetensors, npz, pth), {costs}")


def _faults(message: str, path: Path) -> list[str]:
    faults = [] if str(path) in message else ["the message does not name the file"]
    return faults + [f"the message says {word}" for word in ("weights_only", "allow_pickle", "Traceback") if word in message]


class _Changed:
    """Sound files of all kinds with one change of their bytes; what can be read must be what was written."""

    def __init__(self, work: Path) -> None:
        endings = [ending for ending in test_integrity.ENDINGS if ending != ".pth" or importlib.util.find_spec("torch")]
        self._whole = {ending: test_integrity._write(work / f"whole{ending}") for ending in endings}
        self._expected = {ending: read_tensors(path)[0] for ending, path in self._whole.items()}

    def make(self, rng: random.Random) -> tuple[str, Path]:
        ending, whole = rng.choice(sorted(self._whole.items()))
        path = Path(shutil.copy(whole, whole.with_name(f"changed{ending}")))
        return f"{ending[1:]}: {change(path, rng)}", path

    def check(self, path: Path) -> None:
        tensors, expected = read_tensors(path)[0], self._expected[path.suffix]
        assert tensors.keys() == expected.keys() and all(np.array_equal(tensors[name], expected[name]) for name in tensors), (
            "silently wrong"
        )


class _Harmful:
    """The files of the tests that were made to harm: bombs, claims, misnamed archives, dictionaries that hold themselves."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._writers: dict[str, tuple[str, Callable[[Path], Any]]] = {
            name: (ending, write) for name, (ending, write, _) in test_integrity.HOSTILE.items()
        }
        if importlib.util.find_spec("torch"):
            torch = importlib.import_module("torch")
            for name, (content, _) in test_integrity.TORCH.items():
                self._writers[name] = (".pth", lambda path, content=content: torch.save(content(torch), path))

    def make(self, rng: random.Random) -> tuple[str, Path]:
        name, (ending, write) = rng.choice(sorted(self._writers.items(), key=lambda item: item[0]))
        path = self._work / f"harmful{ending}"
        path.unlink(missing_ok=True)
        write(path)
        return name, path

    def check(self, path: Path) -> None:
        read_tensors(path)
        raise AssertionError("it was read")


class _NoWeights:
    """A backbone in which one tensor, or one number of it, cannot be a weight."""

    def __init__(self, work: Path) -> None:
        self._path, self._tensors = work / "values.safetensors", timm.to_timm(test_timm._params()[1])

    def make(self, rng: random.Random) -> tuple[str, Path]:
        name = rng.choice(sorted(self._tensors))
        tensor = np.array(self._tensors[name])
        how = rng.choice(["a number", "integers", "booleans", "complex"])
        if how == "a number":
            value = rng.choice([np.nan, np.inf, -np.inf])
            tensor.flat[rng.randrange(tensor.size)], how = value, f"{value}"
        else:
            tensor = tensor.astype({"integers": np.int32, "booleans": np.bool_, "complex": np.complex64}[how])
        write_tensors(self._path, self._tensors | {name: tensor}, {})
        return f"{how} in {name}", self._path

    def check(self, path: Path) -> None:
        load_backbone(path, heads=3)
        raise AssertionError("it was read")


def fuzzed_images(trials: Trials, rng: random.Random, work: Path) -> Row:
    """Changes in the files of the corpus, half of them in the first bytes, by all readers, ranges and numbers of channels."""
    costs = Costs()
    seeds = [case for case in corpus.cases() if len(case.data) < 1 << 20]
    for trial in trials:
        case = rng.choice(seeds)
        data = _changed_image(case.data, rng)
        channels = rng.choice([3, 3, 1, 4])
        reading = ImageReading(BACKENDS[trial % 2], value_range=rng.choice(_RANGES), channels=channels)
        what = f"{case.name}, changed in trial {trial}"
        try:
            with costs.of(what, trials.failures):
                pixels = decode(data, reading)
            right = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == channels and pixels.size > 0
            if right:
                trials.ended("read")
            else:
                trials.failed(f"{what}: {pixels.dtype} {pixels.shape}")
        except BadImage:
            trials.ended("refused")
        except BaseException as error:
            trials.failed(f"{what}: {type(error).__name__}: {str(error)[:200]}")
    return trials.row(f"changed images, decoded, {costs}")


def _changed_image(data: bytes, rng: random.Random) -> bytes:
    """Changes of some bytes; in half of the PNG files the checksums are made right again, so that what lies behind them is reached."""
    changed = bytearray(data)
    head, same_length = min(len(data), 128) if rng.random() < 0.5 else len(data), rng.random() < 0.7
    for _ in range(rng.choice([1, 1, 2, 8]) if data else 0):
        place, size = rng.randrange(head), rng.choice([1, 1, 2, 4])
        changed[place : place + size] = rng.randbytes(size if same_length else rng.choice([0, 1, 4]))
    if data.startswith(PNG) and rng.random() < 0.5:
        place = len(PNG)
        while place + 12 <= len(changed):
            end = place + 8 + int.from_bytes(changed[place : place + 4])
            changed[end : end + 4] = zlib.crc32(changed[place + 4 : end]).to_bytes(4) if end + 4 <= len(changed) else changed[end : end + 4]
            place = end + 4
    return bytes(changed)


def lost_values(trials: Trials, rng: random.Random, work: Path) -> Row:
    """NaN, infinity and 3e38 in one number of the state of a real DINO + SERE step: no update takes it in, and it is never saved."""
    config = micro.config(local_count=1, photometry=True, recipe="dino_sere")
    good, views = micro.state(config), micro.views(config)
    update = micro.compiled(pretraining.train_step(config, micro.LENGTH), good, views)
    assert float(update(good, views)[1]["bad_step"]) == 0
    named = {name: leaf for name, leaf in checkpoint.named_leaves(good).items() if jnp.issubdtype(leaf.dtype, jnp.floating)}
    kinds = sorted({name.split("/")[0] for name in named})
    with Checkpoints(work / "lost", every_steps=1) as checkpoints:
        for trial in trials:
            kind = kinds[trial % len(kinds)]
            name, value = rng.choice([name for name in sorted(named) if name.split("/")[0] == kind]), rng.choice(_LOST)
            place, leaves = rng.randrange(max(1, named[name].size)), checkpoint.named_leaves(good)
            leaves[name] = leaves[name].ravel().at[place].set(value).reshape(leaves[name].shape)
            bad = jax.tree.unflatten(jax.tree.structure(good), list(leaves.values()))
            after, metrics = update(bad, views)
            try:
                assert float(metrics["bad_step"]) == 1, "counted as a good step"
                micro.assert_equal(after, bad._replace(step=bad.step + 1, bad_steps=bad.bad_steps + 1))
                checkpoints.save(trial + 1, after, {})
                raise AssertionError("it was saved")
            except CheckpointError:
                trials.ended("skipped and not saved")
            except AssertionError as error:
                trials.failed(f"{value} in {name}[{place}]: {str(error)[:200]}")
    return trials.row("a value that is lost, in one place of the state of a DINO + SERE step")
