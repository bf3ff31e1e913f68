"""Training step and test of a published segmentation head on ViT-S/16, compiled for chips that are not here; prints bytes as JSON.

    python -m tests.evals.trained.segmentation_slice upernet v5p:2x2x1 4       four crops of 512 pixels on each of four chips

The head is upernet or segmentation_linear. The topology is that of `python -m sere_jax aot`; cpu:N needs no libtpu. Nothing is run, and
no weights are made.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from sere_jax import sharding
from sere_jax.commands import aot, evaluate, step_costs
from sere_jax.evals.network import Network
from sere_jax.evals.trained import segmentation
from sere_jax.evals.trained.segmenter import Batch, Model
from sere_jax.models.vit import ViT
from sere_jax.train.state import State
from sere_jax.train.update import make_update

CLASSES = 21


def model(head: str) -> tuple[Model, Any, int]:
    """The segmenter with all numbers of its config, its optimizer, and the side of its crops."""
    config = importlib.import_module(f"configs.eval.{head}").get_config()
    config.update({"train": "images", "test": "images"})
    settings = evaluate.settings(config, [])
    module = ViT(width=384, depth=12, heads=6, patch_size=16, image_size=224)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    network = Network("vits", None, None, 224, 256, 16, mean, std, depth=12, module=module)  # type: ignore[arg-type]
    made = Model(network, settings, CLASSES)
    return made, segmentation.optimizer(settings, made), settings.size


def placed(tree: Any, where: NamedSharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)


def memory(head: str, topology: str, images: int) -> dict[str, Any]:
    """Bytes of each chip by kind, of a training step and of the test of as many windows."""
    mesh = sharding.make_mesh(devices=aot.devices(topology))
    everywhere, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    made, optimizer, side = model(head)
    shapes = jax.eval_shape(made.evaluation.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))

    def state(params: Any, running: Any) -> State:
        return State(jnp.int32(0), params, running, optimizer.init(params), jnp.int32(0), {})

    abstract = placed(jax.eval_shape(state, shapes["params"], shapes["batch_stats"]), everywhere)
    count = images * mesh.size
    kinds = ((count, side, side, 3), jnp.uint8), ((count, side, side), jnp.int32), ((count,), jnp.bool_)
    batch = placed(Batch(*(jax.ShapeDtypeStruct(*kind) for kind in kinds)), rows)
    update = make_update(loss=made.loss, optimizer=optimizer)
    step = jax.jit(update, in_shardings=(everywhere, rows), out_shardings=(everywhere, everywhere), donate_argnums=0)
    test = jax.jit(made.of_images(to_pixels=True), in_shardings=(everywhere, everywhere, rows), out_shardings=rows)
    tested = test.lower(abstract.params, abstract.batch_stats, batch.images).compile()
    logits = tested.memory_analysis().output_size_in_bytes
    return {"step": step_costs.memory(abstract, batch, step.lower(abstract, batch).compile()), "logits": logits}


if __name__ == "__main__":
    print(json.dumps(memory(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
