"""Semi-supervised segmentation of ImageNet-S: ten labelled images a class, a LayerNorm and a linear map of each patch token.

Paper     TPAMI Tab. 1 and 7 to 15: ViT-S/16 on ImageNet-S (919 classes, 9,190 training images) and ImageNet-S300, 100 epochs, batch 256.
Launch    python eval.py --config=configs/eval/imagenet_s.py:919,train=tfds:S:train_semi,test=tfds:S:validation --checkpoint=RUN \
            --workdir=RUN --config.submission=folder:IMAGENET_S/test
          of 300 or 50 classes: configs/eval/imagenet_s.py:300,... and :50,...; of a ResNet-50: :300,resnet50,...
          S is a set prepared from imagenet_s:DIR (docs/data.md)
Cost      3,600 (919), 1,200 (300) or 200 (50) steps of 256 crops of 224 pixels, then the validation images one by one.
Expected  validation, DINO 35.1, DINO + SERE 36.9 mIoU (919); hoped for, not measured with this code.

`resnet50` after the number of classes is for a ResNet-50 (Tab. 16): a linear map of its last map (stride 32), whose logits are interpolated
to twice their size before the loss interpolates them to 28 x 28; layer decay 0.4, one layer a bottleneck block; weight decay 0.0005.
`dilated_stages=1` gives the last map a stride of 16.

A fine-tuned network (a workdir of finetune.py) gives its backbone and the LayerNorm of its pooled patches.

Not done: the last batch of an epoch is not cut short. Label maps of the test split are on the server alone: `submission`
writes their predictions as the archive that it takes.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments
from configs.common_segmentation import segmentation

STEPS_AN_EPOCH = {"919": 36, "300": 12, "50": 2}  # ten images a class, 256 a batch, the last batch of an epoch included


def get_config(arg: str = "") -> ConfigDict:
    config = segmentation("imagenet_s")
    name, _, rest = arg.partition(",")
    classes, arg = (name, rest) if name in STEPS_AN_EPOCH else ("919", arg)
    per_epoch = STEPS_AN_EPOCH[classes]
    config.update(
        {
            "ignore": (1000,),
            "absent": "zero",
            "head": "tokens",
            "steps": 100 * per_epoch,
            "warmup_steps": 5 * per_epoch,
            "learning_rate": 5e-4,
            "schedule": "cosine",
            "min_learning_rate": 1e-6,
            "batch_size": 256,
            "decay_tokens": False,
            "layer_decay": 0.5,
            "dropout": 0.0,
            "average": "counted",
            "target_stride": 8,  # label maps of 28 x 28 for crops of 224
            "size": 224,
            "crops": "resized",
            "limits": (100_000, 256),  # the shorter side becomes 256
            "stride": 0,
            "test_resize": "pillow",
            "most_pixels": 1_000_000,
            "eval_every_steps": 20 * per_epoch,
            "backend": "pil",
        }
    )
    if arg == "resnet50" or arg.startswith("resnet50,"):
        config.update({"layer_decay": 0.4, "weight_decay": 5e-4})
        arg = arg.removeprefix("resnet50").removeprefix(",")
    return arguments(config, arg)
