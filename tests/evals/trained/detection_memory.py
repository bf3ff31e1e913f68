"""The training step of the published detector on ViT-S/16, compiled for chips that are not here; prints its memory as JSON.

    python -m tests.evals.trained.detection_memory v5p:2x2x1 1        one image of 800 x 1088 pixels on each of four chips

The topology is that of `python -m sere_jax aot`; cpu:N needs no libtpu. Nothing is run, and no weights are made.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp

from configs.eval import detection as config_file
from sere_jax import sharding
from sere_jax.commands import aot, evaluate, step_costs
from sere_jax.evals.network import Network
from sere_jax.evals.trained import detection
from sere_jax.evals.trained.detector import Model
from sere_jax.models.vit import ViT
from sere_jax.train.state import State
from sere_jax.train.update import make_update
from sere_jax.types import MASK_SIDE, DetectionBatch, Objects

CLASSES, SHAPE = 80, (800, 1088)


def model() -> tuple[Model, Any]:
    """The detector with all numbers of the config, and its optimizer."""
    config = config_file.get_config()
    config.update({"train": "images", "test": "images"})
    settings = evaluate.settings(config, [])
    module = ViT(width=384, depth=12, heads=6, patch_size=16, image_size=224)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    network = Network("vits", None, None, 224, 256, 16, mean, std, depth=12, module=module)  # type: ignore[arg-type]
    made = Model(network, settings, CLASSES, masks=settings.masks)
    return made, detection.optimizer(settings, made, 7500)


def abstract_batch(count: int, objects: int = 100) -> DetectionBatch:
    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *shape), dtype)

    masks = array(objects, MASK_SIDE, MASK_SIDE, dtype=jnp.bool_)
    annotated = Objects(array(objects, 4), array(objects, dtype=jnp.int32), array(objects, dtype=jnp.bool_), masks)
    images, sizes = array(*SHAPE, 3, dtype=jnp.uint8), array(2, dtype=jnp.int32)
    return DetectionBatch(images, sizes, annotated, array(dtype=jnp.int32), array(dtype=jnp.bool_))


def memory(topology: str, images: int) -> dict[str, int]:
    """Bytes of each chip by kind."""
    mesh = sharding.make_mesh(devices=aot.devices(topology))
    everywhere, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    made, optimizer = model()
    multiple = made.multiple
    shapes = jax.eval_shape(lambda key: made.evaluation.init(key, jnp.zeros((1, multiple, multiple, 3)), method="touch"), jax.random.key(0))

    def state(params: Any, running: Any) -> State:
        return State(jnp.int32(0), params, running, optimizer.init(params), jnp.int32(0), {})

    def placed(tree: Any, where: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)

    abstract = placed(jax.eval_shape(state, shapes["params"], shapes["batch_stats"]), everywhere)
    batch = placed(abstract_batch(images * mesh.size), rows)
    update = make_update(loss=made.loss, optimizer=optimizer)
    step = jax.jit(update, in_shardings=(everywhere, rows), out_shardings=(everywhere, everywhere), donate_argnums=0)
    return step_costs.memory(abstract, batch, step.lower(abstract, batch).compile())


if __name__ == "__main__":
    print(json.dumps(memory(sys.argv[1], int(sys.argv[2]))))
