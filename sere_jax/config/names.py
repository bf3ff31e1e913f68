"""Keys of a config as paths `a.b`, and the nearest of several names. Imports nothing heavy: the command line is read with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict


def flatten(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Nested config -> {"a.b": value}; lists, which JSON makes of tuples, become tuples."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = tuple(value) if isinstance(value, list) else value
    return flat


# Names that other programs of the field use -> the key here.
GUESSES: Mapping[str, str] = {
    **dict.fromkeys(("lr", "learning_rate", "blr", "max_lr", "peak_lr"), "optimizer.base_lr"),
    **dict.fromkeys(("wd", "decay"), "optimizer.weight_decay"),
    **dict.fromkeys(("bs", "batch", "batchsize", "batch_size_per_gpu", "train_batch_size", "global_batch_size"), "data.batch_size"),
    **dict.fromkeys(("epoch", "num_epochs", "n_epochs", "max_epochs", "train_epochs"), "schedule.epochs"),
    **dict.fromkeys(("steps", "max_steps", "num_steps", "iters", "iterations", "num_iters"), "schedule.total_steps"),
    **dict.fromkeys(("warmup_steps", "warmup_iters", "warmup_epoch"), "optimizer.warmup_epochs"),
    **dict.fromkeys(("temp", "tau", "student_temperature"), "dino.student_temp"),
    **dict.fromkeys(("teacher_temperature", "temp_teacher"), "dino.teacher_temp"),
    **dict.fromkeys(("momentum_teacher", "teacher_momentum", "ema", "ema_decay", "moco_m"), "teacher.ema_momentum"),
    **dict.fromkeys(("arch", "architecture", "model", "backbone", "model_name"), "model.variant"),
    **dict.fromkeys(("embed_dim", "hidden_size", "dim"), "model.width"),
    **dict.fromkeys(("num_heads", "n_heads"), "model.heads"),
    **dict.fromkeys(("num_layers", "n_layers", "num_blocks"), "model.depth"),
    **dict.fromkeys(("patch", "patchsize"), "model.patch_size"),
    **dict.fromkeys(("in_chans", "channels", "num_channels"), "model.in_channels"),
    **dict.fromkeys(("drop_path_rate", "droppath"), "model.drop_path"),
    **dict.fromkeys(("fp16", "bf16", "amp", "use_fp16", "precision", "mixed_precision"), "model.dtype"),
    **dict.fromkeys(("data_path", "data_dir", "data", "dataset", "root", "train_dir", "input", "images"), "data.source"),
    **dict.fromkeys(("num_workers", "n_workers", "num_worker"), "data.workers"),
    **dict.fromkeys(("img_size", "image_size", "crop_size", "input_size", "resolution"), "views.global_size"),
    **dict.fromkeys(("local_crops_number", "n_local_crops", "num_local_crops", "local_crops"), "views.local_count"),
    **dict.fromkeys(("global_crops_scale", "crops_scale", "crop_scale"), "views.global_scale"),
    "local_crops_scale": "views.local_scale",
    "mask_ratio": "masking.ratio",
    **dict.fromkeys(("out_dim", "num_prototypes"), "head.prototypes"),
    **dict.fromkeys(("opt", "optim"), "optimizer.name"),
    **dict.fromkeys(("clip", "grad_clip", "max_grad_norm", "clip_norm"), "optimizer.clip_grad"),
    **dict.fromkeys(("accum", "accum_iter", "grad_accum", "gradient_accumulation_steps", "accumulate"), "optimizer.accumulate_steps"),
    "freeze_last_layer": "optimizer.freeze_last_layer_epochs",
    **dict.fromkeys(("method", "algorithm", "ssl_type"), "recipe"),
    **dict.fromkeys(("pretrained", "weights", "checkpoint", "ckpt", "init", "finetune"), "init_from"),
    **dict.fromkeys(("save_freq", "saveckp_freq", "save_every", "save_every_steps"), "run.checkpoint_every_steps"),
    **dict.fromkeys(("log_every", "print_freq", "log_freq"), "run.log_every_steps"),
    **dict.fromkeys(("eval_every", "eval_freq"), "run.eval_every_steps"),
    "random_seed": "seed",
}
# The same, of flags.
WORKDIR_GUESSES = ("output_dir", "output", "out", "outdir", "out_dir", "save_dir", "log_dir", "logdir", "exp_dir", "work_dir", "dir")
# Protocols that say something without a network. Known here, since the command line is judged before the protocols can be imported.
WITHOUT_CHECKPOINT = ("figures",)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """`unknown key`, with the nearest of the `known` ones.

    It is the first that ends with `key`, else the one that other programs call so, else the one that is written most alike.
    """
    known, key = list(known), key.replace("-", "_")
    last = {path.rpartition(".")[2]: path for path in reversed(known)}
    if key in WORKDIR_GUESSES:
        return "unknown key; nearest: --workdir=DIR"
    guess = GUESSES.get(key.rpartition(".")[2].lower(), "")
    near = [last[key]] if key in last else [guess] if guess in known else difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    near = near or [last[part] for part in difflib.get_close_matches(key.rpartition(".")[2], last, n=1, cutoff=0.65)]
    return "unknown key" + (f"; nearest: {near[0]}" if near else "")


def multiples(value: int, step: int) -> str:
    """`; nearest: n` for the multiple of `step` next to `value`, at least `step`."""
    below, above = value // step * step, -(-value // step) * step
    return f"; nearest: {above if below == 0 or above - value < value - below else below}"


def divisors(value: int, whole: int) -> str:
    """`; nearest: n` for the divisor of `whole` next to `value`, of two as near the smaller."""
    divisor = min((n for n in range(1, whole + 1) if whole % n == 0), key=lambda n: abs(n - value))
    return f"; nearest: {divisor}"


def nearest(value: Any, choices: Iterable[str]) -> str:
    """`; nearest: x` for the choice most like `value`, or nothing."""
    near = difflib.get_close_matches(value, list(choices), n=1, cutoff=0.3) if isinstance(value, str) else []
    return f"; nearest: {near[0]}" if near else ""
