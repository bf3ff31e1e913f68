"""The exit code of an error that a program expects: the same of train.py, of eval.py and of a row of `ablate`.

1: what was begun ended badly, because of steps, images or the disk, or because a bucket did not answer. The same command may succeed
later, and JobSets give it again. 2: the command cannot be carried out as it is given.
"""

from __future__ import annotations

from sere_jax import buckets
from sere_jax.config.check import ConfigError
from sere_jax.data.batches.maker import BatchError
from sere_jax.data.sources.open import SourceError
from sere_jax.distributed import OtherProcessError
from sere_jax.evals.network import EvalError
from sere_jax.interop.files import FileError
from sere_jax.interop.tables import InteropError
from sere_jax.train.checkpoint import CheckpointError, UnwritableCheckpoint
from sere_jax.train.evaluations import UnknownScore
from sere_jax.train.lock import WorkdirError
from sere_jax.train.meter import TooManyBadImages, TooManyBadSteps
from sere_jax.writing import WriteError, WriteFailed

_BAD = (TooManyBadSteps, TooManyBadImages, BatchError, UnwritableCheckpoint, WriteFailed)
_REFUSED = (ConfigError, SourceError, EvalError, FileError, InteropError, CheckpointError, WorkdirError, WriteError, UnknownScore)
EXPECTED = (*_BAD, *_REFUSED, OtherProcessError)


def of(error: BaseException) -> int:
    """The exit code of an error of `EXPECTED`; 2 for other errors, such as those of a command line, unless a bucket did not answer.

    Example:
      >>> of(TooManyBadSteps("11 bad steps")), of(WorkdirError("another run writes there"))
      (1, 2)
    """
    return 1 if isinstance(error, _BAD) or buckets.is_outage(error) else 2
