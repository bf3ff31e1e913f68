"""The k-NN, relations and figures protocols, whole, with a network of micro size; and the command that runs them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sere_jax.commands.export import export
from sere_jax.data.crops.views import ViewRecipe
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.open import open_source
from sere_jax.evals.figures import protocol as figures
from sere_jax.evals.figures.first_batch import Feed
from sere_jax.evals.frozen import classification, relations
from sere_jax.evals.frozen.analysis import Differences
from sere_jax.evals.frozen.views import batch_count, pairs
from sere_jax.evals.network import EvalError, prepared
from sere_jax.ops.photometric import PhotometryParams
from sere_jax.types import Views
from tests import micro, saved_run
from tests.evals import micro_network

ROOT = Path(__file__).resolve().parent.parent.parent
RECIPE = ViewRecipe(global_size=16, local_size=8, local_count=2)
# Colours stay as they are: augmenting them is tested with the operations, and takes seconds to compile.
KINDS = (PhotometryParams(jitter_prob=0.0, gray_prob=0.0, blur_prob=0.0),) * 3
KNN: dict[str, Any] = {
    "tokens": ("cls",),
    "neighbours": (1, 3),
    "temperature": 0.07,
    "size": 0,
    "resize": 0,
    "batch_size": 4,
    "workers": 0,
    "reading": ImageReading(max_pixels=10_000),
    "seed": 0,
}
FIGURES: dict[str, Any] = {
    "size": 0,
    "views": RECIPE,
    "photometry": KINDS,
    "points": 5,
    "sampling": "endpoints",
    "tokens": "post",
    "temperature": 1.0,
    "queries": (0.5, 0.5),
    "mass": 0.6,
    "channel_count": 3,
    "reading": ImageReading(),
    "seed": 0,
}


def drawn(source: str, **changes) -> figures.Settings:
    chosen = {"source": source, "which": ("crops",), "images": (0,), "random": False, **FIGURES, **changes}
    return figures.Settings(**chosen, feed=lambda: Feed(open_source(source), RECIPE, _plain, (0.0,) * 3, (1.0,) * 3, seed=0))


def _plain(views: Views, keys: Any) -> tuple[Any, Any]:
    return views.global_views / 255, views.local_views / 255


def measured(source: str, directory: Path, **changes):
    chosen: dict[str, Any] = {
        "source": source,
        "images": 0,
        "views": RECIPE,
        "photometry": KINDS,
        "tokens": ("pre", "post"),
        "spatial_temperatures": (1.0,),
        "channel_temperatures": (1.0,),
        "heads": 1,
        "points": 5,
        "sampling": "endpoints",
        "size": 0,
        "batch_size": 3,
        "reading": ImageReading(),
        "random": True,
        "seed": 0,
    }
    relations.run([micro_network.network()], directory, relations.Settings(**{**chosen, **changes}))


def test_knn_of_a_set_by_itself_is_right_for_the_nearest(tmp_path, capsys):
    source = f"folder:{micro_network.photographs(tmp_path / 'photos', count=9, classes=3)}"
    settings = classification.Settings(gallery=source, query=source, baselines=True, **KNN)
    classification.run([micro_network.network()], tmp_path, settings)
    found = json.loads((tmp_path / "eval" / "knn.json").read_text())
    assert (found["classes"], found["gallery_images"]) == (3, 9)
    for row in found["results"]:  # every query is in the gallery, at distance 0
        assert row["accuracy"]["k1/top1"] == 1 and row["best_top1"] == 1
    assert [row["name"] for row in found["results"]] == ["raw pixels", "colour histogram", "random init", "micro"]
    assert re.search(r" k=3 .*\n.* top1 ", capsys.readouterr().out)


def test_knn_sources_that_do_not_fit_are_refused(tmp_path):
    plain = f"folder:{micro_network.photographs(tmp_path / 'plain')}"
    two = f"folder:{micro_network.photographs(tmp_path / 'two', classes=2)}"
    three = f"folder:{micro_network.photographs(tmp_path / 'three', classes=3)}"
    for gallery, query, words in (("", two, "gallery: found nothing"), (two, plain, "no labels"), (two, three, "class2")):
        with pytest.raises(EvalError, match=words):
            classification.open_labelled(gallery, query)


@pytest.mark.parametrize("asked, got", [((0, 0), (16, 18)), ((0, 16), (16, 16)), ((32, 0), (32, 36)), ((32, 40), (32, 40))])
def test_sizes_of_images(asked, got):
    assert prepared(micro_network.network(), *asked) == got


@pytest.mark.parametrize("asked", [(0, 15), (40, 10)])
def test_a_crop_that_is_larger_than_its_image_is_refused(asked):
    with pytest.raises(EvalError, match=rf"resize: found {asked[1]}, expected 0 or at least the {asked[0] or 16} pixels of micro's crop"):
        prepared(micro_network.network(), *asked)


def test_relations_report_and_do_not_depend_on_how_images_are_batched(tmp_path, capsys):
    source = f"folder:{micro_network.photographs(tmp_path / 'photos', count=6)}"
    measured(source, tmp_path / "a", batch_size=3)
    measured(source, tmp_path / "b", batch_size=6, tokens=("post",), random=False)
    one, two = (json.loads((tmp_path / name / "eval" / "relations.json").read_text())["results"] for name in "ab")
    assert [row["name"] for row in one] == ["micro", "random init"]
    label = "normalised tokens, t = 1 / 1"
    for kind in ("spatial", "channel"):
        a, b = one[0]["variants"][label][kind], two[0]["variants"][label][kind]
        assert 0 < a["same"] < 2 and a["ratio"] == pytest.approx(a["same"] / a["different"])
        # The pair of an image does not know its batch; only the partner does. Float32, other batch shapes.
        assert a["same"] == pytest.approx(b["same"], rel=1e-4) and a["uniform"] == pytest.approx(b["uniform"], rel=1e-4)
    assert re.search(r" spatial .*\n.* ratio ", capsys.readouterr().out)


def test_relations_of_fewer_than_two_images_are_refused(tmp_path):
    with pytest.raises(EvalError, match="at least 2"):
        measured(f"folder:{micro_network.photographs(tmp_path / 'photos')}", tmp_path, images=1)
    with pytest.raises(EvalError, match="expected 2"):
        measured("bundled", tmp_path, spatial_temperatures=(1.0, 0.5))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"heads": 7}, "heads: found 7, expected a divisor of micro's width 48; nearest: 6"),
        ({"size": 18}, "size: found 18, expected 0 or a multiple of micro's patch of 4 pixels, .*; nearest: 16"),
        ({"size": 1}, "size: found 1, .*nearest: 4"),
    ],
)
def test_relations_that_do_not_suit_a_network_are_refused(tmp_path, changes, words):
    with pytest.raises(EvalError, match=words):
        measured("bundled", tmp_path, **changes)


def test_a_network_of_an_uneven_size_is_looked_at_as_far_as_its_patches_reach():
    uneven = micro_network.network()._replace(size=19)
    assert [relations._side(uneven, size) for size in (0, 24)] == [16, 24]


@pytest.mark.parametrize(("images", "batch_size"), [(2, 2), (3, 2), (7, 2), (8, 3), (9, 4), (5, 32)])
def test_no_image_is_its_own_partner(tmp_path, images, batch_size):
    source = open_source(f"folder:{micro_network.photographs(tmp_path, count=images)}")
    found = [pair.positions for pair in pairs(source, range(images), RECIPE, seed=0, batch_size=batch_size)]
    assert np.concatenate(found).tolist() == list(range(images))
    sizes = [len(part) for part in found]
    assert min(sizes) >= 2 and max(sizes) <= max(batch_size, 3) and len(found) == batch_count(images, batch_size)


def test_summary_counts_only_what_overlaps():
    same, different, uniform = np.array([0.2, 9.0, 0.4]), np.array([1.0, 9.0, 0.5]), np.array([0.1, 9.0, 0.3])
    found = relations.summarise(
        Differences(*(np.float32(x) for x in (same, different, uniform)), np.array([True, False, True]), np.array([True, False, False]))
    )
    assert (found.same, found.different, found.uniform, found.images) == pytest.approx((0.3, 1.0, 0.2, 2))
    assert found.ratio == pytest.approx(0.3)
    nothing = np.zeros(3, bool)
    with pytest.raises(EvalError, match="overlap"):
        relations.summarise(Differences(*(np.float32(x) for x in (same, different, uniform)), nothing, nothing))


def test_every_figure_is_drawn_with_random_init_beside(tmp_path):
    source = f"folder:{micro_network.photographs(tmp_path / 'photos')}"
    networks = [micro_network.network("a")]
    figures.run(networks, tmp_path, drawn(source, which=figures.FIGURES, images=(2,), random=True))
    for name in figures.FIGURES:
        pixels = np.asarray(Image.open(tmp_path / "figures" / f"{name}.png").convert("RGB"))
        assert min(pixels.shape[:2]) > 300 and pixels.std() > 20, name


def test_without_a_network_the_crops_alone_are_drawn(tmp_path, capsys):
    source = f"folder:{micro_network.photographs(tmp_path / 'photos')}"
    figures.run([], tmp_path, drawn(source, which=("pca", "crops"), random=True))
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["crops.png"]
    assert "--checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"which": ("crop",)}, "which: found crop"),
        ({"images": (0, 99)}, r"images: found \[99\].*0 to 3"),
        ({"queries": (0.5,)}, "queries: found 1"),
    ],
)
def test_mistaken_figures_are_refused(tmp_path, changes, words):
    source = f"folder:{micro_network.photographs(tmp_path / 'photos')}"
    with pytest.raises(EvalError, match=words):
        figures.run([], tmp_path, drawn(source, **changes))


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "eval.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_command_evaluates_a_checkpoint(tmp_path):
    config = micro.config(local_count=2)
    saved_run.checkpoint(tmp_path / "run", config, saved_run.state(config))
    export(tmp_path / "run", tmp_path / "x.safetensors", layout="dino", network="student")
    source = f"folder:{micro_network.photographs(tmp_path / 'photos', classes=2)}"
    found = command(
        f"--config=configs/eval/knn.py:gallery={source},query={source}",
        f"--checkpoint={tmp_path}/run,{tmp_path}/run/checkpoints,{tmp_path}/x.safetensors",
        f"--workdir={tmp_path}/out",
        "--config.neighbours=(1,)",
    )
    assert found.returncode == 0, found.stderr
    results = json.loads((tmp_path / "out" / "eval" / "knn.json").read_text())["results"]
    rows = [(row["name"], row["step"], row["network"]) for row in results]
    assert rows == [("run [1]", saved_run.STEP, "teacher"), ("run [2]", saved_run.STEP, "teacher"), ("x", saved_run.STEP, "student")]
    assert "recognised   a DINO checkpoint; network student" in found.stdout
    assert results[0]["accuracy"] == {"k1/top1": 1.0}


def test_the_command_lists_every_mistake(tmp_path):
    found = command(
        "--config=configs/eval/knn.py:bundled", f"--workdir={tmp_path}", "--config.neighbours=(0,)", "--config.baselins=True", "--x=1"
    )
    assert found.returncode == 2
    for words in ("neighbours: found (0,)", "baselins: unknown key; nearest: baselines", "--x: unknown flag", "--checkpoint: missing"):
        assert words in found.stderr
