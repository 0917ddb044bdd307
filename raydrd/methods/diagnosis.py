"""Is a teacher worth its money, and is the scale of its scores usable? Looked at before anything is trained.

Inputs are one array of teacher scores a query, with one boolean array of positives a query beside it where labels are
needed. Pure NumPy: no files, no clock, no randomness.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydrd.statistics import Comparison

Floats = NDArray[np.float64]
Value = tuple[float, float, float]  # mean, and its interval's ends

# Rules of thumb for "large". Chosen on made-up scores of each sort (see the tests), not taken from a paper.
_CONSTANT = 0.5  # share of queries whose scores are all equal
_TIED = 0.2  # share of scores tied at the lowest or highest score there is
_ENDS, _AT_ENDS = 0.05, 0.5  # a sigmoid puts at least half of the scores within 0.05 of 0 or 1
_FLAT = 0.95  # normalised entropy of the softmax; 1 is no preference at all

_LOG_T = (math.log(1e-3), math.log(1e3))  # temperatures that are looked at
_GRID = 61  # ten temperatures a factor of ten
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Spread:
    """How far a teacher's scores lie apart within a query; means over `queries` of at least two passages.

    `std` is the population standard deviation, `range` highest less lowest, `entropy` that of the softmax at
    temperature 1 divided by log N (0: all on one passage, 1: no preference), `tied_top` the share of queries where
    two or more passages have the highest score.
    """

    queries: int
    std: float
    range: float
    entropy: float
    tied_top: float


def spread(scores: Sequence[ArrayLike]) -> Spread:
    """Spread of teacher scores within queries; each of `scores` is float [N_q]. A query of one passage is left out.

    Raises:
        ValueError: a score is not finite, or no query has two passages.
    """
    lists = [values for values in _vectors(scores) if values.size > 1]
    if not lists:
        raise ValueError("no query has two scored passages: nothing to compare within a query")
    broken = sum(int((~np.isfinite(values)).sum()) for values in lists)
    if broken:
        raise ValueError(f"{broken} teacher scores are not finite; leave unknown scores out")
    return Spread(
        queries=len(lists),
        std=float(np.mean([values.std() for values in lists])),
        range=float(np.mean([np.ptp(values) for values in lists])),
        entropy=float(np.mean([_entropy(values) for values in lists])),
        tied_top=float(np.mean([(values == values.max()).sum() > 1 for values in lists])),
    )


def scale_problem(scores: Sequence[ArrayLike]) -> str | None:
    """One sentence on what is wrong with the scale of these scores and what to do; None if nothing is seen.

    Looked for, in this order: scores that are not finite; constant within queries; tied at the lowest or highest
    score there is (clipped, or rounded in half precision); squashed by a sigmoid; in [-1, 1] and so close together
    that a softmax hardly tells them apart (cosines). Each of `scores` is float [N_q].

    Raises:
        ValueError: no query has two passages.
    """
    lists = [values for values in _vectors(scores) if values.size > 1]
    if not lists:
        raise ValueError("no query has two scored passages: nothing to compare within a query")
    flat = np.concatenate(lists)
    broken = int((~np.isfinite(flat)).sum())
    if broken:
        return (
            f"{broken} of {flat.size} teacher scores are NaN or infinite; "
            "score again in bfloat16 or float32, or find the texts that break the teacher"
        )
    constant = float(np.mean([np.ptp(values) == 0 for values in lists]))
    if constant >= _CONSTANT:
        return (
            f"for {constant:.0%} of the queries the teacher gives every passage the same score; "
            "there is nothing to learn from it: look at how query and passage reach the teacher"
        )
    low, high = float(flat.min()), float(flat.max())
    tied = sum(int(at.sum()) for values in lists for at in (values == low, values == high) if at.sum() > 1) / flat.size
    if tied >= _TIED:
        return (
            f"{tied:.0%} of the teacher scores are tied at the extremes {low:g} or {high:g}; "
            "they look clipped or rounded: use raw logits in float32, without a sigmoid, a limit or whole grades"
        )
    ends = float(np.mean((flat <= _ENDS) | (flat >= 1 - _ENDS)))
    if low >= 0 and 1 - _ENDS <= high <= 1 and ends >= _AT_ENDS:
        return (
            f"all teacher scores lie in [0, 1] and {ends:.0%} of them within {_ENDS:g} of an end; they look squashed by a "
            "sigmoid, which hides differences: use the teacher's raw logits"
        )
    entropy = float(np.mean([_entropy(values) for values in lists]))
    if low >= -1 and high <= 1 and entropy >= _FLAT:
        return (
            f"all teacher scores lie in [{low:.3g}, {high:.3g}], like cosines; a softmax at temperature 1 is nearly flat "
            f"({entropy:.3f} of full entropy): set a teacher temperature well below 1, for example the fitted one"
        )
    return None


def fit_temperature(scores: Sequence[ArrayLike], positives: Sequence[ArrayLike]) -> float:
    """T in [1e-3, 1e3] that makes the labelled positives likeliest under softmax(t / T).

    Minimises the mean over queries of -log(sum of the positives' shares) by golden section on log T. With several
    positives in a query this may have more than one valley, so a coarse grid finds the lowest first. Queries without
    a positive, or with positives only, say nothing about T and are left out.

    Returns:
        T; an end of the range where the labels ask for 0 (the teacher separates all positives) or for infinity (its
        scores are no better than none).

    Args:
        scores: a query each, float [N_q]. positives: a query each, bool [N_q].

    Raises:
        ValueError: no query is left, lengths differ, or a score is not finite.
    """
    if len(scores) != len(positives):
        raise ValueError(f"one entry a query: {len(scores)} of scores, {len(positives)} of positives")
    all_gaps: list[Floats] = []  # score less the query's highest, so that exp cannot overflow
    positive_gaps: list[Floats] = []  # score of a positive less the highest positive
    lags: list[float] = []  # highest positive less highest
    for number, (values, given) in enumerate(zip(_vectors(scores), positives, strict=True)):
        relevant = np.asarray(given, dtype=np.bool_)
        if relevant.shape != values.shape:
            raise ValueError(f"query number {number}: {values.size} scores, positives of shape {relevant.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"query number {number}: a teacher score is not finite; leave unknown scores out")
        if relevant.any() and not relevant.all():
            best = values[relevant].max()
            all_gaps.append(values - values.max())
            positive_gaps.append(values[relevant] - best)
            lags.append(float(best - values.max()))
    if not lags:
        raise ValueError("no query has both a positive and another passage: a temperature cannot be fitted")
    whole, whole_starts = _joined(all_gaps)
    right, right_starts = _joined(positive_gaps)
    mean_lag = float(np.mean(lags))

    def loss(log_t: float) -> float:
        t = math.exp(log_t)
        masses = np.log(np.add.reduceat(np.exp(whole / t), whole_starts))
        masses -= np.log(np.add.reduceat(np.exp(right / t), right_starts))
        return float(masses.mean()) - mean_lag / t

    grid = np.linspace(*_LOG_T, _GRID)
    losses = np.array([loss(float(point)) for point in grid])
    # A teacher that separates all positives has no loss at any low T: rounding must not choose one of them.
    best_place = int(np.flatnonzero(losses <= losses.min() + 1e-12)[0])
    left, end = float(grid[max(0, best_place - 1)]), float(grid[min(_GRID - 1, best_place + 1)])
    found = _golden_section(loss, left, end)
    return math.exp(min((found, float(grid[best_place])), key=loss))


def verdict(name: str, *, teacher: Value, student: Value, difference: Comparison, metric: str) -> tuple[bool, str]:
    """(ok, one line): is the teacher better than the student it is to teach, on the same queries?

    Args:
        name: the teacher's name.
        teacher, student: (mean, low, high) of `metric`, higher is better.
        difference: `compare(teacher's values, student's values)` by query.

    Returns:
        ok is True only if the teacher's mean is above the student's. "surely" means that the whole interval of the
        difference is above 0; a teacher that is better but not surely so passes, and the line says it.

    Raises:
        ValueError: the difference is not teacher less student.
    """
    gap = teacher[0] - student[0]
    if not math.isclose(gap, difference.difference, rel_tol=1e-3, abs_tol=1e-4):
        raise ValueError(f"{metric}: means differ by {gap:.4f}, the comparison says {difference.difference:.4f}; swapped?")
    facts = (
        f"teacher {name}: {metric} {_interval(teacher)}, student {_interval(student)}, "
        f"difference {difference.difference:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    )
    if gap <= 0:
        return False, f"{facts}: not better than the student, so it has nothing to teach; choose a stronger teacher"
    if difference.low > 0:
        return True, f"{facts}: surely better"
    return True, f"{facts}: better, but not surely (the interval reaches 0); more queries would tell"


def _interval(value: Value) -> str:
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


def _vectors(scores: Sequence[ArrayLike]) -> list[Floats]:
    return [np.asarray(values, dtype=np.float64).ravel() for values in scores]


def _entropy(values: Floats) -> float:
    """Entropy of softmax(values) divided by log N; N is at least 2."""
    logs = values - values.max()
    logs -= np.log(np.exp(logs).sum())
    return float(-(np.exp(logs) * logs).sum() / np.log(values.size))


def _joined(parts: list[Floats]) -> tuple[Floats, NDArray[np.int64]]:
    """All parts in one array, and where each starts."""
    sizes = np.array([part.size for part in parts], dtype=np.int64)
    return np.concatenate(parts), np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)[:-1]])


def _golden_section(loss: Callable[[float], float], left: float, right: float) -> float:
    """Where `loss` is lowest between the two, to 1e-6. On a plateau it goes left."""
    inner, outer = right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)
    at_inner, at_outer = loss(inner), loss(outer)
    while right - left > 1e-6:
        if at_inner <= at_outer:
            right, outer, at_outer = outer, inner, at_inner
            inner = right - _GOLDEN * (right - left)
            at_inner = loss(inner)
        else:
            left, inner, at_inner = inner, outer, at_outer
            outer = left + _GOLDEN * (right - left)
            at_outer = loss(outer)
    return (left + right) / 2
