"""Memory that is used again for image after image.

Fresh memory is dear: for a photograph of 500 x 375 the system takes 0.3 ms of page faults, a third of the time of decoding it.
"""

from __future__ import annotations

import math
import threading

import numpy as np
from jaxtyping import UInt8


class Memory(threading.local):
    """Named buffers of one thread, which grow as needed."""

    def __init__(self) -> None:
        self._buffers: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
        """An array of that shape with anything in it; it is the previous one of that name again."""
        size = math.prod(shape)
        if name not in self._buffers or self._buffers[name].size < size:
            self._buffers[name] = np.empty(size + size // 4, np.uint8)
        return self._buffers[name][:size].reshape(shape)


MEMORY = Memory()
