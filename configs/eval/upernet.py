"""UperNet on a ViT or a ResNet, trained end to end: the papers' semantic segmentation.

Paper     TPAMI Tab. 2, 3 and 7 to 15: VOC 2012 (20,000 steps, train_aug) and ADE20K (160,000 steps), batch 16, crops of 512, as iBOT.
Launch    python eval.py --config=configs/eval/upernet.py:train=tfds:VOC:train_aug,test=tfds:VOC:validation --checkpoint=RUN --workdir=RUN
          python eval.py --config=configs/eval/upernet.py:ade20k,train=tfds:ADE:train,test=tfds:ADE:validation --checkpoint=RUN \
            --workdir=RUN
          a ResNet: its four stages are the pyramid; --config.channels=512 and, dilated, --config.dilated_stages=2
Cost      20,000 (160,000) steps of 16 crops of 512 pixels; not for a CPU.
Expected  VOC DINO 77.1, DINO + SERE 79.7 mIoU; ADE20K 42.6, 43.8; hoped for, not measured with this code.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments
from configs.common_segmentation import segmentation


def get_config(arg: str = "") -> ConfigDict:
    config = segmentation("upernet")
    if arg == "ade20k" or arg.startswith("ade20k,"):
        config.update({"steps": 160_000, "eval_every_steps": 16_000, "zero_ignored": True})
        arg = arg.removeprefix("ade20k").removeprefix(",")
    return arguments(config, arg)
