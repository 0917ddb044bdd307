"""Diagnosis of a teacher: known temperatures are found again, and each sort of unusable scale is named."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raydrd.methods.diagnosis import fit_temperature, scale_problem, spread, verdict
from raydrd.statistics import Comparison

Lists = list[np.ndarray[Any, Any]]


def logits(queries: int = 200, passages: int = 20, *, seed: int = 0) -> Lists:
    """A healthy cross-encoder: most passages around -6, one in ten around +4."""
    draw = np.random.default_rng(seed)
    means = np.where(draw.random((queries, passages)) < 0.1, 4.0, -6.0)
    return list(means + 2 * draw.normal(size=(queries, passages)))


def sigmoid(values: Any) -> Any:
    return 1 / (1 + np.exp(-values))


def drawn(temperature: float, *, queries: int = 2000, positives: int = 1) -> tuple[Lists, Lists]:
    """Scores, and positives drawn from softmax(scores / temperature)."""
    draw = np.random.default_rng(7)
    scores, labels = [], []
    for _ in range(queries):
        values = draw.normal(size=int(draw.integers(4, 12))) * 5
        shares = np.exp((values - values.max()) / temperature)
        label = np.zeros(values.size, dtype=np.bool_)
        label[draw.choice(values.size, size=positives, replace=False, p=shares / shares.sum())] = True
        scores.append(values)
        labels.append(label)
    return scores, labels


def test_spread_of_known_lists() -> None:
    found = spread([np.array([1.0, 3.0]), np.array([2.0, 2.0, 2.0, 2.0]), np.array([9.0])])
    share = sigmoid(2.0)
    binary = -(share * np.log(share) + (1 - share) * np.log(1 - share)) / np.log(2)
    assert found.queries == 2
    assert (found.std, found.range, found.tied_top) == pytest.approx((0.5, 1.0, 0.5))
    assert found.entropy == pytest.approx((binary + 1) / 2)


def test_spread_does_not_move_with_a_constant_and_grows_with_scale() -> None:
    plain, moved, larger = (spread([f(v) for v in logits()]) for f in (lambda v: v, lambda v: v + 900, lambda v: 10 * v))
    assert (moved.std, moved.range, moved.entropy) == pytest.approx((plain.std, plain.range, plain.entropy))
    assert (larger.std, larger.range) == pytest.approx((10 * plain.std, 10 * plain.range))
    assert 0 < larger.entropy < plain.entropy < 0.6
    assert plain.tied_top == 0


def test_scores_that_have_no_spread_are_refused() -> None:
    for measured in (spread, scale_problem):
        with pytest.raises(ValueError, match="no query has two scored passages"):
            measured([np.array([1.0]), np.array([])])
    with pytest.raises(ValueError, match="2 teacher scores are not finite"):
        spread([np.array([1.0, np.nan]), np.array([np.inf, 0.0])])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v, None),
        (lambda v: v / 2 + 30, None),
        (lambda v: np.where(v > 10, np.nan, v), "are NaN or infinite"),
        (lambda v: np.zeros_like(v), "for 100% of the queries the teacher gives every passage the same score"),
        (lambda v: np.clip(v, -5, 5), "tied at the extremes -5 or 5; they look clipped"),
        (lambda v: np.round(sigmoid(v), 2), "tied at the extremes 0 or 1; they look clipped or rounded"),
        (lambda v: np.clip(np.round(v), 0, 3), "whole grades"),
        (sigmoid, r"lie in \[0, 1\] and \d\d% of them within 0.05 of an end; they look squashed by a sigmoid.*raw logits"),
        (lambda v: 0.5 + v / 40, "like cosines; a softmax at temperature 1 is nearly flat"),
        (lambda v: v / 100, "set a teacher temperature well below 1"),
        (lambda v: 1 / (60 + np.argsort(np.argsort(-v))), "like cosines"),  # reciprocal rank fusion
    ],
)
def test_each_problem_of_scale_is_named(change: Any, message: str | None) -> None:
    lists = [change(values) for values in logits()]
    if message is None:
        assert scale_problem(lists) is None
        return
    found = scale_problem(lists)
    assert found is not None
    assert re.search(message, found), found
    assert "\n" not in found


def test_a_temperature_cures_cosines_only() -> None:
    cosines = [0.5 + values / 40 for values in logits()]
    assert scale_problem([values / 0.025 for values in cosines]) is None


def test_a_few_constant_lists_are_no_problem() -> None:
    assert scale_problem([*logits(), *[np.full(20, 1.5)] * 20]) is None


@pytest.mark.parametrize("temperature", [0.5, 2.0, 10.0])
def test_a_known_temperature_is_found_again(temperature: float) -> None:
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.15)


@pytest.mark.parametrize("positives", [1, 2])
def test_the_fit_is_the_best_of_a_fine_grid_and_moves_with_the_scale(positives: int) -> None:
    scores, labels = drawn(2.0, queries=60, positives=positives)

    def loss(t: float) -> float:
        per_query = []
        for values, label in zip(scores, labels, strict=True):
            shares = np.exp((values - values.max()) / t)
            per_query.append(-np.log(shares[label].sum() / shares.sum()))
        return float(np.mean(per_query))

    found = fit_temperature(scores, labels)
    assert loss(found) <= min(loss(float(t)) for t in np.geomspace(0.3, 100, 2000)) + 1e-9
    for factor in (0.01, 7.0):
        assert fit_temperature([factor * v for v in scores], labels) == pytest.approx(factor * found, rel=1e-4)
    assert fit_temperature([v + 500 for v in scores], labels) == pytest.approx(found, rel=1e-4)


def test_queries_that_say_nothing_are_left_out() -> None:
    scores, labels = drawn(2.0, queries=50)
    more = [*scores, np.array([9.0, 1.0]), np.array([9.0, 1.0]), np.array([])]
    marks = [*labels, np.array([True, True]), np.array([False, False]), np.array([], dtype=np.bool_)]
    assert fit_temperature(more, marks) == fit_temperature(scores, labels)
    with pytest.raises(ValueError, match="no query has both a positive and another passage"):
        fit_temperature(more[50:], marks[50:])


def test_labels_without_a_finite_temperature_give_an_end_of_the_range() -> None:
    scores, labels = [np.array([3.0, 1.0, 0.0])], [np.array([True, False, False])]
    assert fit_temperature(scores, labels) == pytest.approx(1e-3, rel=1e-3)  # all right: as sharp as it goes
    assert fit_temperature(scores, [~labels[0] & (scores[0] < 0.5)]) == pytest.approx(1e3, rel=1e-3)  # all wrong


@pytest.mark.parametrize(
    ("scores", "positives", "message"),
    [
        ([[1.0, 2.0]], [], "1 of scores, 0 of positives"),
        ([[1.0, 2.0]], [[True]], "query number 0: 2 scores"),
        ([[1.0, np.nan]], [[True, False]], "query number 0: a teacher score is not finite"),
    ],
)
def test_broken_inputs_of_the_fit_are_refused(scores: Any, positives: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_temperature(scores, positives)


BETTER = Comparison(difference=0.1, low=0.05, high=0.15, p=0.001, wins=30, ties=5, losses=5)


def test_verdict() -> None:
    student = (0.4, 0.35, 0.45)
    ok, line = verdict("big", teacher=(0.5, 0.45, 0.55), student=student, difference=BETTER, metric="nDCG@10")
    assert ok
    assert line == (
        "teacher big: nDCG@10 0.500 [0.450, 0.550], student 0.400 [0.350, 0.450], "
        "difference +0.100 [+0.050, +0.150]: surely better"
    )
    unsure = replace(BETTER, low=-0.01)
    ok, line = verdict("big", teacher=(0.5, 0.45, 0.55), student=student, difference=unsure, metric="nDCG@10")
    assert ok and "better, but not surely" in line
    for mean in (0.3, 0.4):
        gap = replace(BETTER, difference=mean - 0.4, low=mean - 0.5, high=mean - 0.39)
        ok, line = verdict("big", teacher=(mean, 0.0, 1.0), student=student, difference=gap, metric="nDCG@10")
        assert not ok and "not better than the student" in line and "\n" not in line


def test_a_swapped_comparison_is_refused() -> None:
    with pytest.raises(ValueError, match="swapped"):
        verdict("big", teacher=(0.4, 0.3, 0.5), student=(0.5, 0.4, 0.6), difference=BETTER, metric="nDCG@10")
