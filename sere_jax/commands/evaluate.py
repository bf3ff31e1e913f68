"""From an evaluation's config to a protocol and what it is given. The part of `build` that `eval.py` and `ablate` share."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from sere_jax import distributed
from sere_jax.buckets import Location, is_address
from sere_jax.build import pretraining
from sere_jax.commands import identity
from sere_jax.config import check as rules
from sere_jax.config.launch import Launch
from sere_jax.config.names import flatten
from sere_jax.config.saved import completed
from sere_jax.data.crops.views import ViewRecipe
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.open import SourceError, open_source
from sere_jax.evals import protocols
from sere_jax.evals.figures.first_batch import Feed
from sere_jax.evals.network import Network
from sere_jax.evals.network import digest as network_digest
from sere_jax.weights.backbone import load_backbone
from sere_jax.weights.read import read_weights
from sere_jax.writing import place, replacing

_NO_LAUNCH = Launch()


def load(path: str, *, network: str = "", heads: int = 0, ignore: Sequence[str] = ()) -> Network:
    """A checkpoint as protocols want it; `network`, `heads` and `ignore` as `load_backbone` takes them.

    Prints what was recognised in a file, taken from it and left.
    """
    found = load_backbone(path, network=network, heads=heads, ignore=ignore)
    if jax.process_index() == 0:
        print("".join(f"{line}\n" for line in found.about.get("report", ())), end="")
    about = {"checkpoint": path, **{key: found.about.get(key) for key in ("network", "step", "config")}}
    prepare = found.preprocess
    whole = place(path) if is_address(path) else place(path).resolve()  # epath takes an address for a relative path
    run = whole.parent if whole.parent.name == "checkpoints" else whole  # of one step: the directory of the steps
    name = run.parent.name if run.name == "checkpoints" else run.stem
    sizes = (prepare.size, prepare.resize, found.module.patch_size, prepare.mean, prepare.std)
    return Network(
        name,
        found.apply,
        found.params,
        *sizes,
        init=found.init,
        about=about,
        value_range=prepare.value_range,
        whole_patches=bool(found.module.heads),
        depth=found.module.depth if found.module.heads else 0,
        module=found.module,
        projection=functools.partial(_projection, path, network, heads, ignore),
        fc_norm=functools.partial(_fc_norm, path, heads, ignore) if "classes" in found.about else None,  # of a fine-tuned network
    )


def _projection(path: str, network: str, heads: int, ignore: Sequence[str]) -> dict[str, Any]:
    """The first layer of the checkpoint's DINO head; {} where it holds none."""
    return dict(read_weights(path, network=network, heads=heads, ignore=ignore).params.get("heads_dino", {}).get("mlp_0", {}))


def _fc_norm(path: str, heads: int, ignore: Sequence[str]) -> dict[str, Any]:
    """The LayerNorm of the pooled patches of a fine-tuned network; {} where it pools the cls token."""
    return dict(read_weights(path, heads=heads, ignore=ignore).params.get("fc_norm", {}))


def distinct(networks: Sequence[Network]) -> list[Network]:
    """Names that tell the rows apart; the config goes, a report needs only where a network came from."""
    names = [network.name for network in networks]
    shown = []
    for number, network in enumerate(networks, 1):
        name = network.name if names.count(network.name) == 1 else f"{network.name} [{number}]"
        shown.append(network._replace(name=name, about={key: value for key, value in network.about.items() if key != "config"}))
    return shown


def settings(config: ConfigDict, networks: Sequence[Network]) -> Any:
    """The protocol's settings: the config's keys, with views and photometry as objects, and for the figures what training is fed."""
    wanted: Any = protocols.protocol(config.protocol).settings
    reading = {key: config[key] for key in ("backend", "max_pixels") if key in config}
    values = {key: value for key, value in config.items() if key not in ("protocol", "views_of", "views", "photometry", *reading)}
    if "reading" in wanted._fields:
        values["reading"] = ImageReading(**reading)
    if "views" in config:
        saved = networks[0].about.get("config") if networks else None
        training = completed(saved) if saved and config.views_of == "checkpoint" else None
        recipe = training or config
        # Pairs of square crops are looked at, whatever the method learned from.
        pairs = dataclasses.replace(ViewRecipe(**recipe.views), global_count=2, global_width=0)
        values |= {"views": pairs, "photometry": pretraining.photometry(recipe)}
        if "feed" in wanted._fields:
            values["feed"] = functools.partial(feed, config, training, networks[0].about.get("checkpoint", "") if training else "")
    return wanted(**values)


def feed(config: ConfigDict, training: ConfigDict | None, run: str = "") -> Feed:
    """The batches of the checkpoint `run`, whose config is `training`; without one those that the evaluation's config would make.

    Where the source of that run is not to be had the evaluation's takes its place, and a line says so.
    """
    colours = (training or config).photometry
    if training is None:
        shared = (ViewRecipe(**config.views), pretraining.augment(config), colours.mean, colours.std)
        return Feed(
            open_source(config.source),
            *shared,
            seed=config.seed,
            reading=ImageReading(config.backend),
            points=config.points,
            sampling=config.sampling,
        )
    data = training.data
    try:
        source = open_source(data.source)
    except SourceError as error:
        print(f"crops: the training images are not to be had ({error}); those of {config.source} are shown")
        source = open_source(config.source)
    length = pretraining.Steps(max(1, len(source) // data.batch_size), 1)
    return Feed(
        source,
        pretraining.view_recipe(training),
        pretraining.augment(training),
        colours.mean,
        colours.std,
        seed=training.seed,
        batch_size=data.batch_size,
        reading=pretraining.image_reading(training),
        masking=pretraining.mask_recipe(training, length),
        points=training.relation.global_points,
        local_points=training.relation.local_points,
        sampling=training.relation.sampling,
        run=run,
    )


def run(config: ConfigDict, networks: Sequence[Network], workdir: Location, launch: Launch = _NO_LAUNCH) -> None:
    """Run the config's protocol on the networks; results go below `workdir`.

    eval/launches/PROTOCOL.json says how the config differs from its file (`Launch.record`).

    Raises OtherProcessError where processes have other settings, images, networks or another workdir.
    """
    _check_same(config, networks, workdir)
    protocols.protocol(config.protocol).run(distinct(networks), workdir, settings(config, networks))
    if jax.process_index() == 0:
        with replacing(workdir / "eval" / "launches" / f"{config.protocol}.json") as temporary:
            temporary.write_text(json.dumps(launch.record(config), indent=2) + "\n", encoding="utf-8")


def _check_same(config: ConfigDict, networks: Sequence[Network], workdir: Location) -> None:
    """Compare the processes. Paths of images may differ between machines, so that their listings are compared."""
    if jax.process_count() == 1:
        return
    sources = rules.sources(config)
    with distributed.together():
        images = {f"images of {key}": digest for key, digest in identity.digests(sources).items()}
        weights = {f"checkpoint {number}": network_digest(network) for number, network in enumerate(networks, 1)}
    facts = {key: repr(value) for key, value in flatten(config).items() if key not in sources}
    distributed.assert_equal(facts | images | weights | {"--workdir": str(workdir)}, "the processes of this evaluation disagree")
