"""One training step of UperNet in a process of its own; it prints the bytes of the compiled step and the process's peak as JSON.

python -m tests.evals.trained.upernet_memory SIDE BATCH
"""

from __future__ import annotations

import json
import resource
import sys

import jax
import jax.numpy as jnp
import numpy as np

from configs.eval import upernet
from sere_jax.commands import evaluate
from sere_jax.evals.network import Network
from sere_jax.evals.trained import segmentation
from sere_jax.evals.trained.segmenter import Batch, Model
from sere_jax.models.vit import ViT
from sere_jax.train.state import State
from sere_jax.train.update import make_update

CLASSES = 21


def model(side: int, batch: int) -> tuple[Model, object]:
    """ViT-S/16 under UperNet with the published settings, in float32."""
    config = upernet.get_config()
    config.update({"train": "images", "test": "images", "size": side, "batch_size": batch})
    settings = evaluate.settings(config, [])
    module = ViT(width=384, depth=12, heads=6, patch_size=16, image_size=224)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    network = Network("vits", None, None, 224, 256, 16, mean, std, depth=12, module=module)  # type: ignore[arg-type]
    made = Model(network, settings, CLASSES)
    return made, segmentation.optimizer(settings, made)


def main(side: int, batch: int) -> None:
    made, optimizer = model(side, batch)
    shapes = jax.eval_shape(made.evaluation.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(0.02 * rng.normal(size=x.shape), x.dtype), shapes["params"])
    running = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes["batch_stats"])
    state = State(jnp.int32(0), params, running, jax.jit(optimizer.init)(params), jnp.int32(0), {})
    images = rng.integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    one = Batch(images, rng.integers(-1, CLASSES, (batch, side, side)).astype(np.int32), np.zeros(batch, bool))
    step = jax.jit(make_update(loss=made.loss, optimizer=optimizer), donate_argnums=0).lower(state, one).compile()
    sizes = step.memory_analysis()
    compiled = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes - sizes.alias_size_in_bytes
    state, metrics = step(state, one)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(json.dumps({"compiled": compiled, "peak": peak, "parameters": parameters, "loss": float(metrics["loss"])}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
