"""Is a difference between two systems more than chance? Bootstrap intervals, a randomisation test, Holm.

All tests are paired by query. Everything is a function of its inputs and the seed.
Sources: Sakai, SIGIR 2006 (bootstrap); Smucker, Allan and Carterette, CIKM 2007 (randomisation test);
Phipson and Smyth, 2010 (why p is never 0); Holm, 1979.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_CELLS = 1 << 22  # numbers drawn at once: 32 MiB, however many queries and samples
_EXACT = 14  # up to this many differences all 2**n signs are tried
_SAME = 1e-9  # metrics of equal rankings may differ in the last bits only


@dataclass(frozen=True)
class Comparison:
    """System a against b by query: mean of a - b, its interval, p of the two-sided test, and counts."""

    difference: float
    low: float
    high: float
    p: float
    wins: int
    ties: int
    losses: int


def _vector(values: ArrayLike, name: str) -> Floats:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or not vector.size:
        raise ValueError(f"{name}: needs one value a query, at least one; shape is {vector.shape}")
    if not np.isfinite(vector).all():
        raise ValueError(f"{name}: {int((~np.isfinite(vector)).sum())} values are not finite")
    return vector


def _differences(a: ArrayLike, b: ArrayLike) -> Floats:
    left, right = _vector(a, "a"), _vector(b, "b")
    if left.shape != right.shape:
        raise ValueError(f"a and b are paired by query: {left.size} values against {right.size}")
    return left - right


def _blocks(samples: int, width: int) -> Iterator[int]:
    if samples < 1:
        raise ValueError(f"samples={samples}: at least 1")
    rows = max(1, _CELLS // width)
    for start in range(0, samples, rows):
        yield min(rows, samples - start)


def bootstrap_interval(values: ArrayLike, *, seed: int, samples: int = 10_000, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the mean of `values` [queries].

    Raises:
        ValueError: no values, one not finite, or a level outside (0, 1).
    """
    vector = _vector(values, "values")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: between 0 and 1, such as 0.95")
    rng = np.random.default_rng(seed)
    drawn = [vector[rng.integers(vector.size, size=(rows, vector.size))].mean(axis=1) for rows in _blocks(samples, vector.size)]
    low, high = np.quantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, seed: int, samples: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """Bootstrap interval of the mean of a - b; queries are drawn, each with both its values."""
    return bootstrap_interval(_differences(a, b), seed=seed, samples=samples, level=level)


def randomisation_test(a: ArrayLike, b: ArrayLike, *, seed: int, samples: int = 10_000) -> float:
    """Two-sided p of "a and b are exchangeable within a query": the signs of the differences are flipped.

    With up to 14 differences other than 0 all sign patterns are counted and p is exact. Else `samples`
    patterns are drawn and p = (count + 1) / (samples + 1), the observed pattern being one of them.
    """
    difference = _differences(a, b)
    difference = difference[difference != 0]  # flipping a zero changes nothing: leaving it out is exact
    if not difference.size:
        return 1.0
    # Sums that are equal in exact arithmetic must count as equal.
    bar = abs(difference.sum()) - 1e-10 * np.abs(difference).sum()
    total = difference.sum()

    def as_extreme(flips: NDArray[np.uint8]) -> int:
        return int((np.abs(total - 2 * (flips @ difference)) >= bar).sum())

    if difference.size <= _EXACT:
        patterns = np.arange(1 << difference.size)[:, None] >> np.arange(difference.size) & 1
        return as_extreme(patterns.astype(np.uint8)) / len(patterns)
    rng = np.random.default_rng(seed)
    count = sum(
        as_extreme(rng.integers(2, size=(rows, difference.size), dtype=np.uint8)) for rows in _blocks(samples, difference.size)
    )
    return (count + 1) / (samples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for having made all these tests (Holm's step-down), in the order given."""
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values lie in [0, 1]: {list(p_values)}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    return [float(value) for value in adjusted]


def win_tie_loss(a: ArrayLike, b: ArrayLike) -> tuple[int, int, int]:
    """Queries where a is better than b, as good (within 1e-9), worse."""
    difference = _differences(a, b)
    wins, losses = int((difference > _SAME).sum()), int((difference < -_SAME).sum())
    return wins, difference.size - wins - losses, losses


def compare(a: ArrayLike, b: ArrayLike, *, seed: int, samples: int = 10_000, level: float = 0.95) -> Comparison:
    """a against b over the same queries, values paired by position."""
    low, high = paired_bootstrap(a, b, seed=seed, samples=samples, level=level)
    wins, ties, losses = win_tie_loss(a, b)
    return Comparison(
        difference=float(_differences(a, b).mean()),
        low=low,
        high=high,
        p=randomisation_test(a, b, seed=seed, samples=samples),
        wins=wins,
        ties=ties,
        losses=losses,
    )
