from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sere_jax.commands import prepare as program
from sere_jax.data.batches.pipeline import train_batches
from sere_jax.data.crops.views import ViewRecipe
from sere_jax.data.images.decode import decode
from sere_jax.data.prepare.layouts import open_layout
from sere_jax.data.prepare.shards import Output, PrepareError, Shard
from sere_jax.data.sources.open import SourceError, open_source
from tests.data.prepare import layouts
from tests.house import ROOT

tfds = pytest.importorskip("tensorflow_datasets")


def run(source, output, *options):
    return program.main([f"--source={source}", f"--output={output}", "--workers=3", "--records_per_shard=4", *options])


def contents(directory):
    return {name: (directory / name).read_bytes() for name in sorted(os.listdir(directory))}


@pytest.fixture
def photographs(tmp_path):
    layouts.classes(tmp_path / "in", ("cat", "dog"), per_class=5)
    return tmp_path / "in"


def test_a_folder_and_back(photographs, tmp_path, capsys):
    assert run(f"folder:{photographs}", tmp_path / "out") == 0
    assert f"tfds:{tmp_path / 'out'}:train  10 images" in capsys.readouterr().out
    folder, prepared = open_source(f"folder:{photographs}"), open_source(f"tfds:{tmp_path / 'out'}:train")
    assert prepared.classes == folder.classes and len(prepared) == 10
    assert [prepared[i] for i in range(10)] == [folder[i] for i in range(10)]  # names, labels and bytes
    assert sorted(name for name in os.listdir(tmp_path / "out") if "array_record" in name) == [
        f"folder-train.array_record-0000{i}-of-00003" for i in range(3)
    ]
    one, other = (
        list(train_batches(source, recipe=ViewRecipe(16, local_count=0), seed=0, batch_size=4, total_steps=3))
        for source in (folder, prepared)
    )
    assert all(a.global_views.tobytes() == b.global_views.tobytes() for a, b in zip(one, other, strict=True))
    assert len(open_source(f"tfds:{tmp_path / 'out'}:train[:30%]")) == 3


def test_the_output_depends_on_source_and_options_alone(photographs, tmp_path):
    for name, workers in (("a", 1), ("b", 4)):
        assert run(f"folder:{photographs}", tmp_path / name, f"--workers={workers}", "--max_side=30") == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_every_process_writes_the_same_records(photographs, tmp_path):
    """protobuf orders the keys of a record by a hash of the process, unless it is told not to."""
    script = "import sys; from sere_jax.commands import prepare; sys.exit(prepare.main(sys.argv[1:]))"
    for name in ("a", "b", "c"):
        options = [f"--source=folder:{photographs}", f"--output={tmp_path / name}", "--workers=2"]
        subprocess.run([sys.executable, "-c", script, *options], cwd=ROOT, check=True, capture_output=True, timeout=120)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


def test_several_machines_prepare_what_one_would(photographs, tmp_path, capsys):
    source, out = f"folder:{photographs}", tmp_path / "parts"
    assert run(source, tmp_path / "whole") == 0
    assert run(source, out, "--shard=1/2") == 0
    assert "when all machines are done, run the command with --merge" in capsys.readouterr().out
    with pytest.raises(SourceError, match="unfinished preparation"):
        open_source(f"tfds:{out}:train")
    assert run(source, out, "--merge") == 2
    missing = "2 of 3 shards are missing: folder-train.array_record-00000-of-00003, folder-train.array_record-00002-of-00003"
    assert capsys.readouterr().err == f"{out}: {missing}; run their --shard=i/n again\n"
    assert run(source, out, "--shard=0/2") == 0
    written = {name: (out / name).stat().st_mtime_ns for name in os.listdir(out) if "array_record" in name}
    assert run(source, out, "--shard=0/2") == 0 and run(source, out, "--merge") == 0  # what is there is not written again
    assert {name: (out / name).stat().st_mtime_ns for name in written} == written
    assert contents(out) == contents(tmp_path / "whole")
    assert run(source, out, "--shard=0/2") == 0 and run(source, out, "--merge") == 0  # of a finished set


@pytest.mark.parametrize("shard", ["2/2", "1", "a/b", "-1/2", "1/0"])
def test_a_part_that_is_none_is_refused(photographs, tmp_path, capsys, shard):
    assert run(f"folder:{photographs}", tmp_path / "out", f"--shard={shard}") == 2
    assert capsys.readouterr().err == f"--shard: found {shard!r}, expected I/N with I from 0 to N - 1, as in --shard=0/8\n"


def test_an_interrupted_preparation_goes_on(photographs, tmp_path, monkeypatch, capsys):
    assert run(f"folder:{photographs}", tmp_path / "whole") == 0
    write, written = Output.write, []

    def failing(self, shard, results):
        if written:
            next(iter(results))
            raise KeyboardInterrupt
        written.append(shard.file)
        return write(self, shard, results)

    monkeypatch.setattr(Output, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        run(f"folder:{photographs}", tmp_path / "out")
    with pytest.raises(SourceError, match="unfinished preparation"):
        open_source(f"tfds:{tmp_path / 'out'}:train")
    assert program.main(["--verify", f"--output={tmp_path / 'out'}"]) == 2

    def counting(self, shard, results):
        written.append(shard.file)
        return write(self, shard, results)

    monkeypatch.setattr(Output, "write", counting)
    assert run(f"folder:{photographs}", tmp_path / "out") == 0
    assert len(written) == 3 and len(set(written)) == 3  # the finished shard was kept
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert run(f"folder:{photographs}", tmp_path / "out") == 0 and len(written) == 3
    assert "already prepared" in capsys.readouterr().out


def test_another_preparation_is_not_mixed_in(photographs, tmp_path, capsys):
    assert run(f"folder:{photographs}", tmp_path / "out") == 0
    assert run(f"folder:{photographs}", tmp_path / "out", "--max_side=20") == 2
    assert "max_side: found 0, expected 20" in capsys.readouterr().err
    assert run(f"folder:{photographs}", photographs) == 2
    assert "holds no preparation" in capsys.readouterr().err
    (photographs / "cat" / "new.jpg").write_bytes(layouts.picture(9))
    assert run(f"folder:{photographs}", tmp_path / "out") == 2


def test_bad_images_are_left_out_and_named(photographs, tmp_path, capsys):
    (photographs / "cat" / "cat_3.JPEG").write_bytes(b"<html>")
    assert run(f"folder:{photographs}", tmp_path / "out") == 1  # one of ten is more than 1 %
    assert "left out: cat/cat_3.JPEG: not a readable image" in capsys.readouterr().err
    assert len(open_source(f"tfds:{tmp_path / 'out'}:train")) == 9
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["left_out"][0]["name"] == "cat/cat_3.JPEG"
    assert program.main(["--verify", f"--output={tmp_path / 'out'}"]) == 0


def test_verification_finds_a_flipped_bit_and_training_replaces_its_image(photographs, tmp_path, capsys):
    assert run(f"folder:{photographs}", tmp_path / "out") == 0
    assert program.main(["--verify", f"--output={tmp_path / 'out'}"]) == 0
    shard = tmp_path / "out" / "folder-train.array_record-00001-of-00003"
    data = bytearray(shard.read_bytes())
    place = data.index(b"JFIF") + 300  # inside the first image of the shard
    data[place] ^= 1
    shard.write_bytes(data)
    assert program.main(["--verify", f"--output={tmp_path / 'out'}"]) == 1
    assert "00001-of-00003: missing, or not what was written" in capsys.readouterr().out
    source = open_source(f"tfds:{tmp_path / 'out'}:train")
    (views,) = train_batches(source, recipe=ViewRecipe(16, local_count=0), seed=0, batch_size=10, total_steps=1)
    assert views.replaced.sum() == 1 and 4 not in views.index


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared")
    layouts.classes(directory / "in", ("cat",), per_class=2)
    assert run(f"folder:{directory / 'in'}", directory / "out") == 0
    return directory / "out"


@pytest.mark.parametrize("name", ["manifest.json", "dataset_info.json", "features.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_verification_names_a_file_that_is_damaged(prepared, tmp_path, capsys, name, text):
    out = shutil.copytree(prepared, tmp_path / "out")
    (out / name).write_text(text)
    assert program.main(["--verify", f"--output={out}"]) == 2
    error = capsys.readouterr().err
    assert str(out / name) in error or f"{name} beside it" in error, error
    assert len(error.splitlines()) == 1 and "prepare the set again" in error


def test_verification_names_what_the_files_of_a_set_do_not_agree_on(prepared, tmp_path, capsys):
    out = shutil.copytree(prepared, tmp_path / "out")
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"splits": manifest["splits"] | {"other": []}}))
    assert program.main(["--verify", f"--output={out}"]) == 1
    assert capsys.readouterr().out.endswith(f"other: the manifest names this split, {out / 'dataset_info.json'} does not\n")
    (out / "manifest.json").write_text(json.dumps({**manifest, "splits": {"train": [{"file": "a"}]}}))
    assert program.main(["--verify", f"--output={out}"]) == 2
    assert "its splits have no lists of shards with file, records, bytes and sha256" in capsys.readouterr().err


def test_a_note_of_a_shard_that_is_damaged_counts_as_none(tmp_path):
    output, shard = Output(str(tmp_path / "out"), {}), Shard("a.array_record-00000-of-00001", "train", 0, 1)
    (tmp_path / "out" / shard.file).write_bytes(b"1234")
    note = tmp_path / "out" / ".unfinished" / f"{shard.file}.json"
    note.write_text('{"bytes": 4}')
    assert output.done(shard) == {"bytes": 4}
    note.write_text('{"byt')
    assert output.done(shard) is None


@pytest.mark.parametrize("kind", ["imagenet", "imagenet_s", "voc", "coco", "ade20k", "inat2019", "cars"])
def test_every_layout_becomes_a_tfds_set(kind, tmp_path):
    (tmp_path / "in").mkdir()
    getattr(layouts, kind)(tmp_path / "in")
    assert run(f"{kind}:{tmp_path / 'in'}", tmp_path / "out") == 0
    assert program.main(["--verify", f"--output={tmp_path / 'out'}"]) == 0
    builder = tfds.builder_from_directory(tmp_path / "out")
    assert builder.info.name == kind
    for split in builder.info.splits:
        for record in builder.as_data_source(split):
            assert record["image"].shape == (24, 40, 3) and record["original_size"].tolist() == [24, 40]
            if "segmentation" in record:
                factor = 100 if kind == "imagenet_s" else 1
                np.testing.assert_array_equal(record["segmentation"][..., 0], layouts.label_map().astype(int) * factor)
    if kind == "coco":
        things = builder.as_data_source("train")[0]["objects"]
        np.testing.assert_allclose(things["bbox"], [[0, 0, 10 / 24, 1], [5 / 24, 5 / 40, 10 / 24, 10 / 40]], atol=1e-6)
        assert things["id"] == [130, 131] and things["is_crowd"] == [False, True]


@pytest.mark.parametrize("kind", ["voc", "coco", "ade20k", "imagenet_s"])
@pytest.mark.parametrize("options", [(), ("--max_side=20",)])
def test_annotations_are_read_back(kind, options, tmp_path):
    (tmp_path / "in").mkdir()
    getattr(layouts, kind)(tmp_path / "in")
    assert run(f"{kind}:{tmp_path / 'in'}", tmp_path / "out", *options) == 0
    split = "train_semi" if kind == "imagenet_s" else "train"
    layout, source = open_layout(f"{kind}:{tmp_path / 'in'}"), open_source(f"tfds:{tmp_path / 'out'}:{split}")
    assert (source.map_classes, source.object_classes) == (layout.map_classes, layout.object_classes)
    assert source.object_ids == layout.object_ids == ((1, 90) if kind == "coco" else ())
    assert source.map_palette == (bytes([7, 8, 9] * 256) if kind == "voc" else b"")  # of the label maps that are palette PNGs
    for index, record in enumerate(layout.splits[split]):
        check_annotation(source[index].annotation, record, layout, step=2 if options else 1)


def check_annotation(annotation, record, layout, step):
    """`step`: every which pixel of the label map was stored."""
    assert annotation.image_id == record.id
    if layout.map_classes is None:
        assert annotation.label_map is None
    else:
        written = np.asarray(Image.open(io.BytesIO(annotation.label_map)))
        factor = 100 if layout.name == "imagenet_s" else 1
        np.testing.assert_array_equal(written, layouts.label_map()[step // 2 :: step, step // 2 :: step].astype(int) * factor)
    if layout.object_classes is None:
        assert annotation.instances is None and annotation.frame is None
        return
    assert annotation.frame == (24, 40)  # boxes stay in pixels of the original, as segmentations do
    assert [i._replace(box=None, area=0) for i in annotation.instances] == [i._replace(box=None, area=0) for i in record.instances]
    for read, made in zip(annotation.instances, record.instances, strict=True):
        left, top, right, bottom = made.box
        cut = (left, top, min(right, 40), min(bottom, 24))  # COCO's first box leaves the image
        np.testing.assert_allclose(read.box, cut, atol=1e-5)  # float32 shares of at most 40 pixels
        assert read.area == pytest.approx(made.area)


def test_a_prepared_set_with_annotations_can_be_prepared_again(tmp_path):
    (tmp_path / "in").mkdir()
    layouts.voc(tmp_path / "in")
    assert run(f"voc:{tmp_path / 'in'}", tmp_path / "a", "--max_side=20") == 0
    assert run(f"tfds:{tmp_path / 'a'}:validation", tmp_path / "b", "--max_side=10") == 0
    one, two = (open_source(f"tfds:{tmp_path / name}:validation") for name in ("a", "b"))
    assert (two.map_classes, two.object_classes) == (one.map_classes, one.object_classes)
    assert two[0].annotation.frame == (24, 40)
    for a, b in zip(one[0].annotation.instances, two[0].annotation.instances, strict=True):
        np.testing.assert_allclose(a.box, b.box, atol=1e-5)
    assert decode(two[0].data).shape == (6, 10, 3) == (*Image.open(io.BytesIO(two[0].annotation.label_map)).size[::-1], 3)


def test_each_record_holds_the_digest_of_its_image(photographs, tmp_path):
    run(f"folder:{photographs}", tmp_path / "out", "--max_side=30")
    raw = tfds.builder_from_directory(tmp_path / "out").as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    for record in raw:
        assert record["sha256"].decode() == hashlib.sha256(record["image"]).hexdigest()
        assert max(decode(record["image"]).shape) == 30 and record["original_size"].tolist() == [24, 40]


def test_a_prepared_set_can_be_prepared_again(photographs, tmp_path):
    run(f"folder:{photographs}", tmp_path / "a")
    assert run(f"tfds:{tmp_path / 'a'}:train[:50%]", tmp_path / "b", "--max_side=20") == 0
    again = open_source(f"tfds:{tmp_path / 'b'}:train")
    assert len(again) == 5 and again[0].name == "cat/cat_0.JPEG" and again.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source=vok:x"], "did you mean 'voc'"),
        (["--source=folder:/nowhere/at all"], "does not exist"),
        ([], "--source: missing"),
        (["--source=bundled", "--quality=0"], "--quality of 1 to 100"),
    ],
)
def test_mistakes(arguments, message, tmp_path, capsys):
    assert program.main([*arguments, f"--output={tmp_path / 'out'}"]) == 2
    assert message in capsys.readouterr().err


def test_without_array_record_the_line_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_module", None)
    with pytest.raises(PrepareError, match="prepare needs the package array_record, which has no wheel for Windows"):
        Output(str(tmp_path), {}).write(Shard("x", "train", 0, 1), [])


def test_trial_files_of_other_machines_are_no_foreign_files(tmp_path):
    """On a network's disk they have names."""
    for name in (".writable-1a2b", ".nfs0000001"):
        (tmp_path / name).touch()
    Output(str(tmp_path), {})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a").touch()
    with pytest.raises(PrepareError, match="holds no preparation"):
        Output(str(tmp_path / "other"), {})


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_another_machine_may_begin_at_the_same_time(tmp_path, monkeypatch, looks):
    """It writes its manifest and a shard after so many of this machine's looks at the directory."""
    directory, done = tmp_path / "out", []
    directory.mkdir()
    other = Output(str(tmp_path / "other"), {"source": "a"})

    def looking(look):
        def looked(path):
            found = look(path)
            done.append(path)
            if len(done) == looks:
                shutil.copytree(other.directory, directory, dirs_exist_ok=True)
                (directory / "a.array_record-00000-of-00002").touch()
            return found

        return looked

    monkeypatch.setattr("os.listdir", looking(os.listdir))
    monkeypatch.setattr("os.path.isfile", looking(os.path.isfile))
    assert not Output(str(directory), {"source": "a"}).finished
    assert len(done) >= looks
