"""Checkpoints between processes: killed in mid-save, written by one and read by two, and the reverse."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax import sharding
from sere_jax.train import checkpoint
from sere_jax.train.checkpoint_manager import Checkpoints
from tests.processes import outputs_of_two
from tests.train.test_checkpoint import CONFIG, ROOT, assert_same_bits, make_state

_SAVE_AND_DIE = """
import sys, jax, jax.numpy as jnp, numpy as np
from sere_jax.train.checkpoint_manager import Checkpoints
state = {'a': jnp.zeros((1000, 3000)), 'step': jnp.int32(0)}
checkpoints = Checkpoints(sys.argv[1], every_steps=1, keep=2)
last = checkpoints.newest() or 0
if last:
    state = checkpoints.restore(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state), last)
    assert int(state['step']) == last and bool((state['a'] == jax.random.normal(jax.random.key(last), (1000, 3000))).all())
    print('resumed', last, flush=True)
for step in range(last + 1, last + 1000):
    state = {'a': jax.random.normal(jax.random.key(step), (1000, 3000)), 'step': jnp.int32(step)}
    checkpoints.save(step, state, {'seed': 1})
    print('saving', step, flush=True)
"""


def _kill_in_mid_save(directory: Path, delay: float, saves: int = 2) -> int:
    """Start the writer, SIGKILL it `delay` seconds after it announced so many saves; the step that was being written."""
    command = [sys.executable, "-c", _SAVE_AND_DIE, str(directory)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    step = -1
    for line in process.stdout:
        if line.startswith("saving"):
            step, saves = int(line.split()[1]), saves - 1
            if not saves:
                break
    time.sleep(delay)
    process.kill()
    error = process.stderr.read()
    assert process.wait() == -signal.SIGKILL, error
    return step


def test_kill_in_mid_save_leaves_a_readable_older_step(tmp_path: Path):
    step = _kill_in_mid_save(tmp_path, 0.0)
    read, found = checkpoint.read_state(tmp_path)
    assert found >= step - 1
    np.testing.assert_array_equal(read["a"], jax.random.normal(jax.random.key(found), (1000, 3000)))
    again = Checkpoints(tmp_path, every_steps=1)  # removes the remains in the background, before its first save
    again.save(step + 1, make_state(), CONFIG)
    again.close()
    assert all(path.name.isdigit() for path in tmp_path.iterdir())


@pytest.mark.slow
def test_repeated_kills_at_random_times(tmp_path: Path):
    delays = random.Random(0)
    last = 0
    for _ in range(12):
        step = _kill_in_mid_save(tmp_path, delays.uniform(0.0, 0.4))
        found = checkpoint.read_state(tmp_path)[1]
        assert found >= max(step - 1, last)
        last = found


_TWO_PROCESSES = """
import sys, jax, jax.numpy as jnp, numpy as np
from sere_jax import distributed, sharding
from sere_jax.train import checkpoint
from sere_jax.train.checkpoint import read_state
from sere_jax.train.checkpoint_manager import Checkpoints
port, rank, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
distributed.start_distributed(coordinator='127.0.0.1:' + port, num_processes=2, process_id=rank)
mesh = sharding.make_mesh(4)
make = lambda: {'a': jnp.arange(64.).reshape(8, 8), 'b': {'c': jnp.arange(3), 'e': jnp.zeros((0, 2))}}
cut = sharding.state_shardings(jax.eval_shape(make), mesh, min_size=8)
state = jax.jit(make, out_shardings=cut)()
checkpoints = Checkpoints(directory, every_steps=1, keep=2)
target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, cut)
if checkpoints.newest() == 5:  # written by one process with eight devices
    old = checkpoints.restore(target, 5)
    assert all(bool((a == b).all()) for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(state)))
checkpoints.save(6, state, {'seed': 1}, force=True)
checkpoints.wait()
again = checkpoints.restore(target, 6)
assert all(bool((a == b).all()) for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state)))
np.testing.assert_array_equal(read_state(directory)[0]['a'], np.arange(64.).reshape(8, 8))
checkpoints.close()

def failing(*_):
    raise error

def raised(call):
    try:
        call()
    except Exception as caught:
        return f'{type(caught).__name__}: {caught}'

for error in (PermissionError(13, 'Permission denied'), KeyError('unforeseen')):
    for broken, name, call in ((0, 'step_directories', checkpoints.newest), (1, 'read_meta', lambda: checkpoints.restore(target, 6))):
        real = getattr(checkpoint, name)
        if rank == broken:
            setattr(checkpoint, name, failing)
        message = raised(call)
        setattr(checkpoint, name, real)
        if rank != broken:
            assert message.startswith('OtherProcessError') and f'process {broken}' in message, message
        elif isinstance(error, KeyError):
            assert message == "KeyError: 'unforeseen'", message
        else:
            assert message.startswith('CheckpointError') and 'cannot be read: PermissionError' in message, message
assert checkpoints.newest() == 6
checkpoints.scores.start(6)  # there is no record, and then the record of process 0
if rank == 0:
    checkpoints.scores.add(6, 'knn', {'top1': 0.5})
checkpoints.scores.start(6)
assert checkpoints.scores.done(6, 'knn')
print('agreed', flush=True)

# Process 0 alone fails, while process 1 waits for it.
from pathlib import Path
from sere_jax.train import peers
peers.GRACE_SECONDS = 0.3
peers.watch()
if rank == 0:
    Path(directory, 'a file').touch()
    checkpoints.scores._path = Path(directory, 'a file', 'evaluations.jsonl')
    try:
        checkpoints.scores.add(7, 'knn', {'top1': 0.5})
    except Exception as error:
        sys.exit(peers.ended(error, 1))
jax.experimental.multihost_utils.process_allgather(rank)
"""


def test_two_processes_read_what_one_wrote_and_the_reverse(tmp_path: Path):
    state = {"a": jnp.arange(64.0).reshape(8, 8), "b": {"c": jnp.arange(3), "e": jnp.zeros((0, 2))}}
    one = Checkpoints(tmp_path, every_steps=1)
    one.save(5, jax.device_put(state, sharding.state_shardings(state, sharding.make_mesh(8), min_size=8)), CONFIG)
    one.close()
    outputs = outputs_of_two(_TWO_PROCESSES, tmp_path, flags="--xla_force_host_platform_device_count=2")
    assert all("agreed" in output for output in outputs), "\n".join(outputs)
    assert "a file/evaluations.jsonl could not be written" in outputs[0], outputs[0]
    assert "process 0 of 2 ended: " in outputs[1] and "a file/evaluations.jsonl could not be written" in outputs[1], outputs[1]
    again = Checkpoints(tmp_path, every_steps=1)
    assert again.newest() == 6
    assert_same_bits(again.restore(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state), 6), state)
