"""A prepared TensorFlow Datasets set as a source, read at random without TensorFlow (`tfds.data_source`)."""

from __future__ import annotations

import difflib
import logging
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from sere_jax.data.sources.example import Entry, Example, Source, SourceError
from sere_jax.data.sources.folder import file_sizes
from sere_jax.data.sources.tfds_features import MAP_PALETTE, OBJECT_IDS, annotation, read_features
from sere_jax.data.sources.with_objects import counted
from sere_jax.writing import place, replacing

_log = logging.getLogger(__name__)

# tensorflow_datasets is imported inside the functions: it takes a second, and most runs read a folder.


class TfdsSource(Source):
    """`NAME[/CONFIG][:VERSION]:SPLIT` of TFDS, e.g. `imagenet2012:train`, `cifar10:train[:50%]`, or `DIR:SPLIT` of a prepared directory.

    DIR holds a `dataset_info.json`, as `python -m sere_jax prepare` writes it; an absolute path is always one. For a NAME
    the directory is TFDS's default, `~/tensorflow_datasets`, or the environment's `TFDS_DATA_DIR`. The set must have been
    prepared in a random-access format (array_record or parquet). The image is the feature `image` or else the only image
    feature, the label the feature `label` where there is one. Images come out encoded; workers decode them. Raises
    SourceError when the set is unknown, not prepared, in another format, or has no such split or no image.
    """

    def __init__(self, spec: str, rest: str) -> None:
        self.spec = spec
        self._set, colon, self._split = divide(rest)
        if not (self._set and colon and self._split):
            raise SourceError(f"{spec!r}: expected tfds:NAME[/CONFIG]:SPLIT, e.g. 'tfds:imagenet2012:train', or tfds:DIR:SPLIT")
        builder = _directory_builder(spec, self._set) if is_directory(self._set) else _prepared_builder(spec, self._set)
        self._data_dir = str(builder.data_dir)  # workers open exactly these files, whatever their environment says
        self._features = read_features(spec, builder.info.features)
        self.classes, self.map_classes = self._features.classes, self._features.map_classes
        self.object_classes = self._features.object_classes
        self.object_ids = tuple((builder.info.metadata or {}).get(OBJECT_IDS, ()))
        self.map_palette = bytes((builder.info.metadata or {}).get(MAP_PALETTE, ()))
        self._data: Any = self._open(builder)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Example:
        """Read one record. Raises OSError when its part of the file is damaged, or its features are not those of an example."""
        try:
            record = self._data[index]
        except IndexError:
            raise
        except Exception as error:  # the reader of ArrayRecord raises what its C++ happens to say
            raise OSError(f"{self.spec}[{index}] cannot be read: {error}") from error
        try:
            return self._example(record, index)
        except Exception as error:  # no protobuf, features without values, an object without a box: many types
            raise OSError(f"{self.spec}[{index}] has features that cannot be read: {type(error).__name__}: {error}") from error

    def _example(self, record: Any, index: int) -> Example:
        values = _Values(record) if isinstance(record, bytes) else _of_dict(record)
        features = self._features
        label = int(values[features.label][0]) if features.label else -1
        name = values[features.file_name][0] if features.file_name else f"{self.spec}[{index}]"
        if isinstance(name, bytes):
            name = name.decode(errors="surrogateescape")  # as the names of files, which hold any bytes
        return Example(name, values[features.image][0], label, annotation(features, values) if features.annotated else None)

    def places(self) -> Iterator[tuple[str, int]]:
        """The shard of each record, and the record's number in it."""
        import tensorflow_datasets as tfds

        splits = tfds.builder_from_directory(self._data_dir).info.splits
        for part in splits[self._split].file_instructions:
            yield from ((str(part.filename), part.skip + number) for number in range(part.take))

    def listing(self) -> Iterator[Entry]:
        """An entry a shard, with the records of it that the split takes."""
        import tensorflow_datasets as tfds

        splits = tfds.builder_from_directory(self._data_dir).info.splits
        for part in splits[self._split].file_instructions:
            name = os.path.basename(part.filename)
            last = part.skip + part.take
            yield Entry(f"{name}[{part.skip}:{last}]", next(file_sizes([part.filename])), -1)

    def labels(self) -> Int[np.ndarray, " n"]:
        """The class of every example, -1 for a record that cannot be read.

        The first call reads all records, and saves the classes beside the data if it can be written and every record was read.
        """
        labels = self._read_once("labels", "classes", lambda: np.array([self._label(index) for index in range(len(self))], np.int32))
        if unreadable := int((labels < 0).sum()):
            _log.warning("%s: %d of %d records have no class that can be read", self.spec, unreadable, len(self))
        return labels

    def object_counts(self) -> Int[np.ndarray, "n 5"]:
        """`count_objects` of every example, -1 for a record that cannot be read; read once as the classes are."""
        return self._read_once("objects", "objects", lambda: counted(self))

    def _read_once(self, kind: str, what: str, read: Callable[[], np.ndarray]) -> np.ndarray:
        """What `read` makes of all records, an entry each; saved beside the data where no entry is below 0."""
        path = os.path.join(self._data_dir, f"sere_jax_{kind}-{re.sub(r'[^A-Za-z0-9]+', '_', self._split)}.npz")
        digest = self.fingerprint().digest
        try:
            with np.load(path) as saved:
                if saved["digest"] == digest:
                    return saved[kind]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):  # EOFError: an empty file
            pass
        _log.warning("%s: reading the %s of %d examples, once", self.spec, what, len(self))
        values = read()
        if (values < 0).any():
            return values
        arrays: dict[str, Any] = {kind: values, "digest": digest}
        try:
            with replacing(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **arrays)
        except OSError as error:
            _log.warning("%s: the %s cannot be saved beside the data: %s", self.spec, what, error)
        return values

    def _label(self, index: int) -> int:
        try:
            return self[index].label
        except OSError as error:
            _log.warning("%s", error)
            return -1

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_data"}  # open files stay where they are

    def __setstate__(self, state: dict[str, Any]) -> None:
        import tensorflow_datasets as tfds

        self.__dict__.update(state)
        self._data = self._open(tfds.builder_from_directory(self._data_dir))

    def _open(self, builder: Any) -> Any:
        import tensorflow_datasets as tfds

        try:
            if builder.info.file_format.value == "array_record":
                return builder.as_data_source(self._split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
            images = filter(None, (self._features.image, self._features.label_map))
            return builder.as_data_source(self._split, decoders={name: tfds.decode.SkipDecoding() for name in images})
        except ModuleNotFoundError as error:
            raise SourceError(
                f"{self.spec!r}: needs the package {error.name}, which has no wheel for Windows; expected folder:DIR there"
            ) from error
        except NotImplementedError as error:
            raise SourceError(
                f"{self.spec!r}: {self._data_dir} is prepared in a format without random access "
                f"({builder.info.file_format.value}); set TFDS_DATA_DIR to another directory and prepare it again: "
                f"python -m sere_jax prepare --source=tfds:{self._set}"
            ) from error
        except (ValueError, KeyError) as error:
            splits = sorted(builder.info.splits)
            near = difflib.get_close_matches(self._split.partition("[")[0], splits, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SourceError(f"{self.spec!r}: cannot read split {self._split!r}; expected one of {', '.join(splits)}{hint}") from error


class _Values(Mapping[str, Sequence[Any]]):
    """The features of a serialised record as flat lists. TFDS's own decoding takes longer than reading the record."""

    def __init__(self, record: bytes) -> None:
        from tensorflow_datasets.proto import tf_example_pb2

        self._features = tf_example_pb2.Example.FromString(record).features.feature

    def __getitem__(self, name: str) -> Sequence[Any]:
        feature = self._features[name]
        kind = feature.WhichOneof("kind")
        return getattr(feature, kind).value if kind else ()

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)


def _of_dict(record: Mapping[str, Any], prefix: str = "") -> dict[str, Sequence[Any]]:
    """The features of a deserialised record as flat lists, `objects/label` for those of a part."""
    values: dict[str, Sequence[Any]] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            values |= _of_dict(value, f"{prefix}{name}/")
        elif isinstance(value, (bytes, str)):
            values[prefix + name] = [value]
        elif isinstance(value, list):
            values[prefix + name] = value
        else:
            values[prefix + name] = np.ravel(value).tolist()
    return values


def divide(rest: str) -> tuple[str, str, str]:
    """`name/config:1.0.0:train[:50%]` -> (`name/config:1.0.0`, `:`, `train[:50%]`): the last colon outside brackets divides."""
    outside, bracket, inside = rest.partition("[")
    name, colon, split = outside.rpartition(":")
    return name, colon, split + bracket + inside


def is_directory(name: str) -> bool:
    """Whether the part before the split is a directory: it is absolute, begins with `.` or `~`, or holds a prepared set.

    The path of a Python file, with or without a config after it, is a builder.
    """
    if re.search(r"\.py(/[^/]+)?$", name):
        return False
    return os.path.isabs(name) or name.startswith((".", "~")) or os.path.isfile(place(name) / "dataset_info.json")


def _directory_builder(spec: str, directory: str) -> Any:
    import tensorflow_datasets as tfds

    path = str(place(directory))
    if not os.path.isfile(os.path.join(path, "dataset_info.json")):
        state = (
            "an unfinished preparation: run it again to go on"
            if os.path.isdir(os.path.join(path, ".unfinished"))
            else "no dataset_info.json"
        )
        raise SourceError(
            f"{spec!r}: expected a prepared directory, found {state if os.path.isdir(path) else 'no such directory'} ({path})"
        )
    try:
        return tfds.builder_from_directory(path)
    except Exception as error:  # TFDS raises many types on JSON files that are damaged
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(f"{spec!r}: {path} cannot be opened as a prepared set: {reason}") from error


def data_directory() -> str:
    """Where TFDS keeps its sets: the environment's TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    import tensorflow_datasets as tfds

    return os.environ.get("TFDS_DATA_DIR") or str(tfds.core.constants.DATA_DIR)  # TFDS itself reads the variable at import only


def prepared_set(name: str) -> Any | None:
    """A set in TFDS's directory, opened by its files alone: the code of many builders needs TensorFlow. None where it is not prepared."""
    import tensorflow_datasets as tfds

    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=data_directory())
    except (OSError, ValueError, tfds.core.DatasetNotFoundError):  # OSError: a name that is too long
        return None


def _prepared_builder(spec: str, name: str) -> Any:
    import tensorflow_datasets as tfds

    data_dir = data_directory()
    known = tfds.list_builders(with_community_datasets=False)
    plain = name.partition("/")[0].partition(":")[0]
    if plain not in known and not os.path.isdir(place(data_dir) / plain):
        near = difflib.get_close_matches(plain, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SourceError(f"{spec!r}: TFDS knows no data set {plain!r}, nor is there one in {data_dir}{hint}")
    if prepared := prepared_set(name):
        return prepared
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (ImportError, OSError, ValueError, tfds.core.DatasetNotFoundError) as error:
        raise SourceError(f"{spec!r}: TFDS cannot open {name!r}: {str(error).splitlines()[0]}") from error
    if not builder.is_prepared():
        raise SourceError(
            f"{spec!r}: not prepared in {builder.data_dir}. Prepare it once with requirements-prepare.txt installed: "
            f"python -m sere_jax prepare --source=tfds:{name}. Or set TFDS_DATA_DIR to the directory that holds it"
        )
    return builder
