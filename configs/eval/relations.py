"""Self-relation differences of two views: does SERE make relations more invariant to augmentation? (TPAMI Fig. 6)

Paper     Fig. 6, ImageNet-S val: DINO -> DINO + SERE spatial .205 -> .154 (-24 %), channel 1.18 -> .82 (-31 %). Norm and
          features are in a supplement that is not available, so only the ratio column compares in kind (docs/evaluation.md).
Launch    python eval.py --config=configs/eval/relations.py:source=folder:PHOTOS --checkpoint=DINO,DINO_SERE --workdir=OUT
Cost      two forward passes an image and network.
Expected  hoped for: a smaller ratio with SERE than without; measured with this code: docs/results.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments, pretrain


def get_config(arg: str = "") -> ConfigDict:
    defaults = pretrain()
    config = ConfigDict(
        {
            "protocol": "relations",
            "source": "bundled:query",
            "images": 0,  # the first so many; 0: all
            "views_of": "checkpoint",  # views and photometry of the first checkpoint's own training | config: those below
            "views": defaults.views,
            "photometry": defaults.photometry,
            # Patch tokens before (raw) and after (normalised) the final LayerNorm; and raw ones, each channel standardised over all
            # images, then ReLU: what the losses relate, without a relation head's learned scale. That needs a second pass.
            "tokens": ("pre", "post", "standardised"),
            "spatial_temperatures": (1.0, 0.5),  # variants: the k-th of each ...
            "channel_temperatures": (1.0, 0.1),  # ... together
            "heads": 1,  # groups of channels with a spatial relation each
            "points": 13,  # a side, on the overlap
            "sampling": "endpoints",  # endpoints | centers
            "size": 0,  # pixels of a view; 0: what each network was trained on
            "batch_size": 32,  # an image's partner is the next of its batch
            "backend": "fast",
            "random": True,  # also the first network at random initialisation
            "seed": 0,
        }
    )
    return arguments(config, arg)
