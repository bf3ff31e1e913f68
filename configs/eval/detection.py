"""Cascade Mask R-CNN on COCO, trained end to end: the papers' detection and instance segmentation.

Paper     TPAMI Tab. 2: 12 epochs of COCO train2017, batch 16, shorter sides of 480 to 800 pixels, as iBOT's 1x schedule.
Launch    python eval.py --config=configs/eval/detection.py:train=tfds:COCO:train,test=tfds:COCO:validation --checkpoint=RUN --workdir=RUN
Cost      90,000 steps of 16 images of up to 800 x 1333 pixels; not for a CPU.
Expected  ViT-S/16, 100 epochs: box AP 46.0 (DINO), 46.6 (DINO + SERE); mask AP 40.0, 40.5. ViT-B (iBOT's layer decay: 0.75): see the
          paper. Hoped for, not measured with this code.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict(
        {
            "protocol": "detection",
            "train": "",  # images with annotated objects
            "test": "",  # images with annotated objects that are searched
            "masks": True,  # also train and test the mask heads; False: boxes alone
            "blocks": (3, 5, 7, 11),  # of a ViT, from 0, whose tokens are read before the final norm; a ResNet gives the maps of its stages
            "channels": 256,  # of pyramid and heads
            "hidden": 1024,  # width of the box heads' hidden layer
            "anchors": 256,  # sampled anchors of an image
            "proposals": 2000,  # best anchors of a level before suppression, and of all levels after it
            "test_proposals": 1000,  # the same in the test
            "regions": 512,  # sampled boxes of a stage
            "detections": 100,  # boxes in the answer for an image
            "objects": 100,  # of an image; if there are more, the largest are trained on
            "epochs": 12,
            "milestones": (8, 11),  # epochs after which the rate is a tenth; (): never
            "warmup_steps": 500,
            "warmup_start": 0.001,  # the first step's share of the rate
            "learning_rate": 1e-4,  # at this batch size
            "batch_size": 16,
            "accumulate_steps": 1,  # micro-batches of a step; BatchNorm sees one at a time
            "weight_decay": 0.05,
            "layer_decay": 0.8,  # factor of the rate from a layer to the one before; ViT-B: 0.75
            "drop_path": 0.1,
            "sizes": tuple(range(480, 801, 32)),  # shorter sides in training, pixels
            "longest": 1333,  # the longer side is at most so long, pixels
            "before_crop": (400, 500, 600),  # shorter sides of images that are cropped first
            "crop_range": (384, 600),  # least and largest side of the crop, pixels
            "crop_prob": 0.5,
            "flip_prob": 0.5,
            "test_size": 800,
            "test_longest": 1333,
            "test_batch_size": 8,
            "eval_every_epochs": 1,  # test, and save a checkpoint
            "log_every_steps": 50,
            "workers": 0,  # processes that decode and augment
            "backend": "fast",  # decoder of JPEGs: fast | pil
            "max_pixels": 50_000_000,  # larger images count as unreadable
            "max_bad_fraction": 0.01,  # largest share of unreadable images that a training bears
            "dtype": "float32",  # of activations: float32 | bfloat16
            "random_init": False,  # also train the first network from random initialisation
            "panels": 6,  # test images in the figure; 0: no figure
            "seed": 0,
        }
    )
    return arguments(config, arg)
