"""The identity of a run: the keys of its config that change the result, its images, and the versions of the packages.

Every start compares it with the newest checkpoint, and between the processes of the run, before anything is compiled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sere_jax import distributed
from sere_jax.buckets import Location
from sere_jax.build import pretraining
from sere_jax.build.optimizer import optimizer_schedules
from sere_jax.config import check as rules
from sere_jax.config.launch import Launch
from sere_jax.config.names import flatten
from sere_jax.config.saved import completed
from sere_jax.data.sources import listing
from sere_jax.data.sources.example import Source
from sere_jax.data.sources.open import open_source
from sere_jax.train.checkpoint import read_meta
from sere_jax.train.checkpoint_manager import Checkpoints
from sere_jax.train.lock import WorkdirError
from sere_jax.train.versions import versions
from sere_jax.writing import replacing

# Keys that may differ between processes, beside those that name images: paths may differ between machines, and listings are compared.
_OF_ONE_PROCESS = frozenset({"data.cache_dir", "data.cache_gigabytes", "data.workers", "data.prefetch"})
_ACCEPT = "--config.run.accept_changed_data=True"
_HEADING = "the processes of this run disagree, nothing was started"


class Data(NamedTuple):
    """The images of a run."""

    source: str  # as the config names them
    images: int
    digest: str  # of the listing, and of the weights of a mixture
    entries: bytes  # `Listing.entries`

    def saved(self) -> dict[str, Any]:
        """The part of them that a checkpoint holds."""
        return {"data": {"source": self.source, "images": self.images, "digest": self.digest}}


def check_settings(config: ConfigDict, directory: Location) -> None:
    """Refuse processes with different configs, workdirs or versions. Raises OtherProcessError on all of them."""
    facts = {key: value for key, value in flatten(config).items() if key not in _OF_ONE_PROCESS | rules.sources(config).keys()}
    facts |= {"--workdir": str(directory)} | {f"version of {package}": version for package, version in versions().items()}
    distributed.assert_equal(facts, _HEADING)


def read_data(source: Source) -> Data:
    """List the images."""
    (images, digest), entries = listing.take(source)
    shares = getattr(source, "shares", None)
    if shares is not None:
        digest = f"{digest} {','.join(f'{weight:g}' for weight in shares.weights)}"
    return Data(source.spec, images, digest, entries)


def digests(sources: Mapping[str, str]) -> dict[str, str]:
    """The digest of the listing of each source, by its key; keys without a source are left out. Raises SourceError."""
    return {key: open_source(spec).fingerprint().digest for key, spec in sources.items() if spec}


def check_same_data(data: Data) -> None:
    """Refuse processes that see different images. Raises OtherProcessError on all of them, with the first names that differ."""
    digests = distributed.gather_texts(data.digest)
    if len(set(digests)) == 1:
        return
    first = bytes.fromhex(distributed.text_of_first(data.entries.hex()))
    lines = []
    if data.digest != digests[0]:
        changes = "; ".join(listing.changes(first, data.entries))
        lines = [f"data.source: found {data.images:,} images in {data.source!r}; compared with process 0: {changes}"]
    raise distributed.OtherProcessError("\n  ".join([f"{_HEADING}:", *distributed.gather_lines(lines)]))


def check_resumed(config: ConfigDict, data: Data, checkpoints: Checkpoints, directory: Location) -> list[str]:
    """Compare a run with its newest checkpoint, and return lines on allowed differences. All processes call it.

    Raises:
      ConfigError: the checkpoint is of another config, or of other images while `run.accept_changed_data` is False.
      OtherProcessError: that, on processes other than the first.
    """
    step = checkpoints.newest()
    if step is None:
        return []
    with distributed.together():
        return check_step(config, data, checkpoints.directory, step, directory)


def check_step(config: ConfigDict, data: Data, checkpoints: Location, step: int, directory: Location, flag: str = _ACCEPT) -> list[str]:
    """Compare a run with one of its checkpoints, as `check_resumed` does with the newest. Raises ConfigError.

    `flag` is what the command line accepts changed images by.
    """
    meta = read_meta(checkpoints, step)
    saved = completed(meta["config"])
    if differences := rules.differences(saved, config):
        heading = f"{checkpoints} holds step {step} of another run; take another workdir, or the same config"
        raise rules.ConfigError(differences, heading=heading)
    before = _Before(saved, meta["identity"]["data"], step, directory)
    return [*_changed_versions(meta["versions"]), *_changed_data(config, data, before, flag)]


def write_facts(config: ConfigDict, launch: Launch, data: Data, directory: Location) -> None:
    """Write what a run is to its workdir. All processes call it, and process 0 writes.

    Beside the files of `keep_entries`: config.json is the whole config, and launch.json says what differs from its file. Both are
    of the newest start. Raises WorkdirError where they cannot be written, on the other processes OtherProcessError.
    """
    with distributed.together():
        if jax.process_index() == 0:
            _write_facts(config, launch, data, directory)


def _write_facts(config: ConfigDict, launch: Launch, data: Data, directory: Location) -> None:
    texts = {"config.json": rules.to_json(config), "launch.json": json.dumps(launch.record(config), indent=2, allow_nan=False)}
    try:
        for name, text in texts.items():
            with replacing(directory / name) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
        keep_entries(data, directory)
    except OSError as error:
        raise WorkdirError(f"{directory}: nothing can be written there ({error.strerror}); expected a directory to write to") from error


def keep_entries(data: Data, directory: Location) -> None:
    """Write what a run says of its images; for one process.

    WORKDIR/listings has their list, which a later start reads when they have changed. WORKDIR/data.json has their number: a prepared
    set is listed by its shards.
    """
    with replacing(directory / "data.json") as temporary:
        temporary.write_text(json.dumps(data.saved()["data"]) + "\n")
    path = _entries_path(directory, data.digest)
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_bytes(data.entries)


def _entries_path(directory: Location, digest: str) -> Location:
    return directory / "listings" / f"{digest[:16]}.jsonl.gz"


def _changed_versions(saved: Mapping[str, str]) -> Iterator[str]:
    now = versions()
    changed = [f"{package} {saved.get(package)} -> {now[package]}" for package in now if saved.get(package) != now[package]]
    if changed:
        yield f"versions     {', '.join(changed)} since the checkpoint: the last bits of the numbers may differ"


class _Before(NamedTuple):
    """A run at one of its checkpoints."""

    config: ConfigDict
    data: Mapping[str, Any]  # as `Data.saved`
    step: int
    directory: Location


def _changed_data(config: ConfigDict, data: Data, saved: _Before, flag: str) -> Iterator[str]:
    before, step = saved.data, saved.step
    if before["digest"] == data.digest:
        if before["source"] != data.source:
            yield f"data         moved from {before['source']} to {data.source}: the same {data.images:,} images"
        return
    path = _entries_path(saved.directory, before["digest"])
    names = listing.changes(path.read_bytes(), data.entries) if path.exists() else [f"{path}, which lists the earlier images, is missing"]
    if not config.run.accept_changed_data:
        found = f"data.source: found {data.images:,} images in {data.source!r}, expected the {before['images']:,} of step {step}"
        advice = f"give the same images, another --workdir, or {flag} to go on with these"
        raise rules.ConfigError(
            [found, *names, advice], heading=f"the images have changed since step {step} was saved in {saved.directory}"
        )
    yield f"data         changed from {before['images']:,} to {data.images:,} images: {'; '.join(names)}"
    yield from _moved(config, pretraining.steps(saved.config, before["images"]), pretraining.steps(config, data.images), step)


def _moved(config: ConfigDict, before: pretraining.Steps, now: pretraining.Steps, step: int) -> Iterator[str]:
    """Lines on what another number of images changes at a step."""
    if before == now:
        yield "data         the number of steps is the same; from this step on the order of the images differs"
        return
    yield (
        f"data         steps an epoch {before.per_epoch:,} -> {now.per_epoch:,}, in all {before.total:,} -> {now.total:,}; "
        f"step {step:,} is epoch {step / before.per_epoch:.2f} -> {step / now.per_epoch:.2f}"
    )
    old, new = (optimizer_schedules(config, length) for length in (before, now))
    rates = [f"{float(schedules.learning_rate(jnp.int32(step))):.3g}" for schedules in (old, new)]
    decays = [f"{float(schedules.weight_decay(jnp.int32(step))):.3g}" for schedules in (old, new)]
    yield f"data         learning rate at this step {rates[0]} -> {rates[1]}, weight decay {decays[0]} -> {decays[1]}"
