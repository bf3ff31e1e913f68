"""Logistic regression on frozen features: the protocol of DINOv2, in a minute on cached features.

L-BFGS on features without augmentation, with an L2 penalty. C is chosen on 10 % of the training images, and the fit is repeated
on all of them. With `draws` above 0 also few-shot: k images a class, mean and deviation over the draws, at the fixed `shots_c`.

Paper     not in SERE's tables; DINOv2 (Oquab et al. 2024) and MSN (Assran et al. 2022) report it.
Launch    python eval.py --config=configs/eval/logistic.py:train=folder:TRAIN,test=folder:TEST --checkpoint=RUN --workdir=RUN
          python eval.py --config=configs/eval/logistic.py:bundled --checkpoint=RUN --workdir=RUN
Cost      one forward pass an image, then some 1000 steps of L-BFGS; --config.features=DIR keeps the features.
Expected  a few points above k-NN (docs/evaluation.md); compare with the row `random init` of the same table.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict(
        {
            "protocol": "logistic",
            "train": "",  # labelled images: folder:DIR | tfds:NAME[/CONFIG]:SPLIT | bundled:gallery
            "validation": "",  # with select=validation: labelled images that choose C and the kind of features
            "test": "",  # labelled images that are classified
            "select": "split",  # what chooses: split (part of train) | validation | test (said in the report: such scores are too good)
            "held_out": 0.1,  # share of each class of the training images, with split
            "blocks": (1,),  # numbers of last blocks whose cls tokens are concatenated; the best on the choosing images is taken
            "pooling": ("cls",),  # cls | cls+patches (with the mean patch token); likewise
            "scaling": "standard",  # mean 0 and deviation 1 on the training images | unit: length 1 | none
            "cs": tuple(float(f"1e{power}") for power in range(-6, 6)),  # C of scikit-learn: small values regularise more
            "tolerance": 1e-5,  # largest derivative of the mean loss at which a fit ends ...
            "max_steps": 1000,  # ... or so many steps
            "draws": 0,  # few-shot draws; 0: none
            "shots": (1, 5, 10),  # images a class of a draw
            "shots_c": 1.0,  # C of few-shot fits, which have no images to choose it by
            "size": 0,  # pixels of the centre crop; 0: what the network was trained on
            "resize": 0,  # pixels of the shorter side before it; 0: the network's, or size x 256 / 224
            "batch_size": 64,
            "workers": 0,  # threads that decode
            "backend": "fast",  # decoder of JPEGs: fast | pil
            "max_pixels": 50_000_000,  # larger images count as unreadable
            "features": "",  # directory of Parquet files in which features are kept and looked for; "": in memory only
            "save_predictions": False,  # logits and labels of the test images as npz
            "seed": 0,  # of the split, of the draws and of the randomly initialised network
        }
    )
    if arg == "bundled" or arg.startswith("bundled,"):
        config.update({"train": "bundled:gallery", "test": "bundled:query"})
        arg = arg.removeprefix("bundled").removeprefix(",")
    return arguments(config, arg)
