"""Keys of the losses. A recipe reads the groups of the losses that it adds up."""

from __future__ import annotations

from sere_jax.config.keys.key import Group, Key
from sere_jax.config.rule import BOOL, POSITIVE, SHARE, choice, count, number

_DINO = {
    "student_temp": Key(0.1, POSITIVE, "Temperature of the student's softmax."),
    "teacher_temp": Key(0.04, POSITIVE, "Temperature of the teacher's softmax after its warm-up."),
    "warmup_teacher_temp": Key(0.04, POSITIVE, "Temperature of the teacher's softmax at the start of its warm-up."),
    "warmup_teacher_temp_epochs": Key(0, count(), "Length of the teacher temperature's warm-up, epochs."),
    "center_momentum": Key(0.9, SHARE, "Momentum of the teacher's center."),
}

_PATCH = {
    "patch_weight": Key(1.0, number(), "Weight of the patch loss beside the cls loss."),
    "teacher_patch_temp": Key(0.04, POSITIVE, "Teacher temperature after a warm-up of dino.warmup_teacher_temp_epochs."),
    "warmup_teacher_patch_temp": Key(0.04, POSITIVE, "Teacher temperature until its warm-up, which waits for masking.start_epoch."),
    "patch_center_momentum": Key(0.9, SHARE, "Momentum of the teacher's patch center."),
}

_BARLOW = {
    "barlow_weight": Key(0.024, number(), "Weight of the loss beside DINO's."),
    "off_diagonal": Key(0.0051, number(), "Weight of the correlations between different channels; Barlow Twins' own value."),
    "embedding": Key("patches", choice("patches", "cls"), "What is related: the mean of the patch projections, or the cls projection."),
    "projector": Key(
        "relation", choice("relation", "mlp"), "BatchNorm and ReLU, as SERE's channel relation, or Barlow Twins' three layers."
    ),
    "projector_width": Key(8192, count(1), "Width of the mlp projector."),
}

_MOCOV3 = {
    "temperature": Key(0.2, POSITIVE, "Temperature of the contrastive loss; 1 for a ResNet."),
    "projector_layers": Key(3, count(1), "Layers of the projector; 2 for a ResNet."),
    "hidden": Key(4096, count(1), "Width of the hidden layers of projector and predictor."),
    "width": Key(256, count(1), "Width of the features that are compared."),
    "predictor_last_norm": Key(True, BOOL, "The predictor ends with a BatchNorm without scale and bias; not for a ResNet."),
}

_MAE = {
    "decoder_width": Key(512, count(1), "Width of the decoder's tokens."),
    "decoder_depth": Key(8, count(1), "Blocks of the decoder."),
    "decoder_heads": Key(16, count(1), "Attention heads of the decoder."),
    "normalise_pixels": Key(True, BOOL, "The pixels of each target patch get mean 0 and variance 1."),
}

_RELATION = {
    "alpha": Key(1.0, number(), "Weight of the spatial relation loss."),
    "beta": Key(1.0, number(), "Weight of the channel relation loss."),
    "teacher_temp_spatial": Key(0.5, POSITIVE, "Temperature of the spatial relations on the side that temperature_side names."),
    "teacher_temp_channel": Key(0.1, POSITIVE, "Temperature of the channel relations on the side that temperature_side names."),
    "student_temp": Key(1.0, POSITIVE, "Temperature of the relations on the other side."),
    "temperature_side": Key(
        "teacher", choice("teacher", "student"), "Side of the first two temperatures: teacher (code) or student (TPAMI 4.1)."
    ),
    "sampling": Key(
        "endpoints", choice("endpoints", "centers"), "Overlap points: with the overlap's border (code), or centers of cells (paper)."
    ),
    "padding": Key("zeros", choice("zeros", "border"), "Features beyond a view's border: zeros (code), or those of the border."),
    "sampling_impl": Key(
        "map_coordinates",
        choice("map_coordinates", "separable", "auto"),
        "Two ways to sample, equal to 1e-5; separable (two small matrices) costs less on CPUs, where auto takes it.",
        machine=True,
    ),
    "disjoint": Key(
        "count", choice("count", "skip"), "Views without overlap count with a constant (code), or are left out (TPAMI's footnote)."
    ),
    "scale": Key(
        "head", choice("head", "width"), "Spatial relations are divided by the root of width / heads (code), or of width (paper)."
    ),
    "heads": Key(0, count(), "Heads of the spatial relation; 0 = the ViT's (code). The paper says 6."),
    "tokens": Key("pre", choice("pre", "post"), "Patch tokens before (code) or after the final LayerNorm."),
    "student_tokens": Key("masked", choice("masked", "unmasked"), "The student's view where a method masks it: masked (code) or whole."),
    "local_heads": Key(
        "separate", choice("separate", "shared"), "Local crops have their own relation heads (code), or share the global ones."
    ),
    "symmetric": Key(False, BOOL, "The student has no predictor, as in Table 15."),
    "image_weight": Key(
        "code",
        choice("code", "paper"),
        "Weight of the image loss: (4 - alpha - beta) / 2 (code; docs/recipes.md has it with one relation), or 1 (paper).",
    ),
    "global_points": Key(13, count(2), "Overlap points a side, between global crops."),
    "local_points": Key(6, count(2), "Overlap points a side, between a global and a local crop."),
}

GROUPS = (
    Group("dino", "DINO's loss. iBOT and DINO+ read it too.", _DINO),
    Group("patch", "The loss on single patches: iBOT's on masked ones, DINO+'s on those that two crops share.", _PATCH),
    Group("barlow", "Barlow Twins' relation over the batch (Table 11). The paper says none of these.", _BARLOW),
    Group("mocov3", "MoCo v3. The defaults are a ViT's.", _MOCOV3),
    Group("mae", "MAE.", _MAE),
    Group("relation", "SERE. Where paper and authors' code differ, the default is the code's (docs/recipes.md).", _RELATION),
)
