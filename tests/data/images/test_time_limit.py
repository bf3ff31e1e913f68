"""No image holds a worker up: decoding has a time limit, and what comes late meets no other image."""

from __future__ import annotations

import dataclasses
import threading
import time

import numpy as np
import pytest

from sere_jax.data.images import decode as module
from sere_jax.data.images.decode import BadImage, decode
from sere_jax.data.images.reading import ImageReading
from sere_jax.data.images.time_limit import OutOfTime, within
from tests.data.images.images import encode, gradient

QUICK = ImageReading(seconds=0.2)


def test_an_image_that_takes_too_long_is_unreadable_and_the_next_is_read(monkeypatch):
    real, release = module._decode, threading.Event()

    def slow(data, reading, reuse):
        if data == b"slow":
            release.wait(10)
            return np.full((1, 1, 3), 77, np.uint8)
        return real(data, reading, reuse)

    monkeypatch.setattr(module, "_decode", slow)
    data = encode(gradient(20, 30), "PNG")
    began = time.monotonic()
    with pytest.raises(BadImage, match=r"decoding took longer than 0\.2 s and was given up"):
        decode(b"slow", QUICK)
    assert time.monotonic() - began < 5
    release.set()  # its answer comes now
    time.sleep(0.05)
    for _ in range(3):
        np.testing.assert_array_equal(decode(data, dataclasses.replace(QUICK, seconds=20.0)), gradient(20, 30))


def test_errors_and_interrupts_pass_and_no_late_answer_meets_another_call():
    with pytest.raises(ZeroDivisionError):
        within(5.0, divmod, 1, 0)
    assert within(5.0, divmod, 7, 3) == (2, 1)
    with pytest.raises(OutOfTime):
        within(0.01, lambda: time.sleep(0.1) or "late")
    time.sleep(0.15)
    assert within(5.0, lambda: "in time") == "in time"
    with pytest.raises(KeyboardInterrupt):
        within(5.0, _interrupt)
    assert within(5.0, lambda: threading.current_thread().name) == "decoder"


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_each_thread_has_a_decoder_of_its_own_and_keeps_it():
    def identity() -> int:
        return threading.get_ident()

    mine = {within(5.0, identity) for _ in range(5)}
    others: set[int] = set()
    thread = threading.Thread(target=lambda: others.add(within(5.0, identity)))
    thread.start()
    thread.join()
    assert len(mine) == 1 and len(others) == 1 and not mine & others
