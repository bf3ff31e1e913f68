"""ArrayRecord shards on disk: written one by one, so that an interrupted preparation resumes, and read back to verify them."""

from __future__ import annotations

import collections
import concurrent.futures
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from sere_jax.data.images.decode import BadImage
from sere_jax.data.prepare.encode import Encoder, printable
from sere_jax.data.prepare.records import Layout, Record, map_palette
from sere_jax.data.sources.tfds_features import MAP_PALETTE, OBJECT_IDS
from sere_jax.writing import WRITABLE, replacing

MANIFEST = "manifest.json"
_UNFINISHED = ".unfinished"
_AGAIN = "expected what prepare wrote; prepare the set again into a new directory"
# One record a group: reading one must not read its neighbours. JPEGs do not get smaller.
_OPTIONS = "group_size:1,uncompressed"


class PrepareError(RuntimeError):
    """A preparation that cannot begin or go on, or a prepared set that is not what its manifest says."""


class Shard(NamedTuple):
    """A part of a split: records first .. last - 1 of the source."""

    file: str
    split: str
    first: int
    last: int


def plan(layout: Layout, per_shard: int) -> list[Shard]:
    """Every shard of every split, in order."""
    shards = []
    for split, records in layout.splits.items():
        count = -(-len(records) // per_shard)
        for number in range(count):
            file = f"{layout.name}-{split}.array_record-{number:05d}-of-{count:05d}"
            shards.append(Shard(file, split, number * per_shard, min(len(records), (number + 1) * per_shard)))
    return shards


class Output:
    """A directory that is being prepared. Raises PrepareError when it holds something else."""

    def __init__(self, directory: str, fingerprint: dict[str, Any]) -> None:
        self.directory = directory
        self.finished = False
        self._notes = os.path.join(directory, _UNFINISHED)
        begun, done = os.path.join(self._notes, MANIFEST), os.path.join(directory, MANIFEST)
        # Listed before the manifests are looked for: another machine that begins now writes its manifest before its shards. The finished
        # one is looked for twice, since it may take the place of the other in between.
        names = set(os.listdir(directory)) - {_UNFINISHED} if os.path.isdir(directory) else set()
        for path in (done, begun, done):
            if os.path.isfile(path):
                _must_equal(_read(path).get("made_from") or {}, fingerprint, directory)
                self.finished = path == done
                return
        if any(not name.startswith((WRITABLE, ".nfs")) for name in names):  # the trials of other machines, on a network's disk
            raise PrepareError(f"{directory}: is not empty and holds no preparation; expected a new or empty directory")
        os.makedirs(self._notes, exist_ok=True)  # several machines may begin at once; all write the same
        write_json(begun, {"made_from": fingerprint})

    def done(self, shard: Shard) -> dict[str, Any] | None:
        """What is known of a shard that is complete, or None."""
        path, note = os.path.join(self.directory, shard.file), self._note(shard)
        if not (os.path.isfile(path) and os.path.isfile(note)):
            return None
        try:
            known = _read(note)
        except PrepareError:  # damaged: the shard is written again
            return None
        return known if os.path.getsize(path) == known.get("bytes") else None

    def write(self, shard: Shard, results: Iterable[tuple[str, bytes | Exception]]) -> dict[str, Any]:
        """Write a shard and its note; records that are errors are left out and named."""
        try:
            from array_record.python.array_record_module import ArrayRecordWriter
        except ModuleNotFoundError as error:
            raise PrepareError("prepare needs the package array_record, which has no wheel for Windows") from error

        path = os.path.join(self.directory, shard.file)
        left_out, records = [], 0
        with replacing(path) as temporary:
            writer = ArrayRecordWriter(str(temporary), _OPTIONS)
            try:
                for name, result in results:
                    if isinstance(result, Exception):
                        left_out.append({"name": printable(name), "error": str(result)})
                    else:
                        writer.write(result)
                        records += 1
            finally:
                _close(writer, path)
        note = {"file": shard.file, "records": records, "bytes": os.path.getsize(path), "sha256": file_digest(path), "left_out": left_out}
        write_json(self._note(shard), note)
        return note

    def finish(self, manifest: dict[str, Any]) -> None:
        """Write the manifest last: it marks the preparation as complete."""
        for leftover in glob.glob(os.path.join(glob.escape(self.directory), ".*.partial.*")):  # of a preparation that was killed
            os.remove(leftover)
        write_json(os.path.join(self.directory, MANIFEST), manifest)
        shutil.rmtree(self._notes)

    def _note(self, shard: Shard) -> str:
        return os.path.join(self._notes, f"{shard.file}.json")


def _close(writer: Any, path: str) -> None:
    """Write what a writer holds back. Raises PrepareError where the disk refuses it: the writer's own error is of no kind of its own."""
    try:
        writer.close()
    except RuntimeError as error:
        raise PrepareError(f"{path}: cannot be written: {error}") from error


def encoded(
    encoder: Encoder, records: Sequence[Record], shard: Shard, threads: concurrent.futures.Executor, ahead: int
) -> Iterator[tuple[str, bytes | Exception]]:
    """The shard's records in order, (name, bytes or error), with `ahead` of them in work."""

    def one(index: int) -> tuple[str, bytes | Exception]:
        name = f"item {index}"
        try:
            record = records[index]
            name = record.name
            return name, encoder(record)
        except (BadImage, OSError) as error:
            return name, error

    pending: collections.deque[concurrent.futures.Future[tuple[str, bytes | Exception]]] = collections.deque()
    for index in range(shard.first, shard.last):
        pending.append(threads.submit(one, index))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def write_info(directory: str, layout: Layout, features: Any, shards: dict[str, list[dict[str, Any]]]) -> None:
    """The files that make the directory a TFDS set: dataset_info.json, features.json, names of labels."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import naming, splits

    identity = tfds.core.dataset_info.DatasetIdentity(
        name=layout.name, version=tfds.core.Version("1.0.0"), data_dir=directory, module_name="sere_jax"
    )
    # The ids of classes and the colours of maps are of no feature; TFDS keeps what a set likes to say of itself in metadata.json.
    facts = {OBJECT_IDS: list(layout.object_ids), MAP_PALETTE: list(map_palette(layout))}
    said = {key: value for key, value in facts.items() if value}
    metadata = tfds.core.MetadataDict(said) if said else None
    info = tfds.core.DatasetInfo(builder=identity, features=features, description=f"{layout.name}, prepared by sere_jax", metadata=metadata)
    infos = []
    for split, notes in shards.items():
        template = naming.ShardedFileTemplate(data_dir=directory, dataset_name=layout.name, split=split, filetype_suffix="array_record")
        lengths, size = [note["records"] for note in notes], sum(note["bytes"] for note in notes)
        infos.append(splits.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template))
    info.set_splits(splits.SplitDict(infos))
    info.set_file_format("array_record")
    info.write_to_directory(directory)


def verify(directory: str, track: Callable[[Iterable[int], int], Iterable[int]]) -> list[str]:
    """The faults of a prepared directory: shards and images that differ from what was written."""
    manifest = read_manifest(directory)
    builder = _builder(directory)
    import tensorflow_datasets as tfds

    wrong = []
    for split, shards in manifest["splits"].items():
        if split not in builder.info.splits:
            wrong.append(f"{split}: the manifest names this split, {os.path.join(directory, 'dataset_info.json')} does not")
            continue
        damaged = [shard["file"] for shard in shards if _damaged(directory, shard)]
        wrong += [f"{file}: missing, or not what was written" for file in damaged]
        if damaged:
            continue
        try:
            data = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        except Exception as error:  # TFDS raises many types where its files do not fit together
            wrong.append(f"{split}: cannot be opened by dataset_info.json and features.json: {_first_line(error)}")
            continue
        if len(data) != sum(shard["records"] for shard in shards):
            wrong.append(f"{split}: {len(data)} records, the manifest says {sum(shard['records'] for shard in shards)}")
        for index in track(range(len(data)), len(data)):
            try:
                record = data[index]
                image, digest, name = record["image"], record["sha256"], record["file_name"].decode(errors="backslashreplace")
            except Exception as error:  # and where records are of other features
                wrong.append(f"{split}[{index}] cannot be read: {_first_line(error)}")
                continue
            if hashlib.sha256(image).hexdigest().encode() != digest:
                wrong.append(f"{split}[{index}] {name}: another image than was written")
    return wrong


def _builder(directory: str) -> Any:
    """The TFDS set of a prepared directory. Raises PrepareError where the files that describe it are damaged."""
    import tensorflow_datasets as tfds

    for name in ("dataset_info.json", "features.json"):
        _read(os.path.join(directory, name))
    try:
        return tfds.builder_from_directory(directory)
    except Exception as error:  # TFDS raises many types on files that are damaged
        files = f"{os.path.join(directory, 'dataset_info.json')} or features.json beside it"
        raise PrepareError(f"{files} cannot be read: {_first_line(error)}; {_AGAIN}") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _damaged(directory: str, shard: dict[str, Any]) -> bool:
    path = os.path.join(directory, shard["file"])
    return not os.path.isfile(path) or os.path.getsize(path) != shard["bytes"] or file_digest(path) != shard["sha256"]


def read_manifest(directory: str) -> dict[str, Any]:
    """The manifest of a prepared directory. Raises PrepareError where there is none or it is damaged."""
    path = os.path.join(directory, MANIFEST)
    if not os.path.isfile(path):
        raise PrepareError(f"{directory}: has no {MANIFEST}: not a prepared set, or an unfinished one; prepare it again to go on")
    manifest = _read(path)
    if not _has_shards(manifest.get("splits")):
        raise PrepareError(f"{path}: its splits have no lists of shards with file, records, bytes and sha256; {_AGAIN}")
    return manifest


def _has_shards(splits: Any) -> bool:
    if not isinstance(splits, dict) or not all(isinstance(shards, list) for shards in splits.values()):
        return False
    kinds = {"file": str, "records": int, "bytes": int, "sha256": str}
    shards = [shard for shards in splits.values() for shard in shards]
    return all(isinstance(shard, dict) and all(isinstance(shard.get(key), kind) for key, kind in kinds.items()) for shard in shards)


def _must_equal(old: dict[str, Any], new: dict[str, Any], directory: str) -> None:
    different = [f"{key}: found {old.get(key)!r}, expected {new[key]!r}" for key in new if old.get(key) != new[key]]
    if different:
        raise PrepareError(f"{directory}: holds another preparation ({'; '.join(different)}); use another directory")


def file_digest(path: str) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: str) -> dict[str, Any]:
    """The object in a JSON file. Raises PrepareError, which names the file, where there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise PrepareError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}; {_AGAIN}") from error
    if not isinstance(content, dict):
        raise PrepareError(f"{path}: found no JSON object; {_AGAIN}")
    return content


def write_json(path: str, value: Any) -> None:
    """Write a value as JSON."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
