"""The lock names every package by hash, and agrees with the direct pins."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import distribution

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house import ROOT

MINORS = ("3.11", "3.12", "3.13")


def _entries(text: str) -> list[tuple[Requirement, int]]:
    """The requirements of a file, each with the number of its hashes."""
    lines = re.sub(r"\\\n", " ", text).splitlines()
    plain = [line for line in lines if line.strip() and not line.lstrip().startswith(("#", "-"))]
    return [(Requirement(line.partition(" --hash")[0].partition(" #")[0]), line.count("--hash=sha256:")) for line in plain]


def _pinned(entries: list[tuple[Requirement, int]], minor: str, platform: str = "linux") -> dict[str, str]:
    """Package -> version for one Python and one system."""
    environment = {"python_version": minor, "python_full_version": f"{minor}.1", "sys_platform": platform}
    chosen = [one for one, _ in entries if one.marker is None or one.marker.evaluate(environment)]
    names = [canonicalize_name(one.name) for one in chosen]
    assert len(names) == len(set(names)), "a package with two versions"
    return {name: str(one.specifier) for name, one in zip(names, chosen, strict=True)}


DIRECT, LOCK = (_entries((ROOT / name).read_text()) for name in ("requirements.txt", "requirements.lock"))


def test_every_entry_is_an_exact_version_with_hashes():
    assert len(LOCK) > 60
    assert not [str(one) for one, hashes in LOCK if not hashes or not re.fullmatch(r"==[\w.+]+", str(one.specifier))]


@pytest.mark.parametrize("minor", MINORS)
def test_the_lock_agrees_with_the_direct_pins(minor: str):
    direct, lock = _pinned(DIRECT, minor), _pinned(LOCK, minor)
    assert direct == {name: lock.get(name) for name in direct}, "run: make lock"


@pytest.mark.parametrize("minor", MINORS)
def test_windows_does_without_the_package_that_has_no_wheel_there(minor: str):
    for entries in (DIRECT, LOCK):
        assert "array-record" in _pinned(entries, minor, "darwin")
        assert "array-record" not in _pinned(entries, minor, "win32")


def test_what_the_direct_packages_need_is_locked_too():
    """Of this interpreter's packages, as far down as they go."""
    minor = ".".join(map(str, sys.version_info[:2]))
    lock, pending, seen = _pinned(LOCK, minor), sorted(_pinned(DIRECT, minor)), set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        assert name in lock, f"{name} is needed and not in requirements.lock; run: make lock"
        needs = [Requirement(text) for text in distribution(name).requires or ()]
        pending += [canonicalize_name(one.name) for one in needs if one.marker is None or one.marker.evaluate({"extra": ""})]
    assert len(seen) > 50


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(path.name for path in ROOT.glob("requirements*.txt")))
def test_every_file_of_requirements_can_be_installed(file: str):
    """pip finds versions that fit each other, without installing them. Needs the package index."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, "--requirement", file], cwd=ROOT, capture_output=True, text=True)
    if "No matching distribution found" in done.stderr and "from versions: none" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
