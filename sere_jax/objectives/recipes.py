"""The one table of methods: which losses a recipe adds up, and how its teacher follows.

Image losses carry their method's name; `spatial` and `channel` are SERE's. A recipe without an image loss is a row of the
paper's ablation (Table 8).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from sere_jax.objectives.base import weighted_sum
from sere_jax.types import Objective


class Recipe(NamedTuple):
    """`image` and `relations` name the losses; the rest are the rules of the method."""

    image: str | None
    relations: tuple[str, ...]
    ema_timing: Literal["after", "before", "none"] = "after"
    eval_network: Literal["teacher", "student"] = "teacher"

    @property
    def losses(self) -> tuple[str, ...]:
        """The names of all losses of the recipe, the image loss first."""
        return (*((self.image,) if self.image else ()), *self.relations)


RECIPES: dict[str, Recipe] = {
    "dino": Recipe("dino", ()),
    "dino_sere": Recipe("dino", ("spatial", "channel")),
    "dino_spatial": Recipe("dino", ("spatial",)),
    "dino_channel": Recipe("dino", ("channel",)),
    "spatial": Recipe(None, ("spatial",)),
    "channel": Recipe(None, ("channel",)),
    "spatial_channel": Recipe(None, ("spatial", "channel")),
}


def combine(
    recipe: Recipe, parts: Mapping[str, Objective], *, alpha: float, beta: float, image_weight: Literal["code", "paper"]
) -> Objective:
    """The recipe's weighted sum: image loss * w + alpha * spatial + beta * channel.

    w = (4 - alpha - beta) / 2 in a recipe with relations under `image_weight="code"` (the authors' released training), else 1
    (the paper's equation 6). Note that alpha = beta = 0 doubles the image loss under `code`.
    """
    weight = (4.0 - alpha - beta) / 2.0 if image_weight == "code" and recipe.relations else 1.0
    weights = {"spatial": alpha, "channel": beta}
    return weighted_sum({name: (weights.get(name, weight), parts[name]) for name in recipe.losses})
