"""Segmentation without training: every patch of a test image gets the class of its nearest labelled patches.

All test patches are compared with all labelled training patches. k and the distance are chosen on a tenth of the training images.

Paper     not in SERE's tables; CAPI (Darcet et al. 2025) reports it.
Launch    python eval.py --config=configs/eval/patch_knn.py:train=masks:DIR:list:A,test=masks:DIR:list:B --checkpoint=RUN --workdir=OUT
          python eval.py --config=configs/eval/patch_knn.py:train=tfds:voc:train,test=tfds:voc:validation --checkpoint=RUN --workdir=OUT
Cost      one forward pass an image, then (training patches) x (test patches) x (width) products: minutes on a CPU for hundreds of images.
Expected  above the rows `raw pixels` and `random init` of the same table; measured with this code: docs/results.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments
from configs.common_segmentation import patch_probe


def get_config(arg: str = "") -> ConfigDict:
    config = patch_probe("patch_knn")
    config.neighbours = (1, 3, 10, 30)  # k; the best on the choosing images is taken
    config.distances = ("cosine", "l2")  # likewise
    return arguments(config, arg)
