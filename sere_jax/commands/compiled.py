"""Compiled code that is kept between starts: JAX's persistent compilation cache, which the programs turn on.

JAX's own variables decide: `JAX_COMPILATION_CACHE_DIR` names another directory, and `JAX_ENABLE_COMPILATION_CACHE=false` keeps nothing.
The library (`load_backbone`) leaves the caller's settings alone.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax

from sere_jax.writing import place

MAX_BYTES = 4 * 2**30  # the least recently used code is removed above it; a ViT-S step takes some 10 MB
MIN_SECONDS = 0.2  # shorter compilations are not worth a file; JAX's default of 1 s leaves out most of a small model's
_NEVER = 1e9  # seconds of compilation above which a directory that is only read gets a file
_ADVICE = "name a directory in JAX_COMPILATION_CACHE_DIR, or turn it off by JAX_ENABLE_COMPILATION_CACHE=false"


def keep_compiled() -> None:
    """Turn the cache on, in the user's cache directory if `JAX_COMPILATION_CACHE_DIR` names none.

    A directory that cannot be written is no error: process 0 prints a warning, and code that the directory already holds is still used.
    Call it once JAX knows its processes and before anything is compiled.
    """
    if not _setting("jax_enable_compilation_cache"):
        return
    named = _setting("jax_compilation_cache_dir")
    if named and "://" in named:  # a bucket, which JAX reads and writes by itself
        return
    directory = place(named) if named else default_directory()
    jax.config.update("jax_compilation_cache_dir", str(directory))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
    if not named:
        jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    if reason := _refusal(directory):
        if jax.process_index() == 0:
            print(f"warning: compiled code is not kept: {directory} {reason}; {_ADVICE}", file=sys.stderr)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _NEVER)
        jax.config.update("jax_compilation_cache_max_size", -1)  # a limit needs a lock and times of use, which are files
        if not directory.is_dir():
            jax.config.update("jax_enable_compilation_cache", False)


def where() -> str:
    """Where compiled code is kept, as a line for the start of a run."""
    if not (_setting("jax_enable_compilation_cache") and _setting("jax_compilation_cache_dir")):
        return "not kept for the next start"
    verb = "read from" if _setting("jax_persistent_cache_min_compile_time_secs") == _NEVER else "kept in"
    return f"{verb} {_setting('jax_compilation_cache_dir')}"


def default_directory() -> Path:
    """The user's cache directory for this kind of CPU: `$XDG_CACHE_HOME` or `~/.cache`, then `sere_jax/compiled-KIND`.

    A home directory may be shared by machines whose CPUs know different instructions, and code for the one may crash the other.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "sere_jax" / f"compiled-{_kind_of_cpu()}"


def _setting(name: str) -> Any:
    return getattr(jax.config, name)  # the settings are made at run time; no type checker knows them


def _kind_of_cpu() -> str:
    instructions = ""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            instructions = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        pass  # not Linux
    return f"{platform.machine()}-{hashlib.sha256(instructions.encode()).hexdigest()[:8]}"


def _refusal(directory: Path) -> str:
    """Why nothing can be written there, or '' where it can. Makes the directory, for this user alone: what is read from it is run."""
    try:
        if not directory.is_absolute():
            return "is no absolute path (is HOME set?)"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return ""
    except OSError as error:
        return f"cannot be written ({error.strerror})"
