"""Windows over a list, and orders read from answers."""

from __future__ import annotations

import numpy as np
import pytest

from raydrd.methods.permutation import grades, read_order, windows


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, []),
        (1, []),
        (2, [(0, 2)]),
        (20, [(0, 20)]),
        (30, [(10, 30), (0, 20)]),
        (100, [(lo, lo + 20) for lo in range(80, -1, -10)]),  # RankGPT's
        (21, [(1, 21), (0, 20)]),
        (35, [(15, 35), (5, 25), (0, 20)]),  # theirs would leave the first five where they are
    ],
)
def test_windows_of_twenty_by_ten(count: int, expected: list[tuple[int, int]]) -> None:
    assert windows(count, window=20, stride=10) == expected


def test_every_passage_can_come_to_the_front() -> None:
    """The best one, wherever it stands, is first in the end if each window puts it first."""
    for window in range(2, 6):
        for stride in range(1, window):
            for count in range(2, 14):
                for best in range(count):
                    order = list(range(count))
                    for lo, hi in windows(count, window=window, stride=stride):
                        order[lo:hi] = sorted(order[lo:hi], key=lambda place: place != best)
                    assert order[0] == best and sorted(order) == list(range(count))
    with pytest.raises(ValueError, match="stride=6: write 1 to 5"):
        windows(9, window=5, stride=6)


@pytest.mark.parametrize(
    ("answer", "places", "mended"),
    [
        ("[2] > [1] > [3]", [1, 0, 2], (False, 0, 0, 0)),
        ("[3]", [2, 0, 1], (False, 2, 0, 0)),  # the others follow in their old order
        ("[3] > [3] > [1] > [3]", [2, 0, 1], (False, 1, 2, 0)),
        ("[2] > [4] > [0] > [1] > [3]", [1, 0, 2], (False, 0, 0, 2)),
        ("Order: [2]>[3] , then [1].", [1, 2, 0], (False, 0, 0, 0)),
        ("2 > 1 > 3", [0, 1, 2], (True, 0, 0, 0)),
        ("[9] > [7]", [0, 1, 2], (True, 0, 0, 2)),
        ("I cannot rank these 3 passages.", [0, 1, 2], (True, 0, 0, 0)),
        ("", [0, 1, 2], (True, 0, 0, 0)),
        ("[2] > [1", [1, 0, 2], (False, 2, 0, 0)),  # broken off
        ("[1234567] > [2]", [1, 0, 2], (False, 2, 0, 0)),
    ],
)
def test_answers_are_read_strictly_and_mended_openly(
    answer: str, places: list[int], mended: tuple[bool, int, int, int]
) -> None:
    found = read_order(answer, 3)
    assert found.places.tolist() == places
    assert (found.unread, found.missing, found.repeated, found.unknown) == mended


def test_an_answer_is_always_a_permutation() -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        count = int(draw.integers(1, 9))
        answer = " > ".join(f"[{number}]" for number in draw.integers(0, 12, size=int(draw.integers(0, 12))))
        assert sorted(read_order(answer, count).places.tolist()) == list(range(count))


def test_grades_count_what_stands_below() -> None:
    assert grades(4).tolist() == [3, 2, 1, 0] and grades(0).tolist() == [] and grades(2).dtype == np.float32
