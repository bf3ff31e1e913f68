"""The rules of the house, read off the syntax trees: who may import whom, sizes, docstrings, nothing of anybody's machine.

The rules and their reasons are in docs/architecture.md. Where a rule is wrong, change it there and here in one commit.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"losses", "models", "data", "objectives", "evals", "interop", "ops"}

# Who may import whom within sere_jax: a room or top-level module, and all that it may see besides itself. What has no line here or below
# may see everything but programs.
MAY_IMPORT = {
    "types": set(),
    "schedules": {"types"},
    "state": {"types"},
    "optim": {"types", "schedules"},
    "ops": {"types"},
    "losses": {"types", "ops"},
    "models": {"types", "ops"},
    "data": {"types", "ops"},
    "objectives": {"types", "ops", "losses"},
    "step": {"types", "ops", "optim", "state"},
    "sharding": {"types"},
    "digest": {"types"},
    "checkpoint": {"types", "digest", "state"},
    "evals": {"types", "ops", "models", "data", "losses", "optim", "schedules", "sharding", "progress", "fit"},
    "interop": {"types"},
}
METHODS = {"objectives", "losses", "models", "build", "build_model", "build_objective", "build_optimizer", "build_eval", "data"}
MAY_NOT_IMPORT = {
    "fit": METHODS | {"evals", "loop"},
    "progress": METHODS | {"evals", "loop", "fit", "step"},
    "loop": {"evals", "build_eval"},
}
PROGRAMS = {
    "extract",
    "ablate",
    "interop.export",
    "data.prepare",
    "data.check",
    "data.bench",
}  # may import anything; nothing imports them
LIGHT = {"losses", "types", "ops", "schedules"}  # never see Flax

# At most so many lines: a function without its docstring, a file of the package, a file of tests.
FUNCTION, FILE, TEST_FILE = 48, 300, 400
# Longer, each with its reason.
LONG_FUNCTIONS: dict[str, str] = {"sere_jax/step.py:make_train_step": "three parts that close over the method and the network"}
LONG_FILES: dict[str, str] = {}


@functools.cache
def files(*suffixes: str) -> list[Path]:
    """The files of the project: tracked, or new and not ignored."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if name.endswith(suffixes or "") and (ROOT / name).is_file()]


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def modules() -> list[tuple[str, Path]]:
    """The modules of the package by their name below it, as data.views."""
    found = [
        (".".join(path.relative_to(ROOT / "sere_jax").with_suffix("").parts), path)
        for path in files(".py")
        if path.is_relative_to(ROOT / "sere_jax")
    ]
    return [(name.removesuffix("__init__").strip("."), path) for name, path in found]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every imported module, with its full name, and whether the import stands at the top of the file."""
    top = set(map(id, tree(path).body))
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            # `from package import module` and `from module import name` look alike; the longer name says more
            yield from ((f"{node.module}.{alias.name}", id(node) in top) for alias in node.names)


def own(name: str) -> str:
    """sere_jax.data.views.make_views -> data; sere_jax.step.x -> step."""
    return name.removeprefix("sere_jax.").split(".")[0]


def is_program(name: str) -> bool:
    return any(name == program or name.startswith(program + ".") for program in PROGRAMS)


def test_the_table_names_what_exists():
    rooms = {path.name for path in (ROOT / "sere_jax").iterdir() if path.is_dir() and (path / "__init__.py").is_file()}
    assert rooms == ROOMS


def test_who_may_import_whom():
    wrong = []
    for name, path in modules():
        room = name.split(".")[0]
        if not name or is_program(name):
            continue
        for imported in {imported for imported, _ in imports(path) if imported.startswith("sere_jax.")}:
            target = own(imported)
            allowed = target in MAY_IMPORT.get(room, {target}) | {room} and target not in MAY_NOT_IMPORT.get(room, set())
            if not allowed or is_program(imported.removeprefix("sere_jax.")):
                wrong.append(f"sere_jax.{name} imports {imported}")
    assert not wrong, "\n".join(sorted(wrong))


def test_losses_and_geometry_never_see_flax():
    wrong = [
        f"{name}: {imported}"
        for name, path in modules()
        for imported, _ in imports(path)
        if own(name) in LIGHT and imported.startswith("flax")
    ]
    assert not wrong, wrong


def test_torch_and_tensorflow_only_inside_functions_of_interop_and_preparation():
    wrong = []
    for name, path in modules():
        for imported, at_top in imports(path):
            heavy = imported.split(".")[0] in ("torch", "tensorflow")
            if heavy and (at_top or not (name.startswith("interop") or name == "data.prepare")):
                wrong.append(f"sere_jax.{name} imports {imported}")
    assert not wrong, wrong


def test_configs_import_ml_collections_and_what_they_share():
    """And the standard library: a config is read by people who have not installed anything yet."""
    wrong = [
        f"{path.name}: {imported}"
        for path in files(".py")
        if path.is_relative_to(ROOT / "configs")
        for imported, _ in imports(path)
        if not imported.startswith(("ml_collections", "configs.common", "configs.eval.common"))
        and imported.split(".")[0] not in sys.stdlib_module_names
    ]
    assert not wrong, wrong


def test_oracles_import_nothing_they_judge():
    oracles = [path for path in files(".py") if path.is_relative_to(ROOT / "tests" / "oracles")]
    wrong = [
        f"{path.name}: {imported}" for path in oracles for imported, _ in imports(path) if imported.split(".")[0] in ("sere_jax", "configs")
    ]
    assert oracles and not wrong, wrong


def test_functions_and_files_are_short():
    wrong = []
    for path in files(".py"):
        name = str(path.relative_to(ROOT))
        lines = path.read_text().count("\n")
        most = TEST_FILE if name.startswith("tests/") else FILE
        if lines > most and name not in LONG_FILES:
            wrong.append(f"{name}: {lines} lines, at most {most}")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef) and f"{name}:{node.name}" not in LONG_FUNCTIONS:
                docstring = (ast.get_docstring(node, clean=False) or "").count("\n")
                length = (node.end_lineno or 0) - node.lineno + 1 - docstring
                if length > FUNCTION:
                    wrong.append(f"{name}:{node.name}: {length} lines, at most {FUNCTION}")
    assert not wrong, "\n".join(wrong)


def test_every_module_is_on_the_map():
    """docs/architecture.md names each module: those of a room in its rows, as `a` or `package`: `a`, the others in the first table."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    above, _, rooms = text.partition("## Where things are")[2].partition("## A method")[0].partition("The rooms, module by module")
    named, room = set(re.findall(r"`([\w.]+)`", above)) | ROOMS | {""}, ""
    for row in re.findall(r"^\| *(?:`?(\w+)`?)? *\|([^|]+)\|[^|]+\|$", rooms, re.MULTILINE):
        room = row[0] or room
        package, colon, members = row[1].rpartition(":")
        place = [] if room == "top" else [room]
        place += re.findall(r"\w+", package) if colon else []
        named |= {".".join([*place, *part]) for part in [[], *([name] for name in re.findall(r"`([\w.]+)`", members))]}
    missing = [name for name, _ in modules() if name not in named and not is_program(name.removesuffix(".__main__"))]
    assert not missing, missing


def test_no_drawer_for_everything():
    assert not [path for path in files(".py") if path.name in ("utils.py", "util.py", "helpers.py", "misc.py")]


def test_what_is_public_says_what_it_is():
    wrong = []
    for name, path in modules():
        public = [node for node in tree(path).body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")]
        wrong += [f"sere_jax.{name}: {node.name}" for node in public if not ast.get_docstring(node)]
        if path.stat().st_size and not ast.get_docstring(tree(path)):
            wrong.append(f"sere_jax.{name}")
    assert not wrong, "\n".join(wrong)


def test_no_keyword_pass_through():
    """A signature tells the truth: a call `f(**kwargs)` of one's own catch-all hides what f takes."""
    wrong = []
    for name, path in modules():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef) and node.args.kwarg:
                caught = node.args.kwarg.arg
                passed = [word for word in ast.walk(node) if isinstance(word, ast.keyword) and word.arg is None]
                if any(isinstance(word.value, ast.Name) and word.value.id == caught for word in passed):
                    wrong.append(f"sere_jax.{name}: {node.name}")
    assert not wrong, wrong


def test_nothing_of_anybodys_machine():
    """No absolute path of a developer's machine, no package host: a clone must work anywhere."""
    machine = re.compile(r"(?<![\w.])/(?:root|home|Users|work)/[A-Za-z]|py[p]i\.org|python[h]osted|n[p]mjs|de[b]ian\.org")
    wrong = []
    for path in files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        wrong += [f"{path.relative_to(ROOT)}: {found.group()}" for found in machine.finditer(text)]
    assert not wrong, "\n".join(wrong)


def test_pins_and_bounds_name_the_same_packages():
    def names(lines: list[str]) -> set[str]:
        found = (re.match(r"[A-Za-z][\w.-]*", line) for line in lines)
        return {match.group().lower().replace("_", "-") for match in found if match}

    bounds = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pins = (ROOT / "requirements.txt").read_text().splitlines()
    assert names(bounds) == names(pins)
    assert all("==" in line for line in pins if line and not line.startswith(("#", "-")))
