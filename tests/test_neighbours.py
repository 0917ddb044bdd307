"""Neighbour pairs: counts and the example of the reference (4.5, 4.6), and stable draws (4.9, 5 and 14)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raydrd.config import validate
from raydrd.errors import InputError
from raydrd.methods.lists import Row
from raydrd.methods.neighbours import NeighbourPairs, available


def row(size: int, *, query_id: str = "q1", shuffle: int = 0) -> Row:
    """Passage row 1000 + r is at 0-based teacher rank r; candidates come shuffled."""
    ranks = np.random.Generator(np.random.PCG64(shuffle)).permutation(size).astype(np.int64)
    return Row(
        query_id=query_id,
        query_row=0,
        doc_rows=1000 + ranks,
        scores=ranks.astype(np.float32),
        teacher_scores=-ranks.astype(np.float32),
    )


def ranks(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(left - 1000, right - 1000) for left, right in pairs]


@pytest.mark.parametrize(
    ("k", "window", "count"),
    [(20, 5, 85), (64, 7, 420), (100, 5, 485), (4, 2, 5), (3, 5, 3), (2, 1, 1), (1, 5, 0), (0, 5, 0), (9, 0, 0)],
)
def test_counts(k: int, window: int, count: int) -> None:
    assert available(k, window) == count == sum(1 for i in range(k) for j in range(i + 1, k) if j - i <= window)
    if k > 1 and window:
        assert len(NeighbourPairs(top_k=k, window=window, pairs=1000)(row(k + 30))) == count


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        available(-1, 5)


def test_example_of_the_reference() -> None:
    letters = "ABCDE"
    made = Row(
        query_id="q",
        query_row=0,
        doc_rows=np.array([3, 0, 4, 2, 1]),
        scores=np.zeros(5, dtype=np.float32),
        teacher_scores=np.array([-2.0, 5.0, -4.0, 1.1, 3.2], dtype=np.float32),
    )
    pairs = NeighbourPairs(top_k=4, window=2, pairs=99)(made)
    assert [letters[left] + letters[right] for left, right in pairs] == ["AB", "AC", "BC", "BD", "CD"]


def test_equal_teacher_scores_go_by_row() -> None:
    zeros = np.zeros(3, dtype=np.float32)
    made = Row(query_id="q", query_row=0, doc_rows=np.array([9, 5, 7]), scores=zeros, teacher_scores=zeros)
    assert NeighbourPairs(window=1)(made) == [(5, 7), (7, 9)]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 6, 20, 200])
def test_pairs_are_near_distinct_and_as_many_as_there_are(size: int) -> None:
    rule = NeighbourPairs()
    for number in range(30):
        pairs = ranks(rule(row(size, query_id=f"q{number}")))
        assert len(pairs) == len(set(pairs)) == min(8, available(min(size, 20), 5))
        assert all(0 < j - i <= 5 and i >= 0 and j < min(20, size) for i, j in pairs)
        assert pairs == sorted(pairs)


def test_every_pair_can_be_drawn_and_none_is_favoured() -> None:
    rule = NeighbourPairs()
    seen: dict[tuple[int, int], int] = {}
    for number in range(1000):
        for pair in rule(row(40, query_id=f"q{number}")):
            seen[pair] = seen.get(pair, 0) + 1
    expected = 1000 * 8 / 85
    assert len(seen) == 85
    assert all(abs(count - expected) < 5 * expected**0.5 for count in seen.values())


# Written down once: a change here changes every pair ever asked for.
DRAWN = [(0, 1), (2, 6), (2, 7), (4, 7), (4, 8), (5, 8), (12, 16), (13, 14)]


def test_a_draw_depends_on_seed_and_query_only() -> None:
    rule = NeighbourPairs()
    assert ranks(rule(row(40))) == ranks(rule(row(200, shuffle=9))) == DRAWN
    assert ranks(rule(row(40, query_id="q2"))) != DRAWN
    assert ranks(NeighbourPairs(seed=1)(row(40))) != DRAWN


@pytest.mark.parametrize("values", [{"top_k": 1}, {"window": 0}, {"pairs": 0}, {"n_pairs": 8}])
def test_impossible_rules_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(values))):
        validate(NeighbourPairs, values, "toy.yaml")
