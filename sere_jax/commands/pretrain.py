"""Pre-training: open the data, build the parts, compile, and let `fit` drive.

Reads in the order in which things happen. Evaluations come in as functions of the parameters; `in_loop` makes maps of attention.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sere_jax import distributed, sharding
from sere_jax.buckets import Location
from sere_jax.build import pretraining
from sere_jax.commands import compiled, identity, in_loop, replay
from sere_jax.commands.in_loop import InLoop
from sere_jax.commands.step_costs import Compilation
from sere_jax.config import check as rules
from sere_jax.config import lengths
from sere_jax.config.launch import Launch, fitted
from sere_jax.data.batches.pipeline import train_batches
from sere_jax.data.sources import cache
from sere_jax.data.sources.example import Source
from sere_jax.data.sources.open import open_source
from sere_jax.models.norm import join_statistics
from sere_jax.reporting.progress import Progress
from sere_jax.train import bad_steps
from sere_jax.train.checkpoint_manager import Checkpoints
from sere_jax.train.evaluations import Periodic
from sere_jax.train.fit import fit
from sere_jax.train.lock import locked
from sere_jax.train.meter import Limits
from sere_jax.train.scores import Best
from sere_jax.train.signals import Signals
from sere_jax.train.state import State
from sere_jax.train.tracing import TracedSteps
from sere_jax.types import PyTree, Views
from sere_jax.weights import warm_start
from sere_jax.weights.warm_start import WarmStart
from sere_jax.writing import place

_NO_LAUNCH = Launch()


def train(
    config: ConfigDict,
    workdir: str,
    evaluations: Callable[[ConfigDict], Mapping[str, InLoop]] | None = None,
    signals: Signals | None = None,
    launch: Launch = _NO_LAUNCH,
) -> State:
    """Pre-train as the config says, going on from the newest checkpoint of `workdir`; return the final state.

    `workdir` gets config.json, launch.json, data.json, metrics.jsonl, tensorboard/ and checkpoints/. `evaluations` makes what runs by the
    cadence of `run.eval_every_steps` or `run.eval_every_epochs`, by name. `signals` are the program's, which listen since its start; None =
    listen while the steps run. Where `launch` made the run shorter than the config file does, the file's durations that do not fit are
    shortened in `config`, and a line says so.

    Raises:
      ConfigError: the config has mistakes, does not fit the data or the weights of `init_from`, or the checkpoints in
        `workdir` are of another config or of other images.
      SourceError: the data cannot be opened.
      WorkdirError: another run writes to `workdir`, or nothing can be written there.
      OtherProcessError: one of these on another process, or the processes differ in config, workdir, versions or images.
      Stopped: a signal ended the run after its state was saved; and what else `fit` raises.
    """
    directory = place(workdir)  # stays the same when the current directory changes
    with distributed.together():
        rules.validate(config, devices=jax.device_count(), processes=jax.process_count(), to_fit=launch.to_fit)
        if mistakes := rules.workdir_mistakes(workdir, rules.sources(config)):
            raise rules.ConfigError(mistakes)
    identity.check_settings(config, directory)
    with cache.using(config.data.cache_dir, config.data.cache_gigabytes), contextlib.ExitStack() as stack:
        evaluated = evaluations(config) if evaluations else {}
        with distributed.together():
            source = open_source(config.data.source)
            length = pretraining.steps(config, len(source))
            shortened = fitted(config, launch, per_epoch=length.per_epoch, total=length.total)
            if mistakes := lengths.length_mistakes(config, per_epoch=length.per_epoch, total=length.total):
                raise rules.ConfigError(mistakes)
            data = identity.read_data(source)
        identity.check_same_data(data)
        with distributed.together():
            if jax.process_index() == 0:
                stack.enter_context(locked(directory))
                print("".join(f"note: {line}\n" for line in shortened), end="")
        return _train(config, directory, evaluated, signals, source, length, data, launch)


def _train(
    config: ConfigDict,
    directory: Location,
    evaluations: Mapping[str, InLoop],
    signals: Signals | None,
    source: Source,
    length: pretraining.Steps,
    data: identity.Data,
    launch: Launch,
) -> State:
    references = pretraining.objective(config, length).references
    with (
        _checkpoints(config, length, directory) as checkpoints,
        Progress(str(directory), total_steps=length.total, steps_per_epoch=length.per_epoch, references=references) as progress,
    ):
        changed = identity.check_resumed(config, data, checkpoints, directory)
        start = _warm_start(config, length, checkpoints)
        identity.write_facts(config, launch, data, directory)
        if jax.process_index() == 0 and signals is not None:
            signals.say = progress.note
        mesh = sharding.make_mesh(config.run.fsdp)
        parts = state_parts(config, length, mesh)
        _note(progress, (*describe(config, length, source, mesh, parts.abstract_state), *changed, *(start.report if start else ())))
        compilation = Compilation(config, length, mesh, parts.abstract_state, progress)
        repeated = bad_steps.kept(directory)
        state = fit(
            init=lambda: warm_start.begin(parts.init(), start) if start else parts.init(),
            abstract_state=parts.abstract_state,
            compile_step=compilation.step,
            batches=functools.partial(_batches, config, source, length),
            put=functools.partial(sharding.to_global, mesh=mesh),
            total_steps=repeated - 1 if repeated else length.total,
            work=compilation.work,
            checkpoints=checkpoints,
            config=config.to_dict(),
            identity=data.saved(),
            progress=progress,
            log_every_steps=config.run.log_every_steps,
            evaluations=() if repeated else _periodic(config, length, evaluations, directory),
            replaced=lambda views: views.replaced,
            limits=_limits(config),
            on_bad=functools.partial(replay.keep, config, directory, source, progress),
            signals=signals,
            traced=_traced(config, directory),
        )
        checkpoints.close()
        _note(progress, _repeat(config, source, length, mesh, state, repeated) if repeated else _ending(checkpoints, length))
    return state


def _repeat(config: ConfigDict, source: Source, length: pretraining.Steps, mesh: Mesh, state: State, step: int) -> Iterator[str]:
    """Take the bad step that the workdir was made for, from the state before it."""
    train_step = pretraining.train_step(config, length, mesh)
    yield replay.repeat(train_step, step, state, _batches(config, source, length, step - 1), mesh)


def _note(progress: Progress, lines: Iterable[str]) -> None:
    for line in lines:
        progress.note(line)


class StateParts(NamedTuple):
    """The state before it exists."""

    abstract_state: State  # shapes, types and shardings
    init: Callable[[], State]  # the state of step 0, in its shardings; compiled at the call


def state_parts(config: ConfigDict, length: pretraining.Steps, mesh: Mesh) -> StateParts:
    """Shapes and initialisation of the state on a mesh, cut by `sharding.state_shardings`."""
    shapes = pretraining.abstract_state(config, length)
    shardings = sharding.state_shardings(shapes, mesh)
    abstract_state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    return StateParts(abstract_state, jax.jit(lambda: pretraining.init_state(config, length), out_shardings=shardings))


def describe(config: ConfigDict, length: pretraining.Steps, source: Source, mesh: Mesh, state: State) -> Iterator[str]:
    """What a person wants to check before leaving the run alone, as lines; known before anything is compiled."""
    optimizer, batch, params = config.optimizer, config.data.batch_size, state.params
    yield f"data         {source.spec}: {len(source):,} images, {length.per_epoch:,} steps an epoch, {length.total:,} steps in all"
    effective = pretraining.effective_epochs(config, length)
    yield f"epochs       {length.total / length.per_epoch:.1f}, effective {effective:.1f} (an image's crops by their pixels, rounded up)"
    yield f"devices      {mesh.size} x {mesh.devices.flat[0].device_kind}, mesh data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}"
    yield (
        f"batch        {batch} images, {batch // mesh.size} a device"
        + (f", in {optimizer.accumulate_steps} micro-batches" if optimizer.accumulate_steps > 1 else "")
    )
    yield f"learning     peak rate {optimizer.base_lr * batch / 256:.3g} = base_lr {optimizer.base_lr:g} x {batch} / 256"
    yield f"parameters   {_count(params):,}, of these backbone {_count(params['backbone']):,}; teacher {_teacher(state)}"
    if _samples_dearly(config, mesh):
        yield "sampling     by map_coordinates; relation.sampling_impl=auto (or separable) samples the same for less on a CPU"
    if (every := _cadence(config, length, "eval")) and config.eval.gallery and config.eval.query:
        yield f"evaluation   every {every:,} steps: k-NN of {config.eval.query} by {config.eval.gallery}"
    yield f"compiled     code is {compiled.where()}"


def _samples_dearly(config: ConfigDict, mesh: Mesh) -> bool:
    """Whether the run samples by the implementation that costs more on its devices."""
    sampled = {"spatial", "aligned"} & set(pretraining.recipe(config).losses)
    return bool(sampled) and config.relation.sampling_impl == "map_coordinates" and mesh.devices.flat[0].platform == "cpu"


def _ending(checkpoints: Checkpoints, length: pretraining.Steps) -> Iterator[str]:
    yield checkpoints.goodput.summary()
    yield f"finished: step {length.total:,} is saved in {checkpoints.directory / str(length.total)}"
    if best := checkpoints.scores.best_step():
        score = checkpoints.scores.best
        assert score is not None
        yield f"best: step {best[0]:,} with {score.score} {best[1]:.4f} is saved in {checkpoints.directory / str(best[0])}"


def _limits(config: ConfigDict) -> Limits:
    return Limits(config.run.max_bad_steps, config.run.max_bad_share, config.data.max_bad_fraction, float(config.run.stuck_after_seconds))


def _cadence(config: ConfigDict, length: pretraining.Steps, what: str) -> int:
    """The steps of `run.WHAT_every_epochs`, or of `run.WHAT_every_steps` where that is 0."""
    return config.run[f"{what}_every_epochs"] * length.per_epoch or config.run[f"{what}_every_steps"]


def _checkpoints(config: ConfigDict, length: pretraining.Steps, directory: Location) -> Checkpoints:
    run = config.run
    return Checkpoints(
        directory / "checkpoints",
        every_steps=_cadence(config, length, "checkpoint"),
        keep=run.keep_checkpoints,
        keep_every_steps=run.keep_every_steps,
        best=Best(run.keep_best, run.keep_best_mode) if run.keep_best else None,
        strict=run.strict_restore,
    )


def _traced(config: ConfigDict, directory: Location) -> TracedSteps:
    first, count = config.run.profile_steps
    return TracedSteps(first, count, directory / "trace")


def _periodic(config: ConfigDict, length: pretraining.Steps, evaluations: Mapping[str, InLoop], directory: Location) -> list[Periodic]:
    every, maps = _cadence(config, length, "eval"), in_loop.attention(config, directory / "tensorboard" / "attention")
    runs: dict[str, in_loop.Draw] = {name: functools.partial(_of_params, evaluation) for name, evaluation in evaluations.items()}
    if maps is not None:
        runs["attention"] = maps
    measured = {name: evaluation.measured for name, evaluation in evaluations.items()}
    return [Periodic(name, every, functools.partial(_evaluate, config, run), measured.get(name, "")) for name, run in runs.items()]


def _count(params: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _teacher(state: State) -> str:
    return f"{_count(state.method.teacher):,}" if state.method.teacher else "none"


def _warm_start(config: ConfigDict, length: pretraining.Steps, checkpoints: Checkpoints) -> WarmStart | None:
    """The weights of `init_from`, unless the run goes on from a checkpoint of its own: then the file may even be gone."""
    if not config.init_from or checkpoints.newest() is not None:
        return None
    with distributed.together():  # the file may be missing or of another network on one machine
        return warm_start.read(config, pretraining.abstract_state(config, length))


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


def _of_params(evaluation: InLoop, params: PyTree, step: int) -> Iterable[tuple[str, float]]:
    return evaluation.run(params)


def _evaluate(config: ConfigDict, run: in_loop.Draw, state: Any, step: int) -> Iterable[tuple[str, float]]:
    teacher = pretraining.recipe(config).eval_network == "teacher"
    network, statistics = (state.method.teacher, state.method.teacher_batch_stats) if teacher else (state.params, state.batch_stats)
    return run(join_statistics(network["backbone"], statistics.get("backbone", {})), step)
