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
from raydrd.methods.additions import resolve
from raydrd.methods.lists import POSITIVE, AroundPairs, Confusing, GradedList, Row, TopAndSampled, TrainingList
from raydrd.methods.neighbours import NeighbourPairs


def row(size: int = 200, *, positives: tuple[int, ...] = (), query_id: Any = "q1") -> Row:
    """Passage row 1000 + r is at teacher rank r; candidates come shuffled, the student's order reversed."""
    ranks = np.random.Generator(np.random.PCG64(0)).permutation(np.arange(1, size + 1))
    return Row(
        query_id=query_id,
        query_row=0,
        doc_rows=1000 + ranks.astype(np.int64),
        scores=ranks.astype(np.float32),
        teacher_scores=-ranks.astype(np.float32),
        positives=positives,
    )


def ranks(rows: Any) -> list[int]:
    return [int(r) - 1000 for r in rows]


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


# -- ranks ------------------------------------------------------------------------------------------


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


# -- PROD: confusing queries (section 3.6) ----------------------------------------------------------

MARCO, NQ = Confusing(), Confusing(rule="better")


def confused(student: int | None, teacher: int | None, *, size: int = 200) -> Row:
    """Passage 1000 + r is at student rank r; the one positive at these ranks, the others in the student's order."""
    if student is None or teacher is None:
        return row(size, positives=(9999,))
    found = 1000 + np.arange(1, size + 1)
    reranked = [int(d) for d in found if d != 1000 + student]
    reranked.insert(teacher - 1, 1000 + student)
    place = {d: n for n, d in enumerate(reranked)}
    shuffled = np.random.Generator(np.random.PCG64(1)).permutation(found)
    return Row(
        query_id="q",
        query_row=0,
        doc_rows=shuffled,
        scores=(2000 - shuffled).astype(np.float32),
        teacher_scores=np.array([-place[int(d)] for d in shuffled], dtype=np.float32),
        positives=(1000 + student,),
    )


@pytest.mark.parametrize(
    ("student", "teacher", "marco", "nq"),
    [
        (2, 1, True, True),
        (15, 1, True, True),
        (16, 1, False, True),
        (1, 1, False, False),
        (7, 3, False, True),
        (40, 15, False, True),
        (40, 16, False, False),
        (10, 15, False, False),
        (None, None, False, False),
    ],
)
def test_which_queries_are_confusing(student: int | None, teacher: int | None, marco: bool, nq: bool) -> None:
    assert (MARCO.keeps(student, teacher), NQ.keeps(student, teacher)) == (marco, nq)
    found = confused(student, teacher)
    assert (found.first_rank(found.student_order()), found.first_rank(found.teacher_order())) == (student, teacher)
    for rule, kept in ((MARCO, marco), (NQ, nq)):
        made = rule(found)
        assert (made is not None) == kept
        if made is not None and student is not None:
            beaten = [r for r in range(1, 17) if r != student][:15]  # student ranks 1..16 without the positive, 15 of them
            assert ranks(made.doc_rows) == [student, *beaten]
            assert made.labels.tolist() == [1.0] + [0.0] * 15
            assert made.flags.tolist() == [POSITIVE] + [0] * 15
            assert not np.isnan(made.teacher_scores).any()


def test_the_presets_of_the_authors_and_what_is_given() -> None:
    assert (MARCO.teacher_to, NQ.teacher_to) == (1, 15)
    assert Confusing(rule="within", teacher_to=1) == MARCO and Confusing(rule="better", teacher_to=15) == NQ
    assert [Confusing(rule=rule, teacher_to=3).teacher_to for rule in ("within", "better")] == [3, 3]
    assert Confusing.model_validate({"rule": "better", "teacher_to": None}) == NQ
    assert Confusing.model_validate(NQ.model_dump()) == NQ


def test_the_negatives_of_the_reference() -> None:
    for student, expected in ((2, [1, *range(3, 17)]), (15, [*range(1, 15), 16])):
        made = MARCO(confused(student, 1))
        assert made is not None and ranks(made.doc_rows[1:]) == expected
    short = MARCO(confused(2, 1, size=4))
    assert short is not None and ranks(short.doc_rows) == [2, 1, 3, 4]


@pytest.mark.parametrize("rule", [MARCO, NQ, Confusing(student_from=3, student_to=6, teacher_to=2, negatives=3)])
def test_confusing_queries_equal_brute_force_on_random_rankings(rule: Confusing) -> None:
    draw = np.random.Generator(np.random.PCG64(7))
    kept = missing = 0
    for _ in range(600):
        size = int(draw.integers(1, 30))
        docs = draw.permutation(40)[:size].astype(np.int64)
        scores, teacher = (draw.integers(0, 12, size).astype(np.float32) for _ in range(2))  # with ties
        positives = tuple(int(d) for d in draw.permutation(45)[: draw.integers(0, 4)])
        judged = np.isin(docs, positives)
        teacher[judged] += 8
        lost = judged & (draw.random(size) < 0.3)  # joined by label: the teacher scored them, no search did
        scores[lost] = -np.inf
        one = Row(query_id="q", query_row=0, doc_rows=docs, scores=scores, teacher_scores=teacher, positives=positives)
        table = [(int(d), float(s), float(t)) for d, s, t in zip(docs, scores, teacher, strict=True) if s > -np.inf]
        by_student = [d for d, _, _ in sorted(table, key=lambda x: (-x[1], x[0]))]
        by_teacher = [d for d, _, _ in sorted(table, key=lambda x: (-x[2], x[0]))]
        first = min((by_student.index(d) + 1 for d in positives if d in by_student), default=None)
        best = min((by_teacher.index(d) + 1 for d in positives if d in by_teacher), default=None)
        missing += first is None
        negatives = [d for d in by_student if d not in positives][: rule.negatives]
        wanted = False
        if first is not None and best is not None and negatives:
            within = rule.student_from <= first <= rule.student_to
            wanted = best <= rule.teacher_to and (within if rule.rule == "within" else best < first)
        made = rule(one)
        assert (made is not None) == wanted
        if made is not None:
            kept += 1
            assert made.doc_rows.tolist() == [positives[0], *negatives]
            # Its own first positive may be none of those that were found; then the teacher never scored it.
            assert np.isnan(made.teacher_scores[0]) == (positives[0] not in docs)
    assert kept > 20 and missing > 20


# -- PairDistill: lines around pairs (section 4.6) ---------------------------------------------------

LETTERS = "ABCDE"


def lettered(*pairs: str) -> Row:
    compared = tuple((LETTERS.index(a), LETTERS.index(b), 0.25 + 0.125 * n) for n, (a, b) in enumerate(pairs))
    return Row(
        query_id="q",
        query_row=0,
        doc_rows=np.array([3, 1, 4, 0, 2]),
        scores=np.zeros(5, dtype=np.float32),
        teacher_scores=np.array([-2.0, 3.2, -4.0, 5.0, 1.1], dtype=np.float32),
        pairs=compared,
    )


def letters(rows: Any) -> str:
    return "".join(LETTERS[int(r)] for r in rows)


def test_the_line_of_the_reference() -> None:
    near = NeighbourPairs(top_k=4, window=2, pairs=99)(lettered())
    assert [letters(pair) for pair in near] == ["AB", "AC", "BC", "BD", "CD"]
    one = lettered("AB", "BD", "CD")
    made = AroundPairs(size=5)(one)
    assert made is not None
    assert letters(made.doc_rows) == "ABCDE"  # E is the filler; by the teacher's score
    np.testing.assert_array_equal(made.teacher_scores, np.array([5.0, 3.2, 1.1, -2.0, -4.0], dtype=np.float32))
    assert (np.diff(made.labels) < 0).all() and made.flags.tolist() == [0] * 5
    assert resolve(made, one.pairs) == ([0, 1, 2], [1, 3, 3], [0.25, 0.375, 0.5])


def test_pairs_are_found_again_in_a_shorter_line_or_dropped_with_the_partner_that_was_cut() -> None:
    one = lettered("AB", "BD", "CD")
    made = AroundPairs(size=3)(one)
    assert made is not None and letters(made.doc_rows) == "ABC"
    assert resolve(made, one.pairs) == ([0], [1], [0.25])
    # The passages of pairs come first: a better-scored filler does not push them out.
    one = lettered("DE")
    made = AroundPairs(size=3)(one)
    assert made is not None and letters(made.doc_rows[-2:]) == "DE" and letters(made.doc_rows[:1]) in "ABC"
    assert resolve(made, one.pairs) == ([1], [2], [0.25])


def test_short_lines_and_queries_without_pairs() -> None:
    made = AroundPairs(size=64)(lettered("AB"))
    assert made is not None and letters(made.doc_rows) == "ABCDE"
    made = AroundPairs(size=2)(lettered())
    assert made is not None and len(made) == 2
    assert AroundPairs()(row(1)) is None and AroundPairs()(row(0)) is None


def test_the_filler_of_a_line_is_drawn_by_seed() -> None:
    drawn = [[ranks(made.doc_rows) for s in (1, 1, 2) if (made := AroundPairs(size=10, seed=s)(row()))]]
    (first, again, other) = drawn[0]
    assert first == again != other
    assert all(line == sorted(line) and len(set(line)) == 10 for line in (first, other))
    seen = {r for s in range(40) if (made := AroundPairs(size=20, seed=s)(row())) for r in ranks(made.doc_rows)}
    assert len(seen) > 190  # any scored passage may be one
