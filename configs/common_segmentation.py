"""The keys that protocols of segmentation share: those that train a head, and those that probe frozen patch tokens.

A head is trained by iBOT's recipe for UperNet, as SERE's paper uses it.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def segmentation(protocol: str) -> ConfigDict:
    return ConfigDict(
        {
            "protocol": protocol,
            "train": "",  # images with label maps: masks:DIR:folder:IMAGES | masks:DIR:list:FILE | tfds:NAME:SPLIT
            "test": "",  # images with label maps that are segmented
            "classes": 0,  # their number, without an ignored 0; 0: those that the source names (masks:DIR reads DIR/classes.txt)
            "ignore": (255,),  # numbers of the label maps that nothing counts; the first also fills crops up
            "zero_ignored": False,  # 0 is "none of the classes", and class k is stored as k + 1 (ADE20K)
            "absent": "skip",  # classes that no test image holds: skip | zero
            "head": "upernet",  # upernet | linear (BatchNorm and a linear map of each token) | tokens (LayerNorm, of the last tokens)
            "blocks": (3, 5, 7, 11),  # of a ViT, from 0, whose tokens are read after the final norm; linear concatenates them
            "channels": 384,  # of UperNet's convolutions; as published: the width of the backbone
            "dilated_stages": 0,  # of a ResNet: the last stages, which are dilated and not strided (1: its last map has stride 16; 2: 8)
            "frozen": False,  # the backbone stands still
            "steps": 20_000,  # VOC; ADE20K: 160,000
            "warmup_steps": 1500,
            "learning_rate": 3e-5,  # the peak at this batch size; then linearly to 0
            "schedule": "linear",  # linear | cosine (to min_learning_rate)
            "min_learning_rate": 0.0,
            "batch_size": 16,
            "accumulate_steps": 1,  # micro-batches of a step; BatchNorm sees one at a time
            "weight_decay": 0.05,
            "decay_tokens": True,  # decay positions and the cls token, as kernels
            "layer_decay": 0.9,  # factor of the rate from a layer to the one before; ViT-B: 0.65 with a rate of 8e-5
            "drop_path": 0.1,
            "dropout": 0.1,  # of whole channels before the classifiers
            "auxiliary_weight": 0.4,  # of the auxiliary head's loss
            "average": "all",  # the loss is divided by the number of all pixels (MMSegmentation) | counted: of those not ignored
            "target_stride": 1,  # the loss sees every so many pixels of the label map, from the first on
            **_images(),
            "eval_every_steps": 2000,  # test, and save a checkpoint
            "log_every_steps": 50,
            "workers": 0,  # processes that decode and augment
            "backend": "fast",  # decoder of JPEGs: fast | pil
            "max_pixels": 50_000_000,  # larger images count as unreadable
            "max_bad_fraction": 0.01,  # largest share of unreadable images that a training bears
            "dtype": "float32",  # of activations: float32 | bfloat16
            "random_init": False,  # also train the first network from random initialisation
            "save_predictions": False,  # predicted label maps as PNG
            "panels": 6,  # test images in the figure; 0: no figure
            "seed": 0,
        }
    )


def _images() -> dict[str, object]:
    """The crops of training, and the preparation of test images."""
    return {
        "size": 512,  # side in pixels of training crops and of test windows
        "crops": "scale",  # scale (MMSegmentation's) | resized (a random box in the size of the crop; colours change on the device)
        "crop_scale": (0.14, 1.0),  # share of an image's area, with crops=resized
        "limits": (2048, 512),  # of the longer and the shorter side of an image
        "ratios": (0.5, 2.0),  # random factor of the limits in training
        "most_of_a_class": 0.75,  # a crop in which one class covers more is drawn again, up to ten times
        "flip_prob": 0.5,
        "distortion": True,  # of brightness, contrast, saturation and hue
        "stride": 341,  # of the test windows in pixels; 0: the whole image at once
        "test_flip": False,  # also test the mirror image, and take the mean
        "test_scales": (1.0,),  # test at these factors of the limits, and take the mean
        "test_resize": "opencv",  # bilinear: opencv (without antialiasing) | pillow (with it)
        "most_pixels": 0,  # larger images are predicted at a long side of 1000 and stretched by the nearest pixel; 0: none is
        "submission": "",  # images without label maps whose predictions are written to a zip file
    }


def patch_probe(protocol: str) -> ConfigDict:
    return ConfigDict(
        {
            "protocol": protocol,
            "train": "",  # images with label maps: masks:DIR:folder:IMAGES | masks:DIR:list:FILE | tfds:NAME:SPLIT
            "test": "",  # images with label maps that are segmented
            "train_images": 0,  # how many training images, drawn at random; 0: all
            "classes": 0,  # their number, without an ignored 0; 0: those that the source names (masks:DIR reads DIR/classes.txt)
            "ignore": (255,),  # numbers of the label maps that nothing counts: 255 (VOC, ADE20K), 1000 (ImageNet-S)
            "zero_ignored": False,  # 0 is "none of the classes", and class k is stored as k + 1 (ADE20K)
            "absent": "skip",  # classes that no test image holds: skip | zero (they count as 0, as ImageNet-S does)
            "select": "split",  # what chooses: split (part of the training images) | test (said in the report: such scores are too good)
            "held_out": 0.1,  # share of the training images, with split
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
