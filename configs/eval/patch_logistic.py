"""Segmentation without training the network: logistic regression on frozen patch tokens.

L-BFGS on standardised tokens with an L2 penalty. C is chosen on a tenth of the training images, and the fit is repeated on all of them.

Paper     not in SERE's tables; CAPI (Darcet et al. 2025) reports it.
Launch    python eval.py --config=configs/eval/patch_logistic.py:train=masks:DIR:list:A,test=masks:DIR:list:B --checkpoint=RUN --workdir=OUT
          python eval.py --config=configs/eval/patch_logistic.py:train=tfds:V:train,test=tfds:V:validation --checkpoint=RUN --workdir=OUT
Cost      one forward pass an image, then some hundred steps of L-BFGS on all training patches.
Expected  above the rows `raw pixels` and `random init` of the same table; measured with this code: docs/results.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments
from configs.common_segmentation import patch_probe


def get_config(arg: str = "") -> ConfigDict:
    config = patch_probe("patch_logistic")
    config.cs = tuple(float(f"1e{power}") for power in range(-5, 2))  # C of scikit-learn: small values regularise more
    config.tolerance = 1e-4  # largest derivative of the mean loss at which a fit ends ...
    config.max_steps = 300  # ... or so many steps
    return arguments(config, arg)
