"""Notice when the features of a run collapse: all images get the same answer, and nothing more is learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

_IN_A_ROW = 2  # logs that must agree: a single one may be chance
_SAME = 0.003  # of the reference: how near the loss is to the teacher's entropy when every view is answered alike
_CERTAIN = 0.07  # of the reference: a loss below this means that one prototype answers nearly all images (healthy runs: above 0.15)
_LEARNED = 0.95  # of the reference: an entropy below this shows that the run had learned something
_APART = 0.03  # of the reference: above it, loss and entropy were apart, and the views got different answers
_PATIENCE = 2000  # steps after which a run that has never learned anything counts as collapsed
_FALLEN = 0.2  # of the highest effective rank so far
_FEWEST = 1.5  # effective ranks below this are those of constant features


class _Signs(NamedTuple):
    """The metrics of one distillation loss."""

    loss: str
    entropy: str
    center: str
    share: str = ""  # of tokens that the loss is of; where it is 0, loss and entropy are 0 and say nothing


_LOSSES = (
    _Signs("dino", "teacher_entropy", "center_norm"),
    _Signs("patch_masked", "patch_entropy", "patch_center_norm", "masked_share"),
    _Signs("aligned", "aligned_entropy", "aligned_center_norm"),
)


class CollapseAlarm:
    """Watches the metrics of a run. `watch` returns what is to be said; `active` are the causes that hold now, for a display.

    It judges the losses of cls tokens, of iBOT's hidden patches and of DINO+'s aligned patches. A distillation loss is the
    entropy of the teacher's assignments plus their divergence from the student's. Where all images get the same
    answer, both vanish or the entropy is ln K. Either of two signs in two logs in a row raises the alarm:

    - the loss is below 7 % of ln K: one prototype takes everything;
    - the loss is the entropy to within 0.3 % of ln K: every image gets the same distribution, often because of the center.

    At the start both may be near ln K without a collapse. The second sign therefore counts after the entropy was below 95 % of ln K, after
    loss and entropy were 3 % of ln K apart, or after 2,000 steps.

    It is also raised when the effective rank of the features (`rank/rankme`) is below 1.5, or below a fifth of its highest value.

    >>> alarm = CollapseAlarm({"dino": 6.2, "teacher_entropy": 6.2})
    >>> _ = alarm.watch(20, {"dino": 0.003, "teacher_entropy": 0.001})
    >>> alarm.watch(40, {"dino": 0.003, "teacher_entropy": 0.001})[0]
    'COLLAPSE at step 40: dino is 0.003 and teacher_entropy 0.001: one prototype for every image'
    """

    def __init__(self, references: Mapping[str, float]) -> None:
        self._references = dict(references)
        self._started: int | None = None
        self._learned: set[str] = set()
        self._in_a_row: dict[str, int] = {}
        self._highest_rank = 0.0
        self.active: dict[str, str] = {}

    def watch(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Judge the metrics of one step. Returns a line for each collapse that begins or ends."""
        self._started = step if self._started is None else self._started
        lines = []
        for name, cause in self._causes(step, values):
            count = self._in_a_row[name] = self._in_a_row.get(name, 0) + 1 if cause else 0
            needed = 1 if name.startswith("rank/") else _IN_A_ROW
            if cause and count >= needed:
                if name not in self.active:
                    lines.append(f"COLLAPSE at step {step:,}: {cause}")
                self.active[name] = cause
            elif not cause and name in self.active:
                del self.active[name]
                lines.append(f"step {step:,}: {name} has left the collapse")
        return lines

    def _causes(self, step: int, values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        """(metric, cause, or '' where it looks healthy) for every sign among the values."""
        for signs in _LOSSES:
            reference = self._references.get(signs.entropy)
            if reference and signs.loss in values and signs.entropy in values and values.get(signs.share, 1.0) > 0:
                yield signs.entropy, self._of_loss(step, signs, values, reference)
        if "rank/rankme" in values:
            rank = values["rank/rankme"]
            fallen = rank < _FALLEN * self._highest_rank
            self._highest_rank = max(self._highest_rank, rank)
            about = f"rank/rankme is {rank:.3g}"
            if rank < _FEWEST:
                yield "rank/rankme", f"{about}: the features of all images are alike"
            else:
                yield "rank/rankme", f"{about}, and was {self._highest_rank:.3g}: the features use few dimensions" if fallen else ""

    def _of_loss(self, step: int, signs: _Signs, values: Mapping[str, float], reference: float) -> str:
        entropy, loss = values[signs.entropy], values[signs.loss]
        apart = (loss - entropy) / reference
        if apart > _APART or (apart > _SAME and entropy < _LEARNED * reference):
            self._learned.add(signs.entropy)
        about = f"{signs.loss} is {loss:.3g} and {signs.entropy} {entropy:.3g}"
        if loss < _CERTAIN * reference:
            return f"{about}: one prototype for every image"
        if abs(loss - entropy) > _SAME * reference:
            return ""
        assert self._started is not None
        late = signs.entropy in self._learned or step - self._started >= _PATIENCE
        center = f", {signs.center} {values[signs.center]:.3g}" if signs.center in values else ""
        return f"{about} of at most {reference:.3g}{center}: every image gets the same distribution" if late else ""
