"""Who may import whom, as one literal table, and what is read off the syntax trees of the package.

`tests/test_house.py` holds the package to it. `python -m tests.house` counts lines, rooms, floors and climbs;
`python -m tests.house --draw` writes the picture of the rooms into docs/architecture.md.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sere_jax"
MAP = ROOT / "docs" / "architecture.md"

# Each room (a package or a top-level module of sere_jax) and the rooms that it sees besides itself. The order is the floors': a room
# sees only rooms above its own row.
MAY_IMPORT: dict[str, set[str]] = {
    "types": set(),
    "ranges": set(),
    "buckets": {"ranges"},
    "writing": {"buckets"},
    "ops": {"types"},
    "losses": {"types", "ops"},
    "interop": {"types", "buckets", "writing"},
    "reporting": {"types", "buckets", "writing"},
    "sharding": {"types"},
    "distributed": {"types", "buckets"},
    "data": {"types", "buckets", "writing", "ops"},
    "models": {"types", "ops"},
    "objectives": {"types", "ops", "losses"},
    "train": {"types", "buckets", "writing", "ops", "sharding", "distributed", "reporting"},
    # The names of models, recipes, sources and protocols; it builds nothing.
    "config": {"types", "buckets", "writing", "models", "objectives", "data"},
    "evals": {"types", "buckets", "writing", "ops", "losses", "models", "data", "train", "config", "sharding", "distributed", "reporting"},
    "build": {"types", "ops", "losses", "data", "models", "objectives", "train", "config", "sharding"},
    "weights": {"types", "buckets", "writing", "ops", "data", "models", "train", "config", "build", "interop"},
    "commands": {
        "types",
        "buckets",
        "writing",
        "ops",
        "interop",
        "reporting",
        "sharding",
        "distributed",
        "data",
        "models",
        "objectives",
        "train",
        "config",
        "evals",
        "build",
        "weights",
    },
    "__main__": {"commands", "reporting", "buckets", "writing"},
    "__init__": {"weights"},
}
PURE = {"types", "ops", "losses"}  # never see Flax


@functools.cache
def files(*suffixes: str) -> tuple[Path, ...]:
    """The files of the project: tracked, or new and not ignored. Raises OSError outside a git checkout."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        raise OSError(f"{ROOT} is no git checkout")
    return tuple(ROOT / name for name in listed.stdout.splitlines() if name.endswith(suffixes or "") and (ROOT / name).is_file())


@functools.cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text())


def modules() -> Iterator[tuple[str, Path]]:
    """The modules of the package by their names below it: data.crops.views; a package is named as its `__init__`."""
    for path in files(".py"):
        if path.is_relative_to(PACKAGE):
            yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts), path


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every imported name in full, and whether the import stands at the top of the file."""
    top = set(map(id, tree(path).body))
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            # `from package import module` and `from module import name` look alike; the longer name says more
            yield from ((f"{node.module}.{alias.name}", id(node) in top) for alias in node.names)


def room(name: str) -> str:
    """data.crops.views -> data; types -> types. A leading `sere_jax.` does not matter."""
    return name.removeprefix("sere_jax.").split(".")[0]


def arrows() -> set[tuple[str, str]]:
    """Pairs (room, room that it imports), each once, without those to itself."""
    found = set()
    for name, path in modules():
        for imported, _ in imports(path):
            if imported.startswith("sere_jax.") and room(imported) != room(name):
                found.add((room(name), room(imported)))
    return found


def floors() -> dict[str, int]:
    """The floor of each room: 0 where it imports no other room, else one above the highest that it imports."""
    above: dict[str, int] = {}
    edges = arrows()

    def floor(name: str, path: tuple[str, ...] = ()) -> int:
        assert name not in path, f"a circle of imports: {' -> '.join((*path, name))}"
        if name not in above:
            above[name] = max((floor(target, (*path, name)) + 1 for source, target in edges if source == name), default=0)
        return above[name]

    return {name: floor(name) for name in MAY_IMPORT}


def climbs() -> list[tuple[str, str]]:
    """Arrows from a room to one of a later row of the table; the table is kept so that there are none."""
    order = list(MAY_IMPORT)
    return sorted((a, b) for a, b in arrows() if a in order and b in order and order.index(b) > order.index(a))


def drawing() -> str:
    """The rooms as a Mermaid graph: an arrow for each import that is not implied by a longer way."""
    edges = {(a, b) for a, b in arrows() if a in MAY_IMPORT and b in MAY_IMPORT}
    reach: dict[str, set[str]] = {}
    for name in MAY_IMPORT:  # in the order of the floors, so that what a room sees is known before it
        direct = {b for a, b in edges if a == name}
        reach[name] = direct.union(*(reach[b] for b in direct))
    direct_only = sorted((a, b) for a, b in edges if not any(b in reach[c] for x, c in edges if x == a and c != b))
    lines = [f"  {a} --> {b}" for a, b in direct_only if a != "__init__"]
    return "\n".join(["```mermaid", "graph TD", *lines, "```"])


def table() -> str:
    """`MAY_IMPORT` as a Markdown table, in its order."""
    rows = [
        f"| `{name}` | {', '.join(f'`{seen}`' for seen in MAY_IMPORT if seen in sees) or 'nothing'} |" for name, sees in MAY_IMPORT.items()
    ]
    return "\n".join(["| Room | sees, besides itself |", "|---|---|", *rows])


def draw() -> str:
    """docs/architecture.md with the picture and the table of today's imports between their marks."""
    text = MAP.read_text()
    for name, content in (("rooms", drawing()), ("table", table())):
        head, start, rest = text.partition(f"<!-- {name}: python -m tests.house --draw -->\n")
        _, end, tail = rest.partition(f"<!-- end of {name} -->")
        assert start and end, f"{MAP}: the marks of the {name} are gone"
        text = f"{head}{start}{content}\n{end}{tail}"
    return text


def count() -> str:
    """Lines, modules, rooms, floors and climbs of the package, a line each."""
    found = list(modules())
    rows = {
        "lines": sum(path.read_text().count("\n") for _, path in found),
        "modules": len(found),
        "rooms": len(MAY_IMPORT),
        "modules without a room": sum(room(name) not in MAY_IMPORT for name, _ in found),
        "floors": max(floors().values()) + 1,
        "climbs": len(climbs()),
    }
    return "\n".join(f"{name:<24}{value:>7,}" for name, value in rows.items())


if __name__ == "__main__":
    if "--draw" in sys.argv:
        MAP.write_text(draw())
    print(count())
