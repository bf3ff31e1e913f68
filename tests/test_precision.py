"""What is computed in which precision, read off the traced train step: nothing here compiles or runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core

from sere_jax.build import pretraining
from tests import micro
from tests.test_methods import NEEDS, SMALL

HIGHEST = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)


def _step(recipe: str) -> core.ClosedJaxpr:
    config = micro.config(SMALL, local_count=1, recipe=recipe, photometry=True)
    for section, values in NEEDS.get(recipe, {}).items():
        config[section].update(values)
    config.model.dtype = "bfloat16"
    return jax.make_jaxpr(pretraining.train_step(config, micro.LENGTH))(
        pretraining.abstract_state(config, micro.LENGTH), micro.views(config)
    )


def _products(jaxpr: Any) -> Iterator[Any]:
    """The matrix products and convolutions of a program, those inside its loops and branches too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, core.ClosedJaxpr | core.Jaxpr)):
            if isinstance(inner, core.ClosedJaxpr | core.Jaxpr):
                yield from _products(inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner)


@pytest.mark.parametrize("recipe", ["dino_sere", "ibot_sere", "dinoplus", "dino_barlow", "mocov3", "mae"])
def test_products_of_float32_are_float32_on_accelerators_too(recipe: str):
    """Without `precision` a TPU multiplies float32 as bfloat16 and a GPU as TF32; temperatures of 0.04 make that an error of tenths."""
    found = list(_products(_step(recipe).jaxpr))
    exact = [equation for equation in found if all(variable.aval.dtype == jnp.float32 for variable in equation.invars)]
    assert exact or recipe == "mae"
    careless = [equation for equation in exact if equation.params["precision"] != HIGHEST]
    assert not careless, [str(equation) for equation in careless]
    assert len(found) > 2 * len(exact)  # most of the work is the networks', and theirs is bfloat16
