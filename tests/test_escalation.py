"""What goes on to an expensive teacher, and how its scores come onto the cheap one's scale: pure rules."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from raydrd.config import validate
from raydrd.errors import InputError
from raydrd.methods.escalation import LEVELS, Line, Sums, budget, chosen, gaps, highest_level, levels, line
from raydrd.setting import Escalation

F = np.float32


def floats(*values: float) -> Any:
    return np.array(values, dtype=F)


# -- how many -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "count"), [(0.1, 15), (0.3, 7), (0.3, 10), (1 / 3, 3), (0.07, 30), (1.0, 9), (0.0, 9)])
def test_a_share_is_met_over_many_lists(share: float, count: int) -> None:
    each = [budget(row, count, share=share) for row in range(400)]
    assert sum(each) == math.floor(400 * share * count + 1e-6)
    assert max(each) - min(each) <= 1 and max(each) <= count


def test_pairs_are_so_many_of_each_list_and_no_more_than_it_has() -> None:
    assert [budget(row, 9, pairs=4) for row in range(5)] == [4] * 5
    assert budget(0, 3, pairs=4) == 3 and budget(0, 3) == 0


# -- which --------------------------------------------------------------------------------------------


def test_the_top_of_the_cheap_order_whatever_place_it_stands_at() -> None:
    cheap = floats(1, 9, 3, 7, 3)
    assert chosen(cheap, cheap, 2, by="top").tolist() == [1, 3]
    assert chosen(cheap, cheap, 3, by="top").tolist() == [1, 2, 3]  # ties: the first place
    for by in ("top", "margin", "disagreement"):
        assert chosen(cheap, cheap, 9, by=by).tolist() == [0, 1, 2, 3, 4]
        assert chosen(cheap, cheap, 0, by=by).tolist() == []
        assert chosen(floats(), floats(), 3, by=by).tolist() == []
        assert chosen(floats(2), floats(1), 1, by=by).tolist() == [0]


def test_the_gap_to_the_best_and_the_best_one_with_the_second() -> None:
    assert gaps(floats(1, 9, 3, 7, 3)).tolist() == [8, 2, 6, 2, 6]
    assert gaps(floats(5, 5, 1)).tolist() == [0, 0, 4]
    assert gaps(floats(2)).tolist() == [math.inf] and gaps(floats()).tolist() == []


def test_levels_keep_the_order_and_a_share_is_a_level() -> None:
    drawn = np.concatenate([np.random.default_rng(0).exponential(3, 5000), [0.0, np.inf, 1e-30, 1e30]])
    found = levels(drawn)
    assert (np.diff(found[np.argsort(drawn)]) >= 0).all() and found.min() >= 0 and found.max() < LEVELS
    assert found[-4] == 0 and (levels(np.array([1.0, 1.01, 2.0])) == levels(np.array([1.0]))[0] + np.array([0, 1, 128])).all()
    counts = np.bincount(found, minlength=LEVELS)
    for share in (0.1, 0.3, 0.5):
        taken = (found <= highest_level(counts, share)).mean()
        assert share - 0.01 < taken <= share
    assert (found <= highest_level(counts, 1.0)).all() and highest_level(counts, 0.0) == -1


def test_neighbours_with_little_between_them_go_on_and_more_so_at_the_top() -> None:
    #            ranks: 1   2    3    4   5    6
    clear = floats(20, 10, 9.9, 5, 4.9, 0)
    assert chosen(clear, clear, 2, by="margin").tolist() == [1, 2]
    assert chosen(clear, clear, 4, by="margin").tolist() == [1, 2, 3, 4]
    even = floats(5, 4, 3, 2, 1, 0)  # nothing tells doubts apart but what they would cost
    assert chosen(even, even, 2, by="margin").tolist() == [0, 1]
    same = floats(1, 1, 1, 1)
    assert chosen(same, same, 2, by="margin").tolist() == [0, 1]
    assert chosen(clear, clear, 3, by="margin").tolist() == [1, 2, 3]  # half of a pair, where the budget ends


def test_what_student_and_cheap_teacher_rank_otherwise_goes_on() -> None:
    cheap = floats(6, 5, 4, 3, 2, 1)
    student = floats(1, 5, 4, 3, 2, 6)  # first and last have changed places
    assert chosen(cheap, student, 2, by="disagreement").tolist() == [0, 5]
    far = floats(6, 5, 4, 1, 2, 3)  # a quarrel at the end of the list weighs little
    top = floats(5, 6, 4, 3, 2, 1)
    assert chosen(cheap, far, 2, by="disagreement").tolist() == [3, 5]
    both = floats(5, 6, 4, 1, 2, 3)
    assert chosen(cheap, both, 2, by="disagreement").tolist() == chosen(cheap, top, 2, by="disagreement").tolist() == [0, 1]
    hidden = floats(6, 5, 4, 3, 2, -np.inf)  # a labelled positive that the student did not find
    turned = floats(1, 2, 3, 4, 5, 6)
    assert 5 in chosen(turned, hidden, 1, by="disagreement").tolist()


@pytest.mark.parametrize("by", ["top", "margin", "disagreement"])
def test_rules_are_sane_on_any_list(by: Any) -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        n = int(draw.integers(1, 12))
        cheap, student = draw.integers(0, 5, size=n).astype(F), draw.normal(size=n).astype(F)
        smaller: set[int] = set()
        for count in range(n + 1):
            places = chosen(cheap, student, count, by=by).tolist()
            assert len(set(places)) == len(places) == count and places == sorted(places) and set(places) <= set(range(n))
            assert smaller <= set(places)  # a larger budget asks what a smaller one asked
            smaller = set(places)


# -- one scale ----------------------------------------------------------------------------------------


def test_a_straight_line_is_found_again() -> None:
    cheap = np.random.default_rng(0).normal(size=300)
    found = line(Sums.of(cheap, 3 * cheap - 2))
    assert (found.slope, found.offset) == (pytest.approx(3), pytest.approx(-2))
    assert found.agreement == pytest.approx(1) and found.pairs == 300
    np.testing.assert_allclose(found.on_cheap_scale(3 * cheap - 2), cheap, atol=1e-9)


def test_what_was_chosen_by_the_cheap_score_says_what_the_others_would_have_got() -> None:
    """The reason for the direction of the fit: cut off by the cheap score, the line is that of all; the other one is not."""
    draw = np.random.default_rng(1)
    cheap = draw.normal(size=40_000)
    expensive = 2 * cheap + 1 + draw.normal(size=40_000) * 2
    top = cheap > 1
    whole, part = line(Sums.of(cheap, expensive)), line(Sums.of(cheap[top], expensive[top]))
    assert part.agreement < whole.agreement - 0.2
    assert part.slope == pytest.approx(2, abs=0.1) and part.offset == pytest.approx(1, abs=0.15)
    other = line(Sums.of(expensive[top], cheap[top]))  # E[cheap | expensive] on the same pairs
    assert 1 / other.slope > 5


def test_the_order_of_expensive_scores_never_changes() -> None:
    draw = np.random.default_rng(2)
    for slope in (-3.0, 0.0, 0.01, 4.0):
        cheap = draw.normal(size=60)
        expensive = slope * cheap + draw.normal(size=60)
        found = line(Sums.of(cheap, expensive))
        assert found.slope > 0
        assert np.argsort(found.on_cheap_scale(expensive)).tolist() == np.argsort(expensive).tolist()
        # Teachers that do not agree do not tear the scale: no further apart than five times the cheap one's.
        assert np.std(found.on_cheap_scale(expensive)) <= 5.001 * np.std(cheap)


def test_too_little_to_draw_a_line() -> None:
    assert line(Sums()) == Line(1.0, 0.0, 0.0, 0)
    assert line(Sums.of(floats(3), floats(10))) == Line(1.0, 7.0, 0.0, 1)
    assert line(Sums.of(floats(3, 3), floats(10, 12))) == Line(1.0, 8.0, 0.0, 2)
    assert line(Sums.of(floats(3, 5), floats(10, 10))).slope == 1.0


def test_sums_of_parts_are_the_sums_of_the_whole() -> None:
    draw = np.random.default_rng(3)
    cheap, expensive = draw.normal(size=100), draw.normal(size=100) + 50
    parts = [Sums.of(cheap[lo : lo + 30], expensive[lo : lo + 30]) for lo in range(0, 100, 30)]
    whole, joined = line(Sums.of(cheap, expensive)), line(Sums.total(parts))
    assert joined.pairs == 100 and joined.slope == pytest.approx(whole.slope, rel=1e-9)
    slope, offset = np.polyfit(cheap, expensive, 1)
    if whole.agreement > 0.2:
        assert whole.slope == pytest.approx(slope)


# -- the config ---------------------------------------------------------------------------------------

CHEAP = {"kind": "bi_encoder", "model": "small"}
LARGE = {"kind": "prompted", "model": "large", "prompt": "yes_no"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"share": 0.2, "pairs": 3}, "share and pairs are two budgets; write one of them"),
        ({"share": 1.1}, "share: input should be less than or equal to 1"),
        ({"pairs": 0}, "pairs: input should be greater than or equal to 1"),
        ({"by": "size"}, "by: input should be 'gap', 'top', 'margin' or 'disagreement'"),
        ({"expensive": CHEAP}, "cheap and expensive are the same teacher"),
        ({"expensive": {**LARGE, "prompt": "rank", "max_length": 4000}}, "expensive: an order of a whole list is no score"),
        ({"cheap": {"kind": "ensemble", "members": [CHEAP, LARGE]}}, "cheap: .*'ensemble'"),
    ],
)
def test_configs_that_cannot_work_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"toy.yaml: .*{message}"):
        validate(Escalation, {"cheap": CHEAP, "expensive": LARGE, **fields}, "toy.yaml")


def test_a_budget_that_is_not_named_is_three_tenths() -> None:
    spends = [validate(Escalation, {"cheap": CHEAP, "expensive": LARGE, **more}, "toy").spend for more in ({}, {"pairs": 3})]
    assert spends == [{"share": 0.3, "pairs": None}, {"share": None, "pairs": 3}]
