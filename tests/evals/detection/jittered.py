"""Results of an imagined detector: the truth shifted, some missed, some invented, with scores that tie."""

from __future__ import annotations

import copy
import json

import numpy as np

from sere_jax.data.annotations.regions import decode_region, encode_region


def results_near(table, seed, *, masks=True):
    """Every object once or twice, shifted by some of its sides and with a mask that is moved along."""
    rng = np.random.default_rng(seed)
    frames = {image["id"]: (image["height"], image["width"]) for image in table["images"]}
    ids = [category["id"] for category in table["categories"]]
    results = []
    for entry in table["annotations"]:
        for _ in range(int(rng.integers(0, 3))):
            left, top, width, height = entry["bbox"]
            right, down = rng.normal(0, 0.15, 2) * (width, height)
            box = [left + right, top + down, width * rng.uniform(0.8, 1.25), height * rng.uniform(0.8, 1.25)]
            category = entry["category_id"] if rng.random() < 0.85 else int(rng.choice(ids))
            result = {"image_id": entry["image_id"], "category_id": category, "bbox": box, "score": round(float(rng.random()), 1)}
            if masks:
                mask = decode_region(entry["segmentation"], *frames[entry["image_id"]])
                result["segmentation"] = encode_region(np.roll(mask, (round(down), round(right)), axis=(0, 1)))
            results.append(result)
    return results


def coco_scores(table, results, kind):
    """Precision [t, r, c, a] and the first six numbers of pycocotools' summary."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = json.loads(json.dumps(table))
    truth.createIndex()
    results = copy.deepcopy([{key: value for key, value in r.items() if kind == "bbox" or key != "bbox"} for r in results])
    scoring = COCOeval(truth, truth.loadRes(results), kind)
    scoring.evaluate()
    scoring.accumulate()
    scoring.summarize()
    return scoring.eval["precision"][..., -1], scoring.stats[:6]
