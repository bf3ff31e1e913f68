"""Compile a config's train step for devices that are not here: python -m sere_jax aot --config=FILE --topology=v5e:16x16

Prints, for one device: memory by kind, the arithmetic, every collective with its bytes and what it carries, the least time by
arithmetic, memory and links, and how many images would fit. Exit code 2: the command line or the config has mistakes, or the topology
cannot be compiled for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from absl import flags
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sere_jax import sharding
from sere_jax.build import pretraining
from sere_jax.commands import chips, hlo, pretrain, step_costs
from sere_jax.commands.chips import GIB, Chip
from sere_jax.config import check as rules
from sere_jax.config import command_line
from sere_jax.reporting import table
from sere_jax.writing import place, replacing, writing_to

# A run of ImageNet's length. The step is the same for any, but for the constants of its schedules.
_IMAGES = 1_281_167
_USABLE = 0.95  # of a chip's memory; the rest is the runtime's and fragments
# libtpu asks about the machine that it runs on. These are answers for one that has no TPU; without them it waits and prints warnings.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_CONTROL = {"while", "body", "cond", "closed_call", "checkpoint", "rematted_computation", "shard_map"}  # in the paths of sources


class TopologyError(ValueError):
    """The devices cannot be described; the message says what was found and what was expected."""


class Report(NamedTuple):
    """What the compiler says of a step, a device."""

    devices: int
    images: int  # a device
    compile_seconds: float
    memory: dict[str, int]  # bytes by kind
    operations: float  # needed ones, see `step_costs.operations`
    traffic: float  # bytes in the device's memory, at most
    collectives: list[hlo.Collective]

    @property
    def bytes(self) -> int:
        """All memory."""
        return sum(self.memory.values())

    def least_seconds(self, chip: Chip) -> dict[str, float]:
        """The time that each resource needs at its peak. The largest bounds the step's speed."""
        sent = sum(one.sent for one in self.collectives)
        return {"arithmetic": self.operations / chip.operations, "memory": self.traffic / chip.bandwidth, "links": sent / chip.links}


def compiled_report(config: ConfigDict, mesh: Mesh) -> Report:
    """Compile the train step of the config for the devices of a mesh, and read what it costs."""
    length = pretraining.Steps(max(1, _IMAGES // config.data.batch_size), config.schedule.total_steps or 100_000)
    state = pretrain.state_parts(config, length, mesh).abstract_state
    began = time.perf_counter()
    step = step_costs.compile_step(config, length, mesh, state)
    seconds, program = time.perf_counter() - began, hlo.parse(step.as_text() or "")
    return Report(
        mesh.size,
        config.data.batch_size // mesh.size,
        seconds,
        step_costs.memory(state, step_costs.abstract_batch(config, mesh), step),
        step_costs.operations(config, length) / mesh.size,
        hlo.traffic(program),
        hlo.collectives(program, dict(mesh.shape)),
    )


def devices(topology: str) -> list[Any]:
    """The devices of a topology such as `v5e:2x2` or `cpu:8`.

    Raises:
      TopologyError: it has no such form, libtpu is missing or refuses it, or JAX has already started with fewer CPU devices.
    """
    platform, _, shape = topology.partition(":")
    if platform == "cpu":
        return _cpu_devices(shape)
    known = chips.chip(platform)
    if known is None or not shape:
        raise TopologyError(
            f"--topology: found {topology!r}, expected cpu:N, or a TPU's version and shape such as v5e:2x2, v5p:2x2x1, v6e:4x4"
        )
    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:  # of many types: no libtpu, no such topology, a lock
        advice = "pip install -r requirements-aot.txt gives libtpu" if "libtpu" in str(error) else "shapes are those of whole slices"
        raise TopologyError(
            f"--topology: found {topology!r}, which cannot be compiled for: {str(error).splitlines()[0]} ({advice})"
        ) from error


def _cpu_devices(count: str) -> list[Any]:
    if not count.isdecimal() or not int(count):
        raise TopologyError(f"--topology: found 'cpu:{count}', expected cpu:N with N of at least 1")
    wanted = int(count)
    with contextlib.suppress(RuntimeError):  # JAX has started
        jax.config.update("jax_num_cpu_devices", wanted)
    present = jax.devices("cpu")
    if len(present) < wanted:
        raise TopologyError(f"--topology: found cpu:{count}, expected at most cpu:{len(present)}: JAX has started with so many")
    return present[:wanted]


def largest_batch(chip: Chip, whole: Report, half: Report) -> int:
    """Images a device that fit into a chip's memory, by a line through two batches."""
    each = (whole.bytes - half.bytes) / (whole.images - half.images)
    return int((_USABLE * chip.memory - whole.bytes) / each) + whole.images if each > 0 else whole.images


def summary(collectives: Sequence[hlo.Collective]) -> list[list[str]]:
    """The rows of the table of collectives: alike ones together, the largest first."""
    groups: dict[tuple[str, ...], list[hlo.Collective]] = {}
    for one in collectives:
        groups.setdefault((one.kind, one.array.dtype, one.axis, carries(one)), []).append(one)
    rows = sorted(groups.items(), key=lambda item: -sum(one.bytes for one in item[1]))
    return [
        [what, kind, dtype, axis, f"{sum(one.runs for one in ones):,}", f"{sum(one.bytes for one in ones) / 1e6:,.3f}"]
        for (kind, dtype, axis, what), ones in rows
    ]


def carries(collective: hlo.Collective) -> str:
    """What a collective is for, by the module and the pass of its source: `gradients of backbone/blocks`, `values of heads_spatial/bn`.

    >>> path = "jit(step)/transpose(jvp(Network))/heads_dino/heads_dino.mlp_0/dot_general"
    >>> carries(hlo.Collective("all-reduce", hlo.Array("f32", (2,)), 1, 8, "data", path))
    'gradients of heads_dino/mlp_0'
    """
    parts = [part.rpartition(".")[2] for part in collective.source.split("/")[:-1]]  # the last one is the operation
    modules = [re.sub(r"^blocks_\d+$", "blocks", part) for part in parts if not part.startswith("_") and part not in _CONTROL]
    start = next((i for i, part in enumerate(modules) if part == "backbone" or part.startswith("heads_")), None)
    kind = "gradients" if "transpose(" in collective.source else "values"
    return f"{kind} of {'the loss and the update' if start is None else '/'.join(dict.fromkeys(modules[start : start + 2]))}"


def show(title: str, report: Report, chip: Chip | None, half: Report | None) -> None:
    """Print the report."""
    table.show(
        f"{title}: memory of a device",
        ["kind", "GiB"],
        [[kind, f"{size / GIB:.3f}"] for kind, size in report.memory.items()] + [["all", f"{report.bytes / GIB:.3f}"]],
    )
    heading = ["what it carries", "collective", "type", "axis", "runs", "MB a step"]
    table.show("what devices exchange in a step", heading, summary(report.collectives))
    needed = report.operations / report.images / 1e9
    table.say(f"{report.devices} devices, {report.images} images each; compiled in {report.compile_seconds:.0f} s")
    table.say(f"{needed:,.1f} GFLOP an image; at most {report.traffic / 1e9:,.1f} GB a step through a device's memory")
    if chip is None:
        return
    seconds = report.least_seconds(chip)
    bound = max(seconds, key=lambda name: seconds[name])
    times = ", ".join(f"{name} {value * 1000:.1f} ms" for name, value in seconds.items())
    table.say(f"at the chip's peaks: {times}; bound by {bound}, {report.images / seconds[bound]:,.0f} images/s a chip at most")
    if half is not None:
        table.say(f"about {largest_batch(chip, report, half):,} images a chip fit into its {chip.memory / GIB:.0f} GiB")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    options = _parser().parse_args(argv)
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")  # with libtpu installed JAX would look for a TPU
    try:
        return _run(_config(options.config), options)
    except (TopologyError, rules.ConfigError) as error:
        print(f"aot: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sere_jax aot", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", required=True, metavar="FILE.py[:key=value,...]", help="as for train.py; keys of docs/config.md")
    parser.add_argument(
        "--topology", default="cpu:8", help="v5e:16x16, v5p:2x2x1, ... (needs requirements-aot.txt, no TPU); cpu:N = fake devices"
    )
    parser.add_argument(
        "--images_per_device", type=int, default=0, help="images of a device; 0 = data.batch_size over all devices (default)"
    )
    parser.add_argument(
        "--fits", action=argparse.BooleanOptionalAction, default=True, help="compile half the images too, and estimate the largest batch"
    )
    parser.add_argument("--json", default="", metavar="FILE", help="write the report here")
    return parser


def _config(spec: str) -> ConfigDict:
    values = flags.FlagValues()
    command_line.define_config(values)
    if mistakes := command_line.parse(["aot", f"--config={spec}"], required=("config",), flag_values=values):
        raise rules.refusal(mistakes)
    config: Any = values["config"].value
    config.data.source = "bundled"  # no image is read, so the config's own need not be on this machine
    return config


def _run(config: ConfigDict, options: argparse.Namespace) -> int:
    described = devices(options.topology)
    if options.images_per_device:
        config.data.batch_size = options.images_per_device * len(described)
    rules.validate(config, devices=len(described), processes=1)
    mesh = sharding.make_mesh(config.run.fsdp, described)
    report = compiled_report(config, mesh)
    chip, half = chips.chip(options.topology.partition(":")[0]), None
    if options.fits and chip is not None and report.images % 2 == 0:
        smaller = ConfigDict(config.to_dict())
        smaller.data.batch_size //= 2
        half = compiled_report(smaller, mesh)
    show(f"{config.recipe}, {options.topology}", report, chip, half)
    if options.json:
        _write(options.json, report, chip)
    return 0


def _write(path: str, report: Report, chip: Chip | None) -> None:
    exchanged: list[Mapping[str, Any]] = [one._asdict() | {"bytes": one.bytes, "carries": carries(one)} for one in report.collectives]
    content = report._asdict() | {"collectives": exchanged, "least_seconds": report.least_seconds(chip) if chip else None}
    with writing_to(place(path).parent), replacing(place(path)) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
