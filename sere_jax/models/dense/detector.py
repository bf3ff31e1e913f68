"""A backbone with Cascade Mask R-CNN on top: what the detection protocol trains. Source: iBOT's config of MMDetection 2."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Key

from sere_jax.models.dense import cascade, rpn
from sere_jax.models.dense.cascade import STAGES, BoxHead, MaskHead, Regions
from sere_jax.models.dense.fpn import FeaturePyramid
from sere_jax.models.dense.rpn import Proposals, RegionProposals
from sere_jax.models.dense.upernet import Necks
from sere_jax.ops import boxes as box_ops
from sere_jax.ops.roi_align import roi_align_pyramid
from sere_jax.types import Detections, Objects

_AT_ONCE = 128  # regions whose features are computed together: bounds the memory of large maps


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many boxes of an image take part; the papers' numbers.

    Attributes:
      anchors: sampled anchors.
      per_level, proposals: anchors of a level before suppression, and boxes of all levels after it, in training.
      test_per_level, test_proposals: the same in a test.
      regions: sampled boxes of a stage.
      detections: boxes in the answer.
    """

    anchors: int = 256
    per_level: int = 2000
    proposals: int = 2000
    test_per_level: int = 1000
    test_proposals: int = 1000
    regions: int = 512
    detections: int = 100


class AnchorOutput(NamedTuple):
    """The sampled anchors: what the network says of them, and what is right."""

    objectness: Float[jax.Array, "b k"]
    codes: Float[jax.Array, "b k 4"]
    targets: rpn.AnchorTargets


class MaskOutput(NamedTuple):
    """Masks of the regions that may stand for an object."""

    logits: Float[jax.Array, "b p s s"]  # of the object's class
    targets: Bool[jax.Array, "b p s s"]
    valid: Bool[jax.Array, "b p"]


class StageOutput(NamedTuple):
    """The sampled regions of a stage, and what the network says of them."""

    regions: Regions
    logits: Float[jax.Array, "b k c"]
    boxes: Float[jax.Array, "b k 4"]  # moved by the codes of the object's class, or of the likeliest class where there is no object
    masks: MaskOutput | None


class TrainingOutput(NamedTuple):
    """All that the losses are made of."""

    anchors: AnchorOutput
    stages: tuple[StageOutput, ...]


class Detector(nn.Module):
    """Cascade Mask R-CNN on a ViT or a ResNet.

    `__call__` samples anchors and regions for training, `detect` answers with boxes and masks. `taps` are the four blocks of a ViT (from
    0) whose tokens are read, before the backbone's final norm; a ResNet has `taps=()` and gives the maps of its stages. Both
    sides of the images must be multiples of `multiple` pixels.
    """

    backbone: nn.Module
    classes: int
    taps: tuple[int, ...] = (3, 5, 7, 11)
    masks: bool = True  # False: boxes alone
    channels: int = 256
    hidden: int = 1024
    counts: Counts = Counts()
    running: bool = False  # BatchNorms of necks and heads use their running statistics
    dtype: Any = jnp.float32

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of a cell of each level: 4 to 64 for a ResNet, and for a ViT with patches of 16."""
        finest = self.backbone.patch_size // 4 if self.taps else 4
        return tuple(finest << level for level in range(5))

    @property
    def multiple(self) -> int:
        """What the sides of images must be multiples of, in pixels."""
        return self.strides[3]

    def setup(self) -> None:
        if self.taps:
            self.necks = Necks(self.running, self.dtype)
        self.fpn = FeaturePyramid(self.channels, self.dtype)
        self.rpn = RegionProposals(self.channels, self.dtype)
        self.box_heads = [BoxHead(self.classes, self.channels, self.hidden, self.running, self.dtype) for _ in STAGES]
        self.mask_heads = [MaskHead(self.classes, self.channels, self.dtype) for _ in STAGES] if self.masks else []

    def __call__(
        self,
        images: Float[jax.Array, "b H W c"],
        sizes: Int[jax.Array, "b 2"],
        objects: Objects,
        keys: Key[jax.Array, "b"],
        *,
        drop_path_noise: Float[jax.Array, "b l 2"] | None = None,
    ) -> TrainingOutput:
        """Sample and answer for normalised images, whose padding is 0 and whose own (height, width) are `sizes`; one key an image."""
        levels = self._levels(images, drop_path_noise)
        of_anchors, *of_stages = jax.vmap(lambda key: jax.random.split(key, 1 + len(STAGES)), out_axes=1)(keys)
        scores, anchors = self.rpn(levels), rpn.pyramid_anchors(levels, self.strides)

        def targets_of_image(key: jax.Array, objects: Objects, size: jax.Array) -> rpn.AnchorTargets:
            return rpn.anchor_targets(key, anchors.boxes, objects, size, self.counts.anchors)

        targets = jax.vmap(targets_of_image)(of_anchors, objects, sizes)
        objectness = jnp.take_along_axis(scores.objectness, targets.index, axis=1)
        codes = jnp.take_along_axis(scores.codes, targets.index[..., None], axis=1)
        proposals = _proposals(scores, anchors, sizes, self.counts.per_level, self.counts.proposals)
        outputs = []
        for i, stage_keys in enumerate(of_stages):
            output = self._stage(i, levels, proposals, objects, stage_keys)
            refined = jax.lax.stop_gradient(_clipped(output.boxes, sizes))
            proposals = Proposals(refined, output.regions.valid & ~output.regions.added)
            outputs.append(output)
        return TrainingOutput(AnchorOutput(objectness, codes, targets), tuple(outputs))

    def touch(self, images: Float[jax.Array, "b H W c"]) -> None:
        """Run every part once, without samples and suppression: `init(key, images, method="touch")` makes all parameters quickly."""
        levels = self._levels(images, None)
        self.rpn(levels)
        for heads, side in ((self.box_heads, cascade.BOX_SIDE), (self.mask_heads, cascade.MASK_SIDE)):
            for head in heads:
                head(jnp.zeros((1, 1, side, side, self.channels)))

    def detect(self, images: Float[jax.Array, "b H W c"], sizes: Int[jax.Array, "b 2"]) -> Detections:
        """Boxes, scores, classes and masks of normalised images, whose padding is 0.

        The classes' logits are averaged over the stages, the boxes are the last stage's, and the masks are the mean of the
        stages' probabilities on these boxes.
        """
        levels = self._levels(images, None)
        anchors = rpn.pyramid_anchors(levels, self.strides)
        boxes, valid = _proposals(self.rpn(levels), anchors, sizes, self.counts.test_per_level, self.counts.test_proposals)
        logits, moved = [], jnp.zeros(())
        for stage, head in zip(STAGES, self.box_heads, strict=True):
            answer = head(self._aligned(levels, boxes, cascade.BOX_SIDE))
            logits.append(answer.logits)
            moved = _clipped(box_ops.decode(answer.codes, boxes[:, :, None], stage.deviations), sizes)
            boxes = _of_class(moved, jnp.argmax(answer.logits[..., :-1], axis=-1))
        probabilities = jax.nn.softmax(jnp.mean(jnp.stack(logits), axis=0), axis=-1)[..., :-1]
        choose = jax.vmap(functools.partial(cascade.choose_detections, count=self.counts.detections))
        detections = choose(probabilities, moved, valid)
        if not self.masks:
            return detections
        features, labels = self._aligned(levels, jnp.asarray(detections.boxes), cascade.MASK_SIDE), jnp.asarray(detections.labels)
        masks = [jax.nn.sigmoid(_mask_of_class(head(features), labels)) for head in self.mask_heads]
        return detections._replace(masks=jnp.mean(jnp.stack(masks), axis=0))

    def _levels(self, images: jax.Array, noise: jax.Array | None) -> tuple[jax.Array, ...]:
        if not self.taps:
            return self.fpn(self.backbone(images, drop_path_noise=noise, maps=True).maps)
        features = self.backbone(images, drop_path_noise=noise, layers=self.taps, layers_norm="pre")
        height, width = features.patches.shape[1:3]
        maps = [jnp.asarray(tokens)[:, 1:].reshape(images.shape[0], height, width, -1) for tokens in features.layers]
        return self.fpn(self.necks(maps))

    def _aligned(self, levels: Sequence[jax.Array], boxes: Float[jax.Array, "b k 4"], size: int) -> Float[jax.Array, "b k s s d"]:
        """Features of regions on size x size cells; the coarsest level serves the anchors alone."""

        def of_image(levels: Sequence[jax.Array], boxes: jax.Array) -> jax.Array:
            def aligned(some: jax.Array) -> jax.Array:
                return roi_align_pyramid(levels, [float(stride) for stride in self.strides[:4]], some, size)

            if boxes.shape[0] <= _AT_ONCE:
                return aligned(boxes)
            return jax.lax.map(lambda box: aligned(box[None])[0], boxes, batch_size=_AT_ONCE)

        return jax.vmap(of_image)(tuple(levels[:4]), boxes)

    def _stage(self, i: int, levels: Sequence[jax.Array], proposals: Proposals, objects: Objects, keys: jax.Array) -> StageOutput:
        stage = STAGES[i]
        sample = functools.partial(cascade.sample_regions, positive=stage.positive, classes=self.classes, count=self.counts.regions)
        regions = jax.vmap(sample)(keys, proposals, objects)
        answer = self.box_heads[i](self._aligned(levels, regions.boxes, cascade.BOX_SIDE))
        likeliest = jnp.argmax(answer.logits[..., :-1], axis=-1)
        codes = _of_class(answer.codes, jnp.where(regions.labels == self.classes, likeliest, regions.labels))
        boxes = box_ops.decode(codes, regions.boxes, stage.deviations)
        return StageOutput(regions, answer.logits, boxes, self._stage_masks(i, levels, regions, objects) if self.masks else None)

    def _stage_masks(self, i: int, levels: Sequence[jax.Array], regions: Regions, objects: Objects) -> MaskOutput:
        targets = jax.vmap(functools.partial(cascade.region_masks, size=2 * cascade.MASK_SIDE))(regions, objects)
        first = targets.shape[1]
        logits = self.mask_heads[i](self._aligned(levels, regions.boxes[:, :first], cascade.MASK_SIDE))
        labels = jnp.where(regions.positive, regions.labels, 0)[:, :first]
        return MaskOutput(_mask_of_class(logits, labels), targets, regions.positive[:, :first])


def _proposals(scores: rpn.Scores, anchors: rpn.Anchors, sizes: jax.Array, per_level: int, count: int) -> Proposals:
    of_image = jax.vmap(lambda *image: rpn.propose(image[0], image[1], anchors, image[2], per_level=per_level, count=count))
    return of_image(scores.objectness, scores.codes, sizes)


def _clipped(boxes: jax.Array, sizes: jax.Array) -> jax.Array:
    """Boxes [b, ..., 4] inside images of `sizes` [b, 2]."""
    height, width = (sizes[:, axis].reshape(-1, *(1,) * (boxes.ndim - 2)) for axis in (0, 1))
    return box_ops.clip(boxes, height, width)


def _of_class(values: Float[jax.Array, "b k f 4"], classes: Int[jax.Array, "b k"]) -> Float[jax.Array, "b k 4"]:
    return jnp.take_along_axis(values, classes[..., None, None], axis=2)[:, :, 0]


def _mask_of_class(logits: Float[jax.Array, "b k s s f"], classes: Int[jax.Array, "b k"]) -> Float[jax.Array, "b k s s"]:
    return jnp.take_along_axis(logits, classes[..., None, None, None], axis=-1)[..., 0]
