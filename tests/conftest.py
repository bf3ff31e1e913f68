"""What the whole suite shares: eight fake CPU devices, fixed hypothesis examples. Set before anything imports jax."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile

# Tracing makes many objects that live on. With Python's own thresholds 7 % of the suite's time is spent looking for garbage among them.
gc.set_threshold(50_000, 20, 20)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time would be LLVM's optimisation, which tests of numbers do not need.
_FLAGS = ("--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true")
_given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([_given, *(flag for flag in _FLAGS if flag.split("=")[0] not in _given)]).strip()

# Code compiled once serves both workers and the processes that tests start. The user's own cache is left alone: the programs' would be
# in the way of a run that is timed, and code of an earlier suite could hide a fault.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="sere_jax-tests-")  # workers of xdist inherit it
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import hypothesis

from tests.deviations import deviation, pytest_addoption, pytest_terminal_summary  # noqa: F401  # pytest finds them here

# The same examples in every run (a red suite must be red again), and no deadline: the first call of a jitted function compiles.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=40, database=None)
hypothesis.settings.load_profile("suite")
