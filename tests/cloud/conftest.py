"""A bucket on this machine for the tests in this directory. They are skipped where the packages of requirements-cloud.txt are missing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator

import pytest

from tests.processes import ROOT, free_port

BUCKET = "bkt"
_MISSING = [name for name in ("gcsfs", "gcp_storage_emulator") if importlib.util.find_spec(name) is None]


class Server:
    """The emulator, and what it is told to do."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "NO_GCE_CHECK": "true",
            "FSSPEC_GCS_TOKEN": "anon",
        }

    def fail(self, status: int, count: int, match: str = "", method: str = "") -> None:
        """Let the next `count` requests fail whose address holds `match`; that of an upload does not hold the name."""
        self._ask("next", status=status, count=count, match=match, method=method)

    def left(self) -> int:
        """How many of the requests that were to fail have not come."""
        return self._ask("count")["left"]

    def requests(self) -> int:
        """How many requests were served."""
        return self._ask("count")["requests"]

    def delay(self, seconds: float) -> None:
        """Delay each request."""
        self._ask("delay", seconds=seconds)

    def pages(self, names: int, *, ranges: bool = True) -> None:
        """Let listings have pages of so many names, and be of the range that is asked for or not."""
        self._ask("page", names=names, ranges=int(ranges))

    def _ask(self, what: str, **options: object) -> dict[str, int]:
        with urllib.request.urlopen(f"{self.url}/_{what}?{urllib.parse.urlencode(options)}") as answer:
            return json.load(answer)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    if _MISSING:
        pytest.skip(f"{', '.join(_MISSING)} missing: pip install -r requirements-cloud-test.txt, or make test-cloud")
    import fsspec.config

    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cloud.server", str(port), BUCKET], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    running = Server(port)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        fsspec.config.set_conf_env(fsspec.config.conf)  # it may have been imported before
        yield running
    process.stdin.close()
    process.wait(10)


@pytest.fixture
def bucket(server: Server) -> Iterator[str]:
    """A prefix of the test's own in the bucket."""
    yield f"gs://{BUCKET}/{uuid.uuid4().hex[:8]}"
    server.fail(503, 0)
    server.delay(0)
    server.pages(1000)
