"""Norms of tokens after every block: are there patches whose tokens are far longer than the others'?

Paper     not in SERE's tables; Darcet et al. 2024 show such tokens in long trainings of large ViTs, where they harm dense features.
Launch    python eval.py --config=configs/eval/norms.py:source=folder:PHOTOS --checkpoint=RUN --workdir=OUT
Cost      one forward pass an image and network.
Expected  no long tokens (0.00 %) in small ViTs and short trainings.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict(
        {
            "protocol": "norms",
            "source": "bundled:query",
            "times": 3.0,  # a patch token is long if its norm is above so many times the median of its block
            "size": 0,  # pixels of the centre crop; 0: what the network was trained on
            "resize": 0,  # pixels of the shorter side before it; 0: the network's, or size x 256 / 224
            "batch_size": 32,
            "backend": "fast",
            "random": True,  # also the first network at random initialisation
            "seed": 0,
        }
    )
    return arguments(config, arg)
