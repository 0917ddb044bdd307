"""The statistics agree with hand values and scipy, and keep the error rate they promise."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from raydrd import statistics
from raydrd.statistics import (
    Floats,
    bootstrap_interval,
    compare,
    holm,
    paired_bootstrap,
    randomisation_test,
    win_tie_loss,
)


def test_bootstrap_interval_agrees_with_scipy_and_the_normal_approximation() -> None:
    values = np.random.default_rng(0).beta(2, 3, size=200)
    low, high = bootstrap_interval(values, seed=1)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=2)
    assert (low, high) == pytest.approx(tuple(theirs.confidence_interval), abs=2e-3)
    half = 1.96 * values.std() / np.sqrt(200)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=2e-3)


def test_bootstrap_interval_by_hand() -> None:
    # The mean of two draws from {0, 1} is 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    assert bootstrap_interval([0.0, 1.0], seed=0, level=0.4) == (0.5, 0.5)
    assert bootstrap_interval([0.0, 1.0], seed=0, level=0.95) == (0.0, 1.0)
    assert bootstrap_interval([0.25], seed=0) == (0.25, 0.25)


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for seed in range(300):
        low, high = bootstrap_interval(rng.normal(0.3, 1, size=60), seed=seed, samples=500, level=0.9)
        covered += low <= 0.3 <= high
    assert 0.84 < covered / 300 < 0.95


def test_small_blocks_draw_as_well_as_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(0.2, 1, 50), rng.normal(0, 1, 50)
    interval, p = paired_bootstrap(a, b, seed=0), randomisation_test(a, b, seed=0)
    monkeypatch.setattr(statistics, "_CELLS", 501)
    assert sum(statistics._blocks(10_000, 50)) == 10_000
    assert paired_bootstrap(a, b, seed=0) == pytest.approx(interval, abs=0.02)
    assert randomisation_test(a, b, seed=0) == pytest.approx(p, abs=0.02)


def test_the_exact_test_counts_every_sign_pattern() -> None:
    # All three differences point one way: 2 of 8 patterns are as extreme.
    assert randomisation_test([1, 2, 3], [0, 0, 0], seed=0) == 2 / 8
    assert randomisation_test([0.3, 0.1], [0.1, 0.3], seed=0) == 1.0
    difference = np.random.default_rng(2).normal(0.5, 1, size=9)
    sums = [abs(float(np.dot(signs, difference))) for signs in product((1, -1), repeat=9)]
    expected = sum(s >= abs(difference.sum()) - 1e-12 for s in sums) / 2**9
    assert randomisation_test(difference, np.zeros(9), seed=0) == expected


def test_sums_equal_but_for_rounding_count_as_equal() -> None:
    # Differences of reciprocal ranks have many sums that are equal, but not in floating point.
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.integers(1, 7, size=(2, 8))
        whole = [60 // int(i) - 60 // int(j) for i, j in zip(first, second, strict=True)]  # 60 times, exact
        sums = [abs(int(np.dot(signs, whole))) for signs in product((1, -1), repeat=8)]
        expected = sum(s >= abs(sum(whole)) for s in sums) / 2**8
        assert randomisation_test(1 / first, 1 / second, seed=0) == expected


def _scipy_p(a: Floats, b: Floats, samples: float) -> float:
    def mean_difference(x: Floats, y: Floats, axis: int) -> Floats:
        return np.asarray(np.mean(x - y, axis=axis))

    found = stats.permutation_test(
        (a, b), mean_difference, permutation_type="samples", vectorized=True, n_resamples=samples, rng=3
    )
    return float(found.pvalue)


@pytest.mark.parametrize("n", [8, 14])
def test_the_exact_test_agrees_with_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.5, 1, n), rng.normal(0, 1, n)
    assert randomisation_test(a, b, seed=0) == pytest.approx(_scipy_p(a, b, np.inf))


def test_the_sampled_test_agrees_with_scipy() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.25, 1, 80), rng.normal(0, 1, 80)
    ours = randomisation_test(a, b, seed=0)
    assert 0.001 < ours < 0.5
    assert ours == pytest.approx(_scipy_p(a, b, 9_999), abs=0.015)


def test_ties_do_not_move_p_and_p_is_never_zero() -> None:
    a = np.array([0.4, 0.9, 0.1, 0.7])
    b = np.array([0.1, 0.2, 0.3, 0.1])
    same = np.full(500, 0.5)
    p = randomisation_test(a, b, seed=0)
    assert randomisation_test(np.append(a, same), np.append(b, same), seed=0) == p == 4 / 16
    assert randomisation_test(same, same, seed=0) == 1.0
    assert randomisation_test(np.ones(200), np.zeros(200), seed=0, samples=999) == 1 / 1000


def test_under_the_null_one_in_twenty_is_called_significant() -> None:
    rng = np.random.default_rng(9)
    pairs = rng.normal(size=(600, 2, 20))
    p = [randomisation_test(a, b, seed=seed, samples=400) for seed, (a, b) in enumerate(pairs)]
    assert 0.03 < np.mean(np.array(p) <= 0.05) < 0.075
    assert 0.45 < np.mean(np.array(p) <= 0.5) < 0.55


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_compare_puts_it_together() -> None:
    a, b = [0.5, 0.5, 1.0, 0.0], [0.5, 0.5 + 1e-12, 0.2, 0.1]
    assert win_tie_loss(a, b) == (1, 2, 1)
    result = compare(a, b, seed=0)
    assert result.difference == pytest.approx(0.175)
    assert result.low <= result.difference <= result.high
    assert (result.wins, result.ties, result.losses) == (1, 2, 1)
    mirror = compare(b, a, seed=0)
    assert (mirror.difference, mirror.p) == pytest.approx((-result.difference, result.p))


def test_the_same_seed_gives_the_same_numbers() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(100), rng.random(100)
    assert compare(a, b, seed=7) == compare(a, b, seed=7)
    assert bootstrap_interval(a, seed=7) != bootstrap_interval(a, seed=8)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="3 values against 2"):
        randomisation_test([1, 2, 3], [1, 2], seed=0)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([], seed=0)
    with pytest.raises(ValueError, match="1 values are not finite"):
        bootstrap_interval([0.1, float("nan")], seed=0)
    with pytest.raises(ValueError, match=r"level=95"):
        bootstrap_interval([0.1], seed=0, level=95)
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        holm([1.2])
