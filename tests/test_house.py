"""The rules of the house, read off the syntax trees: who may import whom, sizes, docstrings, nothing of anybody's machine.

The rules and their reasons are in docs/architecture.md. Where a rule is wrong, change it there and here in one commit.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib

import pytest

from tests import house
from tests.house import MAY_IMPORT, PURE, ROOT, imports, modules, room, tree

# At most so many lines: a function without its docstring, a file of the package, a file of tests.
FUNCTION, FILE, TEST_FILE = 48, 300, 400
# Longer, each with its reason.
LONG_FUNCTIONS: dict[str, str] = {}
LONG_FILES: dict[str, str] = {}


def files(*suffixes: str):
    try:
        return house.files(*suffixes)
    except OSError as error:
        pytest.skip(str(error))


def test_every_module_has_a_room_and_every_row_a_module():
    assert {room(name) for name, _ in modules()} == set(MAY_IMPORT)


def test_every_room_says_what_it_is_for():
    packages = [path for name, path in modules() if path.name == "__init__.py"]
    silent = [str(path.relative_to(ROOT)) for path in packages if not ast.get_docstring(tree(path))]
    assert packages and not silent, silent


def test_who_may_import_whom():
    wrong = [
        f"sere_jax.{name} imports {imported}"
        for name, path in modules()
        for imported in {imported for imported, _ in imports(path) if imported.startswith("sere_jax.")}
        if room(imported) != room(name) and room(imported) not in MAY_IMPORT[room(name)]
    ]
    assert not wrong, "\n".join(sorted(wrong))


def test_no_arrow_runs_back_up():
    assert not house.climbs()
    order = list(MAY_IMPORT)
    assert not [(name, seen) for name, sees in MAY_IMPORT.items() for seen in sees if order.index(seen) > order.index(name)]
    house.floors()  # raises on a circle


def test_the_picture_of_the_rooms_is_today_s():
    assert house.draw() == house.MAP.read_text(), "run: python -m tests.house --draw"


def test_losses_and_geometry_never_see_flax():
    wrong = [
        f"{name}: {imported}"
        for name, path in modules()
        for imported, _ in imports(path)
        if room(name) in PURE and imported.startswith("flax")
    ]
    assert not wrong, wrong


def test_torch_and_tensorflow_only_inside_functions_of_interop_and_preparation():
    wrong = []
    for name, path in modules():
        for imported, at_top in imports(path):
            heavy = imported.split(".")[0] in ("torch", "tensorflow")
            if heavy and (at_top or not name.startswith(("interop", "data.prepare"))):
                wrong.append(f"sere_jax.{name} imports {imported}")
    assert not wrong, wrong


def test_configs_import_ml_collections_and_what_they_share():
    """And the standard library. configs/common.py alone sees `sere_jax.config`, which holds the table of keys and imports no JAX."""
    wrong = [
        f"{path.name}: {imported}"
        for path in files(".py")
        if path.is_relative_to(ROOT / "configs")
        for imported, _ in imports(path)
        if not imported.startswith(("ml_collections", "configs.common", "configs.eval.common"))
        and not (imported.startswith("sere_jax.config.") and path.name == "common.py")
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
    """docs/architecture.md has a row for each room below "Where things are"; a row names the room's modules, as `data/crops`: `views`."""
    section = house.MAP.read_text().partition("## Where things are")[2].partition("\n## ")[0]
    named = set()
    for place, members in re.findall(r"^\| *`([\w/]+)` *\|([^|]+)\|[^|]+\|$", section, re.MULTILINE):
        prefix = "" if place == "sere_jax" else place.replace("/", ".") + "."
        named |= {prefix + member for member in re.findall(r"`([\w.]+)`", members)}
    there = {name for name, _ in modules() if not name.endswith("__init__")}
    assert named == there, sorted(named ^ there)


def test_no_drawer_for_everything():
    assert not [path for path in files(".py") if path.name in ("utils.py", "util.py", "helpers.py", "misc.py")]


def test_what_is_public_says_what_it_is():
    wrong = []
    for name, path in modules():
        public = [node for node in tree(path).body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")]
        wrong += [f"sere_jax.{name}: {node.name}" for node in public if not ast.get_docstring(node)]
        if not ast.get_docstring(tree(path)):
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
