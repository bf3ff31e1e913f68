"""Two processes with two devices each score what one process scores, with parameters split over them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.evals import micro_network
from tests.processes import free_port

ROOT = Path(__file__).resolve().parent.parent.parent

_SCORE = """
import sys, jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from sere_jax import distributed, sharding
from sere_jax.data.batches.whole_images import eval_batches
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.sources.open import open_source
from sere_jax.evals.frozen import baselines, classification, knn
from sere_jax.evals.network import Network
from sere_jax.types import Features
port, rank, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if rank >= 0:
    distributed.start_distributed(coordinator='127.0.0.1:' + port, num_processes=2, process_id=rank)

def apply(params, images):
    cls = images.reshape(len(images), -1)[:, ::7] @ params['w']
    return Features(cls, cls[:, None, None], cls[:, None, None])

mesh = sharding.make_mesh(jax.device_count())
weights = np.random.default_rng(0).normal(size=(28, 8)).astype(np.float32)
split = NamedSharding(mesh, PartitionSpec(None, 'fsdp'))
params = {'w': jax.make_array_from_callback((28, 8), split, lambda index: weights[index])}
reading = ImageReading(max_pixels=10000)
network = Network('network', apply, None, 8, 8, 1, (0.5,) * 3, (0.5,) * 3)
settings = classification.Settings(folder, folder, ('cls',), (1, 3, 5), 0.07, 0, 0, 4, 0, reading, False, 0)
evaluation = classification.PROTOCOL.periodic(network, settings)
scores = [dict(evaluation(params)) for _ in range(2)]
assert scores[0] == scores[1]
images = classification.image_set('gallery', open_source(folder), batch_size=4, reading=reading, workers=0)
described = baselines.describe(baselines.raw_pixels, images.batches(8, 8))
print('scores', sorted(scores[0].items()), described.labels.tolist(), described.features['baseline'].sum(1).round(4).tolist())
"""


def start(port: str, rank: int, folder: str) -> subprocess.Popen:
    devices = 4 if rank < 0 else 2
    environ = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", _SCORE, port, str(rank), folder]
    return subprocess.Popen(command, env=environ, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_processes_score_what_one_scores(tmp_path):
    # Nine images in batches of four: the second process has nothing but padding in the last batch.
    folder = f"folder:{micro_network.photographs(tmp_path, count=9, classes=3)}"
    port = str(free_port())
    outputs = [process.communicate(timeout=120)[0] for process in [start(port, rank, folder) for rank in (-1, 0, 1)]]
    lines = [[line for line in output.splitlines() if line.startswith("scores")] for output in outputs]
    assert lines[0] and lines[0] == lines[1] == lines[2], "\n".join(outputs)
