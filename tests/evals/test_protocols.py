"""The k-NN, relations and figures protocols, whole, with a network of micro size; and the command that runs them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from configs.eval import figures as figures_config
from sere_jax.commands.export import export
from sere_jax.config.names import WITHOUT_CHECKPOINT
from sere_jax.data.crops.views import ViewRecipe
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.open import open_source
from sere_jax.evals.figures import canvas
from sere_jax.evals.figures import protocol as figures
from sere_jax.evals.figures.first_batch import Feed
from sere_jax.evals.frozen import classification, labelled, relations
from sere_jax.evals.frozen.analysis import Differences
from sere_jax.evals.frozen.comparison import ImageSet
from sere_jax.evals.frozen.views import batch_count, pairs, view_side
from sere_jax.evals.network import EvalError, prepared
from sere_jax.evals.pictures import LeftOut
from sere_jax.evals.protocols import PROTOCOLS
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


def knn_of(gallery: Path, query: Path, directory: Path, **changes) -> dict[str, Any]:
    """Run the protocol; the JSON that it writes."""
    chosen = {"gallery": f"folder:{gallery}", "query": f"folder:{query}", "baselines": False, **KNN, **changes}
    classification.run([micro_network.network()], directory, classification.Settings(**chosen))
    return json.loads((directory / "eval" / "knn.json").read_text())


def test_knn_of_a_set_by_itself_leaves_each_image_out(tmp_path, capsys):
    """Two classes of one image each, besides one of seven: alone in its class, an image can never be right."""
    photos = micro_network.photographs(tmp_path / "photos", count=9)
    for number, path in enumerate(sorted(photos.iterdir())):
        folder = photos / ("a" if number == 0 else "b" if number == 1 else "c")
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    found = knn_of(photos, photos, tmp_path, neighbours=(1, 99), baselines=True)
    assert (found["classes"], found["gallery_images"], found["query_images"], found["in_both"]) == (3, 9, 9, 9)
    assert [row["name"] for row in found["results"]] == ["raw pixels", "colour histogram", "random init", "micro"]
    for row in found["results"]:
        assert set(row["accuracy"]) == {"k1/top1", "k8/top1"} and row["accuracy"]["k1/top1"] <= 7 / 9
    text = capsys.readouterr().out
    assert "9 of 9 query images are in the gallery too" in text and "2 query images belong to a class" in text and "its 8 images" in text


def test_an_image_in_both_sets_is_left_out_by_its_file_however_it_is_named(tmp_path):
    photos = micro_network.photographs(tmp_path / "photos", count=4, classes=2)
    (photos / "class0" / "link.png").symlink_to(photos / "class0" / "photo0.png")
    (tmp_path / "list.txt").write_text("photos/class1/photo3.png\tclass1\nphotos/class0/photo0.png\tclass0\n")
    pair = labelled.open_labelled(f"folder:{photos}", f"list:{tmp_path}/list.txt")
    gallery, query = pair.images
    names = [pair.gallery[i].name for i in range(5)]
    of_query = [{names[i] for i in np.flatnonzero(gallery == number)} for number in query]
    assert of_query == [{"class1/photo3.png"}, {"class0/photo0.png", "class0/link.png"}]
    other = labelled.open_labelled("bundled:gallery", "bundled:query")
    assert not set(other.images[0]) & set(other.images[1])


def test_counts_are_of_images_that_were_read(tmp_path, capsys, caplog):
    gallery, query = (micro_network.photographs(tmp_path / name, count=9, classes=3) for name in ("gallery", "query"))
    (gallery / "class0" / "photo0.png").write_bytes(b"x")
    for number in (2, 5, 8):
        (query / "class2" / f"photo{number}.png").write_bytes(b"x")
    found = knn_of(gallery, query, tmp_path, neighbours=(1, 9))
    assert (found["gallery_images"], found["query_images"]) == (8, 6)
    assert found["unreadable"] == {"gallery": ["class0/photo0.png"], "query": [f"class2/photo{n}.png" for n in (2, 5, 8)]}
    assert set(found["results"][0]["accuracy"]) == {"k1/top1", "k8/top1"}
    text = capsys.readouterr().out
    assert "6 images of" in text and "3 of 9 query images cannot be read and are left out: class2/photo2.png" in text
    assert "k = 9: more than the gallery has, clipped to its 8 images" in found["notes"]


def test_a_query_with_some_classes_is_evaluated_and_names_compare_in_nfc(tmp_path):
    gallery = micro_network.photographs(tmp_path / "gallery", count=6, classes=3)
    query = micro_network.photographs(tmp_path / "query", count=3)
    (gallery / "class0").rename(gallery / unicodedata.normalize("NFD", "caf\u00e9"))
    (query / "caf\u00e9").mkdir()
    for path in list(query.glob("*.png")):
        path.rename(query / "caf\u00e9" / path.name)
    (query / "class1").mkdir()
    pair = labelled.open_labelled(f"folder:{gallery}", f"folder:{query}")
    assert pair.classes == ("caf\u00e9", "class1", "class2") and pair.query_numbers.tolist() == [0]
    found = knn_of(gallery, query, tmp_path, neighbours=(1,))
    # Photographs are numbered alike in both folders: 0 to 2 of the query are copies of one image of each class.
    assert found["results"][0]["accuracy"]["k1/top1"] == pytest.approx(1 / 3)


def test_knn_sources_that_do_not_fit_are_refused(tmp_path):
    plain = f"folder:{micro_network.photographs(tmp_path / 'plain')}"
    two = f"folder:{micro_network.photographs(tmp_path / 'two', classes=2)}"
    three = f"folder:{micro_network.photographs(tmp_path / 'three', classes=3)}"
    refused = (("", two, "gallery: found nothing"), (two, plain, "no labels"), (two, three, r"1 classes .*\(class2\).*classes:LIST"))
    for gallery, query, words in refused:
        with pytest.raises(EvalError, match=words):
            labelled.open_labelled(gallery, query)
    with pytest.raises(EvalError, match=r"test: found 1 classes .* add it to train, or choose classes of test"):
        labelled.open_labelled(two, three, ("train", "test"))


@pytest.mark.parametrize(("size", "nearest"), [(30, "28 or 32"), (2, "4")])
def test_a_size_that_would_cut_off_an_edge_is_refused(size, nearest):
    with pytest.raises(EvalError, match=f"size of micro: found {size}, expected a multiple of the patch of 4 .*; nearest: {nearest}"):
        prepared(micro_network.network(), size, 0)
    assert prepared(micro_network.network()._replace(whole_patches=False), size, 0)[0] == size


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
        ({"size": 18}, "size of micro: found 18, expected a multiple of the patch of 4 pixels, .*; nearest: 16 or 20"),
        ({"size": 1}, "size of micro: found 1, .*nearest: 4"),
    ],
)
def test_relations_that_do_not_suit_a_network_are_refused(tmp_path, changes, words):
    with pytest.raises(EvalError, match=words):
        measured("bundled", tmp_path, **changes)


def test_a_network_of_an_uneven_size_is_looked_at_as_far_as_its_patches_reach():
    uneven = micro_network.network()._replace(size=19)
    assert [view_side(uneven, size) for size in (0, 24)] == [16, 24]


@pytest.mark.parametrize(("images", "batch_size"), [(2, 2), (3, 2), (7, 2), (8, 3), (9, 4), (5, 32)])
def test_no_image_is_its_own_partner(tmp_path, images, batch_size):
    source = open_source(f"folder:{micro_network.photographs(tmp_path, count=images)}")
    found = [pair.positions for pair in pairs(source, range(images), RECIPE, seed=0, batch_size=batch_size, left_out=LeftOut())]
    assert np.concatenate(found).tolist() == list(range(images))
    sizes = [len(part) for part in found]
    assert min(sizes) >= 2 and max(sizes) <= max(batch_size, 3) and len(found) == batch_count(images, batch_size)


def test_no_unreadable_image_leaves_another_alone(tmp_path, caplog):
    """Batches of two of which one image cannot be read: its partner joins a neighbouring batch."""
    folder = micro_network.photographs(tmp_path, count=7)
    for number in (1, 2, 3, 6):
        (folder / f"photo{number}.png").write_bytes(b"x")
    left_out = LeftOut()
    source = open_source(f"folder:{folder}")
    found = [pair.positions.tolist() for pair in pairs(source, range(7), RECIPE, seed=0, batch_size=2, left_out=left_out)]
    assert [position for part in found for position in part] == [0, 4, 5] and min(map(len, found)) >= 2
    assert left_out == {number: f"photo{number}.png" for number in (1, 2, 3, 6)} and "photo6.png" in caplog.text


def test_relations_leave_an_unreadable_image_out_and_say_so(tmp_path, capsys):
    folder = micro_network.photographs(tmp_path / "photos", count=5)
    (folder / "photo1.png").write_bytes(b"x")
    measured(f"folder:{folder}", tmp_path, tokens=("post",), random=False)
    found = json.loads((tmp_path / "eval" / "relations.json").read_text())
    assert found["images"] == 4 and found["unreadable"] == ["photo1.png"]
    assert "1 of 5 images cannot be read and is left out: photo1.png" in capsys.readouterr().out


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


def test_every_figure_is_drawn_with_random_init_beside(tmp_path, capsys, monkeypatch):
    texts: dict[str, str] = {}
    save = canvas.save
    monkeypatch.setattr(canvas, "save", lambda figure, path: texts.update({path.stem: _words(figure)}) or save(figure, path))
    folder = micro_network.photographs(tmp_path / "photos")
    (folder / "photo1.png").write_bytes(b"x")
    networks = [micro_network.network("a")]
    figures.run(networks, tmp_path, drawn(f"folder:{folder}", which=figures.FIGURES, images=(1, 2), random=True, size=32))
    text = capsys.readouterr().out
    assert "1 of 2 images cannot be read and is left out: photo1.png" in text and "figures: relations" in text
    for name in figures.FIGURES:
        pixels = np.asarray(Image.open(tmp_path / "figures" / f"{name}.png").convert("RGB"))
        assert min(pixels.shape[:2]) > 300 and pixels.std() > 20, name
    # Each says network, step and image; the crops are of a batch, which no network has seen yet.
    for name in figures.FIGURES[1:]:
        for words in ("a: teacher, step 5", "random init: random initialisation, seed 0", "photo2.png", f"folder:{folder}", "32"):
            assert words in texts[name], (name, words, texts[name])


def _words(figure: Figure) -> str:
    """All texts of a figure without the line breaks."""
    return " ".join(text.get_text().replace("\n", " ") for text in figure.findobj(Text))


@pytest.mark.parametrize(("patch", "side"), [(16, 480), (14, 476), (8, 480), (4, 240)])
def test_whole_images_have_480_pixels_by_default_and_at_most_60_patches(patch: int, side: int):
    assert figures_config.get_config().size == 0 and figures_config.get_config().random is True
    assert figures.whole_side(micro_network.network()._replace(patch=patch), 0) == side


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
    assert set(results[0]["accuracy"]) == {"k1/top1"} and "are in the gallery too" in found.stdout


def test_the_command_lists_every_mistake(tmp_path):
    found = command(
        "--config=configs/eval/knn.py:bundled", f"--workdir={tmp_path}", "--config.neighbours=(0,)", "--config.baselins=True", "--x=1"
    )
    assert found.returncode == 2
    for words in ("baselins: unknown key; nearest: baselines", "--x: unknown flag", "--checkpoint: missing"):
        assert words in found.stderr  # these are known before JAX is imported
    values, file = ("--config.neighbours=(0,)", "--config.size=-1"), tmp_path / "x.npz"
    file.touch()
    found = command("--config=configs/eval/knn.py:bundled", f"--workdir={tmp_path}/out", f"--checkpoint={file}", *values)
    assert found.returncode == 2 and "neighbours: found (0,)" in found.stderr and "size: found -1" in found.stderr


def test_protocols_without_a_checkpoint_exist():
    assert set(WITHOUT_CHECKPOINT) <= {entry.name for entry in PROTOCOLS}, "a name of the command line's check is no protocol"


class _Stop(Exception):
    pass


def test_work_shows_itself_before_it_begins(tmp_path, monkeypatch, capsys):
    """The maps of figures, and the images of k-NN, which the label of the set names."""

    def stop(*arguments, **named):
        raise _Stop

    def batches(size, resize):
        stop()
        yield

    with pytest.raises(_Stop):
        next(iter(ImageSet("gallery", batches, 18, 8).read((16, 18), "micro")))
    assert "micro: gallery, 18 images in batches of 8: 0 of 3" in capsys.readouterr().out
    photographs = micro_network.photographs(tmp_path / "photographs", 2)
    monkeypatch.setattr(figures, "_whole_images", lambda network, tokens: stop)
    with pytest.raises(_Stop):
        figures.run([micro_network.network()], tmp_path, drawn(f"folder:{photographs}", which=("attention",), images=(0, 1), size=32))
    assert "micro: images of 32 x 32 pixels: 0 of 2" in capsys.readouterr().out
