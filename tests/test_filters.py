"""Filters of suspected false negatives: the reference's vectors (6.5, 6.6), and guards on random lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raydrd.config import validate
from raydrd.errors import InputError
from raydrd.methods.filters import Filter, hidden_positive_recall, quantile_of_round, scale, suspects, threshold

POS = np.arange(11.0)
NAN = float("nan")


def thresholds(rule: Filter, rounds: int, positives: Any = POS) -> list[float]:
    found: list[float] = []
    for number in range(rounds):
        value = threshold(rule, positives, round=number, previous=found[-1] if found else None)
        assert value is not None
        found.append(value)
    return found


def test_thresholds_of_the_reference() -> None:
    rule = Filter()
    assert [quantile_of_round(rule, round=k) for k in range(5)] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.2], abs=1e-12)
    assert thresholds(Filter(smoothing=0), 5) == pytest.approx([5, 4, 3, 2, 2], abs=1e-6)
    assert thresholds(rule, 5) == pytest.approx([5, 4.5, 3.75, 2.875, 2.4375], abs=1e-6)
    assert thresholds(Filter(smoothing=0.75), 3) == pytest.approx([5, 4.75, 4.3125])  # the weight of the round before


def test_thresholds_may_rise() -> None:
    rule = Filter(direction="up", smoothing=0)
    assert [quantile_of_round(rule, round=k) for k in range(5)] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.8], abs=1e-12)
    assert thresholds(rule, 5) == pytest.approx([5, 6, 7, 8, 8], abs=1e-6)


def test_positives_never_scored_do_not_count() -> None:
    assert thresholds(Filter(), 2, [*POS, NAN]) == pytest.approx([5, 4.5], abs=1e-6)


def test_a_smoothed_round_needs_the_one_before() -> None:
    with pytest.raises(ValueError, match="round 2 smooths the threshold of round 1, which is not given"):
        threshold(Filter(), POS, round=2, previous=None)
    assert threshold(Filter(smoothing=0), POS, round=1, previous=None) == pytest.approx(4)
    with pytest.raises(ValueError, match="rounds count from 0"):
        threshold(Filter(), POS, round=-1, previous=None)


def test_standardised_thresholds_do_not_see_another_teachers_scale() -> None:
    rule = Filter(standardise=True)
    plain = thresholds(rule, 4)
    assert plain[0] == pytest.approx(0)
    mean, std = scale(rule, POS)
    assert (mean, std) == pytest.approx((5, POS.std()))
    assert plain == pytest.approx([(value - mean) / std for value in thresholds(Filter(), 4)])

    # Teachers of round 0 and 1 differ by shift and scale: the second threshold is as with one teacher.
    stretched = 100 * POS - 7
    assert threshold(rule, stretched, round=1, previous=plain[0]) == pytest.approx(plain[1])
    negatives = np.array([9.0, 4.6, 4.4, *np.zeros(12)])
    ours = suspects(rule, negatives, threshold=plain[1], mean=mean, std=std)
    other_mean, other_std = scale(rule, stretched)
    theirs = suspects(rule, 100 * negatives - 7, threshold=plain[1], mean=other_mean, std=other_std)
    assert ours.tolist() == theirs.tolist() == [True, True, False, *[False] * 12]
    assert scale(Filter(), POS) == (0, 1)


@pytest.mark.parametrize(
    ("positives", "message"),
    [
        ([3.0, 3.0], "all 2 positives have teacher score 3; write standardise: false"),
        ([], "no labelled positive has a teacher score"),
        ([NAN], "no labelled positive has a teacher score"),
        ([1.0, np.inf], "1 positives have an infinite teacher score"),
    ],
)
def test_positives_without_a_scale_are_refused(positives: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        threshold(Filter(standardise=True), positives, round=0, previous=None)


FREE = {"most": 1.0, "keep": 0}


@pytest.mark.parametrize(
    ("rule", "theta", "positive", "expected"),
    [
        (Filter(**FREE), 3.0, None, [3.5]),
        (Filter(**FREE), 3.5, None, []),  # above, not at
        (Filter(mode="fixed", threshold=3.0, **FREE), 3.0, None, [3.5]),
        (Filter(mode="per_query", ratio=0.95, **FREE), None, 4.0, []),
        (Filter(mode="per_query", margin=1.0, **FREE), None, 4.0, [3.5]),
        (Filter(mode="per_query", margin=1.0, **FREE), 99.0, 4.0, [3.5]),  # the threshold is not read
        (Filter(mode="per_query", ratio=0.5, **FREE), None, 4.0, [3.5]),
        (Filter(mode="per_query", margin=1.0, **FREE), None, None, []),
        (Filter(mode="per_query", margin=1.0, **FREE), None, NAN, []),
    ],
)
def test_example_of_the_reference(rule: Filter, theta: float | None, positive: float | None, expected: list[float]) -> None:
    scores = np.array([3.5, 0.0, -2.0])
    assert scores[suspects(rule, scores, threshold=theta, positive_score=positive)].tolist() == expected


def test_a_standardised_margin_is_in_standard_deviations() -> None:
    rule = Filter(mode="per_query", margin=1.0, standardise=True, **FREE)
    scores = np.array([7.5, 8.5, 12.0])
    assert suspects(rule, scores, positive_score=10.0, mean=3.0, std=2.0).tolist() == [False, True, True]


def test_a_fixed_bar_is_the_threshold_of_every_round() -> None:
    rule = Filter(mode="fixed", threshold=0.9)
    assert [threshold(rule, [], round=k, previous=None) for k in (0, 3)] == [0.9, 0.9]
    assert threshold(Filter(mode="per_query", margin=0.0), [], round=1, previous=None) is None


def test_a_ratio_of_a_score_that_is_not_positive_is_refused() -> None:
    rule = Filter(mode="per_query", ratio=0.95)
    for score in (0.0, -2.0):
        with pytest.raises(InputError, match="ratio needs positive teacher scores"):
            suspects(rule, [1.0], positive_score=score)


def test_calls_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="mode quantile needs the threshold"):
        suspects(Filter(), [1.0])
    with pytest.raises(ValueError, match="std=0"):
        suspects(Filter(), [1.0], threshold=0.0, std=0.0)
    with pytest.raises(ValueError, match=r"shape \[N\]"):
        suspects(Filter(), [[1.0]], threshold=0.0)


@pytest.mark.parametrize(("size", "filtered"), [(15, 4), (8, 1), (7, 0), (3, 0), (0, 0), (10, 3)])
def test_guards_of_the_reference(size: int, filtered: int) -> None:
    scores = 10.0 + np.random.default_rng(size).permutation(size)  # all of them suspect
    found = suspects(Filter(), scores, threshold=5.0)
    assert int(found.sum()) == filtered
    assert sorted(scores[found].tolist()) == [10.0 + size - 1 - k for k in reversed(range(filtered))]


def test_a_whole_share_is_whole() -> None:
    assert int(suspects(Filter(most=0.29, keep=0), np.ones(100), threshold=0.0).sum()) == 29


def test_ties_go_by_position_and_nan_is_never_suspect_but_counts() -> None:
    scores = np.array([NAN, 6.0, 9.0, NAN, 6.0, 6.0, *np.zeros(4)])
    assert np.flatnonzero(suspects(Filter(), scores, threshold=5.0)).tolist() == [1, 2, 4]
    assert not suspects(Filter(**FREE), np.full(9, NAN), threshold=-1e9).any()


def test_guards_on_random_lists() -> None:
    draw = np.random.default_rng(3)
    bound = free = 0
    for _ in range(300):
        rule = Filter(most=float(draw.choice([0.0, 0.1, 0.3, 0.5, 1.0])), keep=int(draw.integers(0, 9)))
        scores = np.round(draw.normal(size=int(draw.integers(0, 30))), 1)
        scores[draw.random(scores.size) < 0.1] = NAN
        found = suspects(rule, scores, threshold=0.3)
        candidates = [i for i in range(len(scores)) if scores[i] > 0.3]
        allowed = max(0, min(int(np.floor(round(rule.most * len(scores), 6))), len(scores) - rule.keep))
        expected = sorted(candidates, key=lambda i: (-scores[i], i))[:allowed]
        assert np.flatnonzero(found).tolist() == sorted(expected)
        bound += len(candidates) > allowed
        free += 0 < len(candidates) <= allowed
    assert bound > 50 and free > 50


def test_hidden_positives_are_found() -> None:
    rule = Filter(smoothing=0)
    easy = np.linspace(-3, 2, 14)
    theta = threshold(rule, POS, round=2, previous=None)  # 3
    found = hidden_positive_recall(
        rule,
        [[8.0], [2.5], [], [NAN], [5.0, 4.0]],
        [easy, [*easy[:-1], 4.0], [*easy[:-1], 9.0], easy, easy[:-1]],
        threshold=theta,
    )
    assert found is not None
    assert (found.queries, found.hidden, found.caught) == (4, 5, 3)
    assert found.recall == pytest.approx(3 / 5)
    assert found.rate == pytest.approx(4 / 60)  # 3 hidden ones and the 4.0 of the second list, of 4 * 15 passages
    assert hidden_positive_recall(rule, [[]], [easy], threshold=theta) is None


def test_hidden_positives_by_the_query_s_own_bar_and_under_the_guards() -> None:
    rule = Filter(mode="per_query", margin=1.0, keep=2)
    negatives = [[0.0, 0.0, 0.0], [0.0, 0.0, 7.0]]
    found = hidden_positive_recall(rule, [[5.5], [5.5]], negatives, positive_scores=[6.0, 6.0])
    assert found is not None
    assert (found.caught, found.rate) == (1, 2 / 8)  # one of four may go: in the second list the 7.0
    with pytest.raises(ValueError, match="2, 1 and 2 entries differ"):
        hidden_positive_recall(rule, [[1.0], [2.0]], [[0.0]])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "fixed"}, "threshold belongs to mode fixed, which needs one"),
        ({"threshold": 0.9}, "mode=quantile: threshold belongs to mode fixed"),
        ({"mode": "per_query"}, "mode per_query needs margin or ratio, one of them"),
        ({"mode": "per_query", "margin": 1.0, "ratio": 0.9}, "one of them"),
        ({"margin": 1.0}, "other modes neither"),
        ({"mode": "per_query", "ratio": 0.9, "standardise": True}, "ratio needs positive scores"),
        ({"r0": 0.1}, r"direction=down: r0=0.1 is past its last value 0.2"),
        ({"r0": 0.9, "direction": "up"}, r"direction=up: r0=0.9 is past its last value 0.8"),
        ({"smoothing": 1.0}, "smoothing"),
        ({"most": 1.2}, "most"),
        ({"floor": -0.1}, "floor"),
        ({"ratio": 0.0, "mode": "per_query"}, "ratio"),
    ],
)
def test_impossible_filters_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        validate(Filter, values, "toy.yaml")
