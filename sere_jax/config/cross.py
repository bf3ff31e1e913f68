"""Rules on several values of a config: batch and devices, images and patches, evaluations and their images.

A rule is (the keys that it reads, a function of their values, the devices and the processes -> lines of mistakes). It is checked
only where each of its values is right by itself.
"""

from __future__ import annotations

import math
import re

from sere_jax.config.model import MODEL_RULES, Rule, Values, needs_masks
from sere_jax.config.names import divisors, multiples, nearest
from sere_jax.config.sources import source_mistakes
from sere_jax.objectives.recipes import RECIPES


def batch_multiple(parts: int, devices: int, processes: int) -> int:
    """A batch is a multiple of this: all devices get equal shares of each of its `parts`, and all processes equal shares of the whole."""
    return math.lcm(devices * parts, processes)


def _batch(v: Values, devices: int, processes: int) -> list[str]:
    size, parts = v["data.batch_size"], v["optimizer.accumulate_steps"]
    step = batch_multiple(parts, devices or 1, processes)
    if size % step == 0:
        return []
    reasons = [f"{n} {what}" for n, what in ((devices, "devices"), (processes, "processes"), (parts, "accumulate_steps")) if n > 1]
    return [f"data.batch_size: found {size}, expected a multiple of {step} ({', '.join(reasons)}){multiples(size, step)}"]


_CADENCES = ("run.keep_every_steps", "run.checkpoint_every_steps", "run.checkpoint_every_epochs", "schedule.total_steps")


def _keeps(v: Values, devices: int, processes: int) -> list[str]:
    keep, total, every = v["run.keep_every_steps"], v["schedule.total_steps"], v["run.checkpoint_every_steps"]
    if not total or not keep or total % keep == 0:
        return []
    if keep > total:
        return [f"run.keep_every_steps: found {keep}, expected at most schedule.total_steps = {total}: no checkpoint would be kept for it"]
    if (first := keep if v["run.checkpoint_every_epochs"] else math.lcm(keep, every)) <= total:  # epochs are known with the data
        return []
    why = f"the first saved step that it divides is {first:,}, and schedule.total_steps is {total}"
    return [f"run.keep_every_steps: found {keep}, expected a multiple or divisor of run.checkpoint_every_steps = {every}: {why}"]


def _learning_rate(v: Values, devices: int, processes: int) -> list[str]:
    peak = v["optimizer.base_lr"] * v["data.batch_size"] / 256
    if v["optimizer.name"] == "adamw" and peak > 1:
        return [
            f"optimizer.base_lr: found {v['optimizer.base_lr']:g}, expected a peak, base_lr x batch_size / 256, of at most 1 with adamw"
        ]
    if v["optimizer.min_lr"] <= peak:
        return []
    return [f"optimizer.min_lr: found {v['optimizer.min_lr']:g}, expected at most the peak, base_lr x batch_size / 256 = {peak:g}"]


def _image_weight(v: Values, devices: int, processes: int) -> list[str]:
    """Refuse weights of self-relations that give the image loss a negative weight (objectives.base.image_loss_weight)."""
    recipe = RECIPES[v["recipe"]]
    names = [name for name, loss in (("alpha", "spatial"), ("beta", "channel")) if loss in recipe.relations]
    total, most = sum(v[f"relation.{name}"] for name in names), 2 + len(names)
    if v["relation.image_weight"] == "paper" or total <= most or not (recipe.image and names):
        return []
    formula = f"({most} - {' - '.join(names)}) / 2"
    return [f"relation.{names[0]}: found {' + '.join(names)} = {total:g}, expected at most {most}: the image loss has weight {formula}"]


def _masking(v: Values, devices: int, processes: int) -> list[str]:
    kind, learns = v["masking.kind"], needs_masks(v["recipe"])
    if v["model.name"] == "resnet":  # a ResNet's masks are refused by themselves
        return []
    if kind == "none":
        missing = [f"masking.kind: found 'none', expected block or random: {v['recipe']} learns from hidden patches"]
        return missing if "patch" in RECIPES[v["recipe"]].losses else []
    if not learns:  # `config.unread` reports masks that nothing learns from
        return []
    pairs = list(zip(v["masking.ratio"], v["masking.ratio_var"], strict=True))
    line = "masking.ratio: found " + " and ".join(f"{mean} -+ {var}" for mean, var in pairs) + " with masking.ratio_var"
    if not all(mean - var >= 0 and mean + var <= 1 for mean, var in pairs):
        return [f"{line}, expected shares between 0 and 1"]
    height, width, patch = v["views.global_size"], v["views.global_width"], v["model.patch_size"]
    prob = v["masking.prob"]
    drawn = [pair for pair, share in zip(pairs, (1.0 - prob, prob), strict=True) if share > 0]  # a view takes the second with `prob`
    patches, most = (height // patch) * ((width or height) // patch), max(map(sum, drawn))
    if int(most * patches) or "mae" in RECIPES[v["recipe"]].losses:  # of which more is asked below
        return []
    if len(drawn) < 2:
        line += f" and masking.prob = {prob:g}"
    return [f"{line}, which hides none of {patches} patches; expected at least {1 / max(patches, 1):.3g}: {v['recipe']} learns from them"]


def _mae(v: Values, devices: int, processes: int) -> list[str]:
    """MAE's encoder sees the same number of patches of every view, because that number is a shape."""
    if "mae" not in RECIPES[v["recipe"]].losses or v["model.name"] == "resnet":
        return []
    if v["masking.kind"] != "random":
        return [f"masking.kind: found {v['masking.kind']!r}, expected random: mae hides the same number of patches in every view"]
    grid = v["views.global_size"] // v["model.patch_size"]
    hidden = int(v["masking.ratio"][0] * grid**2)
    lines = [
        f"{key}: found {v[key]}, expected {expected}: mae hides the same number of patches in every view, from the first step on"
        for key, expected in (
            ("masking.ratio", (v["masking.ratio"][0],) * 2),
            ("masking.ratio_var", (0.0, 0.0)),
            ("masking.start_epoch", 0),
        )
        if v[key] != expected
    ]
    if not 0 < hidden < grid**2:
        lines.append(f"masking.ratio: found {v['masking.ratio'][0]} of {grid**2} patches, expected some hidden and some visible ones")
    if v["mae.decoder_width"] % math.lcm(4, v["mae.decoder_heads"]):
        expected = f"a multiple of 4 and of mae.decoder_heads = {v['mae.decoder_heads']}"
        lines.append(f"mae.decoder_width: found {v['mae.decoder_width']}, expected {expected}")
    return lines


_MAE_KEYS = ("recipe", "masking.kind", "masking.ratio", "masking.ratio_var", "masking.start_epoch", "views.global_size", "model.patch_size")


def _global_crops(v: Values, devices: int, processes: int) -> list[str]:
    count = v["views.global_count"]
    if count == 2 or RECIPES[v["recipe"]].losses == ("mae",):
        return []
    return [f"views.global_count: found {count}, expected 2: {v['recipe']} compares two global crops"]


def _local_crops(v: Values, devices: int, processes: int) -> list[str]:
    recipe, count = RECIPES[v["recipe"]], v["views.local_count"]
    if not count or "dino" in recipe.losses or recipe.self_relation:
        return []
    return [f"views.local_count: found {count}, expected 0: no loss of {v['recipe']} looks at local crops"]


def _mesh(v: Values, devices: int, processes: int) -> list[str]:
    fsdp = v["run.fsdp"]
    return (
        [f"run.fsdp: found {fsdp}, expected a divisor of the {devices} devices{divisors(fsdp, devices)}"]
        if devices and devices % fsdp
        else []
    )


def _value_range(v: Values, devices: int, processes: int) -> list[str]:
    low, high = v["data.value_range"]
    if low < high or (low, high) == (0.0, 0.0):
        return []
    return [f"data.value_range: found {(low, high)}, expected two different values, or (0.0, 0.0) for the range of the type"]


def _training_source(v: Values, devices: int, processes: int) -> list[str]:
    return source_mistakes("data.source", v["data.source"])


_PAIRS = (("eval.gallery", "eval.query"), ("eval.patch_train", "eval.patch_test"))


def _evaluation(v: Values, devices: int, processes: int) -> list[str]:
    lines = []
    cadence = next((key for key in ("run.eval_every_epochs", "run.eval_every_steps") if v[key]), "")
    nothing = not any(v[key] for pair in _PAIRS for key in pair)
    for pair in _PAIRS:
        for key, other in (pair, pair[::-1]):
            if v[key]:
                lines += source_mistakes(key, v[key])
            elif v[other] or (cadence and nothing and pair == _PAIRS[0]):
                lines.append(f"{key}: found '', expected a source, which {cadence or other} needs")
    if v["eval.attention_images"] and not v["eval.query"]:
        lines.append(f"eval.attention_images: found {v['eval.attention_images']}, expected 0 without eval.query, whose images are shown")
    if cadence:
        lines += batch_of_processes("eval.batch_size", v["eval.batch_size"], processes)
    # Runs without evaluations are checked too: their checkpoints are evaluated with these sizes later.
    return lines + resize_before_crop("eval.", v["eval.size"] or max(v["views.global_size"], v["views.global_width"]), v["eval.resize"])


_PATCH_SCORES = ("miou", "macc", "pixel_accuracy")


def _best(v: Values, devices: int, processes: int) -> list[str]:
    """The best checkpoint is chosen by a score of the k-NN or of the patch k-NN."""
    key, score = "run.keep_best", v["run.keep_best"]
    if not score:
        return []
    if not (v["run.eval_every_epochs"] or v["run.eval_every_steps"]):
        return [f"{key}: found {score!r}, expected '' in a run without evaluations; set run.eval_every_steps or run.eval_every_epochs"]
    if v["eval.gallery"] and re.fullmatch(r"knn/k\d+/top[15]", score):  # k itself is known once the gallery is: it may be smaller
        return []
    scores = [f"knn/k{k}/top{top}" for k in v["eval.neighbours"] for top in (1, 5) if v["eval.gallery"]]
    scores += [f"patch_knn/k{k}/{name}" for k in v["eval.patch_neighbours"] for name in _PATCH_SCORES if v["eval.patch_train"]]
    if score in scores or not scores:  # another rule asks for the images
        return []
    return [f"{key}: found {score!r}, expected a score of the evaluation: {', '.join(scores)}{nearest(score, scores)}"]


def resize_before_crop(prefix: str, size: int, resize: int) -> list[str]:
    """Refuse a crop of `size` pixels from an image whose shorter side is resized to fewer; 0 = no value."""
    if not 0 < resize < size:
        return []
    return [f"{prefix}resize: found {resize}, expected 0 or at least the {size} pixels of the crop that follows; nearest: {size}"]


def batch_of_processes(key: str, size: int, processes: int) -> list[str]:
    """All processes read equal shares of an evaluation's batch, with any number of devices."""
    if size % processes == 0:
        return []
    return [f"{key}: found {size}, expected a multiple of the {processes} processes{multiples(size, processes)}"]


_GRID = ("views.global_size", "views.global_width", "model.patch_size")
_SETS = ("eval.gallery", "eval.query", "eval.patch_train", "eval.patch_test", "eval.attention_images")
_EVALUATION = ("run.eval_every_steps", "run.eval_every_epochs", *_SETS, "eval.size", "eval.resize", "eval.batch_size")
_BEST = ("run.keep_best", "run.eval_every_steps", "run.eval_every_epochs", "eval.gallery", "eval.patch_train")

# (the keys that a rule reads, the rule)
CROSS_RULES: tuple[tuple[tuple[str, ...], Rule], ...] = (
    (("data.source",), _training_source),
    (("data.value_range",), _value_range),
    (("data.batch_size", "optimizer.accumulate_steps"), _batch),
    *MODEL_RULES,
    (_CADENCES, _keeps),
    (("optimizer.base_lr", "optimizer.min_lr", "optimizer.name", "data.batch_size"), _learning_rate),
    (("recipe", "relation.alpha", "relation.beta", "relation.image_weight"), _image_weight),
    (("recipe", "model.name", "masking.kind", "masking.ratio", "masking.ratio_var", "masking.prob", *_GRID), _masking),
    ((*_MAE_KEYS, "model.name", "mae.decoder_width", "mae.decoder_heads"), _mae),
    (("recipe", "views.global_count"), _global_crops),
    (("recipe", "views.local_count"), _local_crops),
    (("run.fsdp",), _mesh),
    ((*_BEST, "eval.neighbours", "eval.patch_neighbours"), _best),
    ((*_EVALUATION, "views.global_size", "views.global_width"), _evaluation),
)
