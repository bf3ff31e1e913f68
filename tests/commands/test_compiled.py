"""Compiled code is kept and used again; directories that refuse it are told and end nothing. In one process, on JAX's own events."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from sere_jax.commands import compiled

SETTINGS = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home directory, and JAX as a user has it. What the tests change is put back."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    for name, value in zip(SETTINGS, (True, None, -1, 1.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def hits() -> list[str]:
    """A list to which JAX adds each hit and each entry that it writes, from now on."""
    events: list[str] = []
    jax.monitoring.register_event_listener(lambda name, **_: events.append(name.rpartition("/")[2]) if "/cache_" in name else None)
    return events


def compile_something(constant: float) -> None:
    jax.clear_caches()  # what this process remembers by itself
    jax.jit(lambda x: jnp.tanh(x) * constant).lower(jnp.ones(3)).compile()


def test_what_one_start_compiled_the_next_one_reads(home: Path):
    compiled.keep_compiled()
    directory = compiled.default_directory()
    assert directory.parent == home / ".cache" / "sere_jax" and directory.stat().st_mode & 0o777 == 0o700
    assert compiled.where() == f"kept in {directory}"
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    events = hits()
    compile_something(0.123)
    assert "cache_hits" not in events and list(directory.glob("*-cache"))
    compile_something(0.123)
    assert "cache_hits" in events


def test_the_directory_of_jax_s_variable_is_taken(home: Path):
    jax.config.update("jax_compilation_cache_dir", "~/mine")
    compiled.keep_compiled()
    assert compiled.where() == f"kept in {home / 'mine'}" and (home / "mine").is_dir()
    assert jax.config.jax_compilation_cache_max_size == -1, "a limit is the user's to set there"


def test_it_can_be_turned_off(home: Path):
    jax.config.update("jax_enable_compilation_cache", False)
    compiled.keep_compiled()
    assert compiled.where() == "not kept for the next start" and not list(home.iterdir())


def test_a_directory_that_cannot_be_made_is_a_warning(home: Path, capsys: pytest.CaptureFixture):
    (home / ".cache").write_text("a file")
    compiled.keep_compiled()
    assert "warning: compiled code is not kept: " in (error := capsys.readouterr().err) and "JAX_COMPILATION_CACHE_DIR" in error
    compile_something(0.234)
    assert compiled.where() == "not kept for the next start"


def test_a_directory_that_is_only_read_still_saves_time(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    jax.config.update("jax_compilation_cache_dir", str(home / "shared"))
    compiled.keep_compiled()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compile_something(0.345)
    monkeypatch.setattr(compiled, "_refusal", lambda directory: "cannot be written (Permission denied)")  # root may write anywhere
    compiled.keep_compiled()
    assert "cannot be written (Permission denied)" in capsys.readouterr().err and compiled.where() == f"read from {home / 'shared'}"
    events, files = hits(), set((home / "shared").iterdir())
    compile_something(0.345)
    compile_something(0.456)
    assert "cache_hits" in events and set((home / "shared").iterdir()) == files
