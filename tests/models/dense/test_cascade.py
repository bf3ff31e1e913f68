"""Cascade Mask R-CNN: its stages, how they feed each other, their training against PyTorch, and the choice of detections.

What needs the whole detector is slow: its training step takes half a minute to compile.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sere_jax.evals.trained.detection_losses import losses
from sere_jax.losses import detection as detection_losses
from sere_jax.models.dense import cascade
from sere_jax.models.dense.cascade import STAGES, BoxHead, MaskHead
from sere_jax.models.dense.rpn import Proposals
from sere_jax.ops import boxes as box_ops
from sere_jax.train import optim
from tests import micro
from tests.models.dense.micro_detector import CLASSES, COUNTS, DETECTOR, KEYS, OBJECTS, SIZES, images, variables
from tests.oracles import detection, torch_cascade

PARTS = ["anchors/objectness", "anchors/boxes"] + [f"stage_{i}/{part}" for i in (1, 2, 3) for part in ("classes", "boxes", "masks")]


@functools.cache
def step():
    """(parameters, a weight for each part of the loss) -> ((parts, output), gradient of the weighted sum). Compiled once."""

    def weighted(params, weights):
        output, _ = DETECTOR.apply({**variables(), "params": params}, images(), SIZES, OBJECTS, KEYS, mutable=["batch_stats"])
        parts = losses(output)
        return sum(weights[i] * parts[name] for i, name in enumerate(PARTS)), (parts, output)

    return micro.jit(jax.grad(weighted, has_aux=True))


@functools.cache
def scene():
    """The parts of the loss, the output, and the gradient of the sum."""
    gradient, (parts, output) = step()(variables()["params"], jnp.ones(len(PARTS)))
    return micro.copies(parts), micro.copies(output), gradient


@pytest.mark.slow
def test_every_part_of_the_loss_is_finite_and_moves_its_own_parameters():
    parts, _, gradient = scene()
    assert sorted(parts) == sorted(PARTS) and all(np.isfinite(value) for value in parts.values())
    heads = {f"{kind}_heads_{i}" for kind in ("box", "mask") for i in range(3)}
    assert set(gradient) == heads | {"backbone", "necks", "fpn", "rpn"}
    assert all(bool(jnp.any(leaf)) for name in heads for leaf in jax.tree.leaves(gradient[name]["classifier"]))


@pytest.mark.slow
def test_positive_regions_overlap_their_object_as_the_stage_asks_and_background_does_not():
    _, output, _ = scene()
    for stage, answer in zip(STAGES, output.stages, strict=True):
        for image in range(2):
            regions = jax.tree.map(lambda x, image=image: x[image], answer.regions)
            objects = [np.asarray(OBJECTS.boxes)[image, i] for i in np.flatnonzero(OBJECTS.valid[image])]
            assert regions.positive.any() and regions.positive.sum() <= COUNTS.regions // 4
            for i in np.flatnonzero(regions.valid):
                overlaps = [detection.iou(regions.boxes[i].astype(float), one.astype(float)) for one in objects]
                assert (max(overlaps) >= stage.positive) == regions.positive[i]
                if regions.positive[i]:
                    assert int(np.argmax(overlaps)) == regions.object[i]
                    np.testing.assert_array_equal(regions.targets[i], objects[regions.object[i]])
                assert regions.labels[i] == (np.asarray(OBJECTS.labels)[image, regions.object[i]] if regions.positive[i] else CLASSES)


@pytest.mark.slow
def test_a_stage_sees_the_boxes_that_the_stage_before_moved_and_the_objects_own():
    _, output, _ = scene()
    for before, after in zip(output.stages, output.stages[1:], strict=False):
        for image in range(2):
            height, width = (int(side) for side in SIZES[image])
            regions = jax.tree.map(lambda x, image=image: x[image], before.regions)
            passed = np.asarray(before.boxes[image])[regions.valid & ~regions.added]
            clipped = np.clip(passed, 0, [width, height, width, height])
            seen = jax.tree.map(lambda x, image=image: x[image], after.regions)
            for i in np.flatnonzero(seen.valid):
                source = np.asarray(OBJECTS.boxes)[image] if seen.added[i] else clipped
                assert np.abs(source - seen.boxes[i]).max(axis=1).min() < 1e-3


@pytest.mark.slow
def test_boxes_are_moved_by_the_codes_of_the_objects_class_or_of_the_likeliest():
    _, output, _ = scene()
    answer = output.stages[0]
    head = BoxHead(CLASSES, 8, 16)
    weights = {kind: tree["box_heads_0"] for kind, tree in variables().items()}
    levels = DETECTOR.apply({**variables()}, images(), None, method="_levels", mutable=["batch_stats"])[0]
    aligned = DETECTOR.apply(variables(), levels, jnp.asarray(answer.regions.boxes), 7, method="_aligned")
    codes = np.asarray(head.apply(weights, aligned, mutable=["batch_stats"])[0].codes)
    for image, i in ((0, 0), (0, 5), (1, 0), (1, 4)):
        label = int(answer.regions.labels[image, i])
        label = int(np.argmax(answer.logits[image, i, :-1])) if label == CLASSES else label
        expected = detection.decoded(codes[image, i, label], np.asarray(answer.regions.boxes)[image, i], STAGES[0].deviations)
        np.testing.assert_allclose(answer.boxes[image, i], expected, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["stage_3/boxes", "stage_2/classes"])
def test_no_gradient_passes_from_a_stage_to_the_one_before(part):
    weights = jnp.zeros(len(PARTS)).at[PARTS.index(part)].set(1.0)
    gradient, _ = step()(variables()["params"], weights)
    stage = int(part[6]) - 1
    assert any(jnp.any(leaf) for leaf in jax.tree.leaves(gradient[f"box_heads_{stage}"]))
    for other in {0, 1, 2} - {stage}:
        assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(gradient[f"box_heads_{other}"]))
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(gradient["rpn"]))
    assert any(jnp.any(leaf) for leaf in jax.tree.leaves(gradient["backbone"]))


@pytest.mark.slow
def test_the_weight_of_a_stage_is_on_all_of_its_losses():
    parts, output, _ = scene()
    for i, weight in enumerate((1.0, 0.5, 0.25)):
        answer = output.stages[i]
        regions = answer.regions
        valid = [(b, k) for b, k in np.argwhere(regions.valid)]
        classes = sum(detection.cross_entropy(np.asarray(answer.logits[at], float), regions.labels[at]) for at in valid) / len(valid)
        boxes = sum(
            1 - detection.giou(np.asarray(answer.boxes[at], float), regions.targets[at].astype(float))
            for at in valid
            if regions.positive[at]
        )
        cells = [
            detection.bce(float(logit), bool(target))
            for at in np.argwhere(np.asarray(answer.masks.valid))
            for logit, target in zip(answer.masks.logits[tuple(at)].ravel(), answer.masks.targets[tuple(at)].ravel(), strict=True)
        ]
        assert float(parts[f"stage_{i + 1}/classes"]) == pytest.approx(weight * classes, rel=1e-4)
        assert float(parts[f"stage_{i + 1}/boxes"]) == pytest.approx(weight * 10 * boxes / len(valid), rel=1e-3)
        assert float(parts[f"stage_{i + 1}/masks"]) == pytest.approx(weight * np.mean(cells), rel=1e-4)


def test_sampled_regions_are_what_loops_say_of_proposals_and_objects():
    rng = np.random.default_rng(3)
    object_boxes = np.array([[4, 6, 40, 38], [30, 20, 60, 60], [0, 0, 0, 0]], np.float32)
    boxes = object_boxes[rng.integers(0, 2, 20)] + rng.uniform(-9, 9, (20, 4)).astype(np.float32)
    proposals = Proposals(jnp.asarray(boxes), jnp.arange(20) < 17)
    objects = jax.tree.map(lambda x: x[0], OBJECTS)._replace(boxes=jnp.asarray(object_boxes))
    sample = functools.partial(cascade.sample_regions, positive=0.6, classes=CLASSES, count=64)
    regions = jax.tree.map(np.asarray, micro.jit(sample)(KEYS[0], proposals, objects))
    every = [*object_boxes[:2], *boxes[:17]]
    assigned = detection.assigned(every, object_boxes[:2], 0.6, 0.6)
    expected = sorted((tuple(box), int(objects.labels[i]) if i >= 0 else CLASSES) for box, i in zip(every, assigned, strict=True))
    valid = np.flatnonzero(regions.valid)
    assert sorted((tuple(regions.boxes[i]), int(regions.labels[i])) for i in valid) == expected
    assert regions.added.sum() >= 2 and sorted(map(tuple, regions.boxes[valid][regions.added[valid]])) == sorted(
        map(tuple, object_boxes[:2])
    )
    for i in valid:
        aim = object_boxes[regions.object[i]] if regions.positive[i] else regions.boxes[i]
        np.testing.assert_array_equal(regions.targets[i], aim)
        assert regions.positive[i] == (regions.labels[i] < CLASSES)
    few = jax.tree.map(np.asarray, micro.jit(functools.partial(sample, count=8))(KEYS[0], proposals, objects))
    assert few.valid.all() and few.positive.tolist() == [True] * 2 + [False] * 6  # a quarter at most


def _torch_weights(params: dict) -> dict[str, torch.Tensor]:
    """The parameters of our two heads under the names of the PyTorch stage."""
    named = {}
    for name, ours in (("fc", params["box"]["fc"]), ("classifier", params["box"]["classifier"]), ("codes", params["box"]["codes"])):
        named |= {f"{name}.weight": ours["kernel"].T, f"{name}.bias": ours["bias"]}
    for i in range(4):
        block, conv = params["box"][f"conv_{i}"], params["mask"][f"conv_{i}"]
        named |= {f"box.{3 * i}.weight": block["conv"]["kernel"].transpose(3, 2, 0, 1)}
        named |= {f"box.{3 * i + 1}.weight": block["bn"]["scale"], f"box.{3 * i + 1}.bias": block["bn"]["bias"]}
        named |= {f"mask.{2 * i}.weight": conv["kernel"].transpose(3, 2, 0, 1), f"mask.{2 * i}.bias": conv["bias"]}
    up, last = params["mask"]["up"], params["mask"]["classifier"]
    named |= {"up.weight": up["kernel"][::-1, ::-1].transpose(2, 3, 0, 1), "up.bias": up["bias"]}  # Flax correlates where torch convolves
    named |= {"mask_classifier.weight": last["kernel"].T[..., None, None], "mask_classifier.bias": last["bias"]}
    return {name: torch.tensor(np.ascontiguousarray(value)) for name, value in named.items()}


def _torch_stage(params: dict, width: int) -> tuple[torch_cascade.Stage, torch.optim.AdamW]:
    """A stage with our weights, and its optimizer, which decays kernels alone."""
    stage = torch_cascade.Stage(width, 5, 8, CLASSES)
    result = stage.load_state_dict(_torch_weights(micro.copies(params)), strict=False)
    assert not result.unexpected_keys and all("running" in key or "tracked" in key for key in result.missing_keys)
    kernels, rest = ([p for p in stage.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False))
    groups = [{"params": kernels, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    return stage, torch.optim.AdamW(groups, lr=1e-3)


def _regions(width: int, count: int, positive: int) -> dict[str, np.ndarray]:
    """Features, boxes and labels of regions of which the first stand for an object; the boxes and masks of these objects."""
    rng = np.random.default_rng(0)
    features = {"box_features": rng.normal(size=(count, 7, 7, width)), "mask_features": rng.normal(size=(positive, 14, 14, width))}
    corners = rng.uniform(0, 20, (count, 2))
    regions = {name: value.astype(np.float32) for name, value in features.items()} | {
        "boxes": np.concatenate([corners, corners + rng.uniform(10, 30, (count, 2))], axis=1).astype(np.float32),
        "labels": np.where(np.arange(count) < positive, rng.integers(0, CLASSES, count), CLASSES),
        "masks": rng.random((positive, 28, 28)) < 0.5,
    }
    return regions | {"targets": regions["boxes"][:positive] + rng.uniform(-4, 4, (positive, 4)).astype(np.float32)}


def test_three_steps_of_a_stage_are_pytorchs():
    stage, width, count, positive = STAGES[1], 6, 10, 3
    box, mask, given = BoxHead(CLASSES, 5, 8), MaskHead(CLASSES, 5), _regions(width, count, positive)
    box_features, mask_features = (jnp.asarray(given[name])[None] for name in ("box_features", "mask_features"))
    is_positive, every = jnp.arange(count)[None] < positive, jnp.ones((1, count), bool)
    shapes = {
        "box": jax.eval_shape(lambda: box.init(jax.random.key(0), box_features)),
        "mask": jax.eval_shape(lambda: mask.init(jax.random.key(0), mask_features)),
    }
    stats = {"batch_stats": jax.tree.map(lambda x: jnp.zeros(x.shape), shapes["box"]["batch_stats"])}
    params = micro.random_like({name: leaf["params"] for name, leaf in shapes.items()}, 1)

    def loss(params):
        answer, _ = box.apply({"params": params["box"], **stats}, box_features, mutable=["batch_stats"])
        labels = jnp.asarray(given["labels"])[None]
        codes = jnp.take_along_axis(answer.codes, jnp.minimum(labels, CLASSES - 1)[..., None, None], axis=2)[:, :, 0]
        boxes = box_ops.decode(codes, jnp.asarray(given["boxes"])[None], stage.deviations)
        targets = jnp.asarray(np.concatenate([given["targets"], given["boxes"][positive:]]))[None]
        logits = mask.apply({"params": params["mask"]}, mask_features)[0]
        logits = logits[jnp.arange(positive), :, :, given["labels"][:positive]]
        by_class = detection_losses.class_loss(answer.logits, labels, every)
        by_box = detection_losses.box_loss(boxes, targets, is_positive, every)
        return stage.weight * (by_class + by_box + detection_losses.mask_loss(logits, given["masks"], jnp.ones(positive, bool)))

    optimizer = optim.adamw(optim.Rules(lambda step: jnp.float32(1e-3), lambda step: jnp.float32(0.05)))

    def update(params, state, step):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params, step=step)
        return jax.tree.map(jnp.add, params, updates), state, value

    theirs, adamw = _torch_stage(params, width)
    tensors = {name: torch.tensor(value) for name, value in given.items()}
    tensors |= {name: x.permute(0, 3, 1, 2) for name, x in tensors.items() if name.endswith("features")}
    tensors["masks"] = tensors["masks"].float()
    state, run = optimizer.init(params), micro.jit(update)
    for i in range(3):
        params, state, value = run(params, state, jnp.int32(i))
        expected = torch_cascade.loss(theirs, tensors, stage.deviations, stage.weight)
        adamw.zero_grad()
        expected.backward()
        adamw.step()
        assert float(value) == pytest.approx(expected.item(), rel=1e-4)
    trained = dict(theirs.named_parameters())
    for name, value in _torch_weights(micro.copies(params)).items():
        np.testing.assert_allclose(value, trained[name].detach(), atol=1e-4, err_msg=name)


def test_detections_are_the_best_after_suppression_within_each_class():
    rng = np.random.default_rng(2)
    corners = rng.integers(0, 6, (9, CLASSES, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + rng.integers(4, 9, (9, CLASSES, 2))], axis=-1).astype(np.float32)
    scores = rng.dirichlet(np.full(CLASSES + 1, 0.7), 9)[:, :CLASSES].astype(np.float32)
    valid = np.arange(9) < 8
    detections = micro.jit(cascade.choose_detections, static_argnums=3)(scores, boxes, valid, 6)
    kept = []
    for label in range(CLASSES):
        of_class: list[int] = []
        for i in np.argsort(-scores[:8, label], kind="stable"):
            if scores[i, label] > 0.05 and all(detection.iou(boxes[i, label], boxes[j, label]) <= 0.5 for j in of_class):
                of_class.append(i)
        kept += [(float(scores[i, label]), label, boxes[i, label]) for i in of_class]
    expected = sorted(kept, key=lambda row: -row[0])[:6]
    count = len(expected)
    assert detections.valid.tolist() == [i < count for i in range(6)]
    assert detections.labels[:count].tolist() == [label for _, label, _ in expected]
    np.testing.assert_allclose(detections.scores[:count], [score for score, _, _ in expected])
    np.testing.assert_array_equal(detections.boxes[:count], [box for _, _, box in expected])


@pytest.mark.slow
def test_a_detector_answers_with_boxes_inside_the_image_and_masks():
    answer = micro.jit(lambda v: DETECTOR.clone(running=True).apply(v, images(), SIZES, method="detect"))(variables())
    assert answer.boxes.shape == (2, COUNTS.detections, 4) and answer.masks.shape == (2, COUNTS.detections, 28, 28)
    assert answer.valid.any(axis=1).all()
    for image, (height, width) in enumerate(SIZES.tolist()):
        valid = np.asarray(answer.valid[image])
        boxes, scores, masks = (np.asarray(x[image])[valid] for x in (answer.boxes, answer.scores, answer.masks))
        assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all() and (boxes[:, 2:] >= boxes[:, :2]).all()
        assert (np.diff(scores) <= 0).all() and (scores > 0.05).all() and ((masks > 0) & (masks < 1)).all()
