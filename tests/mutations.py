"""Wrong versions of the method, one change each, and the tests that must notice. A slow script: about ten seconds a mutation.

    python -m tests.mutations            all of them
    python -m tests.mutations flip ema   those whose name contains one of the words

Each change is made in a temporary copy of the package, and only the named tests run there. A mutation that survives means that a
rule of the method is not tested; one whose text is not found means that the code has moved on and the table has to follow.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Mutation(NamedTuple):
    """In `file` of sere_jax, `old` becomes `new`; one of `tests` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


_RELATION, _DINO, _STEP = (
    "tests/objectives/test_relation_objective.py",
    "tests/objectives/test_dino_objective.py",
    "tests/train/test_step.py",
)
_GEOMETRY, _OPTIM, _DISTILLATION = "tests/ops/test_geometry.py", "tests/train/test_optim.py", "tests/losses/test_distillation.py"
_HEADS, _NETWORK, _VIT = "tests/models/test_heads.py", "tests/models/test_network.py", "tests/models/test_vit.py"
_DENSE, _PATCH, _RULES = "tests/losses/test_dense.py", "tests/objectives/test_patch_objective.py", "tests/train/test_optim_rules.py"
_MOCOV3, _MAE = "tests/objectives/test_mocov3_objective.py", "tests/objectives/test_mae.py"

MUTATIONS = (
    # Sides and temperatures.
    Mutation("temperature-side", "build/objective.py", "Temperatures(sharp, plain) if", "Temperatures(plain, sharp) if", _RELATION),
    Mutation(
        "temperature-of-targets",
        "objectives/relation.py",
        "scale=scale), temperatures.teacher)",
        "scale=scale), temperatures.student)",
        _RELATION,
    ),
    Mutation(
        "dino-temperature",
        "losses/distillation.py",
        "jnp.float32) / temperature, axis=-1))\n\n\ndef update",
        "jnp.float32), axis=-1))\n\n\ndef update",
        _DISTILLATION,
    ),
    # The center.
    Mutation("center-sign", "losses/distillation.py", "jnp.float32) - center)", "jnp.float32) + center)", _DISTILLATION),
    Mutation(
        "center-momentum",
        "losses/distillation.py",
        "momentum * center + (1.0 - momentum)",
        "(1.0 - momentum) * center + momentum",
        _DISTILLATION,
    ),
    Mutation(
        "center-before-loss",
        "objectives/dino.py",
        'teacher_probabilities(logits(teacher), state["center"]',
        'teacher_probabilities(logits(teacher), 0.9 * state["center"]',
        _DINO,
    ),
    # Pairs of views.
    Mutation("same-view-pairs", "losses/distillation.py", "_cross_entropy(total - teacher,", "_cross_entropy(teacher,", _DISTILLATION),
    Mutation("channel-pairs", "objectives/relation.py", "targets[:, ::-1]", "targets", _RELATION),
    Mutation("local-box", "objectives/relation.py", "2 + j, local_points", "1 + j, local_points", _RELATION),
    Mutation("number-of-terms", "objectives/relation.py", "total / (2 + 2 * local_count)", "total / (2 + local_count)", _RELATION),
    # Geometry.
    Mutation("flip", "ops/geometry.py", "jnp.where(flips[..., None], 1.0 - x, x)", "x", _GEOMETRY),
    Mutation(
        "flip-rows",
        "ops/geometry.py",
        "jnp.where(flips[..., None], 1.0 - x, x)",
        "jnp.where(flips[..., None], 1.0 - x, x)\n        y = jnp.where(flips[..., None], 1.0 - y, y)",
        _GEOMETRY,
    ),
    Mutation("half-pixel", "ops/geometry.py", "* length - 0.5", "* (length - 1)", _GEOMETRY),
    Mutation("padding", "ops/geometry.py", 'if padding == "border" else', 'if padding == "zeros" else', _GEOMETRY),
    Mutation(
        "touching",
        "ops/geometry.py",
        "(offset < extent_a) & (-offset < extent_b)",
        "(offset <= extent_a) & (-offset <= extent_b)",
        _GEOMETRY,
    ),
    Mutation(
        "scale",
        "losses/relation.py",
        'd // heads if scale == "head" else d',
        'd if scale == "head" else d // heads',
        "tests/losses/test_relation_loss.py",
    ),
    # Weights.
    Mutation("image-weight", "objectives/base.py", "total = 2.0 + len(present)", "total = 4.0", "tests/objectives/test_recipes.py"),
    Mutation(
        "alpha-beta",
        "objectives/base.py",
        '{"spatial": alpha, "channel": beta,',
        '{"spatial": beta, "channel": alpha,',
        "tests/objectives/test_recipes.py",
    ),
    # Gradients.
    Mutation("stop-gradient", "train/step.py", "jax.lax.stop_gradient(outputs)", "outputs", _STEP),
    Mutation("accumulation", "train/update.py", "a + g / accumulate_steps", "a + g", _STEP),
    # The optimizer.
    Mutation(
        "global-clip",
        "train/optim.py",
        "_map_with_path(clip, updates) if limit",
        "optax.clip_by_global_norm(limit).update(updates, optax.EmptyState())[0] if limit",
        _OPTIM,
    ),
    Mutation("clip-over-layers", "train/optim.py", "range(int(is_stacked(path)), x.ndim)", "range(x.ndim)", _OPTIM),
    Mutation("decay-over-layers", "train/optim.py", "return x.ndim - int(is_stacked(path))", "return x.ndim", _OPTIM),
    Mutation(
        "decay-bias",
        "build/optimizer.py",
        '{"bias": decay_bias, "scale": decay_scale}',
        '{"bias": decay_scale, "scale": decay_bias}',
        _OPTIM,
    ),
    Mutation("freeze-length", "train/optim.py", "active = step >= start", "active = step > start", _OPTIM),
    Mutation("freeze-moments", "train/optim.py", "jnp.where(active, new, old), new_state", "new, new_state", _OPTIM),
    Mutation(
        "warm-up",
        "train/schedules.py",
        "last = warmup_steps - 1 if inclusive else warmup_steps",
        "last = warmup_steps",
        "tests/train/test_schedules.py",
    ),
    # The teacher.
    Mutation("ema-order", "train/step.py", "follow(method.teacher, state.params,", "follow(method.teacher, before.params,", _STEP),
    Mutation(
        "ema-weights",
        "train/step.py",
        "return momentum * teacher + (1.0 - momentum) * student",
        "return momentum * student + (1.0 - momentum) * teacher",
        _STEP,
    ),
    Mutation(
        "teacher-statistics", "train/step.py", "method.teacher, running.teacher, crops", "method.teacher, running.student, crops", _STEP
    ),
    Mutation("running-variance", "models/norm.py", "* (count / max(count - 1, 1))", "", _HEADS),
    # Bad steps and random numbers.
    Mutation("bad-loss", "train/update.py", "& jnp.isfinite(norm)", "", _STEP),
    Mutation("bad-state", "train/update.py", "jnp.where(finite, new, old), after", "new, after", _STEP),
    Mutation("random-step", "train/step.py", "example_keys(self.seed, state.step,", "example_keys(self.seed, 0 * state.step,", _STEP),
    # The network.
    Mutation("norm", "models/network.py", 'if request.norm == "post" else', 'if request.norm == "pre" else', _NETWORK),
    Mutation("predictor-side", "models/heads.py", "return predicted if student else z", "return z if student else predicted", _HEADS),
    Mutation("drop-path-scale", "models/vit.py", "(noise >= rates) / (1.0 - rates)", "(noise >= rates) * 1.0", _VIT),
    Mutation("position-embedding", "ops/resize.py", "offset: float = 0.1", "offset: float = 0.0", "tests/ops/test_resize.py"),
    # The other methods.
    Mutation("patch-unmasked", "losses/dense.py", "jnp.where(counted, tokens, 0.0)", "tokens", _DENSE),
    Mutation("patch-denominator", "losses/dense.py", "jnp.sum(counted, axis=-1), 1)", "counted.shape[-1], 1)", _DENSE),
    Mutation(
        "patch-center",
        "objectives/patch.py",
        '{"mean_logits": mean_logits(everything)}',
        '{"mean_logits": 0 * mean_logits(everything)}',
        _PATCH,
    ),
    Mutation("aligned-views", "objectives/patch.py", "targets[:, ::-1]", "targets", _PATCH),
    Mutation("nce-views", "objectives/mocov3.py", "keys[:, 1 - i]", "keys[:, i]", _MOCOV3),
    Mutation("nce-scale", "objectives/mocov3.py", "value = 2 * temperature *", "value = 2 *", _MOCOV3),
    Mutation("barlow-mean", "ops/normalise.py", "centered = x - mean", "centered = x", _DENSE),
    Mutation("barlow-diagonal", "losses/batch_relation.py", "jnp.square(diagonal - 1.0)", "jnp.square(diagonal)", _DENSE),
    Mutation("lars-order", "train/optim.py", "chain(_add_decay(rules), trust,", "chain(trust, _add_decay(rules),", _RULES),
    Mutation(
        "ema-timing",
        "train/step.py",
        'if self.ema_timing == "before":',
        'if self.ema_timing == "never":',
        "tests/test_mocov3_resnet_mae.py",
    ),
    Mutation("mae-variance", "losses/pixels.py", ", ddof=1", "", _MAE),
    Mutation("mae-hidden", "losses/pixels.py", "errors * hidden)", "errors * ~hidden)", _MAE),
    Mutation("mae-places", "ops/patches.py", "hidden], jnp.argsort(order, axis=-1)", "hidden], order", _MAE),
    Mutation("mae-encoder", "models/vit.py", "visible[..., None], axis=1)", "0 * visible[..., None], axis=1)", _MAE),
)


def noticed(mutation: Mutation) -> bool:
    """Whether one of the mutation's tests fails in a copy of the package that has it.

    Raises ValueError where its text is not found exactly once, RuntimeError where the tests could not run at all.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("sere_jax", "configs", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        source = copy / "sere_jax" / mutation.file
        text = source.read_text()
        if text.count(mutation.old) != 1:
            raise ValueError(
                f"{mutation.name}: found {text.count(mutation.old)} times in sere_jax/{mutation.file}, expected once: {mutation.old!r}"
            )
        source.write_text(text.replace(mutation.old, mutation.new))
        command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", mutation.tests]
        found = subprocess.run(command, cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True, timeout=600)
    if found.returncode not in (0, 1):
        raise RuntimeError(f"{mutation.name}: the tests did not run\n{found.stdout}{found.stderr}")
    return found.returncode == 1


def main(words: list[str]) -> int:
    """Prints each mutation and whether it was noticed; the exit status is the number of those that were not."""
    chosen = [m for m in MUTATIONS if not words or any(word in m.name for word in words)]
    survived = []
    for mutation in chosen:
        fine = noticed(mutation)
        print(f"{'noticed ' if fine else 'SURVIVED'}  {mutation.name:24} {mutation.file}", flush=True)
        if not fine:
            survived.append(mutation.name)
    print(f"{len(chosen) - len(survived)} of {len(chosen)} mutations noticed")
    return len(survived)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
