"""The worked example of docs/architecture.md: a protocol added by its module, its config and one entry of the tuple."""

from __future__ import annotations

import importlib.util
import json
import re
import textwrap
from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax.commands import evaluate
from sere_jax.data.batches.whole_images import eval_batches
from sere_jax.data.sources.open import open_source
from sere_jax.evals import protocols
from tests.evals import micro_network

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"


def _example(part: str, directory: Path) -> ModuleType:
    """The module that the document shows below `<!-- example: part -->`, written to a file and imported from there."""
    block = re.search(rf"<!-- example: {part} -->\n *```python\n(.*?)\n *```", DOCUMENT.read_text(), re.DOTALL)
    assert block is not None
    path = directory / f"lengths_{part}.py"
    path.write_text(textwrap.dedent(block[1]) + "\n")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_protocol_is_added_by_its_module_its_config_and_the_tuple(tmp_path, monkeypatch):
    module, config_file = _example("module", tmp_path), _example("config", tmp_path)
    photographs = f"folder:{micro_network.photographs(tmp_path / 'photographs')}"
    config = config_file.get_config(f"source={photographs},batch_size=4")
    assert protocols.mistakes(config)[0].startswith("protocol: found 'lengths', expected one of knn")

    monkeypatch.setattr(protocols, "PROTOCOLS", (*protocols.PROTOCOLS, module.PROTOCOL))
    assert protocols.mistakes(config) == []
    assert protocols.mistakes(config_file.get_config("batch_size=0")) == ["batch_size: found 0, expected a whole number of at least 1"]
    network = micro_network.network()
    evaluate.run(config, [network], tmp_path)

    report = json.loads((tmp_path / "eval" / "lengths.json").read_text())
    (batch,) = eval_batches(open_source(photographs), size=network.size, resize=network.resize, batch_size=4)
    pixels = (np.asarray(batch.images, np.float32) / 255 - network.mean) / network.std
    cls = network.apply(network.params, jnp.asarray(pixels.astype(np.float32))).cls
    expected = np.sqrt((np.asarray(cls, np.float64) ** 2).sum(axis=1)).mean()
    # 1e-5: the protocol's float32 network runs compiled, this one operation by operation.
    assert report["results"] == [{"name": "micro", "length": pytest.approx(expected, rel=1e-5)}]
    assert module.PROTOCOL.columns(report) == {"lengths length": report["results"][0]["length"]}


def test_names_of_protocols_are_distinct_and_each_has_a_config():
    names = [protocol.name for protocol in protocols.PROTOCOLS]
    configs = DOCUMENT.parent.parent / "configs" / "eval"
    assert sorted(names) == sorted(path.stem for path in configs.glob("[!_]*.py"))
