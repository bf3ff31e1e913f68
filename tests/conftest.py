"""What the whole suite shares: eight fake CPU devices, fixed hypothesis examples. Set before anything imports jax."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8").strip()

import hypothesis

# The same examples in every run (a red suite must be red again), and no deadline: the first call of a jitted function compiles.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=40, database=None)
hypothesis.settings.load_profile("suite")
