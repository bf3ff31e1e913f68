"""Keys of the backbone and of its prototype head."""

from __future__ import annotations

from sere_jax.config.keys.key import Group, Key
from sere_jax.config.rule import BOOL, choice, count, number
from sere_jax.models.variants import INITS, POSITIONS, RESNETS, VARIANTS

_VARIANTS = choice(*VARIANTS, *RESNETS, "custom")

_MODEL = {
    "name": Key("vit", choice("vit", "resnet"), "Architecture."),
    "variant": Key("vits", _VARIANTS, "Size: ViT of width 192, 384, 768, 1024 (vitti to vitl); custom = as the next three keys say."),
    "width": Key(0, count(), "Width of a token, or channels of a ResNet's last map; 0 = the variant's."),
    "depth": Key(0, count(), "Blocks, of a ResNet those of each of the four stages; 0 = the variant's."),
    "heads": Key(0, count(), "Attention heads; 0 = the variant's."),
    "patch_size": Key(16, count(1), "Side of a patch, pixels."),
    "in_channels": Key(3, count(1), "Channels of an image."),
    "init": Key(
        "normal", choice(*INITS), "Start of a ViT's linear layers: normal of deviation 0.02 (DINO, iBOT), or MoCo v3's or MAE's Xavier."
    ),
    "positions": Key(
        "learned", choice(*POSITIONS), "Position embedding: learned, or fixed sine and cosine as MoCo v3's (rows) or MAE's (columns)."
    ),
    "freeze_patch_embed": Key(False, BOOL, "The patch embedding keeps its initial values (MoCo v3)."),
    "zero_init_residual": Key(False, BOOL, "A ResNet's blocks start as the identity (MoCo v3)."),
    "drop_path": Key(0.1, number(0.0, 0.99), "Drop path probability of the student's last block; it grows linearly from 0."),
    "dtype": Key("bfloat16", choice("float32", "bfloat16"), "Type of activations; parameters, losses and statistics are float32."),
    "scan_blocks": Key(False, BOOL, "One compiled block runs depth times: compiles faster, trains the same.", machine=True),
    "remat": Key(
        "none",
        choice("none", "dots", "full"),
        "What the backward pass recomputes to save memory; dots = all but matrix products.",
        machine=True,
    ),
}

_HEAD = {
    "prototypes": Key(65536, count(2), "Outputs of the last layer."),
    "hidden": Key(2048, count(1), "Width of the hidden layers."),
    "bottleneck": Key(256, count(1), "Width of the normalised features before the prototypes."),
    "layers": Key(3, count(1), "Layers up to the bottleneck."),
    "norm_last_layer": Key(True, BOOL, "Prototypes keep length 1; otherwise their lengths are learned."),
}

GROUPS = (
    Group("model", "The backbone.", _MODEL),
    Group("head", "The prototype head of DINO, iBOT and DINO+.", _HEAD),
)
