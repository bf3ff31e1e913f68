"""Event files for TensorBoard. They are written without a thread, so that a full disk raises an error in the caller."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping

import tensorboardX
from etils import epath
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from sere_jax import buckets
from sere_jax.buckets import Location

_FLUSH_EVERY_SECONDS = 10.0


class EventFile:
    """A new event file in `directory`. TensorBoard hides entries of earlier files for steps after `after`; None hides none.

    For a directory in a bucket the file grows on this machine, and `flush` and `close` copy it.
    """

    def __init__(self, directory: Location, *, after: int | None = None) -> None:
        # TensorBoard reads the files in the order of their names; the microseconds separate two starts within a second.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._address = directory / name if isinstance(directory, epath.Path) else None
        self._path = buckets.scratch_directory() / name if isinstance(directory, epath.Path) else directory / name
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = tensorboardX.RecordWriter(str(self._path))
        self._flushed = time.monotonic()
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if after is not None:
            self._add(Event(wall_time=time.time(), step=after + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the metrics of one step."""
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))
        if time.monotonic() - self._flushed > _FLUSH_EVERY_SECONDS:
            self._flushed = time.monotonic()
            self._file.flush()

    def write_image(self, step: int, tag: str, png: bytes) -> None:
        """Append a picture of one step, a PNG file of three channels."""
        width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))  # of the header chunk, the first of every PNG
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        self._add(Event(wall_time=time.time(), step=step, summary=Summary(value=[Summary.Value(tag=tag, image=image)])))

    def flush(self) -> None:
        """Write the events so far, into the bucket too."""
        self._file.flush()
        self._copy()

    def close(self) -> None:
        """Write the remaining events and close the file."""
        self._file.close()
        self._copy()

    def _copy(self) -> None:
        if self._address is not None:
            buckets.put(self._path, self._address)

    def _add(self, event: Event) -> None:
        self._file.write(event.SerializeToString())
