"""What a compiled program does, read from XLA's text of it: collectives and traffic, each as often as its loop runs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "token": 0}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all", "partition-id"}
_APPLIES = {"reduce", "sort", "scatter", "select-and-scatter", "reduce-window", "map"}  # to single numbers


class Array(NamedTuple):
    """Type and shape of an array."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size without padding."""
        width = _BYTES.get(self.dtype) or int(re.sub(r"\D.*", "", self.dtype.lstrip("abcdefghijklmnopqrstuvwxyz")) or 8) / 8
        return math.ceil(math.prod(self.shape) * width) if self.dtype != "token" else 0


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]  # the result, a tuple's leaves one by one
    operands: tuple[str, ...]  # the names of the instructions whose results it takes
    number: int  # of a parameter
    attributes: str  # the text after the operands

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return sum(array.bytes for array in self.arrays)

    @property
    def source(self) -> str:
        """Where in the traced program it is from: JAX's path of transformations and modules."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match.group(1) if match else ""


Computation = dict[str, Instruction]


class Program(NamedTuple):
    """A compiled program: its computations, how often each one runs, and which ones are the insides of fusions."""

    computations: Mapping[str, Computation]
    runs: Mapping[str, int]
    fused: frozenset[str]

    def executed(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """Every instruction with its computation and the number of times that it runs."""
        for name, count in self.runs.items():
            for instruction in self.computations[name].values():
                yield self.computations[name], instruction, count


class Collective(NamedTuple):
    """An array that devices exchange.

    Attributes:
      kind: one of `COLLECTIVES`.
      array: what one device gives, of a gather what it gets.
      runs: how often it runs in a step.
      group: how many devices take part; `axis` names the mesh's axes that they differ in.
      source: as `Instruction.source`, of the instruction that made the array.
    """

    kind: str
    array: Array
    runs: int
    group: int
    axis: str
    source: str

    @property
    def bytes(self) -> int:
        """Bytes of a step."""
        return self.array.bytes * self.runs

    @property
    def sent(self) -> float:
        """Bytes that a device sends in a step with a ring: twice (n - 1) / n of a sum, once of anything else."""
        return self.bytes * (self.group - 1) / self.group * (2 if self.kind == "all-reduce" else 1)


def parse(text: str) -> Program:
    """Read `Compiled.as_text()`. A loop without a known number of turns counts once."""
    computations: dict[str, Computation] = {}
    current: Computation = {}
    entry = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header.group(2), {})
            entry = header.group(2) if header.group(1) else entry
        elif instruction := _instruction(line):
            current[instruction.name] = instruction
    runs: dict[str, int] = {}
    _count(computations, entry, 1, runs)
    every = [one for computation in computations.values() for one in computation.values()]
    return Program(computations, runs, frozenset(name for one in every if one.opcode == "fusion" for name in _called(one)))


def collectives(program: Program, mesh: Mapping[str, int]) -> list[Collective]:
    """The collectives of a compiled step on a mesh, given as axis -> size in the order of the devices."""
    exchanged: list[Collective] = []
    for computation, instruction, count in program.executed():
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        group = _first_group(instruction.attributes, math.prod(mesh.values()))
        axis = _axis(group, mesh)
        gathers = kind in ("all-gather", "collective-broadcast")
        operands = [computation[name] for name in instruction.operands if name in computation]
        results = instruction.arrays[len(operands) :] if instruction.opcode == "all-gather-start" else instruction.arrays
        for number, operand in enumerate(operands):
            array = results[min(number, len(results) - 1)] if gathers else operand.arrays[0]
            source = _origin(computation, operand).source or instruction.source
            exchanged.append(Collective(kind, array, count, len(group), axis, source))
    return exchanged


def traffic(program: Program) -> float:
    """Bytes that a step reads and writes in a device's memory, at most: what stays on the chip between two instructions counts too.

    A slice of a larger array counts as the slice, also where a fusion takes it.
    """
    total = 0.0
    for name, count in program.runs.items():
        if name not in program.fused:
            computation = program.computations[name]
            total += count * sum(_moved(program, computation, one) for one in computation.values())
    return total


def _instruction(line: str) -> Instruction | None:
    match = _LINE.match(line)
    if not match:
        return None
    name, rest = match.groups()
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ") if " " in rest else len(rest)
    shape, call = rest[:end], rest[end:].lstrip()
    opcode, bracket, _ = call.partition("(")
    if not bracket or not re.fullmatch(r"[a-z][\w\-]*", opcode):
        return None
    close = _closing(call, len(opcode))
    arrays = tuple(
        Array(dtype, tuple(int(size) for size in sizes.split(",") if size))
        for dtype, sizes in _ARRAY.findall(re.sub(r"\{[^{}]*\}", "", shape))
    )
    inside = call[len(opcode) + 1 : close]
    number = int(inside) if opcode == "parameter" else -1
    return Instruction(name, opcode, arrays, tuple(_NAME.findall(inside)), number, call[close + 1 :])


def _closing(text: str, start: int) -> int:
    """The position of the bracket that closes the one at `start`."""
    close = text.find(")", start)
    if text.find("(", start + 1, close) < 0:
        return close
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position
    return len(text) - 1


def _count(computations: Mapping[str, Computation], name: str, times: int, runs: dict[str, int]) -> None:
    """Add the runs of a computation and of those that it calls. What reductions and fusions apply inside is no instruction of its own."""
    runs[name] = runs.get(name, 0) + times
    for instruction in computations[name].values():
        if instruction.opcode in _APPLIES or instruction.opcode.removesuffix("-start") in COLLECTIVES:
            continue
        turns = re.search(r'known_trip_count":\{"n":"(\d+)"', instruction.attributes)
        for called in filter(computations.__contains__, _called(instruction)):
            _count(computations, called, times * (int(turns.group(1)) if turns else 1), runs)


def _called(instruction: Instruction) -> list[str]:
    return [name for names in _CALLED.findall(instruction.attributes) for name in re.findall(r"[\w.\-]+", names)]


def _first_group(attributes: str, devices: int) -> list[int]:
    """The devices of the first group: `{{0,1},{2,3}}`, or `[groups,size]<=[dims]T(permutation)`. No groups: all devices."""
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return [int(pairs.group(1)), int(pairs.group(2))]
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return [int(number) for number in listed.group(1).split(",")]
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if not iota:
        return list(range(devices))
    dims = [int(size) for size in iota.group(3).split(",")]
    order = [int(axis) for axis in iota.group(4).split(",")] if iota.group(4) else range(len(dims))
    numbers = np.arange(math.prod(dims)).reshape(dims).transpose(tuple(order))
    return [int(number) for number in numbers.reshape(int(iota.group(1)), int(iota.group(2)))[0]]


def _axis(group: Sequence[int], mesh: Mapping[str, int]) -> str:
    """The axes in which the devices of a group differ, joined by +."""
    places = np.array(np.unravel_index(group, tuple(mesh.values())))
    return "+".join(name for name, row in zip(mesh, places, strict=True) if len(set(row.tolist())) > 1) or "none"


def _origin(computation: Computation, instruction: Instruction) -> Instruction:
    """What computed an array that was only renamed, converted or laid out anew since."""
    while instruction.opcode in ("get-tuple-element", "bitcast", "copy", "convert", "reshape", "transpose") and not instruction.source:
        if not instruction.operands or instruction.operands[0] not in computation:
            break
        instruction = computation[instruction.operands[0]]
    return instruction


def _moved(program: Program, computation: Computation, instruction: Instruction) -> int:
    """Bytes of the operands and of the result."""
    if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
        return 0
    read = [computation[name] for name in instruction.operands if name in computation]
    if instruction.opcode in ("dynamic-slice", "gather"):
        return 2 * instruction.size
    if instruction.opcode == "dynamic-update-slice":
        return 2 * read[1].size
    if instruction.opcode != "fusion":
        return instruction.size + sum(one.size for one in read)
    inner = program.computations[_called(instruction)[0]]
    updates = [inner[one.operands[1]].size for one in inner.values() if one.opcode == "dynamic-update-slice"]
    parameters = {one.number: one for one in inner.values() if one.opcode == "parameter"}
    return (sum(updates) or instruction.size) + sum(_taken(inner, parameters[number], one.size) for number, one in enumerate(read))


def _taken(fusion: Computation, parameter: Instruction, whole: int) -> int:
    """The bytes that a fusion takes of an operand: slices where it only slices it, nothing where it only writes into it."""
    users = [one for one in fusion.values() if parameter.name in one.operands]
    if users and all(one.opcode == "dynamic-slice" and one.operands[0] == parameter.name for one in users):
        return sum(one.size for one in users)
    if users and all(one.opcode == "dynamic-update-slice" and one.operands[0] == parameter.name for one in users):
        return 0
    return whole
