"""Every example in a docstring runs as it stands, in a directory with a small checkpoint `RUN` and a `photo.jpg`; no download."""

from __future__ import annotations

import ast
import doctest
import importlib
import re

import numpy as np
import pytest
from PIL import Image

import sere_jax
from tests import house, micro, saved_run


def _examples():
    """(module, name, docstring) of everything that has an example, read off the source: wrapped functions count too."""
    for name, path in house.modules():
        for node in ast.walk(house.tree(path)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ">>>" in (text := ast.get_docstring(node) or ""):
                module = f"sere_jax.{name}".removesuffix(".__init__")
                yield pytest.param(module, text, id=f"{module}:{getattr(node, 'name', 'module')}")


class Checker(doctest.OutputChecker):
    """Compares what examples print without the lines of progress, which begin with the time of day."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return super().check_output(want, re.sub(r"^\d\d:\d\d:\d\d .*\n", "", got, flags=re.MULTILINE), optionflags)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("examples")
    config = micro.config()
    saved_run.checkpoint(root / "RUN", config, saved_run.state(config))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(root / "photo.jpg")
    return root


@pytest.mark.parametrize(("module", "text"), list(_examples()))
def test_an_example_runs(place, monkeypatch, module, text):
    monkeypatch.chdir(place)
    names = dict(vars(importlib.import_module(module)))
    test = doctest.DocTestParser().get_doctest(text, names, module, None, 0)
    shown: list[str] = []
    doctest.DocTestRunner(Checker(), optionflags=doctest.ELLIPSIS).run(test, out=shown.append)
    assert not shown, "".join(shown)


def test_everything_on_the_face_has_an_example():
    face = [getattr(sere_jax, name) for name in sere_jax.__all__]
    methods = [getattr(sere_jax.Backbone, name) for name in ("__call__", "prepare", "apply", "init")]
    assert not [thing.__qualname__ for thing in (*face, *methods) if ">>>" not in (thing.__doc__ or "")]
