"""Norms of tokens: each block's against the network called by itself, and a patch that is made long."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from configs.eval import norms as config_file
from sere_jax.commands import evaluate
from sere_jax.data.batches.whole_images import eval_batches
from sere_jax.data.sources.open import open_source
from sere_jax.evals.frozen import norms
from sere_jax.evals.network import EvalError
from tests.evals import micro_network


def test_the_report_holds_the_norms_of_every_block(tmp_path, capsys):
    photographs = f"folder:{micro_network.photographs(tmp_path / 'photos', 3)}"
    network = micro_network.network()
    evaluate.run(config_file.get_config(f"source={photographs},batch_size=2,random=False"), [network], tmp_path)
    (result,) = json.loads((tmp_path / "eval" / "norms.json").read_text())["results"]
    (batch,) = eval_batches(open_source(photographs), size=16, resize=18, batch_size=3)
    pixels = (batch.images / 255 - np.array(network.mean)) / np.array(network.std)
    layers = network.apply(network.params, jnp.asarray(pixels, jnp.float32), layers=(0, 1)).layers
    for block, tokens in enumerate(layers, 1):
        lengths = np.sqrt((np.asarray(tokens, np.float64) ** 2).sum(-1))
        found = result["blocks"][str(block)]
        # float32, compiled beside operation by operation
        assert found["cls"] == pytest.approx(lengths[:, 0].mean(), rel=1e-4)
        assert found["median"] == pytest.approx(np.median(lengths[:, 1:]), rel=1e-4)
        assert found["largest"] == pytest.approx(lengths[:, 1:].max(), rel=1e-4) and found["long_share"] == 0
    assert "micro, block 2" in capsys.readouterr().out


def test_images_that_cannot_be_read_are_not_counted(tmp_path, capsys):
    photographs = micro_network.photographs(tmp_path / "photos", 3)
    (photographs / "0_torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    evaluate.run(config_file.get_config(f"source=folder:{photographs},batch_size=2,random=False"), [micro_network.network()], tmp_path)
    report = json.loads((tmp_path / "eval" / "norms.json").read_text())
    assert (report["read"], report["left_out"]) == (3, ["0_torn.png"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "3 images of folder:" in shown and "1 of 4 images cannot be read and is left out: 0_torn.png" in shown


def test_a_long_token_is_counted_and_a_resnet_refused():
    patches = np.ones((4, 25))
    patches[2, 7] = 3.5
    summary = norms.summarise(2, np.array([1.0, 3.0, 2.0, 2.0]), patches, 3.0)
    assert summary == norms.Norms(2, 2.0, 1.0, pytest.approx(1.025, abs=0.1), 3.5, 0.01)
    assert norms.summarise(2, np.ones(4), patches, 4.0).long_share == 0
    with pytest.raises(EvalError, match="is no ViT"):
        norms.measure(micro_network.network()._replace(depth=0), [], 3.0)
