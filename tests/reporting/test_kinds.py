"""Colours by kind: green is better than knowing nothing, whichever direction that is for the metric."""

from __future__ import annotations

import io
import math

import matplotlib.colors
import pytest
import rich.color
import rich.console

from configs.common import pretrain
from sere_jax.build import pretraining
from sere_jax.objectives.recipes import RECIPES
from sere_jax.reporting.display import Panel
from sere_jax.reporting.kinds import KINDS, kind_of, verdict_colour


@pytest.mark.parametrize(
    ("metric", "value", "reference", "colour"),
    [
        ("dino", 6.0, 6.2, "green"),
        ("spatial_local", 2.3, 2.2, "yellow"),
        ("mocov3_accuracy", 0.5, 0.1, "green"),
        ("mocov3_accuracy", 0.05, 0.1, "yellow"),
        ("teacher_entropy", 6.238, 6.238, "yellow"),  # every prototype alike
        ("teacher_entropy", 0.001, 6.238, "yellow"),  # one prototype alone
        ("aligned_entropy", 4.0, 6.238, "green"),
        ("dino", math.nan, 6.2, "red"),
        ("center_norm", 1.0, 2.0, "white"),
    ],
)
def test_better_than_knowing_nothing_is_green(metric: str, value: float, reference: float, colour: str):
    assert verdict_colour(metric, value, reference) == colour


def test_every_recipe_s_metrics_have_a_direction():
    """A new metric with a value of "nothing learned" needs a line in the table."""
    for recipe in RECIPES:
        config = pretrain()
        config.recipe = recipe
        references = pretraining.objective(config, pretraining.Steps(10, 100)).references
        assert references and all(kind_of(name).better != "neither" for name in references), (recipe, references)


@pytest.mark.parametrize(
    "metric",
    [
        *("learning_rate", "weight_decay", "ema_momentum", "grad_norm", "masked_share", "bad_steps", "knn/k20/top5"),
        *("patch_knn/k10/miou", "patch_knn/k10/macc", "patch_knn/k10/pixel_accuracy"),
    ],
)
def test_what_every_run_reports_has_a_kind(metric: str):
    assert kind_of(metric).name != "unknown"


def test_both_libraries_know_the_colours():
    for kind in KINDS:
        rich.color.Color.parse(kind.colour)
        assert matplotlib.colors.is_color_like(kind.colour)


def test_the_panel_shows_each_metric_in_the_colour_of_its_kind():
    panel = Panel(100, 0, {"dino": 6.2, "mocov3_accuracy": 0.1})
    panel.write(1, {"dino": 6.0, "mocov3_accuracy": 0.5, "knn/k20/top1": 0.25, "grad_norm": 1.5, "bad_steps": 3.0, "data/replaced": 0.0})
    console = rich.console.Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=120)
    console.print(panel.draw(120))
    picture = console.file.getvalue()  # type: ignore[attr-defined]
    green, blue, red, cyan = (f"\x1b[{code}m" for code in (32, 34, 31, 36))
    for colour, name in ((cyan, "dino"), (green, "mocov3_accuracy"), (green, "knn/k20/top1"), (blue, "grad_norm"), (red, "bad_steps")):
        assert colour + name in picture, (name, picture)
    packed = picture.replace(" ", "")  # numbers stand on the right of their cells
    assert f"{green}-0.200" in packed and f"{green}+0.400" in packed and "\x1b[1;31m3" in packed
    assert "\x1b[2mdata/replaced" in picture, "a fault that has not come is dim"
