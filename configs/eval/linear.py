"""Linear classifiers on a frozen network, from randomly cropped and mirrored images: DINO's linear evaluation.

A grid of rates, numbers of blocks and poolings is trained at once, in one pass over the images an epoch. The best head and epoch are
chosen on 10 % of the training images. With cached=True the features are computed once, without augmentation: heads in seconds.

Paper     not in SERE's tables; DINO trains one head for 100 epochs, iBOT one for each of 45 rates, DINOv2 52 as here.
Launch    python eval.py --config=configs/eval/linear.py:train=tfds:imagenet2012:train,test=tfds:imagenet2012:validation \
            --checkpoint=RUN --workdir=RUN
          python eval.py --config=configs/eval/linear.py:train=folder:TRAIN,test=folder:TEST,cached=True --checkpoint=RUN --workdir=RUN
          python eval.py --config=configs/eval/linear.py:bundled --checkpoint=RUN --workdir=RUN
Cost      a forward pass an image and epoch, and as much for the row of the random initialisation; cached: one pass in all.
Expected  DINO ViT-S/16, 100 epochs: 74.0 top-1 on ImageNet-1k (Caron et al.); hoped for. Measured with this code: docs/results.md.

The argument is `bundled` (a trial of two epochs), or `key=value,...` as everywhere. The same command resumes.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict(
        {
            "protocol": "linear",
            "train": "",  # labelled images: folder:DIR | list:FILE | tfds:NAME[/CONFIG]:SPLIT | classes:LIST:SOURCE | bundled:gallery
            "validation": "",  # with select=validation: labelled images that choose the head and the epoch
            "test": "",  # labelled images that are classified
            "select": "split",  # what chooses: split (part of train) | validation | test (as DINO; the report says so)
            "held_out": 0.1,  # share of each class of the training images, with split
            "blocks": (1, 4),  # numbers of last blocks whose cls tokens are concatenated; heads for each
            "pooling": ("cls", "cls+patches"),  # cls | cls+patches (with the mean patch token); heads for each
            # Rates for 256 images: SGD's is rate x batch_size / 256. iBOT tries 45 from 1e-4 to 9; three a decade choose as well.
            "rates": (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0),
            "epochs": 100,
            "batch_size": 1024,
            "momentum": 0.9,
            "weight_decay": 0.0,
            "cached": False,  # features computed once, without augmentation; random_init, crops and eval_every_epochs play no part
            "crop_scale": (0.08, 1.0),  # share of an image's area
            "flip_prob": 0.5,
            "size": 0,  # pixels of the crops; 0: what the network was trained on
            "resize": 0,  # pixels of the shorter side before a test image's crop; 0: the network's, or size x 256 / 224
            "features": "",  # directory of Parquet files in which features of whole images are kept and looked for; "": in memory only
            "eval_every_epochs": 1,  # choose a head, and save a checkpoint
            "eval_batch_size": 64,
            "log_every_steps": 10,
            "workers": 0,  # processes that decode and crop; threads for whole images
            "backend": "fast",  # decoder of JPEGs and crops: fast | pil
            "max_pixels": 50_000_000,  # larger images count as unreadable
            "max_bad_fraction": 0.01,  # largest share of unreadable images that a training bears
            "random_init": True,  # also train heads on the first network at random initialisation
            "save_predictions": False,  # logits and labels of the test images as npz
            "seed": 0,  # of the heads, the order and the crops, of the split and of the randomly initialised network
        }
    )
    if arg == "bundled" or arg.startswith("bundled,"):
        config.update({"train": "bundled:gallery", "test": "bundled:query", "epochs": 2, "batch_size": 16})
        arg = arg.removeprefix("bundled").removeprefix(",")
    return arguments(config, arg)
