"""The checkpoint of a run of micro size that was never trained: random numbers in the places of a state."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sere_jax.build import pretraining
from sere_jax.train.checkpoint_manager import Checkpoints
from sere_jax.train.state import State

STEP = 7


def state(config: ConfigDict) -> State:
    """A state at step 7 in which the teacher differs from the student; nothing is compiled for it."""
    rng = np.random.default_rng(0)

    def drawn(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        random = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(rng.normal(0, 0.2, leaf.shape) if random else np.zeros(leaf.shape), leaf.dtype)

    return jax.tree.map(drawn, pretraining.abstract_state(config, pretraining.Steps(10, 100)))._replace(step=jnp.int32(STEP))


def checkpoint(workdir: Path, config: ConfigDict, state: State) -> Path:
    """Save the state in `workdir`, as training would; returns `workdir`."""
    checkpoints = Checkpoints(workdir / "checkpoints", every_steps=1)
    checkpoints.save(STEP, state, config.to_dict(), force=True)
    checkpoints.close()
    return workdir
