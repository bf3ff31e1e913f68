"""The keys of all protocols that fine-tune, with MAE's recipe for ImageNet-1k as SERE's paper uses it."""

from __future__ import annotations

from ml_collections import ConfigDict


def fine_tuning(protocol: str) -> ConfigDict:
    return ConfigDict(
        {
            "protocol": protocol,
            "train": "",  # labelled images: folder:DIR | list:FILE | tfds:NAME[/CONFIG]:SPLIT | classes:LIST:SOURCE | bundled:gallery
            "validation": "",  # with select=validation: labelled images that choose the epoch
            "test": "",  # labelled images that are classified
            "select": "test",  # what chooses the best epoch: test (as the papers; the report says so) | validation | split (part of train)
            "held_out": 0.1,  # share of each class of the training images, with split
            "pool": "patches",  # patches (their mean before the final norm, with a norm of its own) | cls
            "head_layer": 0,  # 1: start from the first layer of the checkpoint's projection head (needs pool=cls)
            "head_std": 2e-5,  # of the classifier's first weights
            "epochs": 100,
            "warmup_epochs": 5,
            "base_lr": 5e-4,  # the peak rate for 256 images: peak = base_lr x batch_size / 256
            "min_lr": 1e-6,
            "batch_size": 512,
            "accumulate_steps": 1,  # micro-batches of a step
            "repeats": 1,  # how often an image is shown in a row, in other augmentations; an epoch keeps its length
            "weight_decay": 0.05,
            "layer_decay": 0.65,  # factor of the rate from a layer to the one before
            "drop_path": 0.1,
            "mixup": 0.8,  # alpha of Beta; 0: off
            "cutmix": 1.0,  # alpha of Beta; 0: off
            "switch_prob": 0.5,  # probability of CutMix where both are on
            "mix_prob": 1.0,  # share of batches that are mixed
            "smoothing": 0.1,  # of the targets
            "erase_prob": 0.25,  # share of images with a rectangle of noise
            "rand_magnitude": 9.0,  # of RandAugment's two operations, 0 to 10; 0: off
            "rand_deviation": 0.5,  # of the magnitude
            "crop_scale": (0.08, 1.0),  # share of an image's area
            "flip_prob": 0.5,
            "size": 0,  # pixels of the crops; 0: what the network was trained on
            "resize": 0,  # pixels of the shorter side before a test image's crop; 0: the network's, or size x 256 / 224
            "eval_every_epochs": 1,  # test, and save a checkpoint
            "eval_batch_size": 64,
            "log_every_steps": 10,
            "workers": 0,  # processes that decode and augment
            "backend": "pil",  # decoder and crops: pil (bicubic, as the papers) | fast
            "max_pixels": 50_000_000,  # larger images count as unreadable
            "max_bad_fraction": 0.01,  # largest share of unreadable images that a training bears
            "dtype": "float32",  # of activations: float32 | bfloat16
            "random_init": True,  # also train the first network from random initialisation
            "save_predictions": False,  # logits and labels of the test images as npz
            "seed": 0,
        }
    )
