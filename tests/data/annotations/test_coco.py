"""COCO's JSON: what is read, and that each fault is refused with its entry."""

from __future__ import annotations

import copy
import json
import logging

import pytest

from sere_jax.data.annotations.coco import read_coco
from sere_jax.data.prepare.layouts import open_layout
from sere_jax.data.sources.example import SourceError
from tests.data.images.images import encode, gradient

TABLE = {
    "images": [
        {"id": 7, "file_name": "b.png", "width": 40, "height": 24},
        {"id": 3, "file_name": "a.png", "width": 40, "height": 24},
        {"id": 5, "file_name": "c.png", "width": 40, "height": 24},
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}],
    "annotations": [
        {"id": 12, "image_id": 7, "category_id": 1, "bbox": [1, 2, 10, 5], "segmentation": [[1, 2, 11, 2, 11, 7]], "area": 25.0},
        {"id": 10, "image_id": 7, "category_id": 90, "bbox": [0, 0, 40, 24], "iscrowd": 1, "area": 5},
        {"id": 11, "image_id": 3, "category_id": 90, "bbox": [0, 0, 4, 5]},
    ],
}


def written(tmp_path, change=None):
    table = copy.deepcopy(TABLE)
    if change is not None:
        change(table)
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(table))
    return str(path)


def test_images_and_objects_are_sorted_and_labels_count_from_zero(tmp_path):
    table = read_coco(written(tmp_path))
    assert table.classes == ("person", "toothbrush") and table.class_ids == (1, 90) and table.notes == ()
    assert [(image.id, image.name, image.frame) for image in table.images] == [
        (3, "a.png", (24, 40)),
        (5, "c.png", (24, 40)),
        (7, "b.png", (24, 40)),
    ]
    box_alone, nothing, (crowd, person) = (image.instances for image in table.images)
    assert not nothing and box_alone[0].segmentation == "" and box_alone[0].area == 20  # width x height, where the file says nothing
    assert crowd.is_crowd and crowd.label == 1 and crowd.box == (0, 0, 40, 24) and not person.is_crowd
    assert person.box == (1, 2, 11, 7) and person.area == 25 and json.loads(person.segmentation) == [[1, 2, 11, 2, 11, 7]]


def test_empty_boxes_and_boxes_over_the_edge_are_kept_and_counted(tmp_path):
    def change(table):
        table["annotations"][0]["bbox"] = [1, 2, 10, 0]
        table["annotations"][2]["bbox"] = [38, 0, 4, 5]

    table = read_coco(written(tmp_path, change))
    assert table.images[2].instances[1].box == (1, 2, 11, 2)
    assert table.notes == (
        "1 of 3 boxes are empty; training leaves them out",
        "1 of 3 boxes reach outside their image; they are cut at its edges",
    )


def test_a_file_that_is_listed_as_two_images_is_noted(tmp_path):
    table = read_coco(written(tmp_path, lambda table: table["images"][1].update(file_name="b.png")))
    assert [image.name for image in table.images] == ["b.png", "c.png", "b.png"]
    assert table.notes == ("1 files are listed as several images, each with its own objects; the first is 'b.png'",)


def _set(kind, number, key, value):
    return lambda table: table[kind][number].__setitem__(key, value)


def _drop(kind, number, key):
    return lambda table: table[kind][number].pop(key)


FAULTS = {
    "no list": (lambda table: table.pop("categories"), "expected lists 'images', 'annotations' and 'categories'"),
    "no object": (lambda table: table["images"].append(3), r"images\[3\]: found 3, expected an object with id, file_name"),
    "no id": (_drop("annotations", 1, "id"), r"annotations\[1\]: has no 'id'"),
    "no box": (_drop("annotations", 1, "bbox"), r"annotations\[1\] \(id 10\): has no 'bbox'"),
    "no size": (_drop("images", 0, "width"), r"images\[0\] \(id 7\): has no 'width'"),
    "no name": (_drop("categories", 1, "name"), r"categories\[1\] \(id 1\): has no 'name'"),
    "a text as id": (_set("images", 0, "id", "7"), r"images\[0\] \(id '7'\): found id '7', expected a whole number"),
    "no such image": (_set("annotations", 0, "image_id", 8), r"\(id 12\): found image_id 8, expected the id of one of the 3 images"),
    "no such category": (_set("annotations", 0, "category_id", 2), r"found category_id 2, expected the id of one of the 2 categories"),
    "an image twice": (_set("images", 0, "id", 3), "images: 2 entries have the id 3"),
    "an object twice": (_set("annotations", 0, "id", 10), "annotations: 2 entries have the id 10"),
    "a category twice": (_set("categories", 0, "id", 1), "categories: 2 entries have the id 1"),
    "a name twice": (_set("categories", 0, "name", "person"), "categories: 2 entries have the name 'person'"),
    "an id below 0": (_set("images", 0, "id", -7), r"images\[0\] \(id -7\): found id -7, expected a whole number of at least 0"),
    "an id of more than 64 bits": (_set("annotations", 1, "id", 2**63), r"annotations\[1\] \(id 9223372036854775808\): found id"),
    "a blank name": (_set("categories", 0, "name", " "), r"categories\[0\] \(id 90\): found name ' ', expected a text that is not blank"),
    "a name twice but for a space": (_set("categories", 0, "name", "person "), "categories: 2 entries have the name 'person'"),
    "no images": (lambda table: table.update(images=[], annotations=[]), "images: found none, expected at least one"),
    "three numbers": (_set("annotations", 0, "bbox", [1, 2, 3]), r"found bbox \[1, 2, 3\], expected four numbers"),
    "not finite": (_set("annotations", 0, "bbox", [1, 2, 3, float("inf")]), "expected four numbers"),
    "a negative side": (_set("annotations", 0, "bbox", [1, 2, -3, 4]), "expected no negative width or height"),
    "right of the image": (_set("annotations", 0, "bbox", [41, 2, 3, 4]), "expected a box in the image of 40 x 24 pixels"),
    "above the image": (_set("annotations", 0, "bbox", [1, -9, 3, 4]), "expected a box in the image of 40 x 24 pixels"),
    "a strange crowd": (_set("annotations", 1, "iscrowd", "yes"), "found iscrowd 'yes', expected 0 or 1"),
    "a negative area": (_set("annotations", 1, "area", -1), "found area -1, expected a number of pixels"),
    "a wrong region": (_set("annotations", 0, "segmentation", [[1, 2, 3]]), r"\(id 12\): has a polygon \[1, 2, 3\], expected"),
    "no pixels": (_set("images", 1, "height", 0), r"images\[1\] \(id 3\): found 40 x 0 pixels"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_refused_with_file_and_entry(tmp_path, case):
    change, message = FAULTS[case]
    path = written(tmp_path, change)
    with pytest.raises(SourceError, match=message) as error:
        read_coco(path)
    assert str(error.value).startswith(path)


def test_many_faults_are_counted_and_the_first_are_listed(tmp_path):
    path = written(tmp_path, lambda table: [entry.pop("bbox") for entry in table["annotations"]] + [e.clear() for e in table["images"]])
    with pytest.raises(SourceError, match=r"15 faults:\n(.*\n){5}  and 10 more$"):
        read_coco(path)
    (tmp_path / "instances.json").write_text("{")
    with pytest.raises(SourceError, match="cannot be read as COCO's JSON"):
        read_coco(path)


def test_images_that_are_missing_are_counted(tmp_path, caplog):
    written(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(SourceError, match=r"none of its 3 images is in .*images; the first would be 'a.png'"):
        open_layout(f"coco:{tmp_path}")
    (tmp_path / "images" / "b.png").write_bytes(encode(gradient(24, 40)))
    with caplog.at_level(logging.WARNING):
        assert len(open_layout(f"coco:{tmp_path}").splits["train"]) == 3
    assert "2 of 3 images are not in" in caplog.text and "the first is 'a.png'" in caplog.text
