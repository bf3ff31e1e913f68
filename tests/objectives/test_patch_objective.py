"""iBOT's masked patches, DINO+'s aligned ones, Barlow's batch: objectives against loops over all patches."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sere_jax import sharding
from sere_jax.build import pretraining
from sere_jax.commands import hlo
from sere_jax.objectives import patch
from sere_jax.types import Objective, PrototypeOutput, Views
from tests import micro
from tests.oracles import patch as oracle

K, E, BATCH, SIDE, CAP, POINTS = 9, 5, 3, 4, 6, 3
SETTINGS = {"prototypes": K, "student_temp": 0.1, "teacher_temp": lambda step: 0.05 + 0.01 * step, "center_momentum": 0.8}


def _outputs(*shape: int) -> tuple[PrototypeOutput, np.ndarray]:
    """A head's answer for tokens [*shape], and its logits."""
    rng = np.random.default_rng(sum(shape))
    bottleneck, prototypes = (rng.normal(size=size).astype(np.float32) for size in ((*shape, E), (K, E)))
    return PrototypeOutput(jnp.asarray(bottleneck), jnp.asarray(prototypes)), np.einsum("...e,ke->...k", bottleneck, prototypes)


def _masked_views() -> Views:
    """Hidden: two, none; one, all that fit; none, three patches."""
    indices = np.full((BATCH, 2, CAP), -1, np.int32)
    for (b, v), hidden in {(0, 0): (3, 7), (1, 0): (15,), (1, 1): (0, 1, 2, 8, 9, 10), (2, 1): (0, 5, 6)}.items():
        indices[b, v, : len(hidden)] = hidden
    masks = np.zeros((BATCH, 2, SIDE * SIDE), bool)
    for b, v, i in zip(*np.nonzero(indices >= 0), strict=True):
        masks[b, v, indices[b, v, i]] = True
    return micro.views(micro.config(), batch=BATCH)._replace(masks=masks.reshape(BATCH, 2, SIDE, SIDE), mask_indices=indices)


def _masked_student(views: Views, everywhere: PrototypeOutput) -> PrototypeOutput:
    rows = everywhere.bottleneck.reshape(BATCH, 2, SIDE * SIDE, E)
    return everywhere._replace(bottleneck=jnp.take_along_axis(rows, np.maximum(views.mask_indices, 0)[..., None], axis=2))


def test_masked_patches_meet_the_teachers_of_the_same_view():
    views, method = _masked_views(), patch.patch(**SETTINGS)
    student, student_logits = _outputs(BATCH, 2, SIDE, SIDE)
    teacher, teacher_logits = _outputs(BATCH, 2, SIDE, SIDE)
    teacher, teacher_logits = teacher._replace(bottleneck=-teacher.bottleneck), -teacher_logits
    center = np.random.default_rng(5).normal(size=K).astype(np.float32)
    outputs = {patch.STUDENT_MASKED: _masked_student(views, student), patch.TEACHER_PATCHES: teacher}
    state = {"center": jnp.asarray(center)[None]}
    loss, statistics, metrics = method.apply(outputs, views, state, jnp.int32(2))
    masks = views.masks.reshape(BATCH, 2, -1)
    flat = [x.reshape(BATCH, 2, -1, K) for x in (teacher_logits, student_logits)]
    expected = oracle.masked_loss(*flat, masks, center, 0.07, 0.1)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    # Two of six views have nothing hidden: they count as 0 in the loss and not at all here.
    np.testing.assert_allclose(metrics["patch_masked"], expected * 6 / 4, rtol=1e-5)
    np.testing.assert_allclose(metrics["masked_share"], masks.mean(), rtol=1e-6)
    assigned = np.exp((flat[0].astype(np.float64) - center) / 0.07)
    assigned /= assigned.sum(-1, keepdims=True)
    entropies = -(assigned * np.log(assigned)).sum(-1)
    each = [entropies[b, v][masks[b, v]].mean() for b, v in np.ndindex(BATCH, 2) if masks[b, v].any()]
    np.testing.assert_allclose(metrics["patch_entropy"], np.mean(each), rtol=1e-5)
    after = oracle.next_center(center, list(flat[0].reshape(-1, K)), 0.8)
    np.testing.assert_allclose(method.update(state, statistics)["center"][0], after, atol=1e-6)


def test_no_patch_hidden_anywhere_is_a_loss_of_0():
    views, method = _masked_views(), patch.patch(**SETTINGS)
    views = views._replace(mask_indices=np.full_like(views.mask_indices, -1), masks=np.zeros_like(views.masks))
    output = _outputs(BATCH, 2, SIDE, SIDE)[0]
    outputs = {patch.STUDENT_MASKED: _masked_student(views, output), patch.TEACHER_PATCHES: output}
    gradient = jax.grad(lambda o: method.apply(o, views, method.init(), jnp.int32(0))[0])(outputs)
    assert float(method.apply(outputs, views, method.init(), jnp.int32(0))[0]) == 0
    assert all(not np.any(x) for x in jax.tree.leaves(gradient))


def _of_the_student(limit: int, monkeypatch: pytest.MonkeyPatch) -> tuple[jax.Array, PrototypeOutput]:
    """The masked loss and its gradient with respect to the student's answer, with so many bytes of logits at a time."""
    monkeypatch.setattr(patch, "MAX_BYTES_OF_LOGITS", limit)
    views, method = _masked_views(), patch.patch(**SETTINGS)
    student, teacher = _masked_student(views, _outputs(BATCH, 2, SIDE, SIDE)[0]), _outputs(BATCH, 2, SIDE + 1, SIDE)[0]
    teacher = teacher._replace(bottleneck=teacher.bottleneck[:, :, :SIDE])

    def loss(student: PrototypeOutput) -> jax.Array:
        return method.apply({patch.STUDENT_MASKED: student, patch.TEACHER_PATCHES: teacher}, views, method.init(), jnp.int32(1))[0]

    return micro.jit(jax.value_and_grad(loss))(student)


def test_tokens_that_take_turns_learn_the_same(monkeypatch: pytest.MonkeyPatch):
    """Six tokens of 216 bytes in four turns, the last of them half empty."""
    (whole, expected), (in_turns, gradient) = (_of_the_student(limit, monkeypatch) for limit in (2**28, 400))
    np.testing.assert_allclose(in_turns, whole, rtol=1e-6)
    # A logit near 5 is rounded by 5e-7, and the temperature of 0.06 magnifies it.
    micro.assert_close(gradient, expected, atol=1e-5)
    assert np.abs(expected.prototypes).max() > 1e-2


def test_turns_need_less_memory_and_keep_rows_and_gradients_on_their_device(monkeypatch: pytest.MonkeyPatch):
    """Eight devices with a copy of the prototypes each: 64 tokens a device, one turn or eight."""
    mesh = sharding.make_mesh(1)
    rows, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    tokens, copies, center = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 1, 64, E), (8, 512, E), (1, 512)))

    def loss(student: PrototypeOutput, bottleneck: jax.Array, center: jax.Array) -> jax.Array:
        return jnp.sum(
            patch.compare(PrototypeOutput(bottleneck, center.T * jnp.ones((1, E))), student, center, jnp.float32(0.1), 0.1).cross_entropy
        )

    def compiled(limit: int) -> Any:
        monkeypatch.setattr(patch, "MAX_BYTES_OF_LOGITS", limit)
        gradient = jax.jit(jax.grad(loss), in_shardings=(rows, rows, everywhere), compiler_options=micro.FAST_COMPILE)
        return gradient.lower(PrototypeOutput(tokens, copies), tokens, center).compile()

    whole, in_turns = compiled(2**28), compiled(64 * 512 * 4 // 8)
    assert in_turns.memory_analysis().temp_size_in_bytes < whole.memory_analysis().temp_size_in_bytes / 3
    assert hlo.collectives(hlo.parse(in_turns.as_text()), dict(mesh.shape)) == []


def test_views_without_masks_are_refused():
    method = patch.patch(**SETTINGS)
    output = _outputs(BATCH, 2, SIDE, SIDE)[0]
    with pytest.raises(ValueError, match="no mask_indices"):
        method.apply(dict.fromkeys(method.requests, output), micro.views(micro.config()), method.init(), jnp.int32(0))


def test_aligned_points_meet_those_of_the_other_view():
    """Example 0's crops are apart: neither its loss nor its share of the center counts."""
    views, method = micro.views(micro.config(), batch=BATCH), patch.aligned(**SETTINGS)
    (student, student_logits), (teacher, teacher_logits) = _outputs(BATCH, 2, POINTS), _outputs(BATCH, 2, POINTS)
    teacher, teacher_logits = teacher._replace(bottleneck=-teacher.bottleneck), -teacher_logits
    (left, top), (right, bottom) = (np.moveaxis(x, -1, 0) for x in (views.boxes[..., :2], views.boxes[..., :2] + views.boxes[..., 2:]))
    overlaps = (right.min(1) > left.max(1)) & (bottom.min(1) > top.max(1))
    assert not overlaps[0] and overlaps.any()
    center = np.random.default_rng(5).normal(size=K).astype(np.float32)
    outputs = {patch.STUDENT_ALIGNED: student, patch.TEACHER_ALIGNED: teacher}
    state = {"center": jnp.asarray(center)[None]}
    loss, statistics, _ = method.apply(outputs, views, state, jnp.int32(0))
    np.testing.assert_allclose(loss, oracle.aligned_loss(teacher_logits, student_logits, overlaps, center, 0.05, 0.1), rtol=1e-5)
    after = oracle.next_center(center, list(teacher_logits[overlaps].reshape(-1, K)), 0.8)
    np.testing.assert_allclose(method.update(state, statistics)["center"][0], after, atol=1e-6)


@pytest.mark.parametrize("apart", [(), (0, 1), (0, 1, 2, 3)])
def test_with_accumulation_the_center_of_aligned_points_is_that_of_the_whole_batch(apart: tuple[int, ...]):
    """Examples without an overlap count nowhere, however they lie in the micro-batches; without any overlap the center stays."""
    views, method = micro.views(micro.config(), batch=4), patch.aligned(**SETTINGS)
    boxes = np.tile(np.float32([0, 0, 10, 10]), (4, 2, 1))
    boxes[list(apart), 1, 0] = 50
    views = views._replace(boxes=boxes)
    teacher, teacher_logits = _outputs(4, 2, POINTS)
    state = {"center": jnp.asarray(np.random.default_rng(5).normal(size=(1, K)), jnp.float32)}

    def statistics(rows: slice) -> dict:
        part = teacher._replace(bottleneck=teacher.bottleneck[rows])
        outputs = {patch.STUDENT_ALIGNED: part, patch.TEACHER_ALIGNED: part}
        return method.apply(outputs, jax.tree.map(lambda x: x[rows], views), state, jnp.int32(0))[1]

    window = jax.tree.map(lambda *parts: sum(parts) / 2, statistics(slice(0, 2)), statistics(slice(2, 4)))
    overlapping = [b for b in range(4) if b not in apart]
    expected = np.asarray(state["center"][0])
    if overlapping:
        expected = oracle.next_center(expected, list(teacher_logits[overlapping].reshape(-1, K)), 0.8)
    for found in (statistics(slice(None)), window):
        np.testing.assert_allclose(method.update(state, found)["center"][0], expected, atol=1e-6)  # float32 means of values near 1


def _barlow(embedding: str) -> Objective:
    changes = {"barlow": {"embedding": embedding, "barlow_weight": 0.5, "off_diagonal": 0.1}, "head": {"prototypes": K}}
    config = micro.config(changes, recipe="dino_barlow")
    return pretraining.objective(config, micro.LENGTH)


@pytest.mark.parametrize("embedding", ["cls", "patches"])
def test_barlow_relates_the_students_two_views_over_the_batch(embedding: str):
    method = _barlow(embedding)
    (request,) = (r for r in method.requests if r.head == "batch")
    assert request.side == "student" and method.references["batch"] == 48
    tokens = np.random.default_rng(0).normal(size=(BATCH, 2, 48) if embedding == "cls" else (BATCH, 2, 2, 2, 48)).astype(np.float32)
    outputs = {r: _outputs(BATCH, 2)[0] for r in method.requests if r.head == "dino"} | {request: jnp.asarray(tokens)}
    total, _, metrics = method.apply(outputs, micro.views(micro.config()), method.init(), jnp.int32(0))
    pooled = tokens if embedding == "cls" else tokens.reshape(BATCH, 2, 4, 48).mean(2)
    np.testing.assert_allclose(metrics["batch"], oracle.barlow(pooled[:, 0], pooled[:, 1], 0.1), rtol=1e-4)
    np.testing.assert_allclose(total, metrics["dino"] + 0.5 * metrics["batch"], rtol=1e-6)


def test_relations_of_the_masked_or_of_the_whole_view():
    for tokens, whole in (("masked", False), ("unmasked", True)):
        changes = {"masking": {"kind": "block"}, "relation": {"student_tokens": tokens}}
        method = pretraining.objective(micro.config(changes, local_count=1, recipe="ibot_sere"), micro.LENGTH)
        wholes = {r.head: r.whole for r in method.requests if r.side == "student" and r.views == "global" and r.tokens == "patches"}
        assert wholes == {"spatial": whole, "channel": whole}
        assert not any(r.whole for r in method.requests if r.head == "dino" or r.side == "teacher")
