"""A TPU VM says beforehand that it will be taken away: a notice is a request to stop, as SIGTERM is.

Its metadata server announces maintenance, and the preemption of a spot machine. Runs on other devices do not ask: their schedulers send
SIGTERM, and take a run that ends by itself for finished.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

SECONDS = 10.0  # between two looks
_NOTICES = {"maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE", "preempted": "TRUE"}
_PRODUCT = Path("/sys/class/dmi/id/product_name")


def watch(seconds: float = SECONDS, stop: Callable[[str], None] | None = None) -> threading.Thread | None:
    """Ask the metadata server from a thread, and send this process SIGTERM at the first notice; None, and nothing is asked, elsewhere.

    A notice that stands already when the thread starts is the one that ended an earlier start on the same machine. It stops nothing: the
    run goes on from its checkpoints until the machine goes.
    """
    if not (server := metadata_server(os.environ)):
        return None
    thread = threading.Thread(target=_watch, args=(server, seconds, stop or _terminate), name="maintenance", daemon=True)
    thread.start()
    return thread


def metadata_server(environ: Mapping[str, str]) -> str:
    """HOST of the metadata server, by the variables that Google's own libraries read; "" on other machines than Google's.

    Example:
      >>> metadata_server({"GCE_METADATA_HOST": "127.0.0.1:80"}), metadata_server({"NO_GCE_CHECK": "true"})
      ('127.0.0.1:80', '')
    """
    if environ.get("NO_GCE_CHECK", "").lower() == "true":
        return ""
    if host := environ.get("GCE_METADATA_HOST"):
        return host
    try:
        return "169.254.169.254" if _PRODUCT.read_text().startswith("Google") else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _watch(server: str, seconds: float, stop: Callable[[str], None]) -> None:
    seen: dict[str, str] = {}
    while True:
        for key, notice in _NOTICES.items():
            value = _ask(server, key)
            if value == notice and seen.get(key, notice) != notice:
                stop(f"{key}: {notice}")
                return
            if value is not None:
                seen[key] = value
        time.sleep(seconds)


def _ask(server: str, key: str) -> str | None:
    """A value of the metadata server; None where it does not answer."""
    request = urllib.request.Request(f"http://{server}/computeMetadata/v1/instance/{key}", headers={"Metadata-Flavor": "Google"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5.0) as answer:
            return answer.read(100).decode(errors="replace").strip()
    except (OSError, ValueError, http.client.HTTPException):
        return None


def _terminate(notice: str) -> None:
    with contextlib.suppress(OSError):
        print(f"this machine will be taken away ({notice})", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
