"""Faults of label maps are told before anything is trained or encoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.eval import patch_knn, segmentation_linear
from sere_jax.commands import evaluate
from sere_jax.evals.frozen import patch_data
from sere_jax.evals.network import EvalError
from sere_jax.evals.segmentation import label_check
from sere_jax.evals.segmentation.label_check import check_label_maps
from sere_jax.evals.segmentation.labelling import labelling, open_masked
from sere_jax.evals.trained import segmentation
from tests.evals.segmentation import micro_masks
from tests.evals.trained import micro_training


def _repaint(directory: Path, number: int, value: int | None = None, *, rows: int = 40) -> None:
    """Give one label map another height, and fill it with a number or put the number into a corner."""
    path = directory / "masks" / f"{number:02}.png"
    with Image.open(path) as before:
        pixels = np.asarray(before)[:rows].copy()
    if value is not None:
        pixels[:1, :1] = value
    Image.fromarray(pixels).save(path)


@pytest.fixture
def checked(tmp_path: Path):
    """A directory of 6 images with label maps, and the check of it."""
    spec = micro_masks.masked(tmp_path, 6)

    def check(positions: np.ndarray | None = None) -> None:
        source = open_masked("test", spec)
        check_label_maps("test", source, labelling(source), positions=positions)

    return tmp_path, check


def test_sound_maps_pass_without_a_word(checked, capsys):
    checked[1]()
    assert capsys.readouterr().out == ""


def test_a_number_that_is_no_class_is_told_with_its_image(checked):
    directory, check = checked
    _repaint(directory, 4, 7)
    _repaint(directory, 5, 9)
    with pytest.raises(EvalError, match=r"^test: 2 of 6 label maps cannot be used; 04.png: found 7 in the label map, expected 0 to 2"):
        check()
    check(np.array([0, 1, 2]))  # others are not read


def test_maps_of_another_size_are_told_and_refused_where_all_are(checked, capsys):
    directory, check = checked
    _repaint(directory, 2, rows=20)
    check()
    assert capsys.readouterr().out == (
        "1 of 6 test images cannot be used and is left out: 02.png (an image of 60 x 40 pixels with a label map of 60 x 20)\n"
    )
    for number in range(6):
        _repaint(directory, number, rows=20)
    with pytest.raises(
        EvalError, match="test: 0 of 6 label maps can be used; 00.png: an image of 60 x 40 pixels with a label map of 60 x 20"
    ):
        check()


def test_maps_without_a_pixel_that_counts_are_refused(checked):
    directory, check = checked
    for path in (directory / "masks").glob("*.png"):
        Image.fromarray(np.full((40, 60), 255, np.uint8)).save(path)
    with pytest.raises(EvalError, match="test: 0 of 6 label maps have a pixel that counts"):
        check()


def test_of_a_large_set_a_sample_is_read(checked, monkeypatch):
    directory, check = checked
    monkeypatch.setattr(label_check, "CHECKED", 3)
    _repaint(directory, 1, 7)
    check()  # positions 0, 2 and 5 are looked at
    _repaint(directory, 5, 7)
    with pytest.raises(EvalError, match=r"1 of 3 label maps \(of 6\) that were looked at cannot be used; 05.png: found 7"):
        check()


@pytest.mark.parametrize("part", ["train", "test"])
def test_nothing_is_trained_or_encoded_with_such_maps(part, tmp_path, monkeypatch):
    """Heads that are trained, patches that are encoded, and patch k-NN while a run trains, which opens its sources in the same way."""
    specs = {name: micro_masks.masked(tmp_path / name, 8) for name in ("train", "test")}
    _repaint(tmp_path / part, 7, 7)
    message = f"{part}: 1 of 8 label maps cannot be used; 07.png: found 7"
    monkeypatch.setattr(segmentation.run, "train", lambda *_: pytest.fail("trained"))
    config = segmentation_linear.get_config()
    config.update({**specs, "size": 16, "blocks": (1,), "batch_size": 8, "steps": 2, "warmup_steps": 0, "eval_every_steps": 2})
    with pytest.raises(EvalError, match=message):
        evaluate.run(config, [micro_training.network()], tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config = patch_knn.get_config()
    config.update(specs)
    settings = evaluate.settings(config, [])
    with pytest.raises(EvalError, match=message):
        patch_data.open_sources(patch_data.PatchSettings(*(getattr(settings, name) for name in patch_data.PatchSettings._fields)))
