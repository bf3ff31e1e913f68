"""Which versions of which packages are at work."""

from __future__ import annotations

import importlib.metadata

_PACKAGES = ("sere_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
    """The versions of the packages that decide a run's numbers."""
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # a source tree that was not installed
            installed[package] = "unknown"
    return installed
