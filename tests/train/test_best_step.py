"""The best step by a score: which one it is, that it is kept, and which scores are compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sere_jax.train import checkpoint
from sere_jax.train.evaluations import Periodic, UnknownScore
from sere_jax.train.scores import Best
from tests.train.toy_fit import Listener, run


@pytest.mark.parametrize(("mode", "best"), [("max", 3), ("min", 5)])
def test_the_best_step_is_saved_and_stays(tmp_path: Path, mode: str, best: int):
    scores = {1: 0.5, 2: 0.5, 3: 0.9, 4: 0.6, 5: 0.1, 6: float("nan"), 7: 0.2, 8: 0.2, 9: 0.2}

    def evaluate(state: Any, step: int) -> Iterator[tuple[str, float]]:
        yield "knn", scores[step]

    settings = {"every": 4, "best": Best("knn", mode), "evaluations": [Periodic("knn", 1, evaluate)]}
    run(tmp_path, 6, **settings)
    run(tmp_path, 9, **settings)
    assert checkpoint.complete_steps(checkpoint.epath.Path(tmp_path)) == [best, 8, 9]
    with pytest.raises(UnknownScore, match="found 'loss', expected one of knn"):
        run(tmp_path / "other", 2, **{**settings, "best": Best("loss")})


def test_scores_of_other_settings_are_not_compared(tmp_path: Path):
    """The last step is evaluated again by the new settings, and the best one is sought among these scores."""
    ran: list[int] = []

    def by(scores: dict[int, float], measured: str) -> dict[str, Any]:
        def evaluate(state: Any, step: int) -> Iterator[tuple[str, float]]:
            ran.append(step)
            yield "knn", scores[step]

        return {"every": 9, "best": Best("knn"), "evaluations": [Periodic("knn", 1, evaluate, measured)]}

    run(tmp_path, 3, **by({1: 0.8, 2: 0.9, 3: 0.7}, "of 10 images"))
    listener = Listener()
    run(tmp_path, 5, listener, **by({3: 0.1, 4: 0.3, 5: 0.2}, "of 20 images"))
    assert ran == [1, 2, 3, 3, 4, 5]
    assert checkpoint.complete_steps(checkpoint.epath.Path(tmp_path))[-2:] == [4, 5]
    assert "knn: its settings or images have changed since step 3; scores up to there are not compared" in listener.notes
    run(tmp_path, 6, other := Listener(), **by({6: 0.25}, "of 20 images"))
    assert checkpoint.complete_steps(checkpoint.epath.Path(tmp_path)) == [4, 5, 6] and not any("compared" in note for note in other.notes)
