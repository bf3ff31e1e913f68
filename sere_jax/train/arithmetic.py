"""How many operations a traced function needs, counted in its jaxpr. XLA's own count sees the body of a loop once."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.extend import core


def matmul_operations(jaxpr: Any) -> int:
    """The floating-point operations of all matrix products and convolutions, a multiplication and an addition counted as two.

    A scan's body counts as often as it runs, a branch as the most expensive one, `shard_map` for every device. The body of a `while`
    counts once, as its turns are unknown. Work that `jax.checkpoint` does again counts again.

    >>> traced = jax.make_jaxpr(lambda a, b: a @ b)(jax.ShapeDtypeStruct((2, 3), "float32"), jax.ShapeDtypeStruct((3, 5), "float32"))
    >>> matmul_operations(traced)
    60
    """
    return sum(_of_equation(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
    inner = [matmul_operations(part) for part in _inner(params)]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "shard_map":
        return params["mesh"].size * sum(inner)
    return max(inner, default=0) if name == "cond" else sum(inner)


def _inner(params: dict[str, Any]) -> list[Any]:
    leaves = jax.tree.leaves(list(params.values()), is_leaf=lambda value: isinstance(value, core.Jaxpr | core.ClosedJaxpr))
    return [leaf for leaf in leaves if isinstance(leaf, core.Jaxpr | core.ClosedJaxpr)]
