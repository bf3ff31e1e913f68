"""The one table of methods: which losses a recipe adds up, and how its teacher follows.

Image losses carry their method's name (`patch` and `aligned` are what iBOT and DINO+ add to DINO's); `spatial` and `channel` are
SERE's, `batch` is Barlow's. A recipe without an image loss is a row of the paper's ablation (Table 8).
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Recipe(NamedTuple):
    """`image` and `relations` name the losses; the rest are the rules of the method."""

    image: tuple[str, ...]
    relations: tuple[str, ...]
    ema_timing: Literal["after", "before", "none"] = "after"
    eval_network: Literal["teacher", "student"] = "teacher"
    student_only: tuple[str, ...] = ()  # prefixes of parameters that the teacher does not hold
    views_apart: bool = False  # the backbone's BatchNorm treats each view as a batch

    @property
    def losses(self) -> tuple[str, ...]:
        """The names of all losses of the recipe, the image losses first."""
        return self.image + self.relations

    @property
    def self_relation(self) -> bool:
        """Whether the recipe has one of SERE's losses, so that alpha or beta matters."""
        return bool({"spatial", "channel"} & set(self.relations))


def _mocov3(*relations: str) -> Recipe:
    """MoCo v3: the teacher moves before its forward pass and has no predictor; views run one by one; the student is evaluated."""
    return Recipe(("mocov3",), relations, "before", "student", ("heads_mocov3/predictor",), views_apart=True)


RECIPES: dict[str, Recipe] = {
    "dino": Recipe(("dino",), ()),
    "dino_sere": Recipe(("dino",), ("spatial", "channel")),
    "dino_spatial": Recipe(("dino",), ("spatial",)),
    "dino_channel": Recipe(("dino",), ("channel",)),
    "dino_barlow": Recipe(("dino",), ("batch",)),
    "dinoplus": Recipe(("dino", "aligned"), ()),
    "dinoplus_sere": Recipe(("dino", "aligned"), ("spatial", "channel")),
    "ibot": Recipe(("dino", "patch"), ()),
    "ibot_sere": Recipe(("dino", "patch"), ("spatial", "channel")),
    "mocov3": _mocov3(),
    "mocov3_sere": _mocov3("spatial", "channel"),
    "mae": Recipe(("mae",), (), "none", "student"),
    "spatial": Recipe((), ("spatial",)),
    "channel": Recipe((), ("channel",)),
    "spatial_channel": Recipe((), ("spatial", "channel")),
}
