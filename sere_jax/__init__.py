"""Self-supervised pre-training of vision transformers with self-relation (SERE), in JAX and Flax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sere_jax.weights.backbone import load_backbone

__all__ = ["load_backbone"]


def __getattr__(name: str) -> Any:
    # Imported when first asked for: `import sere_jax` stays cheap for data workers and the command line.
    if name in __all__:
        from sere_jax.weights import backbone

        return getattr(backbone, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
