"""What joins a training list after its rule made it: suspects are marked, dark examples appended, pairs resolved. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from raydrd.methods.dark import Dark, band, choose
from raydrd.methods.filters import Filter, suspects
from raydrd.methods.lists import DARK, POSITIVE, SUSPECT, TrainingList
from raydrd.methods.pacing import Confidence, confidence

Pair = tuple[int, int, float]


@dataclass(frozen=True)
class Threshold:
    """A filter with what it learnt from this round's positives."""

    rule: Filter
    theta: float | None
    mean: float = 0.0
    std: float = 1.0


def positive_place(made: TrainingList) -> int | None:
    """Place of the first labelled positive that the teacher scored."""
    places = np.flatnonzero(((made.flags & POSITIVE) != 0) & ~np.isnan(made.teacher_scores))
    return int(places[0]) if len(places) else None


def sureness(made: TrainingList, kind: Confidence, scale: float) -> float:
    """The teacher's confidence in the first labelled positive over this list; NaN without one. `scale`: see Teacher."""
    place = positive_place(made)
    if place is None:
        return float("nan")
    known = ~np.isnan(made.teacher_scores)
    return confidence(kind, made.teacher_scores[known] * scale, int(known[:place].sum()))


def mark_suspects(made: TrainingList, bar: Threshold) -> TrainingList:
    """The list with suspected false negatives flagged; labelled positives and dark examples never are."""
    negatives = np.flatnonzero((made.flags & (POSITIVE | DARK)) == 0)
    place = positive_place(made)
    found = suspects(
        bar.rule,
        made.teacher_scores[negatives],
        threshold=bar.theta,
        positive_score=None if place is None else float(made.teacher_scores[place]),
        mean=bar.mean,
        std=bar.std,
    )
    flags = made.flags.copy()
    flags[negatives[found]] |= SUSPECT
    return replace(made, flags=flags)


def _around(made: TrainingList) -> tuple[float, NDArray[np.float32]] | None:
    """Teacher scores that a list's band lies between: the positive's, and all negatives'. None where one is missing."""
    place = positive_place(made)
    negative = ((made.flags & POSITIVE) == 0) & ~np.isnan(made.teacher_scores)
    if place is None or not negative.any():
        return None
    return float(made.teacher_scores[place]), made.teacher_scores[negative]


def in_band(made: TrainingList, rule: Dark, scores: NDArray[np.float32]) -> int:
    """How many built examples have a teacher score inside the band of this list (as it was before they joined)."""
    found = _around(made)
    if found is None:
        return 0
    low, high = band(found[0], float(found[1].max()), rule.band_margin)
    return int(((low < scores.astype(np.float64)) & (scores.astype(np.float64) < high)).sum())


def add_dark(
    made: TrainingList, rule: Dark, *, rows: NDArray[np.int64], scores: NDArray[np.float32], kinds: Sequence[str]
) -> TrainingList:
    """The list with its dark examples (those of `rows` that `rule` chooses by teacher score) at the end.

    With `join: replace` as many of the last negatives leave, and leave for good: while pacing does not admit a query,
    its list is read without its dark examples and without those negatives too. A query without a labelled positive that
    the teacher scored gets none.
    """
    found = _around(made)
    if found is None or not len(rows):
        return made
    picked = choose(rule, positive_score=found[0], negative_scores=found[1], scores=scores, kinds=kinds)
    kept = np.ones(len(made), dtype=bool)
    if rule.join == "replace" and picked:
        leaving = np.flatnonzero((made.flags & POSITIVE) == 0)[1:][-len(picked) :]  # at least one negative stays
        kept[leaving] = False
    return TrainingList(
        doc_rows=np.concatenate([made.doc_rows[kept], rows[picked]]),
        labels=np.concatenate([made.labels[kept], np.zeros(len(picked), np.float32)]),
        teacher_scores=np.concatenate([made.teacher_scores[kept], scores[picked]]).astype(np.float32),
        flags=np.concatenate([made.flags[kept], np.full(len(picked), DARK, np.int8)]),
    )


def resolve(made: TrainingList, pairs: Sequence[Pair]) -> tuple[list[int], list[int], list[float]]:
    """Pairs of corpus rows as places in the list; a pair with a passage that is not in it is dropped."""
    place = {row: at for at, row in enumerate(made.doc_rows.tolist())}
    found = [(place[left], place[right], p) for left, right, p in pairs if left in place and right in place]
    return [left for left, _, _ in found], [right for _, right, _ in found], [p for _, _, p in found]
