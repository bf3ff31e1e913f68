from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from sere_jax.data.images.decode import decode
from sere_jax.data.prepare.encode import Sizes, label_map, objects, shrink
from sere_jax.data.prepare.layouts import LAYOUTS, open_layout
from sere_jax.data.prepare.records import subset
from sere_jax.data.sources.example import SourceError
from tests.data.images.images import encode, gradient
from tests.data.prepare import layouts


def blue(record):
    """Which of the pictures this is: their blue channel counts in tens."""
    return round(decode(record.image.read())[..., 2].mean() / 10)


@pytest.fixture
def opened(tmp_path, request):
    getattr(layouts, request.param)(tmp_path)
    return open_layout(f"{request.param.removesuffix('_tars')}:{tmp_path}")


@pytest.mark.parametrize("opened", ["imagenet"], indirect=True)
def test_imagenet_in_folders(opened):
    assert opened.classes == layouts.WNIDS and list(opened.splits) == ["train", "validation"]
    assert [(r.name, r.label, blue(r)) for r in opened.splits["train"]][3:5] == [
        ("n01443537/n01443537_1.JPEG", 1, 3),
        ("n02102040/n02102040_0.JPEG", 2, 4),
    ]
    assert [r.label for r in opened.splits["validation"]] == [0, 1, 2]


@pytest.mark.parametrize(("kind", "folder"), [("imagenet", "train"), ("ade20k", "ADEChallengeData2016/images/training")])
def test_files_that_are_not_taken_are_counted(kind: str, folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    getattr(layouts, kind)(tmp_path)
    count = len(open_layout(f"{kind}:{tmp_path}").splits["train"])
    assert caplog.text == ""
    for name in ("a.dng", "b.DNG", "c.txt"):
        (tmp_path / folder / name).touch()
    assert len(open_layout(f"{kind}:{tmp_path}").splits["train"]) == count
    assert f"{tmp_path}/{folder}: 3 files are not read as images: 2 .dng, 1 .txt" in caplog.text


def test_images_outside_the_folders_of_classes_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    layouts.imagenet(tmp_path)
    (tmp_path / "val" / "loose.jpg").touch()
    assert len(open_layout(f"imagenet:{tmp_path}").splits["validation"]) == 3
    assert "/val: 1 images are left out, because they lie in no folder of a class" in caplog.text


@pytest.mark.parametrize("opened", ["imagenet_tars"], indirect=True)
def test_imagenet_in_tar_files_is_the_same(opened, tmp_path_factory):
    directory = tmp_path_factory.mktemp("folders")
    layouts.imagenet(directory)
    folders = open_layout(f"imagenet:{directory}")
    assert opened.classes == folders.classes
    for a, b in zip(opened.splits["train"], folders.splits["train"], strict=True):
        assert (a.name, a.label, a.image.read()) == (b.name, b.label, b.image.read())
    assert [(r.label, blue(r)) for r in opened.splits["validation"]] == [(2, 2), (0, 0), (1, 1)]  # through the devkit's numbers


@pytest.mark.parametrize("opened", ["imagenet_s"], indirect=True)
def test_imagenet_s(opened):
    assert list(opened.splits) == ["train_semi", "validation"] and opened.map_classes == ("other", *opened.classes)
    record = opened.splits["train_semi"][2]
    assert record.name == "n01443537/n01443537_0.JPEG" and record.label == 1
    classes = decode_map(label_map(record, "red_green", (24, 40), (24, 40)))
    np.testing.assert_array_equal(classes, layouts.label_map().astype(int) * 100)


@pytest.mark.parametrize("opened", ["voc"], indirect=True)
def test_voc(opened):
    assert {split: [r.name for r in records] for split, records in opened.splits.items()} == {
        "train": ["2007_000001.jpg"],
        "train_aug": ["2007_000001.jpg", "2008_000003.jpg"],
        "validation": ["2007_000002.jpg"],
    }
    assert len(opened.object_classes) == 20 and len(opened.map_classes) == 21
    record = opened.splits["validation"][0]
    np.testing.assert_array_equal(decode_map(label_map(record, "index", (24, 40), (24, 40))), layouts.label_map())  # indices of a palette
    cat, dog = record.instances
    assert (opened.object_classes[cat.label], cat.box, cat.is_difficult) == ("cat", (0, 0, 20, 12), False)
    assert (opened.object_classes[dog.label], dog.box, dog.is_difficult) == ("dog", (10, 6, 40, 24), True)
    assert not opened.splits["train_aug"][1].instances


@pytest.mark.parametrize("opened", ["coco"], indirect=True)
def test_coco(opened):
    assert opened.object_classes == ("person", "toothbrush") and opened.object_ids == (1, 90)
    assert list(opened.splits) == ["train"]
    first, second, third = opened.splits["train"]
    assert [r.id for r in (first, second, third)] == [3, 5, 7] and not second.instances
    person, crowd = first.instances
    assert (person.id, person.label, person.area, crowd.is_crowd) == (130, 0, 220.0, True)
    assert json.loads(crowd.segmentation) == {"counts": [125, 5, 830], "size": [24, 40]} and first.frame == (24, 40)
    assert third.instances[0].box == (4, 6, 24, 18) and third.instances[0].label == 1 and blue(third) == 0


@pytest.mark.parametrize("opened", ["ade20k"], indirect=True)
def test_ade20k(opened):
    assert opened.map_classes == ("other", "wall", "building, edifice") and not opened.classes
    assert [len(records) for records in opened.splits.values()] == [2, 2]
    np.testing.assert_array_equal(decode_map(label_map(opened.splits["train"][1], "index", (24, 40), (24, 40))), layouts.label_map())


@pytest.mark.parametrize("opened", ["inat2019"], indirect=True)
def test_inat2019(opened):
    assert opened.classes == ("Anolis", "Bufo", "Corvus")
    assert [(r.id, r.label, blue(r)) for r in opened.splits["train"]] == [(3, 0, 3), (5, 2, 5)]


@pytest.mark.parametrize("opened", ["cars"], indirect=True)
def test_cars(opened):
    assert opened.classes == layouts.CARS
    train = [(record.name, record.label, blue(record)) for record in opened.splits["train"]]
    assert train[:2] == [("cars_train/00001.jpg", 2, 0), ("cars_train/00002.jpg", 0, 1)]
    assert [(r.label, blue(r)) for r in opened.splits["test"]] == [(1, 0), (2, 1)]


def test_cars_without_labels_of_the_test_images_and_with_a_class_too_many(tmp_path):
    layouts.cars(tmp_path)
    savemat(tmp_path / "devkit" / "cars_meta.mat", {"class_names": np.array(["one", "two"], object)})
    with pytest.raises(SourceError, match=r"cars_train_annos\.mat: found the class 3, expected 1 to 2"):
        open_layout(f"cars:{tmp_path}")
    layouts.cars(tmp_path / "again")
    (tmp_path / "again" / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(SourceError, match=r"cars_test_annos_withlabels\.mat: cannot be read as a MATLAB file with 'annotations'"):
        open_layout(f"cars:{tmp_path / 'again'}")


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_directory_of_something_else_says_what_was_expected(kind, tmp_path):
    with pytest.raises(SourceError, match=r"expected|found neither|cannot be read"):
        open_layout(f"{kind}:{tmp_path}")
    with pytest.raises(SourceError, match="directory that exists"):
        open_layout(f"{kind}:{tmp_path / 'nowhere'}")


def test_classes_and_images_by_lists(tmp_path):
    layouts.imagenet(tmp_path)
    layout = open_layout(f"imagenet:{tmp_path}")
    (tmp_path / "classes.txt").write_text("# some\nn02102040\nn01440764\n")
    some = subset(layout, classes=str(tmp_path / "classes.txt"))
    assert some.classes == ("n02102040", "n01440764") and [r.label for r in some.splits["train"]] == [1, 1, 0, 0]
    # SimCLR's lists name files only
    (tmp_path / "1percent.txt").write_text("n01443537_1.JPEG\nn02102040_0.JPEG\n")
    few = subset(layout, images=str(tmp_path / "1percent.txt"))
    assert [(r.name, r.label) for r in few.splits["train"]] == [("n01443537/n01443537_1.JPEG", 1), ("n02102040/n02102040_0.JPEG", 2)]
    assert few.classes == layout.classes
    for option, text, message in (("classes", "n9\n", "1 of 1 classes are unknown"), ("images", "a.jpg\n", "1 of 1 images are unknown")):
        (tmp_path / "wrong.txt").write_text(text)
        with pytest.raises(SourceError, match=message):
            subset(layout, **{option: str(tmp_path / "wrong.txt")})


def decode_map(data):
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)))


def test_shrinking_an_image_its_map_and_its_boxes_together(tmp_path):
    layouts.voc(tmp_path)
    record = open_layout(f"voc:{tmp_path}").splits["train"][0]
    data, shown, original = shrink(record.image.read(), Sizes(max_side=20))
    assert (shown, original) == ((12, 20), (24, 40)) and decode(data).shape == (12, 20, 3)
    small = decode_map(label_map(record, "index", original, shown))
    np.testing.assert_array_equal(small, layouts.label_map()[1::2, 1::2])  # the nearest to the middle of 2 x 2, rounded up
    np.testing.assert_allclose(objects(record.instances, original)[1]["bbox"], (6 / 24, 10 / 40, 1, 1))


def test_what_shrinking_keeps_and_changes():
    photograph = gradient(300, 400, blue=9)
    small = encode(photograph, "JPEG", quality=30)
    assert shrink(small, Sizes())[0] is small
    assert shrink(small, Sizes(max_side=400))[0] is small  # a new JPEG of quality 95 would be larger
    png = encode(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))
    smaller, shown, _ = shrink(png, Sizes(max_side=400, quality=80))
    assert smaller[:2] == b"\xff\xd8" and shown == (64, 48)
    halved = decode(shrink(small, Sizes(max_side=200))[0])
    assert halved.shape == (150, 200, 3)
    assert np.abs(halved.astype(int) - photograph[1::2, 1::2].astype(int)).mean() < 3  # two JPEGs and half a pixel
