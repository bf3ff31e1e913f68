"""Self-supervised pre-training of vision transformers with feature self-relation (SERE), in JAX and Flax.

`load_backbone` reads any checkpoint, of this package or of others, and returns a function from images to features. Training is
started by `train.py`, evaluations by `eval.py`, everything else by `python -m sere_jax COMMAND`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sere_jax.weights.backbone import Backbone, load_backbone

__version__ = "0.1.0"
__all__ = ["load_backbone", "Backbone"]


def __getattr__(name: str) -> Any:
    # Imported at first use, so that `import sere_jax` stays fast for data workers and the command line.
    if name in __all__:
        from sere_jax.weights import backbone

        return getattr(backbone, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"Any", "TYPE_CHECKING", "annotations"})
