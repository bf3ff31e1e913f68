"""Notices of a TPU VM, from a metadata server on this machine."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator

import pytest

from sere_jax.train import maintenance
from sere_jax.train.signals import Signals


class Metadata:
    """What the server answers, and how often it was asked."""

    def __init__(self) -> None:
        self.values = {"maintenance-event": "NONE", "preempted": "FALSE"}
        self.asked = 0

    def rest(self) -> None:
        """Wait until all values were asked for twice more."""
        before, deadline = self.asked, time.monotonic() + 30
        while self.asked < before + 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    state = Metadata()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked += 1
            name = self.path.removeprefix("/computeMetadata/v1/instance/")
            known = self.headers["Metadata-Flavor"] == "Google" and name in state.values
            self.send_response(200 if known else 403)
            self.end_headers()
            self.wfile.write(state.values.get(name, "").encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("NO_GCE_CHECK", raising=False)
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
    yield state
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("key", "notice"), [("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"), ("preempted", "TRUE")])
def test_a_notice_stops_the_run_as_sigterm_does(metadata, capfd, key, notice):
    with Signals() as signals:
        watcher = maintenance.watch(seconds=0.01)
        metadata.rest()
        assert not signals.reached()
        metadata.values[key] = "MIGRATE_ON_HOST_MAINTENANCE"  # the machine stays
        metadata.rest()
        assert not signals.reached()
        metadata.values[key] = notice
        watcher.join(30)
        assert signals.reached() and signals.name == "SIGTERM"
    assert capfd.readouterr().err.startswith(f"this machine will be taken away ({key}: {notice})\n")


def test_a_notice_that_stands_already_has_been_heeded(metadata):
    """A restart on the same machine would stop again and again until the machine goes."""
    notices: list[str] = []
    metadata.values["maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
    watcher = maintenance.watch(seconds=0.01, stop=notices.append)
    metadata.rest()
    del metadata.values["maintenance-event"]  # no answer is no end of it
    metadata.rest()
    metadata.values["maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
    metadata.rest()
    assert notices == [] and watcher.is_alive()
    metadata.values["maintenance-event"] = "NONE"
    metadata.rest()
    metadata.values["maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
    watcher.join(30)
    assert notices == ["maintenance-event: TERMINATE_ON_HOST_MAINTENANCE"]


def test_other_machines_are_not_asked(monkeypatch, tmp_path):
    for name in ("NO_GCE_CHECK", "GCE_METADATA_HOST"):
        monkeypatch.delenv(name, raising=False)
    for text, server in (("Google Compute Engine\n", "169.254.169.254"), ("Standard PC\n", "")):
        (tmp_path / "product").write_text(text)
        monkeypatch.setattr(maintenance, "_PRODUCT", tmp_path / "product")
        assert maintenance.metadata_server({}) == server
    monkeypatch.setattr(maintenance, "_PRODUCT", tmp_path / "none")
    assert maintenance.watch() is None
