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


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict(
        {
            "protocol": "patch_logistic",
            "train": "",  # images with label maps: masks:DIR:folder:IMAGES | masks:DIR:list:FILE | tfds:NAME:SPLIT
            "test": "",  # images with label maps that are segmented
            "train_images": 0,  # how many training images, drawn at random; 0: all
            "classes": 0,  # their number, without an ignored 0; 0: those that the source names (masks:DIR reads DIR/classes.txt)
            "ignore": (255,),  # numbers of the label maps that nothing counts: 255 (VOC, ADE20K), 1000 (ImageNet-S)
            "zero_ignored": False,  # 0 is "none of the classes", and class k is stored as k + 1 (ADE20K)
            "absent": "skip",  # classes that no test image holds: skip | zero (they count as 0, as ImageNet-S does)
            "select": "split",  # what chooses: split (part of the training images) | test (said in the report: such scores are too good)
            "held_out": 0.1,  # share of the training images, with split
            "cs": tuple(float(f"1e{power}") for power in range(-5, 2)),  # C of scikit-learn: small values regularise more
            "tolerance": 1e-4,  # largest derivative of the mean loss at which a fit ends ...
            "max_steps": 300,  # ... or so many steps
            "size": 0,  # side in pixels that whole images are resized to; 0: what the network was trained on
            "batch_size": 16,
            "backend": "fast",  # decoder of JPEGs: fast | pil
            "max_pixels": 50_000_000,  # larger images count as unreadable
            "baselines": True,  # also the pixels of each patch, and the first network at random initialisation
            "save_predictions": False,  # predicted label maps as PNG
            "panels": 6,  # test images in the figure; 0: no figure
            "seed": 0,  # of the split and of the randomly initialised network
        }
    )
    return arguments(config, arg)
