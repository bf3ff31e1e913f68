"""The protocols `logistic` and `least_squares`, whole, with a network of micro size."""

from __future__ import annotations

import importlib
import json

import jax
import numpy as np
import pytest
from PIL import Image

from sere_jax.commands import evaluate
from sere_jax.evals import protocols
from sere_jax.evals.frozen import baselines, probes
from sere_jax.evals.network import EvalError
from sere_jax.types import Features
from tests.evals import micro_network

CLASSES = ("ash", "birch", "cedar")


def apply(params, images, **_):
    """A network of one block whose cls tokens are the mean colours times `params`."""
    cls = images.mean((1, 2)) * params
    return Features(cls, images[:, :2, :2], images[:, :2, :2])


def network(name="colours", scale=1.0):
    return micro_network.network(name)._replace(
        apply=apply, params=np.float32(scale), init=lambda seed: np.float32(0), depth=0, about={"checkpoint": "runs/x", "step": 3}
    )


def coloured(directory, images, seed):
    """Images of one colour each, noisy around that of their class: linearly separable but for some."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(CLASSES):
        folder = directory / name
        folder.mkdir(parents=True)
        for image in range(images):
            colour = np.clip(np.eye(3)[number] * 90 + 80 + rng.normal(0, 40, 3), 0, 255).astype(np.uint8)
            Image.fromarray(np.full((18, 18, 3), colour)).save(folder / f"{image}.png")
    return directory


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("coloured")
    train, test = coloured(place / "train", 20, 0), coloured(place / "test", 10, 1)
    (test / "ash" / "broken.png").write_bytes(b"no image")
    return f"folder:{train}", f"folder:{test}"


def evaluated(name, folders, directory, networks=None, **changes):
    config = importlib.import_module(f"configs.eval.{name}").get_config()
    values = {"train": folders[0], "test": folders[1], "batch_size": 16, **changes}
    if name == "logistic":
        values = {"cs": (0.01, 1.0), "max_steps": 30, "tolerance": 1e-3} | values
    if name == "linear":
        del values["batch_size"]
        values = {"cached": True, "blocks": (1,), "pooling": ("cls",), "rates": (0.1, 10.0), "epochs": 20, "eval_batch_size": 16} | values
    config.update(values)
    assert protocols.mistakes(config) == []
    evaluate.run(config, networks or [network()], directory)
    return json.loads((directory / "eval" / f"{name}.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def small():
    """One device, since collectives of eight on a few cores take most of the time, and raw pixels of 4 x 4."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
        patch.setattr(jax, "local_device_count", lambda: 1)
        patch.setattr(baselines, "PIXELS_SIDE", 4)
        yield


@pytest.mark.parametrize("name", ["logistic", "least_squares", "linear"])
def test_a_network_is_scored_beside_raw_pixels_and_its_random_initialisation(name, folders, tmp_path, capsys):
    report = evaluated(name, folders, tmp_path, save_predictions=True)
    pixels, random, colours = report["results"]
    assert [pixels["name"], random["name"], colours["name"]] == ["raw pixels", "random init", "colours"]
    assert [pixels["baseline"], random["baseline"], colours["baseline"]] == [True, True, False]
    assert random["scores"]["top1"] == pytest.approx(1 / 3)  # all features are 0: one class for all
    assert colours["scores"]["top1"] > 0.7 and colours["scores"]["top1"] == pytest.approx(colours["scores"]["per_class"])
    assert report["images"]["train"]["read"] == 60 and report["images"]["test"]["read"] == 30
    assert [name.rpartition("/")[2] for name in report["images"]["test"]["left_out"]] == ["broken.png"]
    with np.load(tmp_path / "eval" / f"{name}-colours-predictions.npz") as saved:
        assert np.mean(saved["logits"].argmax(1) == saved["labels"]) == pytest.approx(colours["scores"]["top1"])
        assert tuple(saved["classes"]) == CLASSES
    printed = capsys.readouterr().out
    assert "settings chosen on held-out training images" in printed and "select=split" in printed and "seed=0" in printed
    assert protocols.protocol(name).columns(report) == {f"{name.replace('_', ' ')} top-1": 100 * colours["scores"]["top1"]}


def test_the_choice_looks_at_the_held_out_images_and_never_at_the_test_set(folders, tmp_path):
    other = tmp_path / "other"
    coloured(other, 4, 9)
    one = evaluated("logistic", folders, tmp_path / "a")["results"][2]
    two = evaluated("logistic", (folders[0], f"folder:{other}"), tmp_path / "b")["results"][2]
    assert one["head"] == two["head"] and one["selection_accuracy"] == two["selection_accuracy"]


def test_a_choice_by_the_test_set_is_said(folders, tmp_path, capsys):
    report = evaluated("least_squares", folders, tmp_path, select="test")
    assert any("chosen on the test images" in note for note in report["notes"])
    assert "settings chosen on TEST images" in capsys.readouterr().out
    colours = report["results"][2]
    assert colours["scores"]["top1"] == max(colours["selection_accuracy"]["cls of 1 block"].values())


def test_a_validation_set_chooses_and_its_images_are_counted(folders, tmp_path):
    report = evaluated("least_squares", folders, tmp_path, select="validation", validation=folders[0])
    assert report["images"]["validation"]["read"] == 60
    config = importlib.import_module("configs.eval.least_squares").get_config("select=validation")
    (line,) = protocols.mistakes(config)
    assert line.startswith("validation: found '' beside select=validation, expected a source")


def test_images_in_train_and_test_are_counted(folders, tmp_path):
    report = evaluated("least_squares", (folders[0], folders[0]), tmp_path)
    assert any(note.startswith("60 of 60 test images are training images too") for note in report["notes"])


def test_few_shot_gives_mean_and_deviation_of_its_draws(folders, tmp_path):
    report = evaluated("logistic", folders, tmp_path, draws=3, shots=(2,), cs=(1.0,))
    row = report["results"][5]
    assert row["name"] == "colours, 2 shots" and len(row["draws"]) == 3
    assert row["scores"]["top1"] == pytest.approx(np.mean(row["draws"]))
    assert row["scores"]["deviation"] == pytest.approx(np.std(row["draws"], ddof=1))
    # Fewer images are not compared with the baselines of all images, and an ablation's row shows the score of all.
    assert len([note for note in report["notes"] if "the best baseline" in note]) == 1
    assert protocols.protocol("logistic").columns(report) == {"logistic top-1": 100 * report["results"][4]["scores"]["top1"]}
    with pytest.raises(EvalError, match="shots: found 30, expected at most 20"):
        evaluated("logistic", folders, tmp_path, draws=1, shots=(30,), cs=(1.0,))


def test_a_fit_that_ends_before_its_optimum_is_told(folders, tmp_path):
    unfinished, finished = (
        [note for note in evaluated("logistic", folders, tmp_path, cs=(1.0,), max_steps=steps)["notes"] if "the fit ended" in note]
        for steps in (1, 300)
    )
    # Raw pixels and colours; the random initialisation of this network has nothing to fit.
    assert [note.split(":")[0] for note in unfinished] == ["raw pixels", "colours"] and not finished
    assert "the fit ended at max_steps=1, with a derivative of" in unfinished[0]


def test_features_in_files_serve_both_protocols(folders, tmp_path):
    first = evaluated("least_squares", folders, tmp_path / "a", features=str(tmp_path / "features"))

    def unreadable(params, images, **_):
        raise AssertionError("the network ran although its features are in files")

    silent = network()._replace(apply=unreadable)
    again = evaluated("least_squares", folders, tmp_path / "b", [silent], features=str(tmp_path / "features"))
    assert again["results"] == first["results"]


def test_the_same_images_are_drawn_for_every_network():
    labels = np.repeat([0, 1, 2], 5)
    rows = probes.drawn(labels, 3, (0, 3, 1))
    assert np.bincount(labels[rows]).tolist() == [3, 3, 3] and len(set(rows.tolist())) == 9
    np.testing.assert_array_equal(rows, probes.drawn(labels, 3, (0, 3, 1)))
    assert not np.array_equal(rows, probes.drawn(labels, 3, (0, 3, 2)))
