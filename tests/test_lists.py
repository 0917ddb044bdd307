"""List rules: the examples of the reference (section 2.6), and properties on random rankings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydrd.config import validate
from raydrd.errors import InputError
from raydrd.methods.lists import GradedList, Row, TopAndSampled, TrainingList
from tests.rankings import ranks, row


def groups(made: TrainingList | None) -> tuple[list[int], list[int], list[int]]:
    assert made is not None
    hard, rest = made.labels == -0.25, made.labels == -0.5
    return ranks(made.doc_rows[made.labels > 0]), ranks(made.doc_rows[hard]), ranks(made.doc_rows[rest])


def test_orders_and_their_ties() -> None:
    made = Row(
        query_id="q",
        query_row=0,
        doc_rows=np.array([7, 3, 5, 9]),
        scores=np.array([0.5, 0.5, 2.0, -1.0], dtype=np.float32),
        teacher_scores=np.array([1.0, 4.0, 4.0, 9.0], dtype=np.float32),
    )
    assert made.teacher_order().tolist() == [9, 3, 5, 7]
    assert made.student_order().tolist() == [5, 3, 7, 9]


@pytest.mark.parametrize(
    ("positives", "expected"),
    [
        ((1009,), [9, 1, 2, 3, 4]),  # t5 is pushed out of the group
        ((1003,), [3, 1, 2, 4, 5]),  # nothing is lost
        ((5001, 5002), [4001, 4002, 1, 2, 3]),  # outside the candidates
        ((5002, 1001, 5001), [4002, 1, 4001, 2, 3]),  # several: all kept, in their given order
        ((1009, 1009), [9, 1, 2, 3, 4]),
        ((1060, 1050, 1040, 1030, 1020, 1010, 5001), [60, 50, 40, 30, 20]),  # more than K: cut
        ((), [1, 2, 3, 4, 5]),
    ],
)
def test_first_group(positives: tuple[int, ...], expected: list[int]) -> None:
    rule = GradedList(graded=5, hard=12, rest=13)
    made = rule(row(positives=positives))
    top, hard, rest = groups(made)
    assert top == expected
    assert (len(hard), len(rest)) == (12, 13)
    assert not {r - 1000 for r in positives} & {*hard, *rest}
    if 9 in top:
        assert 5 not in {*top, *hard, *rest}
    assert made is not None
    assert made.labels[:5].tolist() == np.array([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5], dtype=np.float32).tolist()


def test_teacher_only_variant_ignores_judgements() -> None:
    assert groups(GradedList(graded=5, hard=2, rest=2, positives="teacher")(row(positives=(1009,))))[0] == [
        1,
        2,
        3,
        4,
        5,
    ]


def test_teacher_scores_go_along_and_are_nan_where_unknown() -> None:
    made = GradedList(graded=3, hard=0, rest=0)(row(positives=(5001, 1007)))
    assert made is not None
    assert made.doc_rows.tolist() == [5001, 1007, 1001]
    np.testing.assert_array_equal(made.teacher_scores, np.array([np.nan, -7, -1], dtype=np.float32))
    assert (made.doc_rows.dtype, made.labels.dtype, made.teacher_scores.dtype) == (
        np.int64,
        np.float32,
        np.float32,
    )


@pytest.mark.parametrize("shape", [(5, 12, 13), (10, 10, 10), (30, 0, 0), (20, 5, 5), (60, 0, 7)])
def test_groups_on_random_rankings(shape: tuple[int, int, int]) -> None:
    graded, hard_size, rest_size = shape
    rule = GradedList(graded=graded, hard=hard_size, rest=rest_size)
    draw = np.random.Generator(np.random.PCG64(graded))
    for number in range(30):
        positives = tuple(int(p) for p in 1000 + draw.integers(1, 260, size=draw.integers(0, 4)))
        made = rule(row(positives=positives, query_id=f"q{number}"))
        top, hard, rest = groups(made)
        assert (len(top), len(hard), len(rest)) == shape
        assert len({*top, *hard, *rest}) == sum(shape)
        assert not {p - 1000 for p in positives} & {*hard, *rest}
        assert all(graded < rank <= 50 for rank in hard)
        assert all(max(graded, 50) < rank <= 200 for rank in rest)
        assert (hard, rest) == (sorted(hard), sorted(rest))
        assert made is not None
        assert (np.diff(made.labels[:graded]) < 0).all()


def test_every_rank_of_a_pool_can_be_drawn_and_none_is_favoured() -> None:
    rule = GradedList(graded=5, hard=12, rest=13)
    seen = np.zeros(201)
    for number in range(600):
        _, hard, rest = groups(rule(row(query_id=f"q{number}")))
        seen[hard] += 1
        seen[rest] += 1
    expected_hard, expected_rest = 600 * 12 / 45, 600 * 13 / 150
    assert (abs(seen[6:51] - expected_hard) < 5 * expected_hard**0.5).all()
    assert (abs(seen[51:] - expected_rest) < 5 * expected_rest**0.5).all()


def test_a_short_pool_gives_what_it_has() -> None:
    rule = GradedList(graded=5, hard=12, rest=13)
    assert groups(rule(row(52)))[2] == [51, 52]
    assert groups(rule(row(8))) == ([1, 2, 3, 4, 5], [6, 7, 8], [])
    assert groups(rule(row(3, positives=(5001,)))) == ([4001, 1, 2, 3], [], [])
    assert rule(row(1)) is None
    assert rule(row(0, positives=(5001,))) is None


DRAW = [1, 4, 14, 15, 19]  # written down once: a change here changes every list ever made


def test_a_draw_is_the_same_everywhere() -> None:
    code = (
        "import numpy as np; from raydrd.methods.lists import Row; e = np.zeros(0, dtype=np.float32);"
        "r = Row('q1', 0, e.astype(np.int64), e, e);"
        "print(r.sample(np.arange(20), 5, seed=4680, salt='hard').tolist())"
    )
    for hash_seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        assert done.stdout.strip() == str(DRAW)


def test_a_draw_depends_on_seed_query_and_salt_only() -> None:
    def draw(made: Row, *, seed: int = 4680, salt: str = "hard") -> list[int]:
        return [int(i) for i in made.sample(np.arange(20), 5, seed=seed, salt=salt)]

    assert draw(row()) == draw(row(50, positives=(1,))) == DRAW
    others = [draw(row(), seed=1), draw(row(), salt="rest"), draw(row(query_id="q2"))]
    assert DRAW not in others
    assert draw(row(query_id=17)) == draw(row(query_id="17"))  # an id is its text
    assert row().sample(np.arange(4), 9, seed=0, salt="").tolist() == [0, 1, 2, 3]
    assert row().sample(np.arange(4), 0, seed=0, salt="").tolist() == []


def test_the_seed_enters_the_list() -> None:
    first, again, other = (groups(GradedList(graded=5, hard=12, rest=13, seed=s)(row())) for s in (1, 1, 2))
    assert first == again
    assert first[1:] != other[1:]


def test_top_and_sampled() -> None:
    made = TopAndSampled(negatives=7, pool=20)(row(positives=(1009, 1003)))
    assert made is not None
    assert ranks(made.doc_rows[:1]) == [9]
    negatives = ranks(made.doc_rows[1:])
    assert len(set(negatives)) == 7
    assert set(negatives) <= set(range(1, 23)) - {9, 3}
    assert negatives == sorted(negatives)
    assert made.labels.tolist() == [1.0] + [0.0] * 7
    made = TopAndSampled(negatives=4, pool=6, top=2, ranking="student")(row(positives=(1009, 1198, 1003)))
    assert made is not None
    assert ranks(made.doc_rows)[:2] == [9, 198]
    assert set(ranks(made.doc_rows)[2:]) <= {200, 199, 197, 196, 195, 194}
    assert made.labels.tolist() == [1, 1, 0, 0, 0, 0]


def test_top_and_sampled_without_judgements_and_without_negatives() -> None:
    made = TopAndSampled(negatives=3, pool=3)(row())
    assert made is not None
    assert ranks(made.doc_rows) == [1, 2, 3, 4]
    assert TopAndSampled(negatives=3, pool=3, unlabelled=False)(row()) is None
    made = TopAndSampled(negatives=3, pool=3, positives="teacher")(row(positives=(1009,)))
    assert made is not None
    assert ranks(made.doc_rows) == [1, 2, 3, 4]
    assert TopAndSampled(negatives=3, pool=4)(row(0, positives=(5001,))) is None


def test_impossible_rules_are_refused() -> None:
    with pytest.raises(InputError, match=r"hard=5 passages come from ranks 61\.\.50, which are none"):
        validate(GradedList, {"graded": 60, "hard": 5, "rest": 5}, "toy.yaml")
    with pytest.raises(InputError, match="no order"):
        validate(GradedList, {"graded": 1, "hard": 0, "rest": 0}, "toy.yaml")
    with pytest.raises(InputError, match="graded"):
        validate(GradedList, {"graded": 0, "hard": 1, "rest": 1}, "toy.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"doc_rows": np.array([4, 4])}, "query q: a passage is twice"),
        ({"scores": np.zeros(3, dtype=np.float32)}, "query q: candidates and their scores differ in number"),
        (
            {"teacher_scores": np.array([1, np.nan], dtype=np.float32)},
            "the teacher score of passage row 5 is NaN",
        ),
    ],
)
def test_broken_candidates_are_refused(change: dict[str, Any], message: str) -> None:
    zeros = np.zeros(2, dtype=np.float32)
    good = {
        "query_id": "q",
        "query_row": 0,
        "doc_rows": np.array([4, 5]),
        "scores": zeros,
        "teacher_scores": zeros,
    }
    with pytest.raises(ValueError, match=message):
        Row(**{**good, **change})


def test_a_positive_that_no_search_found_has_a_teacher_rank_and_no_student_rank() -> None:
    made = Row(
        query_id="q",
        query_row=0,
        doc_rows=np.array([7, 3, 5, 9]),
        scores=np.array([0.5, -np.inf, 2.0, -1.0], dtype=np.float32),
        teacher_scores=np.array([1.0, 8.0, 4.0, 2.0], dtype=np.float32),
        positives=(3, 9),
    )
    assert made.student_order().tolist() == [5, 7, 9]
    assert made.teacher_order().tolist() == [3, 5, 9, 7]
    assert made.first_rank(made.teacher_order()) == 1
    assert made.first_rank(made.student_order()) == 3
    assert made.first_rank(np.array([5, 7])) is None
    assert row(5).first_rank(row(5).teacher_order()) is None  # nothing is judged
