"""Parts of other people's ViTs that ours do not have. A file that holds one is refused by the part's name.

Without this table such files would fail on the shape of their position embedding, or on a list of hundreds of names.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import filter as matching

from sere_jax.interop.tables import InteropError

# What it is -> patterns of the names that show it, after prefixes such as `module.` and `backbone.`.
PARTS: dict[str, tuple[str, ...]] = {
    "register tokens (DINOv2 with registers, DINOv3)": ("*register_tokens", "reg_token", "*storage_tokens"),
    "layer scale (DINOv2, DeiT III, BEiT, CaiT)": ("*.ls[12].gamma", "*.gamma_[12]", "*.layer_scale*", "*.lambda_[12]"),
    "a gated MLP (SwiGLU: DINOv2 giant, DINOv3, EVA-02)": (
        *("*.mlp.w12.*", "*.mlp.w[123].*", "*.mlp.weights_in.*", "*.mlp.fc1_[gx].*", "*.mlp.gate_proj.*"),
    ),
    "QK-norm (normalised queries and keys)": ("*.q_norm.*", "*.k_norm.*", "*.q_layernorm.*", "*.k_layernorm.*"),
    "rotary position embedding (DINOv3, EVA-02)": ("*rope*", "*inv_freq", "*freqs_cos", "*freqs_sin"),
    "relative position bias (BEiT, Swin, SAM)": ("*relative_position_bias*", "*relative_position_index", "*rel_pos_[hw]"),
    "biases of queries and values without one of keys (BEiT, EVA)": ("*.attn.q_bias", "*.attn.v_bias"),
    "a distillation token (DeiT)": ("dist_token", "head_dist.*", "*distillation_token", "*distillation_classifier.*"),
    "attention pooling (SigLIP)": ("attn_pool.*", "*head.probe", "*head.attention.in_proj_weight"),
    "a CLIP or SigLIP vision tower": ("*vision_model.*", "visual.*", "*class_embedding"),
    "a norm before the first block (CLIP)": ("norm_pre.*", "*pre_layrnorm.*", "*ln_pre.*"),
    "a norm of pooled patches in place of the final norm (fc_norm: MAE fine-tuned, BEiT)": ("fc_norm.*",),
    "norms inside attention or MLP (sub-LayerNorm: EVA-02, BEiT-3)": ("*.attn.norm.*", "*.mlp.norm.*", "*.ffn_ln.*", "*.inner_attn_ln.*"),
    "a convolutional stem (hybrid ViT)": ("patch_embed.backbone.*", "patch_embed.proj.[0-9]*", "patch_embed.conv*"),
    "blocks of cls attention (CaiT, XCiT)": ("blocks_token_only.*", "cls_attn_blocks.*"),
}


def refuse(names: Iterable[str]) -> None:
    """Raise InteropError with every unsupported part that the names (without prefixes) show."""
    names = list(names)
    mistakes = []
    for part, patterns in PARTS.items():
        shown = [name for pattern in patterns for name in matching(names, pattern)]
        if shown:
            mistakes.append(f"{part}: {shown[0]}" + (f" and {len(shown) - 1} more" if len(shown) > 1 else ""))
    if mistakes:
        lines = "\n".join(f"  {mistake}" for mistake in mistakes)
        raise InteropError(
            f"the file holds parts that this project's ViT does not have:\n{lines}\n"
            "expected a plain ViT (pre-norm blocks, cls token, learned or fixed positions, GELU) or a ResNet of bottleneck blocks; "
            "`ignore` leaves tensors out, which changes what the network computes"
        )
