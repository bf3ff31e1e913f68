"""The table of keys: it is whole, it needs no JAX, and what is made from it is current."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from configs.common import pretrain
from sere_jax.config import document
from sere_jax.config.keys import KEYS, RULES
from sere_jax.config.names import flatten
from sere_jax.models import variants
from sere_jax.models.vit import Positions

ROOT = Path(__file__).resolve().parents[2]


def test_the_defaults_are_the_tables():
    assert flatten(pretrain()) == {path: key.default for path, key in KEYS.items()}
    pretrain().data.batch_size = 3
    assert pretrain().data.batch_size == 512  # each call makes a new config


@pytest.mark.parametrize("path", KEYS)
def test_a_default_keeps_its_rule_and_has_a_line_of_meaning(path: str):
    key = KEYS[path]
    assert RULES[path].accepts(key.default)
    assert key.meaning.endswith(".") and "\n" not in key.meaning and len(key.meaning) < 120


def test_the_document_is_current(tmp_path):
    assert (ROOT / "docs" / "config.md").read_text() == document.text(), "run: python -m sere_jax.config.document"
    assert document.main([str(tmp_path / "config.md")]) == 0 and (tmp_path / "config.md").read_text() == document.text()
    assert all(f"| `{path}` |" in document.text() for path in KEYS)


def test_the_checks_import_neither_jax_nor_flax():
    """So that mistakes of a command line are reported within a second or two. In a process of its own, since pytest imports JAX."""
    modules = "sere_jax.config.check, sere_jax.config.command_line, sere_jax.config.saved, configs.common"
    program = f"import {modules}, sys; print([name for name in ('jax', 'flax', 'grain', 'orbax') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_choices_of_positions_are_the_models():
    assert Positions.__args__ == variants.POSITIONS


def _assigned(path: Path) -> dict[str, object]:
    """Flat keys that a config file assigns literally: `config.a.b = 1` and `config.a.update({"b": 1})`."""
    values: dict[str, object] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("config."):
            values |= _literal(ast.unparse(node.targets[0]).removeprefix("config."), node.value)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("config.") and ast.unparse(node.func).endswith(".update"):
            group, [argument] = ast.unparse(node.func).removeprefix("config.").removesuffix(".update"), node.args
            assert isinstance(argument, ast.Dict)
            for key, value in zip(argument.keys, argument.values, strict=True):
                values |= _literal(f"{group}.{ast.literal_eval(key)}", value)
    return values


def _literal(key: str, node: ast.expr) -> dict[str, object]:
    try:
        return {key: ast.literal_eval(node)}
    except ValueError:
        return {}


@pytest.mark.parametrize(
    "path", [p for p in sorted((ROOT / "configs").glob("*.py")) if "= pretrain()" in p.read_text()], ids=lambda p: p.stem
)
def test_a_config_file_repeats_no_default(path: Path):
    values = _assigned(path)
    assert values and not [key for key, value in values.items() if value == KEYS[key].default]
