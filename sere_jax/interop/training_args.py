"""The arguments of the training program that a PyTorch file holds: `args` of DINO, iBOT, SERE and MAE, `arch` of MoCo v3.

They state what tensors do not show, the attention heads, and they may contradict what the format alone suggests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sere_jax.interop import mocov3
from sere_jax.interop.stated import Stated, heads_of, is_whole, refuse, shown
from sere_jax.interop.timm import NORM_EPS, Architecture
from sere_jax.interop.timm_config import SIZES

_ARCHITECTURE = r"(?:mae_)?(?:vit|deit)_(tiny|small|base|large|huge)(?:_?(?:patch_?)?\d\w*)?"


def stated(arguments: Mapping[str, Any], kind: str, heads: int, sizes: Architecture) -> Stated:
    """The attention heads that the arguments state, else `heads`, those that the format `kind` has; 0 where these cannot be trusted.

    Lines tell where arguments and tensors contradict each other: then the tensors are right. Raises InteropError for a number of heads
    that the width does not allow.
    """
    notes = []
    number = arguments.get("num_heads")
    refuse(heads_of("args.num_heads", number, sizes.width))
    patch = arguments.get("patch_size")
    if is_whole(patch) and patch != sizes.patch_size:
        notes.append(f"args         state patch_size {patch}; the tensors have {sizes.patch_size}")
    name = arguments.get("arch", arguments.get("model", ""))
    known = re.fullmatch(_ARCHITECTURE, str(name))
    usual, width = SIZES[known[1]] if known else (heads, sizes.width)
    if width != sizes.width:
        notes.append(f"args         state the architecture {shown(name)} of width {width}; the tensors have {sizes.width}")
        usual = heads
    elif name and not known:
        notes.append(f"args         state the architecture {shown(name)}, which is not known: its heads are not assumed")
        usual = 0
    elif kind == "mocov3":
        usual = mocov3.HEADS.get(sizes.width, 0)
    return Stated(number or usual, NORM_EPS, tuple(notes))
