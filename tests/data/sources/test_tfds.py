from __future__ import annotations

import io
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest

from sere_jax.data.batches.pipeline import train_batches
from sere_jax.data.crops.views import ViewRecipe
from sere_jax.data.images.decode import decode
from sere_jax.data.sources.open import SourceError, open_source
from tests.data.images.images import encode, gradient

tfds = pytest.importorskip("tensorflow_datasets")
NAMES = ["cat", "dog", "eel"]


class TinyPhotos(tfds.core.GeneratorBasedBuilder):
    """Seven JPEGs and three PNGs, as a user would prepare a set."""

    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="plain"), tfds.core.BuilderConfig(name="unlabelled")]

    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "file_name": tfds.features.Text()}
        if self.builder_config.name == "plain":
            features["label"] = tfds.features.ClassLabel(names=NAMES)
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples("JPEG", 7), "validation": self._generate_examples("PNG", 3)}

    def _generate_examples(self, file_format, count):
        for i in range(count):
            example = {"image": io.BytesIO(encode(gradient(20 + i, 30, i), file_format)), "file_name": f"{file_format}{i}"}
            yield i, example | ({"label": NAMES[i % 3]} if self.builder_config.name == "plain" else {})


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    for config in ("plain", "unlabelled"):
        TinyPhotos(config=config, data_dir=directory, file_format="array_record").download_and_prepare()
    return directory


@pytest.fixture(autouse=True)
def environment(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))


def test_encoded_bytes_labels_and_names():
    source = open_source("tfds:tiny_photos/plain:validation")
    assert len(source) == 3 and source.classes == tuple(NAMES)
    examples = sorted((source[i] for i in range(3)), key=lambda example: example.name)
    for i, example in enumerate(examples):
        assert example.name == f"PNG{i}" and example.label == i and isinstance(example.data, bytes)
        np.testing.assert_array_equal(decode(example.data), gradient(20 + i, 30, i))


def test_a_damaged_record_has_no_class_and_the_others_keep_theirs(tmp_path, data_dir, monkeypatch, caplog):
    """One record is refused by hand: ArrayRecord keeps several in a chunk, so that damaged bytes take all seven along."""
    shutil.copytree(data_dir / "tiny_photos" / "plain" / "1.2.0", tmp_path / "copy")
    source = open_source(f"tfds:{tmp_path / 'copy'}:train")
    expected = [source[i].label for i in range(7)]
    read = type(source).__getitem__

    def damaged(self, index: int):
        if index == 2:
            raise OSError("record 2 is damaged")
        return read(self, index)

    monkeypatch.setattr(type(source), "__getitem__", damaged)
    assert source.labels().tolist() == [*expected[:2], -1, *expected[3:]]
    assert "record 2 is damaged" in caplog.text and not list((tmp_path / "copy").glob("sere_jax_labels-*"))
    (tmp_path / "list.txt").write_text("\n".join(source.classes))
    spec = f"classes:{tmp_path / 'list.txt'}:tfds:{tmp_path / 'copy'}:train"
    fewer = open_source(spec)
    monkeypatch.undo()
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    whole = open_source(spec)  # on a machine that can read the record: other examples of the same files
    assert (len(fewer), len(whole)) == (6, 7) and fewer.fingerprint().digest != whole.fingerprint().digest
    assert source.labels().tolist() == expected and list((tmp_path / "copy").glob("sere_jax_labels-*"))


def _record(**features) -> bytes:
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    for name, value in features.items():
        feature = example.features.feature[name]
        (feature.int64_list if isinstance(value, int) else feature.bytes_list).value.append(value)
    return example.SerializeToString()


def test_a_record_whose_features_cannot_be_read_is_an_error_that_names_it():
    """The pipeline replaces and counts an image that is an OSError."""
    source = open_source("tfds:tiny_photos/plain:train")
    image = source[0].data
    records = [
        _record(image=image, label=1, file_name=b"caf\xe9"),
        _record(image=image, label=1),
        _record(label=1, file_name=b"a"),
        _record(image=image, file_name=b"a"),
        b"no protobuf",
    ]
    source._data = records
    assert source[0].name == "caf\udce9" and source[0].label == 1  # the image is sound
    for index in range(1, len(records)):
        with pytest.raises(OSError, match=rf"tfds:tiny_photos/plain:train\[{index}\] has features that cannot be read: "):
            source[index]
    with pytest.raises(IndexError):
        source[len(records)]


def test_saved_classes_of_other_shards_are_not_taken(tmp_path, data_dir):
    copy = tmp_path / "copy"
    shutil.copytree(data_dir / "tiny_photos" / "plain" / "1.2.0", copy)
    expected = open_source(f"tfds:{copy}:train").labels().tolist()
    (saved,) = copy.glob("sere_jax_labels-*")
    np.savez(saved, labels=np.zeros(7, np.int32), digest="of other shards")
    assert open_source(f"tfds:{copy}:train").labels().tolist() == expected
    for torn in (b"torn", b""):
        saved.write_bytes(torn)
        assert open_source(f"tfds:{copy}:train").labels().tolist() == expected


def test_no_label_no_classes():
    source = open_source("tfds:tiny_photos/unlabelled:train")
    assert source.classes == () and source[0].label == -1 and len(source) == 7


@pytest.mark.parametrize(("split", "count"), [("train[:3]", 3), ("train[50%:]", 3), ("train+validation", 10)])
def test_slices_of_splits_and_versions(split, count):
    for name in ("tiny_photos", "tiny_photos/plain:1.2.0"):
        assert len(open_source(f"tfds:{name}:{split}")) == count


def test_it_survives_pickling_and_a_changed_environment(monkeypatch):
    source = open_source("tfds:tiny_photos/plain:train")
    data = pickle.dumps(source)
    monkeypatch.setenv("TFDS_DATA_DIR", "/nowhere")
    again = pickle.loads(data)
    assert [again[i] for i in range(7)] == [source[i] for i in range(7)]


def test_the_fingerprint_is_that_of_the_shards_wherever_they_lie(tmp_path, data_dir):
    shutil.copytree(data_dir / "tiny_photos" / "plain" / "1.2.0", tmp_path / "copy")
    prints = {split: open_source(f"tfds:tiny_photos/plain:{split}").fingerprint() for split in ("train", "validation", "train[:3]")}
    assert len(set(prints.values())) == 3 and prints["train[:3]"].count == 3
    for split, there in prints.items():
        assert open_source(f"tfds:{tmp_path / 'copy'}:{split}").fingerprint() == there
    assert [entry.name for entry in open_source(f"tfds:{tmp_path / 'copy'}:train[2:4]").listing()] == [
        "tiny_photos-train.array_record-00000-of-00001[2:4]"
    ]
    os.truncate(tmp_path / "copy" / "tiny_photos-train.array_record-00000-of-00001", 10)
    assert open_source(f"tfds:{tmp_path / 'copy'}:validation").fingerprint() == prints["validation"]


def test_it_feeds_the_pipeline():
    recipe = ViewRecipe(global_size=8, local_count=0)
    run = list(train_batches(open_source("tfds:tiny_photos:train"), recipe=recipe, seed=0, batch_size=3, total_steps=2))
    assert len({int(i) for views in run for i in views.index}) == 6 and not any(views.replaced.any() for views in run)


def test_tensorflow_is_not_imported():
    code = (
        "import sys; from sere_jax.data.sources.open import open_source; open_source('tfds:tiny_photos/plain:train')[0]; "
        "print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("tiny_photos/plain", "expected tfds:NAME"),
        ("", "expected tfds:NAME"),
        ("tiny_photos/plain:trian", r"expected one of train, validation; did you mean 'train'\?"),
        ("imagenet2021:train", r"knows no data set .imagenet2021.*did you mean .imagenet2012.\?"),
        ("cifar10:train", "not prepared in .*python -m sere_jax prepare --source=tfds:cifar10"),
        ("tiny_photos/none:train", "cannot open 'tiny_photos/none'"),
        (f"{'a' * 300}:train", "knows no data set 'aaa"),
        (f"tiny_photos/{'a' * 300}:train", "cannot open 'tiny_photos/aaa"),
        (f"tiny_photos/plain:{'a' * 300}", "cannot read split 'aaa"),
        (f"./{'a' * 300}:train", "found no such directory"),
    ],
)
def test_errors_say_what_to_do(rest, message):
    with pytest.raises(SourceError, match=message):
        open_source(f"tfds:{rest}")


@pytest.mark.parametrize("content", ["{broken", "{}", ""])
def test_damaged_facts_of_a_prepared_set_are_told(tmp_path, content: str):
    (tmp_path / "dataset_info.json").write_text(content)
    with pytest.raises(SourceError, match=f"{tmp_path} cannot be opened as a prepared set: "):
        open_source(f"tfds:{tmp_path}:train")


def test_some_classes_of_a_prepared_set(tmp_path, data_dir, caplog):
    """All records are read for their classes once; the answer is kept beside the data."""
    (tmp_path / "list.txt").write_text("eel\ncat\n")
    spec = f"classes:{tmp_path / 'list.txt'}:tfds:tiny_photos/plain:train"
    for reads in (1, 1):
        source = open_source(spec)
        names = {example.name: example.label for example in (source[i] for i in range(len(source)))}
        assert names == {"JPEG0": 1, "JPEG2": 0, "JPEG3": 1, "JPEG5": 0, "JPEG6": 1}
        assert sum("reading the classes of 7" in record.message for record in caplog.records) == reads
    assert pickle.loads(pickle.dumps(source))[0] == source[0]
