"""Which photograph is this patch from? k-NN for photographs without labels, each its own class.

Gallery regions come from the left half of a photograph, query regions from the right half, with jittered colours.

Paper     none.
Launch    python eval.py --config=configs/eval/retrieval.py:source=folder:PHOTOS --checkpoint=RUN --workdir=RUN
Cost      2 x regions_per_photo forward passes a photograph, with the baselines twice that.
Expected  chance is 1 / photographs; measured with this code: docs/results.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import arguments


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict(
        {
            "protocol": "retrieval",
            "source": "",  # folder:DIR with photographs; their labels, if any, are ignored
            "regions_per_photo": 8,  # of each half
            "region_scale": (0.1, 0.4),  # area of a region as a share of its half
            "jitter": 0.4,  # of the queries' brightness, contrast, saturation: factors in [1 - jitter, 1 + jitter]
            "tokens": ("cls",),  # one row each: cls | patches (the mean patch token) | cls+patches
            "neighbours": (1, 5, 10, 20),  # k
            "temperature": 0.07,
            "size": 0,  # pixels a region is resized to; 0: what the network was trained on
            "batch_size": 64,
            "max_pixels": 50_000_000,
            "baselines": True,
            "seed": 0,  # of the regions, the jitter and the random network
        }
    )
    return arguments(config, arg)
