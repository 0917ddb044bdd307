"""Which negatives of a list are probably relevant passages that nobody labelled? A threshold on teacher scores.

After MD2PR (arXiv 2312.16821), whose abstract asks for a threshold that is updated over training rounds; the formulas
here are this project's reading of it. The threshold is a quantile of what the teacher gives to labelled positives, so
it needs no calibrated teacher and moves with the teacher from round to round. Filtered negatives belong out of a
contrastive denominator; in a distillation term the teacher's soft label is right for them, so they stay there.

Pure NumPy: no files, no clock, no randomness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from raydrd.config import Frozen
from raydrd.errors import InputError

Floats = NDArray[np.float64]


class Filter(Frozen):
    """How a suspected false negative is told, and how many may be filtered.

    `quantile`: teacher score above theta_k, the smoothed r_k-quantile of the positives' scores; round k = 0, 1, ..
    With `direction="down"` r_k = max(floor, r0 - step * k): the teacher is weak and negatives are easy at first, so
    little is filtered; later more. With `"up"` r_k = min(1 - floor, r0 + step * k): the other way round, for a
    teacher that gets better at telling positives apart.
    `fixed`: teacher score above the constant `threshold`.
    `per_query`: teacher score above the query's own positive, less `margin` or times `ratio`.

    With `standardise`, `threshold` and `margin` are in standard deviations of the positives' scores.
    """

    mode: Literal["quantile", "fixed", "per_query"] = Field("quantile", description="what the bar is made from")
    r0: float = Field(0.5, ge=0, le=1, description="quantile of the positives' scores in round 0")
    step: float = Field(0.1, ge=0, le=1, description="change of the quantile a round")
    floor: float = Field(0.2, ge=0, le=1, description="last quantile going down; 1 - floor is the last going up")
    direction: Literal["down", "up"] = Field("down", description="down filters more every round, up less")
    smoothing: float = Field(0.5, ge=0, lt=1, description="weight of the last round's threshold; 0 forgets it")
    threshold: float | None = Field(None, allow_inf_nan=False, description="mode fixed: the bar")
    margin: float | None = Field(None, allow_inf_nan=False, description="mode per_query: bar = positive - margin")
    ratio: float | None = Field(None, gt=0, allow_inf_nan=False, description="mode per_query: bar = ratio * positive > 0")
    standardise: bool = Field(False, description="scores by mean and std of the positives; if the teacher changes")
    most: float = Field(0.3, ge=0, le=1, description="largest share of a list's negatives that is filtered")
    keep: int = Field(7, ge=0, description="negatives of a list that must remain")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if (self.threshold is not None) != (self.mode == "fixed"):
            raise ValueError(f"mode={self.mode}: threshold belongs to mode fixed, which needs one, for example threshold=0.9")
        bars = (self.margin is not None) + (self.ratio is not None)
        if bars != (self.mode == "per_query"):
            raise ValueError(f"mode={self.mode}: mode per_query needs margin or ratio, one of them; other modes neither")
        if self.ratio is not None and self.standardise:
            raise ValueError("ratio needs positive scores, standardised ones are not; set margin, or standardise=false")
        last = self.floor if self.direction == "down" else 1 - self.floor
        if self.mode == "quantile" and (self.r0 < last if self.direction == "down" else self.r0 > last):
            raise ValueError(
                f"direction={self.direction}: r0={self.r0} is past its last value {last:g} already; change r0 or floor"
            )
        return self


@dataclass(frozen=True)
class HiddenPositives:
    """What a filter does to positives hidden among the negatives.

    `recall` is the share of hidden positives that are filtered, `rate` the share of all passages of the same lists,
    hidden ones among them: a filter that guesses has recall = rate. `queries` are those with a hidden positive.
    """

    queries: int
    hidden: int
    caught: int
    recall: float
    rate: float


def quantile_of_round(rule: Filter, *, round: int) -> float:
    """r_k, the quantile of the positives' scores that round k = 0, 1, .. takes."""
    if round < 0:
        raise ValueError(f"round={round}: rounds count from 0")
    if rule.direction == "down":
        return max(rule.floor, rule.r0 - rule.step * round)
    return min(1 - rule.floor, rule.r0 + rule.step * round)


def scale(rule: Filter, positives: ArrayLike) -> tuple[float, float]:
    """Mean and standard deviation that `suspects` is to standardise by; (0, 1) if the rule does not standardise.

    Args:
        positives: float [P], teacher scores of labelled positives; NaN (never scored) is left out.

    Raises:
        InputError: no known score, an infinite one, or `standardise` of scores that are all equal.
    """
    if not rule.standardise:
        return 0.0, 1.0
    known = _known(positives)
    mean, std = float(known.mean()), float(known.std())
    if np.ptp(known) == 0:
        raise InputError(f"filter: all {len(known)} positives have teacher score {mean:g}; write standardise: false")
    return mean, std


def threshold(rule: Filter, positives: ArrayLike, *, round: int, previous: float | None) -> float | None:
    """theta_k, smoothed: theta_0 = Q_0, theta_k = smoothing * theta_(k-1) + (1 - smoothing) * Q_k, with Q_k the
    r_k-quantile (linear) of the positives' scores. Source: MD2PR as read in this module's head.

    Args:
        positives: float [P], teacher scores t(q, p+) of this round's teacher over the training queries; NaN (never
            scored) is left out. Read in mode `quantile` only.
        round: k, from 0.
        previous: theta of round k - 1; None in round 0, and anything where nothing is smoothed.

    Returns:
        In standard deviations if the rule standardises, else in teacher scores. The constant in mode `fixed`. None
        in mode `per_query`, where each query has its own bar.

    Raises:
        InputError: see `scale`.
        ValueError: a negative round, or a smoothed round k > 0 without its `previous`.
    """
    if rule.mode != "quantile":
        return rule.threshold
    share = quantile_of_round(rule, round=round)
    mean, std = scale(rule, positives)
    fresh = float(np.quantile((_known(positives) - mean) / std, share))
    if round == 0 or rule.smoothing == 0:
        return fresh
    if previous is None:
        raise ValueError(f"round {round} smooths the threshold of round {round - 1}, which is not given")
    return rule.smoothing * previous + (1 - rule.smoothing) * fresh


def suspects(
    rule: Filter,
    negative_scores: ArrayLike,
    *,
    threshold: float | None = None,
    positive_score: float | None = None,
    mean: float = 0.0,
    std: float = 1.0,
) -> NDArray[np.bool_]:
    """True for the suspected false negatives of one list, bool [N].

    At most floor(most * N) are filtered and at least `keep` remain; where this binds, the highest-scored go first
    (ties by position). A NaN score is never suspect, but counts as a negative that remains.

    Args:
        negative_scores: float [N], teacher scores of the list's negatives, without the positive.
        threshold: what `threshold` gave; not read in mode `per_query`.
        positive_score: teacher score of the query's labelled positive, read in mode `per_query` only; None or NaN
            (no positive, or never scored): no bar, nothing is suspect.
        mean, std: what `scale` gave.

    Raises:
        InputError: `ratio` with a positive whose score is not above 0.
        ValueError: no threshold where the mode needs one, scores not of one dimension, or std not positive.
    """
    scores = np.asarray(negative_scores, dtype=np.float64)
    if scores.ndim != 1:
        raise ValueError(f"negative_scores: one score a negative, shape [N]; got {scores.shape}")
    if not std > 0:
        raise ValueError(f"std={std}: must be positive")
    scores = (scores - mean) / std
    bar = _own_bar(rule, positive_score, mean, std) if rule.mode == "per_query" else threshold
    if bar is None:
        raise ValueError(f"mode {rule.mode} needs the threshold of this round")
    above = scores > bar  # False for NaN on either side
    # 0.29 * 100 is 28.999999999999996 in binary: without the 1e-9 a whole share would lose one passage.
    allowed = max(0, min(int(rule.most * scores.size + 1e-9), scores.size - rule.keep))
    highest = np.argsort(np.where(above, -scores, np.inf), kind="stable")[: min(allowed, int(above.sum()))]
    filtered = np.zeros(scores.size, dtype=np.bool_)
    filtered[highest] = True
    return filtered


def hidden_positive_recall(
    rule: Filter,
    hidden_scores: Sequence[ArrayLike],
    negative_scores: Sequence[ArrayLike],
    *,
    threshold: float | None = None,
    positive_scores: Sequence[float | None] | None = None,
    mean: float = 0.0,
    std: float = 1.0,
) -> HiddenPositives | None:
    """Does the filter find positives? On queries with two or more, some are hidden among the negatives.

    Every list is filtered whole, guards included, as in training.

    Args:
        hidden_scores: a query each, float [H_q]: teacher scores of the hidden positives. Queries without any are
            left out. One never scored (NaN) is hidden and cannot be caught.
        negative_scores: a query each, float [N_q]: teacher scores of the list's other negatives.
        positive_scores: a query each, the score of the positive left in place; for mode `per_query`.
        threshold, mean, std: as in `suspects`.

    Returns:
        Counts and shares; None if nothing is hidden.

    Raises:
        ValueError: the sequences differ in length; and see `suspects`.
    """
    visible: Sequence[float | None] = [None] * len(hidden_scores) if positive_scores is None else positive_scores
    if not len(hidden_scores) == len(negative_scores) == len(visible):
        raise ValueError(f"one entry a query: {len(hidden_scores)}, {len(negative_scores)} and {len(visible)} entries differ")
    queries = hidden = caught = filtered = passages = 0
    for own, others, positive in zip(hidden_scores, negative_scores, visible, strict=True):
        own_scores = np.asarray(own, dtype=np.float64)
        if not own_scores.size:
            continue
        merged: Any = np.concatenate([own_scores, np.asarray(others, dtype=np.float64)])
        found = suspects(rule, merged, threshold=threshold, positive_score=positive, mean=mean, std=std)
        queries += 1
        hidden += own_scores.size
        caught += int(found[: own_scores.size].sum())
        filtered += int(found.sum())
        passages += found.size
    if not queries:
        return None
    return HiddenPositives(queries, hidden, caught, caught / hidden, filtered / passages)


def _own_bar(rule: Filter, positive_score: float | None, mean: float, std: float) -> float:
    if positive_score is None or np.isnan(positive_score):
        return np.inf
    positive = (positive_score - mean) / std
    if rule.margin is not None:
        return positive - rule.margin
    assert rule.ratio is not None  # one of the two: checked by the rule
    if positive <= 0:
        raise InputError(
            f"filter: ratio needs positive teacher scores, a labelled positive has {positive:g}; write margin instead"
        )
    return rule.ratio * positive


def _known(positives: ArrayLike) -> Floats:
    values = np.asarray(positives, dtype=np.float64).ravel()
    known: Floats = values[~np.isnan(values)]
    if not known.size:
        raise InputError("filter: no labelled positive has a teacher score; write mode: fixed with a threshold, or score them")
    if np.isinf(known).any():
        raise InputError(f"filter: {int(np.isinf(known).sum())} positives have an infinite teacher score; score them again")
    return known
