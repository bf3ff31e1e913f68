"""Pre-training: open the data, build the parts, compile, and let `fit` drive.

Reads downwards in the order in which things happen. It knows no evaluation: those come in as functions of the parameters.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sere_jax import distributed, sharding
from sere_jax.build import pretraining
from sere_jax.config import check as rules
from sere_jax.config.saved import completed
from sere_jax.data.batches.pipeline import train_batches
from sere_jax.data.sources.example import Source
from sere_jax.data.sources.open import open_source
from sere_jax.models.norm import join_statistics
from sere_jax.reporting.progress import Progress
from sere_jax.train.checkpoint import Checkpoints, read_config
from sere_jax.train.fit import Periodic, fit
from sere_jax.train.lock import locked
from sere_jax.train.signals import Signals
from sere_jax.train.state import State
from sere_jax.types import PyTree, Views
from sere_jax.weights import warm_start
from sere_jax.weights.warm_start import WarmStart

# Backbone parameters of the network that the recipe evaluates, a ResNet's running statistics among them -> (name, value)
Evaluation = Callable[[PyTree], Iterable[tuple[str, float]]]


def train(config: ConfigDict, workdir: str, evaluations: Sequence[Evaluation] = (), signals: Signals | None = None) -> State:
    """Pre-train as the config says, going on from the newest checkpoint of `workdir`; the final state.

    `workdir` gets config.json, metrics.jsonl, tensorboard/ and checkpoints/. `evaluations` run every `run.eval_every_steps`.
    `signals` are the program's, which listen since its start; None = listen while the steps run.

    Raises:
      ConfigError: the config has mistakes, does not fit the data or the weights of `init_from`, or is not the one of the
        checkpoints in `workdir`.
      SourceError: the data cannot be opened.
      WorkdirError: another run writes to `workdir`, or nothing can be written there.
      OtherProcessError: one of these on another process.
      Stopped: a signal ended the run after its state was saved; and what else `fit` raises.
    """
    rules.validate(config, devices=jax.device_count(), processes=jax.process_count())
    if mistakes := rules.workdir_mistakes(workdir):
        raise rules.ConfigError(mistakes)
    with distributed.together():
        source = open_source(config.data.source)
        length = pretraining.steps(config, len(source))
        if mistakes := rules.length_mistakes(config, per_epoch=length.per_epoch, total=length.total):
            raise rules.ConfigError(mistakes)
    with contextlib.ExitStack() as stack:
        with distributed.together():
            if jax.process_index() == 0:
                stack.enter_context(locked(workdir))
        return _train(config, workdir, evaluations, signals, source, length)


def _train(
    config: ConfigDict,
    workdir: str,
    evaluations: Sequence[Evaluation],
    signals: Signals | None,
    source: Source,
    length: pretraining.Steps,
) -> State:
    run = config.run
    checkpoints = Checkpoints(
        f"{workdir}/checkpoints", every_steps=run.checkpoint_every_steps, keep=run.keep_checkpoints, keep_every_steps=run.keep_every_steps
    )
    _check_same_run(config, checkpoints)
    start = _warm_start(config, length, checkpoints)
    references = pretraining.objective(config, length).references
    shown = Progress(workdir, total_steps=length.total, steps_per_epoch=length.per_epoch, references=references)
    with contextlib.closing(checkpoints), shown as progress:
        if jax.process_index() == 0:
            _write_config(config, workdir)
            if signals is not None:
                signals.say = progress.note
        mesh = sharding.make_mesh(run.fsdp)
        with progress.busy("compiling"):
            compiled = compile_step(config, length, mesh)
        for line in (*describe(config, length, source, mesh, compiled), *(start.report if start else ())):
            progress.note(line)
        state = fit(
            init=lambda: warm_start.begin(compiled.init(), start) if start else compiled.init(),
            abstract_state=compiled.abstract_state,
            train_step=compiled.step,
            batches=functools.partial(_batches, config, source, length),
            put=functools.partial(sharding.to_global, mesh=mesh),
            total_steps=length.total,
            images_per_step=config.data.batch_size,
            checkpoints=checkpoints,
            config=config.to_dict(),
            progress=progress,
            log_every_steps=run.log_every_steps,
            evaluations=[Periodic(run.eval_every_steps, functools.partial(_evaluate, config, evaluation)) for evaluation in evaluations],
            max_bad_steps=run.max_bad_steps,
            replaced=lambda views: views.replaced,
            max_bad_fraction=config.data.max_bad_fraction,
            signals=signals,
        )
        checkpoints.close()
        progress.note(f"finished: step {length.total:,} is saved in {checkpoints.directory / str(length.total)}")
    return state


class CompiledStep(NamedTuple):
    """The train step as an executable, with what it takes."""

    step: jax.stages.Compiled  # (state, views) -> (state, metrics); donates the state
    init: Callable[[], State]  # the state of step 0, in its shardings
    abstract_state: State  # shapes, types and shardings


def compile_step(config: ConfigDict, length: pretraining.Steps, mesh: Mesh) -> CompiledStep:
    """Compile the train step for a mesh: state cut by `sharding.state_shardings`, batch over all devices, metrics everywhere."""
    shapes = pretraining.abstract_state(config, length)
    shardings = sharding.state_shardings(shapes, mesh)
    abstract_state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    rows = sharding.batch_sharding(mesh)
    views = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), pretraining.abstract_views(config))
    step = jax.jit(
        pretraining.train_step(config, length, mesh),
        in_shardings=(shardings, rows),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )
    init = jax.jit(lambda: pretraining.init_state(config, length), out_shardings=shardings)
    return CompiledStep(step.lower(abstract_state, views).compile(), init, abstract_state)


def describe(config: ConfigDict, length: pretraining.Steps, source: Source, mesh: Mesh, compiled: CompiledStep) -> Iterator[str]:
    """What a person wants to check before leaving the run alone, as lines."""
    optimizer, batch = config.optimizer, config.data.batch_size
    params = compiled.abstract_state.params
    yield f"data         {source.spec}: {len(source):,} images, {length.per_epoch:,} steps an epoch, {length.total:,} steps in all"
    effective = pretraining.effective_epochs(config, length)
    yield f"epochs       {length.total / length.per_epoch:.1f}, effective {effective:.1f} (an image's crops by their pixels, rounded up)"
    yield f"devices      {mesh.size} x {mesh.devices.flat[0].device_kind}, mesh data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}"
    yield (
        f"batch        {batch} images, {batch // mesh.size} a device"
        + (f", in {optimizer.accumulate_steps} micro-batches" if optimizer.accumulate_steps > 1 else "")
    )
    yield f"learning     peak rate {optimizer.base_lr * batch / 256:.3g} = base_lr {optimizer.base_lr:g} x {batch} / 256"
    yield f"parameters   {_count(params):,}, of these backbone {_count(params['backbone']):,}; teacher {_teacher(compiled.abstract_state)}"
    yield f"memory       {_memory(compiled)}"
    if config.run.eval_every_steps and config.eval.gallery and config.eval.query:
        yield f"evaluation   every {config.run.eval_every_steps:,} steps: k-NN of {config.eval.query} by {config.eval.gallery}"


def _count(params: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _teacher(state: State) -> str:
    return f"{_count(state.method.teacher):,}" if state.method.teacher else "none"


def _memory(compiled: CompiledStep) -> str:
    """The compiler's own account of the step, a device."""
    found = compiled.step.memory_analysis()
    if found is None:
        return "the compiler gives no estimate"
    state, temporary = found.argument_size_in_bytes / 2**30, found.temp_size_in_bytes / 2**30
    return f"about {state + temporary:.2f} GiB a device: state and batch {state:.2f}, temporaries {temporary:.2f}"


def _check_same_run(config: ConfigDict, checkpoints: Checkpoints) -> None:
    """Refuse to go on from a checkpoint of another config."""
    step = checkpoints.latest_step()
    if step is None:
        return
    saved = completed(read_config(checkpoints.directory, step))
    if found := rules.differences(saved, config):
        raise rules.ConfigError(
            found, heading=f"{checkpoints.directory} holds step {step} of another run; take another workdir, or the same config"
        )


def _warm_start(config: ConfigDict, length: pretraining.Steps, checkpoints: Checkpoints) -> WarmStart | None:
    """The weights of `init_from`, unless the run goes on from a checkpoint of its own: then the file may even be gone."""
    if not config.init_from or checkpoints.latest_step() is not None:
        return None
    return warm_start.read(config, pretraining.abstract_state(config, length))


def _write_config(config: ConfigDict, workdir: str) -> None:
    os.makedirs(workdir, exist_ok=True)
    with open(f"{workdir}/config.json", "w", encoding="utf-8") as file:
        file.write(rules.to_json(config) + "\n")


def _batches(config: ConfigDict, source: Source, length: pretraining.Steps, start_step: int) -> Iterator[Views]:
    """This process's rows of the batches from `start_step` on."""
    data = config.data
    return train_batches(
        source,
        recipe=pretraining.view_recipe(config),
        masking=pretraining.mask_recipe(config, length),
        seed=config.seed,
        batch_size=data.batch_size,
        start_step=start_step,
        total_steps=length.total,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=data.workers,
        prefetch=data.prefetch,
        reading=pretraining.image_reading(config),
    )


def _evaluate(config: ConfigDict, evaluation: Evaluation, state: Any, step: int) -> Iterable[tuple[str, float]]:
    teacher = pretraining.recipe(config).eval_network == "teacher"
    network, statistics = (state.method.teacher, state.method.teacher_batch_stats) if teacher else (state.params, state.batch_stats)
    return evaluation(join_statistics(network["backbone"], statistics.get("backbone", {})))
