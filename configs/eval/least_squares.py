"""Least squares on frozen features, in closed form: an answer in a second, once the features are computed.

Ridge regression of one-hot classes. One eigendecomposition of the Gram matrix serves every regulariser; it is chosen on 10 % of
the training images, and the fit is repeated on all of them.

Paper     none; big_vision evaluates few-shot classification in this way.
Launch    python eval.py --config=configs/eval/least_squares.py:train=folder:TRAIN,test=folder:TEST --checkpoint=RUN --workdir=RUN
          python eval.py --config=configs/eval/least_squares.py:bundled --checkpoint=RUN --workdir=RUN
Cost      one forward pass an image; then n d^2 operations: a second for 50,000 images of width 384.
Expected  near logistic regression (docs/evaluation.md); compare with the row `random init` of the same table.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict(
        {
            "protocol": "least_squares",
            "train": "",  # labelled images: folder:DIR | tfds:NAME[/CONFIG]:SPLIT | bundled:gallery
            "validation": "",  # with select=validation: labelled images that choose the regulariser and the kind of features
            "test": "",  # labelled images that are classified
            "select": "split",  # what chooses: split (part of train) | validation | test (said in the report: such scores are too good)
            "held_out": 0.1,  # share of each class of the training images, with split
            "blocks": (1,),  # numbers of last blocks whose cls tokens are concatenated; the best on the choosing images is taken
            "pooling": ("cls",),  # cls | cls+patches (with the mean patch token); likewise
            "scaling": "standard",  # mean 0 and deviation 1 on the training images | unit: length 1 | none
            "regularisers": tuple(float(f"1e{power}") for power in range(-6, 4)),  # in mean eigenvalues of the Gram matrix
            "size": 0,  # pixels of the centre crop; 0: what the network was trained on
            "resize": 0,  # pixels of the shorter side before it; 0: the network's, or size x 256 / 224
            "batch_size": 64,
            "workers": 0,  # threads that decode
            "backend": "fast",  # decoder of JPEGs: fast | pil
            "max_pixels": 50_000_000,  # larger images count as unreadable
            "features": "",  # directory of Parquet files in which features are kept and looked for; "": in memory only
            "save_predictions": False,  # logits and labels of the test images as npz
            "seed": 0,  # of the split and of the randomly initialised network
        }
    )
    if arg == "bundled" or arg.startswith("bundled,"):
        config.update({"train": "bundled:gallery", "test": "bundled:query"})
        arg = arg.removeprefix("bundled").removeprefix(",")
    return arguments(config, arg)
