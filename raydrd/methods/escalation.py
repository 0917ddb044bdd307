"""Which candidates of a cheap teacher are worth an expensive one, and both teachers' scores as one. Pure: no files, no clock.

Choosing: what goes on is what the cheap teacher nearly put first, over all queries together (`gap`), so that a query
where it hesitates gets more of the budget than one where it is sure; the other rules look at one query's list alone.
Joining puts the expensive teacher's scores on the cheap one's scale by one straight line for all queries.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import NDArray

By = Literal["gap", "top", "margin", "disagreement"]
Floats = NDArray[np.float64]
Places = NDArray[np.int64]

_LEAST_AGREEMENT = 0.2  # correlation that a line is drawn with at least: see `line`


def budget(row: int, count: int, *, share: float | None = None, pairs: int | None = None) -> int:
    """How many of the `count` candidates of list number `row` go on: `pairs`, or `share` of them.

    A share is met over many lists: 0.1 of lists of 15 are one and two in turn. It depends on the row's number alone.
    """
    if pairs is not None:
        return min(pairs, count)
    wanted = (0.0 if share is None else share) * count
    # Sums of 0.1s miss whole numbers by their last bits.
    return min(count, math.floor((row + 1) * wanted + 1e-9) - math.floor(row * wanted + 1e-9))


def chosen(cheap: NDArray[np.floating], student: NDArray[np.floating], count: int, *, by: By) -> Places:
    """Places of the `count` candidates to ask the expensive teacher about, ascending.

    cheap, student: scores [N] of the cheap teacher and of what found the candidates (-inf: it did not find this one).

    top: the cheap teacher's first ones; in one list those are also the ones of the least `gap`. margin: neighbours in its
    order, by how much would be lost at the top if they changed places, times how little lies between them. disagreement:
    those whose reciprocal ranks with the cheap teacher and with the student lie furthest apart.
    """
    count = min(count, len(cheap))
    order = np.lexsort((np.arange(len(cheap)), -cheap))
    if by in ("top", "gap") or count == len(cheap):
        return np.sort(order[:count])
    if by == "margin":
        return np.sort(_neighbours(order, np.asarray(cheap, dtype=np.float64)[order], count))
    ranks = np.empty(len(cheap))
    ranks[order] = np.arange(1, len(cheap) + 1)
    own = np.empty(len(cheap))
    own[np.lexsort((np.arange(len(cheap)), -student))] = np.arange(1, len(cheap) + 1)
    apart = np.abs(1.0 / ranks - np.where(np.isfinite(student), 1.0 / own, 0.0))
    return np.sort(np.lexsort((ranks, -apart))[:count])  # ties: what the cheap teacher ranks higher


def _neighbours(order: Places, scores: Floats, count: int) -> Places:
    """Members of the most doubtful pairs of neighbours; the doubt falls by e with every mean gap between them."""
    gaps = -np.diff(scores)
    mean = float(gaps.mean()) if len(gaps) else 0.0
    doubt = np.exp(-gaps / mean) if mean > 0 else np.ones(len(gaps))
    ranks = np.arange(1, len(order))
    loss = 1.0 / np.log2(ranks + 1) - 1.0 / np.log2(ranks + 2)  # of nDCG, if these two change places
    taken: dict[int, None] = {}
    for pair in np.lexsort((ranks, -loss * doubt)).tolist():
        fresh = [place for place in (pair, pair + 1) if place not in taken]
        for place in fresh[: count - len(taken)]:
            taken[place] = None
        if len(taken) >= count:
            break
    return order[list(taken)[:count]]


def gaps(cheap: NDArray[np.floating]) -> Floats:
    """How far each candidate [N] lies below the best of its list; inf in a list of one.

    The best one is as far as the second: to ask about it alone would change nothing.
    """
    scores = np.asarray(cheap, dtype=np.float64)
    if len(scores) < 2:
        return np.full(len(scores), np.inf)
    best = int(np.argmax(scores))
    found: Floats = scores[best] - scores
    found[best] = np.delete(found, best).min()
    return found


LEVELS = 1 << 16


def levels(gaps: Floats) -> NDArray[np.int64]:
    """Gaps as whole numbers 0..LEVELS-1 in the same order, 128 to each doubling: what can be counted in one pass.

    They are the upper halves of the numbers as float32, whose order is that of what they stand for, from 0 to inf.
    """
    found: NDArray[np.int64] = (np.asarray(gaps, dtype=np.float32).view(np.uint32) >> 16).astype(np.int64)
    return found


def highest_level(counts: NDArray[np.int64], share: float) -> int:
    """The greatest level at which no more than `share` of all candidates lie there or below; -1 where there is none.

    counts: candidates at each level, [LEVELS].
    """
    fits = np.cumsum(counts) <= share * counts.sum() + 1e-9
    return int(np.count_nonzero(fits)) - 1


# -- two scales as one --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sums:
    """Of pairs (cheap, expensive) that both teachers scored: what a straight line is drawn from. Sums of parts add up."""

    n: int = 0
    c: float = 0.0
    e: float = 0.0
    cc: float = 0.0
    ce: float = 0.0
    ee: float = 0.0

    @staticmethod
    def of(cheap: NDArray[np.floating], expensive: NDArray[np.floating]) -> Sums:
        c, e = np.asarray(cheap, dtype=np.float64), np.asarray(expensive, dtype=np.float64)
        return Sums(len(c), float(c.sum()), float(e.sum()), float(c @ c), float(c @ e), float(e @ e))

    @staticmethod
    def total(parts: Iterable[Sums]) -> Sums:
        listed = list(parts)
        return Sums(**{one.name: sum(getattr(part, one.name) for part in listed) for one in fields(Sums)})


@dataclass(frozen=True)
class Line:
    """expensive = offset + slope * cheap; slope > 0. agreement: the correlation of the two on `pairs` that both scored."""

    slope: float
    offset: float
    agreement: float
    pairs: int

    def on_cheap_scale(self, expensive: NDArray[np.floating]) -> Floats:
        """Expensive scores as the cheap scores that the line gives them for. Their order stays."""
        found: Floats = (np.asarray(expensive, dtype=np.float64) - self.offset) / self.slope
        return found


def line(sums: Sums) -> Line:
    """What the expensive teacher is expected to say where the cheap one says c: least squares, turned round.

    A candidate goes on because of its cheap score, so E[expensive | cheap] on those that went on holds for the others
    too; E[cheap | expensive] would not. A straight line rather than steps (isotonic): it goes on beyond the scores that
    were seen, makes no ties, and little data is enough for it. Where the teachers hardly agree, its slope would be near 0 and
    tear escalated scores away from the rest: it is drawn as if they agreed by 0.2. Without pairs, or with equal scores, it
    is the line through their means with slope 1.
    """
    if not sums.n:
        return Line(1.0, 0.0, 0.0, 0)
    c, e = sums.c / sums.n, sums.e / sums.n
    var_c, var_e = max(0.0, sums.cc / sums.n - c * c), max(0.0, sums.ee / sums.n - e * e)
    if var_c <= 1e-12 * (1 + c * c) or var_e <= 1e-12 * (1 + e * e):
        return Line(1.0, e - c, 0.0, sums.n)
    agreement = (sums.ce / sums.n - c * e) / math.sqrt(var_c * var_e)
    slope = max(agreement, _LEAST_AGREEMENT) * math.sqrt(var_e / var_c)
    return Line(slope, e - slope * c, agreement, sums.n)
