"""The list rules of PROD (section 3.6) and PairDistill (section 4.6)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raydrd.methods.additions import resolve
from raydrd.methods.lists import POSITIVE, AroundPairs, Confusing, Row
from raydrd.methods.neighbours import NeighbourPairs
from tests.rankings import ranks, row

# -- PROD: confusing queries (section 3.6) ------------------------------------------------------------

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


# -- PairDistill: lines around pairs (section 4.6) ----------------------------------------------------

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
