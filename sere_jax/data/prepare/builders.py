"""TensorFlow Datasets' builders: run one so that training can read its records at random without TensorFlow."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from typing import Any

from sere_jax.data.sources.example import SourceError
from sere_jax.data.sources.tfds import data_directory, divide, is_directory, prepared_set
from sere_jax.writing import place

_RANDOM_ACCESS = ("array_record", "parquet")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
# Modules that some builders import, beyond the packages of requirements.txt.
_PREPARING = ("tensorflow", "importlib_resources")


def is_builder(spec: str) -> bool:
    """Whether a source is `tfds:` with the name or module of a builder, not with a prepared directory."""
    kind, colon, rest = spec.partition(":")
    return kind == "tfds" and bool(colon) and not is_directory(_name_and_split(rest)[0])


def build(spec: str) -> tuple[str, dict[str, int]]:
    """Run the builder of `tfds:NAME[/CONFIG][:VERSION][:SPLIT]` or `tfds:MODULE.py[/CONFIG][:SPLIT]`, unless its set is prepared already.

    Returns the directory of the set, and the number of examples of each split. The set lies in the environment's `TFDS_DATA_DIR`, else in
    `~/tensorflow_datasets`. Raises SourceError for an unknown name, for a module without exactly one builder, and where the builder needs
    a package or an archive that is missing.
    """
    name, split = _name_and_split(spec.partition(":")[2])
    if not name:
        raise SourceError(f"{spec!r}: expected tfds:NAME[/CONFIG]:SPLIT or tfds:MODULE.py[/CONFIG]:SPLIT")
    try:
        builder = _own_builder(spec, name) if _module(name) else _builder(spec, name)
        builder.download_and_prepare()
    except ImportError as error:
        raise SourceError(_missing_module(spec, error)) from error
    except AssertionError as error:  # archives that have to be downloaded by hand
        raise SourceError(f"{spec!r}: the builder cannot go on: {' '.join(str(error).split())}") from error
    file_format = builder.info.file_format.value
    if file_format not in _RANDOM_ACCESS:
        raise SourceError(
            f"{spec!r}: {builder.data_dir} was prepared as {file_format}, which cannot be read at random; "
            "set TFDS_DATA_DIR to another directory and prepare it again"
        )
    counts = {key: int(info.num_examples) for key, info in builder.info.splits.items()}
    if split and split.partition("[")[0].partition("+")[0] not in counts:
        raise SourceError(f"{spec!r}: the set has no split {split!r}; expected one of {', '.join(counts)}")
    return str(builder.data_dir), counts


def reading_spec(spec: str, directory: str) -> str:
    """The source that reads what `build(spec)` has prepared in `directory`. Raises SourceError where `spec` names no split."""
    split = _name_and_split(spec.partition(":")[2])[1]
    if not split:
        raise SourceError(f"{spec!r}: expected a split at its end, as in {spec}:train")
    return f"tfds:{directory}:{split}"


def _name_and_split(rest: str) -> tuple[str, str]:
    """`cifar10:train` -> (`cifar10`, `train`); the split may be missing: `cifar10:3.0.2` -> (`cifar10:3.0.2`, ``)."""
    name, colon, split = divide(rest)
    return (rest, "") if not colon or _VERSION.fullmatch(split) else (name, split)


def _module(name: str) -> str:
    """The path of the module in `MODULE.py[/CONFIG]`; "" for the name of a builder."""
    match = re.fullmatch(r"(.+\.py)(/[^/]+)?", name)
    return match[1] if match else ""


def _builder(spec: str, name: str) -> Any:
    """The prepared set of that name, or else its builder."""
    import tensorflow_datasets as tfds

    if prepared := prepared_set(name):
        return prepared
    try:
        return tfds.builder(name, data_dir=data_directory(), file_format="array_record")
    except (OSError, ValueError, tfds.core.DatasetNotFoundError) as error:
        raise SourceError(f"{spec!r}: TFDS has no such builder: {str(error).splitlines()[0]}") from error


def _own_builder(spec: str, name: str) -> Any:
    """The one builder that a module defines."""
    import tensorflow_datasets as tfds

    file = _module(name)
    path = str(place(file))
    if not os.path.isfile(path):
        raise SourceError(f"{spec!r}: {path} does not exist; expected the Python file that defines the builder")
    title = os.path.splitext(os.path.basename(path))[0]
    module_spec = importlib.util.spec_from_file_location(title, path)
    assert module_spec is not None and module_spec.loader is not None  # it is a Python file
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[title] = module
    try:
        module_spec.loader.exec_module(module)
    except ValueError as error:  # TFDS knows a data set of that name
        raise SourceError(f"{spec!r}: {error}") from error
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, tfds.core.DatasetBuilder) and value.__module__ == title
    ]
    if len(classes) != 1:
        names = ", ".join(value.__name__ for value in classes) or "none"
        raise SourceError(f"{spec!r}: found {names} in {path}, expected exactly one subclass of tfds.core.GeneratorBasedBuilder")
    config = name[len(file) + 1 :] or None
    try:
        return classes[0](config=config, data_dir=data_directory(), file_format="array_record")
    except ValueError as error:
        raise SourceError(f"{spec!r}: {str(error).splitlines()[0]}") from error


def _missing_module(spec: str, error: ImportError) -> str:
    match = re.search(r"No module named '([\w.]+)'", str(error))
    module = match[1].partition(".")[0] if match else ""
    if module in _PREPARING:
        return f"{spec!r}: its builder needs {module}, once: pip install -r requirements-prepare.txt (reading does not need it)"
    if module == "apache_beam":
        return (
            f"{spec!r}: its builder needs apache_beam, which cannot be installed beside the packages of requirements.txt; prepare the "
            "set in another environment with file_format='array_record', and read it as tfds:DIR:SPLIT"
        )
    return f"{spec!r}: its builder needs {module}, which is not installed" if module else f"{spec!r}: {error}"
