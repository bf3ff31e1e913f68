"""A run small enough to test: a ViT of depth 2 and width 48 on 16-pixel images, and batches of noise with plausible geometry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs.common import pretrain
from sere_jax.build import pretraining
from sere_jax.data.crops.masks import sample_masks
from sere_jax.train.state import State, without
from sere_jax.types import Views

LENGTH = pretraining.Steps(per_epoch=5, total=50)


def _accepted(option: str, value: Any) -> dict[str, Any]:
    """The compile option, or nothing where this XLA has no such (any more)."""
    try:
        jax.jit(lambda x: x, compiler_options={option: value}).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return {option: value}


# Most of a step's compilation is LLVM's optimisation, which tests of numbers do not need; and without fusion emitters the rest
# takes half as long (3.6 s for 7.9 s, DINO + SERE's gradients on one core).
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
FAST_COMPILE |= _accepted("xla_cpu_use_fusion_emitters", False)


def config(
    changes: Mapping[str, Mapping[str, Any]] | None = None, *, local_count: int = 0, photometry: bool = False, **top: Any
) -> ConfigDict:
    """The defaults made small; `changes` maps a section to its changed keys. Without `photometry` pixels are only normalised."""
    found = pretrain()
    found.update(top)
    found.data.batch_size = 8
    found.views.update(global_size=16, local_size=8, local_count=local_count)
    found.model.update(variant="custom", width=48, depth=2, heads=3, patch_size=4, dtype="float32")
    found.head.update(prototypes=64, hidden=32, bottleneck=16)
    if not photometry:
        found.photometry.update(jitter_prob=0.0, gray_prob=0.0, blur_prob=(0.0, 0.0, 0.0), solarize_prob=(0.0, 0.0, 0.0))
    for section, values in (changes or {}).items():
        found[section].update(values)
    return found


def views(config: ConfigDict, seed: int = 0, batch: int = 8) -> Views:
    """Noise images whose crops overlap more often than not; example 0's second global crop is apart from the first."""
    rng = np.random.default_rng(seed)
    sizes, count, masking = config.views, config.views.local_count, pretraining.mask_recipe(config)
    first = sizes.global_count
    boxes = np.concatenate([rng.uniform(0, 30, (batch, first + count, 2)), rng.uniform(20, 60, (batch, first + count, 2))], -1)
    boxes[0, 1:2, :2] += 200
    found = Views(
        rng.integers(0, 256, (batch, first, sizes.global_size, sizes.global_size, 3), dtype=np.uint8),
        rng.integers(0, 256, (batch, count, sizes.local_size, sizes.local_size, 3), dtype=np.uint8),
        boxes.astype(np.float32),
        rng.random((batch, first + count)) < 0.5,
        np.arange(batch, dtype=np.int32),
        np.zeros(batch, bool),
    )
    if masking is None:
        return found
    masks, indices = zip(*(sample_masks(masking, first, rng) for _ in range(batch)), strict=True)
    return found._replace(masks=np.stack(masks), mask_indices=np.stack(indices))


def state(config: ConfigDict, length: pretraining.Steps = LENGTH, seed: int = 0) -> State:
    """A state at step 0 with noise for parameters, and a teacher that is near the student but not equal to it."""
    shapes = pretraining.abstract_state(config, length)
    rest = jax.tree_util.tree_map_with_path(lambda path, x: jnp.full(x.shape, _named(path, "var"), x.dtype), shapes)
    noise = random_like(shapes.params, seed, scale=0.1)
    params = jax.tree_util.tree_map_with_path(lambda path, x: x + _named(path, "scale"), noise)
    kept = without(params, pretraining.recipe(config).student_only) if shapes.method.teacher else {}
    teacher = jax.tree.map(jnp.add, kept, random_like(shapes.method.teacher, seed + 1, scale=0.01))
    return with_method(rest._replace(params=params), teacher=teacher)


def with_method(state: State, **changes: Any) -> State:
    """The state with other fields of its `method`."""
    return state._replace(method=state.method._replace(**changes))


def _named(path: Any, name: str) -> int:
    return int(getattr(path[-1], "key", None) == name)


def compiled(step: Callable, *arguments: Any) -> Callable:
    """`step` compiled for these arguments without expensive optimisation; nothing is donated."""
    return jax.jit(step).lower(*arguments).compile(compiler_options=FAST_COMPILE)


def jit(function: Callable, static_argnums: int | None = None) -> Callable:
    """`jax.jit` without expensive optimisation; compiles again for other shapes, as usual."""
    return jax.jit(function, static_argnums=static_argnums, compiler_options=FAST_COMPILE)


def random_like(shapes: Any, seed: int = 0, scale: float = 0.3) -> Any:
    """Normal noise in the shapes of an abstract tree: quicker than an initialisation, whose zeros and ones hide mistakes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape), x.dtype), shapes)


def copies(tree: Any) -> Any:
    """The tree as NumPy arrays."""
    return jax.tree.map(np.asarray, tree)


def assert_equal(found: Any, expected: Any, what: str = "") -> None:
    """Bit-identical trees."""
    chex.assert_trees_all_equal(found, expected, custom_message=what or None)


def assert_close(found: Any, expected: Any, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Trees of the same structure, leaf by leaf within the test's own tolerance; chex would add a relative one."""
    chex.assert_trees_all_close(found, expected, rtol=rtol, atol=atol)


def stacked(params: Any) -> Any:
    """`blocks_i/...` -> `blocks/...` with a leading depth axis."""
    blocks = [params[name] for name in sorted(params) if name.startswith("blocks_")]
    rest = {name: value for name, value in params.items() if not name.startswith("blocks_")}
    return rest | {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}
