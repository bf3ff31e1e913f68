"""train.py that also writes down which images each step saw: python -m tests.reliability.recorded FLAGS, with RECORDED=FILE."""

from __future__ import annotations

import json
import os
import runpy
import zlib
from collections.abc import Iterator
from typing import Any

from sere_jax.commands import pretrain
from sere_jax.types import Views

_TRAIN_BATCHES = pretrain.train_batches


def _recorded(*arguments: Any, start_step: int, process_index: int, **settings: Any) -> Iterator[Views]:
    """The batches, after a line for each: the step, the process, and of each row the example and a checksum of its crops."""
    batches = _TRAIN_BATCHES(*arguments, start_step=start_step, process_index=process_index, **settings)
    with open(f"{os.environ['RECORDED']}-{process_index}", "a") as file:
        for step, views in enumerate(batches, start_step + 1):
            crops = [zlib.crc32(crop.tobytes()) for crop in views.global_views]
            print(json.dumps([step, process_index, views.index.tolist(), crops]), file=file, flush=True)
            yield views


if __name__ == "__main__":
    pretrain.train_batches = _recorded
    runpy.run_path("train.py", run_name="__main__")
