"""What every pre-training config starts from, and how a config file reads its argument.

`pretrain()` holds each key that the software knows, with its default and its unit. An experiment file changes the
numbers that make it that experiment and says why. The rules that the values must keep are in `sere_jax/config.py`.

A config file takes typed arguments after a colon, `key=value` joined by commas:

    python train.py --config=configs/dino_vits16.py:source=folder:/data/imagenet/train,epochs=300 --workdir=/runs/a

A key is a full path (`data.source`) or its last part where only one path ends so (`source`), or one of `data`: `batch_size`
is `data.batch_size`, though there is an `eval.batch_size` too. The last part `source` is worth having because every launch
needs one. The same can be said by `--config.data.source=...`, with the full path always; that also takes what an argument
cannot: a text with a comma in it.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs.common_arguments import arguments

__all__ = ["arguments", "pretrain"]


def pretrain() -> ConfigDict:
    """The defaults: ViT-S/16, DINO + SERE, ImageNet sizes. `data.source` must be given before it can run."""
    return ConfigDict(
        {
            "seed": 0,  # decides initialisation, the order of the data and every random number of the augmentation
            "recipe": "dino_sere",  # the method: dino | dino_sere | a part of it alone (sere_jax/objectives/recipes.py has the table)
            "init_from": "",  # weights to start from: a workdir or any file that docs/weights.md lists; '': at random
            "init_heads": True,  # the heads too, as far as init_from holds them | False: the backbone alone
            "init_resize": False,  # True: its position embedding is resized to views.global_size | False: another size is an error
            "data": _data(),
            "views": _views(),
            "photometry": _photometry(),
            "masking": _masking(),
            "model": _model(),
            "head": _head(),
            "dino": _dino(),
            "patch": _patch(),
            "barlow": _barlow(),
            "mocov3": _mocov3(),
            "mae": _mae(),
            "relation": _relation(),
            "optimizer": _optimizer(),
            "teacher": _teacher(),
            "schedule": _schedule(),
            "run": _run(),
            "eval": _eval(),
        }
    )


def _data() -> dict[str, Any]:
    return {
        # bundled[:train|gallery|query] | folder:DIR | list:FILE | tfds:NAME[/CONFIG]:SPLIT | classes:LIST:SOURCE | mix:WEIGHT*SOURCE|...
        "source": "folder:",
        "batch_size": 512,  # images a step over all devices and processes
        "backend": "fast",  # fast: simplejpeg + OpenCV | pil: Pillow's bicubic, as in the reference code, slower
        "workers": 4,  # processes of this host that decode and crop; 0 works in the trainer itself
        "prefetch": 2,  # batches kept ready a worker
        "max_bad_fraction": 0.01,  # of unreadable images, in [0, 1]; above it the run ends with a message
        "max_pixels": 50_000_000,  # width x height above which an image counts as unreadable (decompression bombs)
        "value_range": (0.0, 0.0),  # of arrays and TIFF bands: values that become 0 and 255; zeros: all that an unsigned type holds
    }


def _views() -> dict[str, Any]:
    return {
        "global_count": 2,  # global crops an image; 1 for MAE, which compares no views
        "global_size": 224,  # height of the global crops, pixels
        "global_width": 0,  # their width; 0: as high
        "global_scale": (0.35, 1.0),  # crop area as a fraction of the image's, smallest and largest
        "local_count": 4,  # local crops an image; 0 trains on the global crops alone
        "local_size": 96,  # height of the local crops, pixels
        "local_width": 0,  # their width; 0: as high
        "local_scale": (0.05, 0.35),
        "aspect": (3 / 4, 4 / 3),  # width / height of a crop before it is resized, over its view's, drawn log-uniformly
        "flip_prob": 0.5,  # left to right
    }


def _photometry() -> dict[str, Any]:
    """Values of three numbers belong to the first global crop, the second, and the local crops."""
    return {
        "jitter_prob": 0.8,  # all four of the next in random order, or none
        "brightness": 0.4,  # factor uniform in [1 - x, 1 + x]; so are the next two
        "contrast": 0.4,
        "saturation": 0.2,  # this, hue and gray_prob must be 0 where model.in_channels is not 3
        "hue": 0.1,  # shift uniform in [-x, x] turns of the colour wheel, x <= 0.5
        "gray_prob": 0.2,
        "blur_prob": (1.0, 0.1, 0.5),
        "blur_sigma": (0.1, 2.0),  # pixels, uniform
        "solarize_prob": (0.0, 0.2, 0.0),
        "solarize_threshold": 128,  # of 0..255
        "mean": (0.485, 0.456, 0.406),  # ImageNet's, of pixels in [0, 1]
        "std": (0.229, 0.224, 0.225),
    }


def _masking() -> dict[str, Any]:
    """Masked image modelling: patches of the student's global crops that are hidden (iBOT's recipe)."""
    return {
        "kind": "none",  # none | block | random
        "start_epoch": 0,  # nothing is hidden before
        "ratio": (0.0, 0.3),  # hidden share of the patches; one of them is drawn for a view ...
        "ratio_var": (0.0, 0.2),  # ... and moved uniformly by at most this much
        "prob": 0.5,  # of the second ratio
    }


def _model() -> dict[str, Any]:
    return {
        "name": "vit",  # vit | resnet
        "variant": "vits",  # vitti | vits | vitb | vitl: width 192, 384, 768, 1024 | resnet50 | custom: the next three count
        "width": 0,  # of a token, or channels of a ResNet's last map; 0: the variant's
        "depth": 0,  # blocks, of a ResNet those of each stage; 0: the variant's
        "heads": 0,  # attention heads; 0: the variant's
        "patch_size": 16,  # pixels
        "in_channels": 3,
        "init": "normal",  # of a ViT's linear layers: normal, 0.02 (DINO, iBOT) | mocov3 | mae (both Xavier, models/init.py)
        "positions": "learned",  # learned | fixed sine and cosine: sincos_rows (MoCo v3's order) | sincos_columns (MAE's)
        "freeze_patch_embed": False,  # True: the patch embedding stays as it was made (MoCo v3)
        "zero_init_residual": False,  # True: a ResNet's blocks start as the identity (MoCo v3)
        "drop_path": 0.1,  # of the last block, growing linearly from 0; the student only
        "dtype": "bfloat16",  # of activations (float32 | bfloat16); parameters, losses and statistics are float32
        "scan_blocks": False,  # one compiled block run `depth` times: compiles faster, the same training
        "remat": "none",  # what the backward pass computes again: none | dots (all but matrix products) | full
    }


def _head() -> dict[str, Any]:
    return {
        "prototypes": 65536,  # K, outputs of the last layer
        "hidden": 2048,
        "bottleneck": 256,
        "layers": 3,
        "norm_last_layer": True,  # prototypes keep length 1; False: their lengths are learned
    }


def _dino() -> dict[str, Any]:
    return {
        "student_temp": 0.1,
        "teacher_temp": 0.04,  # after the warm-up
        "warmup_teacher_temp": 0.04,  # at the start
        "warmup_teacher_temp_epochs": 0,
        "center_momentum": 0.9,
    }


def _patch() -> dict[str, Any]:
    """The loss on single patches: iBOT's on masked ones, DINO+'s on those that two crops share. Otherwise as `dino`."""
    return {
        "patch_weight": 1.0,  # beside the cls loss
        "teacher_patch_temp": 0.04,  # after the warm-up, which lasts dino.warmup_teacher_temp_epochs
        "warmup_teacher_patch_temp": 0.04,
        "patch_center_momentum": 0.9,
    }


def _barlow() -> dict[str, Any]:
    """Barlow's relation over the batch (Table 11). The paper says none of these; only off_diagonal is Barlow Twins' own."""
    return {
        "barlow_weight": 0.024,
        "off_diagonal": 0.0051,
        "embedding": "patches",  # what is related: the mean of the patches' projections | cls
        "projector": "relation",  # BatchNorm and ReLU, as SERE's channel relation has it | mlp, Barlow Twins' of three layers
        "projector_width": 8192,  # of the mlp
    }


def _mocov3() -> dict[str, Any]:
    """MoCo v3 with a ViT; a ResNet has two projector layers, no last BatchNorm of the predictor, temperature 1."""
    return {
        "temperature": 0.2,
        "projector_layers": 3,
        "hidden": 4096,  # of projector and predictor
        "width": 256,  # of what is compared
        "predictor_last_norm": True,  # a BatchNorm without scale and bias at its end
    }


def _mae() -> dict[str, Any]:
    return {
        "decoder_width": 512,
        "decoder_depth": 8,
        "decoder_heads": 16,
        "normalise_pixels": True,  # the targets are each patch's pixels less their mean, by their deviation
    }


def _relation() -> dict[str, Any]:
    """SERE. Where the paper and the authors' code differ, the default is the code's (docs/recipes.md lists them)."""
    return {
        "alpha": 1.0,  # weight of the spatial loss
        "beta": 1.0,  # weight of the channel loss
        "teacher_temp_spatial": 0.5,
        "teacher_temp_channel": 0.1,
        "student_temp": 1.0,
        "temperature_side": "teacher",  # whose relations the first two temperatures divide: teacher (code) | student (TPAMI 4.1)
        "sampling": "endpoints",  # overlap points: endpoints of the overlap included (code) | centers of cells (paper)
        "padding": "zeros",  # beyond a view's border: zeros (code) | border
        "sampling_impl": "map_coordinates",  # map_coordinates | separable: two small matrices, faster, equal to 1e-5
        "disjoint": "count",  # views without overlap: count their constant term (code) | skip them (TPAMI footnote)
        "scale": "head",  # spatial relations are divided by the root of: head = width / heads (code) | width (paper)
        "heads": 0,  # of the spatial relation; 0: as many as the ViT has (code); the paper says 6
        "tokens": "pre",  # patch tokens before (pre, code) or after (post) the final LayerNorm
        "student_tokens": "masked",  # where a method masks the student's view: masked (code) | unmasked
        "local_heads": "separate",  # local crops have heads of their own (code) | shared with the global ones
        "symmetric": False,  # the student without its predictor, as in Table 15
        "image_weight": "code",  # of the image loss: code = (4 - alpha - beta) / 2 | paper = 1
        "global_points": 13,  # overlap points a side, between global crops
        "local_points": 6,  # between a global and a local crop
    }


def _optimizer() -> dict[str, Any]:
    return {
        "name": "adamw",  # adamw (beta 0.9 and beta2, epsilon 1e-8) | sgd | lars
        "beta2": 0.999,  # of AdamW
        "momentum": 0.9,  # of SGD and LARS
        "trust_coefficient": 0.001,  # of LARS
        "base_lr": 5e-4,  # for 256 images; the peak is base_lr x batch_size / 256
        "min_lr": 1e-6,  # where the cosine ends
        "warmup_epochs": 10,  # linear from 0
        "warmup": "inclusive",  # the peak is reached at its last step: inclusive (DINO) | at the first after it: exclusive (MoCo v3, MAE)
        "weight_decay": 0.04,  # at the start, cosine to the next
        "weight_decay_end": 0.4,
        "clip_grad": 3.0,  # largest norm of one tensor's gradient; 0: no clipping
        "freeze_last_layer_epochs": 1,  # the prototypes do not move in these
        "freeze_backbone_epochs": 0,  # nor does the backbone in these: heads are warmed up on weights of init_from
        "decay_bias": False,  # True: biases are decayed, as in the authors' iBOT + SERE code
        "decay_scale": False,  # True: the scales of normalisation layers too; with decay_bias that is everything (MoCo v3)
        "accumulate_steps": 1,  # micro-batches that a batch is cut into, one after the other, for one update
    }


def _teacher() -> dict[str, Any]:
    return {"ema_momentum": 0.996, "ema_momentum_end": 1.0}  # cosine over the run, applied after each update


def _schedule() -> dict[str, Any]:
    return {
        "epochs": 100,  # 0: nothing is trained, the initialisation is saved; an epoch is floor(images / batch_size) steps
        "total_steps": 0,  # length in steps instead; 0: epochs x steps of an epoch
    }


def _run() -> dict[str, Any]:
    """How it runs. Nothing here changes what is learned."""
    return {
        "log_every_steps": 10,
        "eval_every_steps": 0,  # k-NN during the run; 0: never
        "checkpoint_every_steps": 500,
        "keep_checkpoints": 2,  # newest
        "keep_every_steps": 0,  # and one of every so many, for ever; 0: none
        "max_bad_steps": 10,  # steps with a non-finite loss or gradient, skipped and counted, until the run ends
        "fsdp": 1,  # devices over which one copy of the state is split; the others hold copies of their own
    }


def _eval() -> dict[str, Any]:
    """The k-NN of `run.eval_every_steps`. Sources are written as `data.source` is; both empty: no evaluation."""
    return {
        "gallery": "",
        "query": "",
        "neighbours": (10, 20, 100, 200),  # k; those larger than the gallery are clipped to it
        "temperature": 0.07,
        "tokens": "cls",  # cls | patches: the mean patch token
        "size": 0,  # pixels of the centre crop; 0: views.global_size
        "resize": 0,  # pixels of the shorter side before it; 0: size x 256 / 224
        "batch_size": 64,
    }
