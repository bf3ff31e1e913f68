"""Pictures of what networks have learned and of what they are fed, as PNGs in workdir/figures.

crops      a batch's crops with boxes and overlap points on the source image (TPAMI Fig. 3); needs no checkpoint
attention  the last block's cls attention, per head (Fig. 4)
relations  spatial self-relation of one patch in two views, their overlap and difference (Fig. 5)
pca        first three principal components of patch features
channels   feature maps of a few channels and their relation matrix (Fig. 1c)

Paper     Fig. 1c, 3, 4, 5.
Launch    python eval.py --config=configs/eval/figures.py --checkpoint=RUN --workdir=RUN
          several networks side by side: --checkpoint=A,B; only the data: --config=configs/eval/figures.py:source=folder:DIR
Cost      half a minute on two cores for a small ViT.
Expected  see docs/evaluation.md for what to look for.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments, pretrain


def get_config(arg: str = "") -> ConfigDict:
    defaults = pretrain()
    config = ConfigDict(
        {
            "protocol": "figures",
            "source": "bundled",
            "which": ("crops", "attention", "relations", "pca", "channels"),
            "images": (0, 4, 6, 15),  # positions in the source; of the crops only how many: they are the first of training's first batch
            "size": 0,  # pixels a side of the images; 0: views as trained, whole images 480 (at most 60 patches a side)
            "views_of": "checkpoint",  # views, colours and the crops' images of the first checkpoint's own training | config: those below
            "views": defaults.views,
            "photometry": defaults.photometry,
            "points": 13,  # a side, on the overlap; crops of a checkpoint show those that it was trained with
            "sampling": "endpoints",  # endpoints | centers
            "tokens": "post",  # patch tokens before (pre) or after (post) the final LayerNorm
            "temperature": 1.0,  # of the spatial relation shown
            "queries": (0.5, 0.5),  # down, right, down, right ...: places in the overlap whose relations are shown
            "mass": 0.0,  # show only the patches that hold this share of a head's attention; 0: all
            "channel_count": 6,  # chosen channels
            "backend": "fast",
            "random": True,  # also the first network at random initialisation
            "seed": 0,
        }
    )
    return arguments(config, arg)
