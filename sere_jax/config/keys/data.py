"""Keys of what is read and of how it is cropped, coloured and masked."""

from __future__ import annotations

from sere_jax.config.keys.key import Group, Key
from sere_jax.config.rule import POSITIVE, SHARE, TEXT, Rule, choice, count, interval, number

_DATA = {
    "source": Key("folder:", TEXT, "Images to train on: bundled, folder:DIR, list:FILE, tfds:, classes:, masks:, mix: (docs/data.md)."),
    "batch_size": Key(512, count(1), "Images in a step, over all devices and processes."),
    "backend": Key("fast", choice("fast", "pil"), "Decoder: fast = simplejpeg and OpenCV; pil = Pillow's bicubic, as the authors' code."),
    "workers": Key(
        4, Rule(int, low=0, high=512), "Processes of each host that decode and crop; 0 works in the trainer's own process.", machine=True
    ),
    "prefetch": Key(2, Rule(int, low=1, high=512), "Batches that each worker keeps ready.", machine=True),
    "cache_dir": Key(
        "",
        TEXT,
        "Directory of each host that keeps files of a bucket; empty = $SERE_JAX_CACHE_DIR, or none.",
        machine=True,
    ),
    "cache_gigabytes": Key(100.0, POSITIVE, "GB of images that data.cache_dir keeps; prepared sets are kept whole.", machine=True),
    "max_bad_fraction": Key(0.01, SHARE, "Largest share of unreadable images; above it the run ends.", machine=True),
    "max_pixels": Key(50_000_000, count(1), "Images of more pixels (width x height) count as unreadable.", machine=True),
    "max_decode_seconds": Key(20, Rule(int, low=1, high=3600), "Seconds after which an image counts as unreadable.", machine=True),
    "value_range": Key(
        (0.0, 0.0), Rule(float, length=2, ordered=True), "Array and TIFF values that become 0 and 255; zeros = the type's own."
    ),
}

_VIEWS = {
    "global_count": Key(2, Rule(int, low=1, high=2), "Global crops of an image; 1 is for MAE, which compares no views."),
    "global_size": Key(224, count(1), "Height of a global crop, pixels."),
    "global_width": Key(0, count(), "Width of a global crop, pixels; 0 = its height."),
    "global_scale": Key((0.35, 1.0), interval(1.0), "Smallest and largest area of a global crop, as a share of the image's."),
    "local_count": Key(4, count(), "Local crops of an image; 0 trains on global crops alone."),
    "local_size": Key(96, count(1), "Height of a local crop, pixels."),
    "local_width": Key(0, count(), "Width of a local crop, pixels; 0 = its height."),
    "local_scale": Key((0.05, 0.35), interval(1.0), "Smallest and largest area of a local crop, as a share of the image's."),
    "aspect": Key((3 / 4, 4 / 3), interval(), "Range of a crop's width / height relative to its view's, drawn log-uniformly."),
    "flip_prob": Key(0.5, SHARE, "Probability that a crop is mirrored left to right."),
}

_PHOTOMETRY = {
    "jitter_prob": Key(0.8, SHARE, "Probability of the next four changes, made in random order."),
    "brightness": Key(0.4, SHARE, "Brightness is multiplied by a factor from [1 - x, 1 + x]."),
    "contrast": Key(0.4, SHARE, "Contrast is multiplied by a factor from [1 - x, 1 + x]."),
    "saturation": Key(0.2, SHARE, "Saturation is multiplied by a factor from [1 - x, 1 + x]; 0 unless model.in_channels is 3."),
    "hue": Key(0.1, number(0.0, 0.5), "Hue is shifted by up to x turns of the colour wheel; 0 unless model.in_channels is 3."),
    "gray_prob": Key(0.2, SHARE, "Probability that a crop becomes grey; 0 unless model.in_channels is 3."),
    "blur_prob": Key((1.0, 0.1, 0.5), Rule(float, low=0.0, high=1.0, length=3), "Probability of a Gaussian blur."),
    "blur_sigma": Key((0.1, 2.0), interval(), "Range of the blur's standard deviation, pixels."),
    "solarize_prob": Key((0.0, 0.2, 0.0), Rule(float, low=0.0, high=1.0, length=3), "Probability of solarisation."),
    "solarize_threshold": Key(128, Rule(int, low=0, high=256), "Values from this one on, of 0 to 255, are inverted by solarisation."),
    "mean": Key((0.485, 0.456, 0.406), Rule(float, low=0.0, high=1.0, length=0), "Mean of each channel, of pixels in [0, 1]; ImageNet's."),
    "std": Key(
        (0.229, 0.224, 0.225),
        Rule(float, low=0.0, high=1.0, above=True, length=0),
        "Standard deviation of each channel, of pixels in [0, 1]; ImageNet's.",
    ),
}

_MASKING = {
    "kind": Key("none", choice("none", "block", "random"), "Shape of the masked regions; none = nothing is masked."),
    "start_epoch": Key(0, count(), "Epochs before masking starts."),
    "ratio": Key((0.0, 0.3), Rule(float, low=0.0, high=1.0, length=2), "Two masked shares of the patches; a view takes one of them."),
    "ratio_var": Key((0.0, 0.2), Rule(float, low=0.0, high=1.0, length=2), "The share is moved uniformly by at most this much."),
    "prob": Key(0.5, SHARE, "Probability of the second share."),
}

GROUPS = (
    Group("data", "What is read.", _DATA),
    Group("views", "Crops of an image.", _VIEWS),
    Group("photometry", "Colours. Three values are those of the first global crop, the second, and the local crops.", _PHOTOMETRY),
    Group("masking", "Masked image modelling: patches of the student's global crops that are masked (iBOT, MAE).", _MASKING),
)
