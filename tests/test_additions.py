"""What joins a list: marks on suspects, dark examples, pairs by place, and how sure the teacher is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from raydrd.errors import InputError
from raydrd.methods.additions import Threshold, add_dark, in_band, mark_suspects, positive_place, resolve, sureness
from raydrd.methods.dark import Dark
from raydrd.methods.filters import Filter
from raydrd.methods.lists import DARK, POSITIVE, SUSPECT, TrainingList

NAN = math.nan


def made(teacher: list[float], flags: list[int] | None = None) -> TrainingList:
    size = len(teacher)
    return TrainingList(
        doc_rows=np.arange(10, 10 + size),
        labels=np.array([1.0] + [0.0] * (size - 1), dtype=np.float32),
        teacher_scores=np.array(teacher, dtype=np.float32),
        flags=np.array(flags or [POSITIVE] + [0] * (size - 1), dtype=np.int8),
    )


def suspected(one: TrainingList) -> list[int]:
    return np.flatnonzero(one.flags & SUSPECT).tolist()


# -- the positive, and how sure the teacher is of it -----------------------------------------------------


def test_the_positive_is_the_first_that_the_teacher_scored() -> None:
    assert positive_place(made([1.0, 2.0])) == 0
    assert positive_place(made([NAN, 2.0, 3.0], [POSITIVE, 0, POSITIVE | SUSPECT])) == 2
    assert positive_place(made([NAN, 2.0])) is None
    assert positive_place(made([1.0, 2.0], [0, DARK])) is None


def test_sureness_has_the_reference_values() -> None:
    """Section 5.5: softmax, margin and entropy of two queries."""
    first, second = made([6.0, -3.0, -4.0]), made([1.0, 0.5, -2.0])
    assert [sureness(one, "softmax", 1.0) for one in (first, second)] == pytest.approx([0.9998312, 0.6037489], abs=1e-6)
    assert [sureness(one, "entropy", 1.0) for one in (first, second)] == pytest.approx([0.9984224, 0.2919525], abs=1e-6)
    assert sureness(first, "margin", 1.0) == 9.0
    # `scale` multiplies the teacher's scores, as it does in the loss.
    assert sureness(made([2.0, 1.0, -4.0]), "softmax", 0.5) == pytest.approx(sureness(second, "softmax", 1.0))
    assert sureness(first, "margin", 2.0) == 18.0


def test_sureness_leaves_out_what_the_teacher_never_saw() -> None:
    holes = made([NAN, 0.5, NAN, 1.0, -2.0], [POSITIVE, 0, 0, POSITIVE, 0])
    assert sureness(holes, "softmax", 1.0) == pytest.approx(0.6037489, abs=1e-6)
    assert math.isnan(sureness(made([1.0, 0.5], [0, 0]), "softmax", 1.0))
    assert math.isnan(sureness(made([NAN, 0.5]), "softmax", 1.0))
    assert math.isnan(sureness(made([1.0, NAN]), "softmax", 1.0))  # alone it is no contrast


# -- suspects --------------------------------------------------------------------------------------------

FIXED = Threshold(Filter(mode="fixed", threshold=3.0, keep=0, most=1.0), 3.0)


def test_negatives_above_the_threshold_are_suspects() -> None:
    before = made([4.0, 3.5, 0.0, -2.0])
    after = mark_suspects(before, FIXED)
    assert suspected(after) == [1]
    assert after.flags.tolist() == [POSITIVE, SUSPECT, 0, 0] and after.flags.dtype == np.int8
    assert before.flags.tolist() == [POSITIVE, 0, 0, 0]  # a new list, not a changed one
    assert after.doc_rows is before.doc_rows and after.teacher_scores is before.teacher_scores
    assert suspected(mark_suspects(made([4.0, 3.0, 0.0]), FIXED)) == []  # at the threshold is not above it


def test_positives_dark_examples_and_the_unscored_are_never_suspects() -> None:
    flags = [POSITIVE, POSITIVE, DARK, 0, 0, 0]
    assert suspected(mark_suspects(made([9.0, 9.0, 9.0, 9.0, NAN, 1.0], flags), FIXED)) == [3]
    assert suspected(mark_suspects(made([1.0, 1.0], [POSITIVE, DARK]), FIXED)) == []  # no negative at all
    assert suspected(mark_suspects(made([9.0, 1.0], [0, 0]), FIXED)) == [0]  # an unlabelled query has suspects too


def test_the_querys_own_bar_is_its_first_scored_positive() -> None:
    rule = Threshold(Filter(mode="per_query", margin=1.0, keep=0, most=1.0), None)
    assert suspected(mark_suspects(made([4.0, 3.5, 2.9, 0.0]), rule)) == [1]
    late = made([NAN, 3.5, 1.6, 2.0], [POSITIVE, 0, 0, POSITIVE])
    assert suspected(mark_suspects(late, rule)) == [1, 2]
    assert suspected(mark_suspects(made([9.0, 3.5], [0, 0]), rule)) == []  # no positive, no bar
    ratio = Threshold(Filter(mode="per_query", ratio=0.95, keep=0, most=1.0), None)
    assert suspected(mark_suspects(made([4.0, 3.5, 3.9]), ratio)) == [2]
    with pytest.raises(InputError, match="ratio needs positive teacher scores"):
        mark_suspects(made([-4.0, 3.5]), ratio)


def test_guards_count_negatives_only_and_take_the_highest_first() -> None:
    guarded = Threshold(Filter(), 0.0)
    scores = [5.0, *range(1, 16)]  # 15 negatives, all above: at most 4 are filtered
    assert suspected(mark_suspects(made(scores), guarded)) == [12, 13, 14, 15]
    assert suspected(mark_suspects(made(scores[:9]), guarded)) == [8]  # of 8, seven must remain
    flags = [POSITIVE, *[0] * 8, *[DARK] * 7]
    assert suspected(mark_suspects(made(scores, flags), guarded)) == [8]  # dark examples are no negatives that remain


def test_standardised_scores_are_compared_with_a_standardised_threshold() -> None:
    rule = Filter(standardise=True, keep=0, most=1.0)
    assert suspected(mark_suspects(made([4.0, 13.0, 11.0]), Threshold(rule, 1.0, mean=10.0, std=2.0))) == [1]
    assert suspected(mark_suspects(made([4.0, 13.0, 11.0]), Threshold(rule, 1.0))) == [1, 2]


# -- dark examples ---------------------------------------------------------------------------------------

ROWS = np.arange(100, 106)
KINDS = ["reinforced", "noisy"] * 3


def written(one: TrainingList, rule: Dark, scores: list[float]) -> TrainingList:
    return add_dark(one, rule, rows=ROWS, scores=np.array(scores, dtype=np.float32), kinds=KINDS)


def test_dark_examples_inside_the_band_join_at_the_end() -> None:
    one = made([6.0, -2.0, -3.0])  # band (-1.6, 5.6)
    after = written(one, Dark(reinforced=2, noisy=2), [2.5, 5.7, -1.5, -1.9, 9.0, 0.1])
    assert after.doc_rows.tolist() == [10, 11, 12, 100, 102, 105]
    assert after.flags.tolist() == [POSITIVE, 0, 0, DARK, DARK, DARK] and after.flags.dtype == np.int8
    assert after.labels.tolist() == [1, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(after.teacher_scores, [6.0, -2.0, -3.0, 2.5, -1.5, 0.1], rtol=1e-6)
    assert after.teacher_scores.dtype == np.float32 and after.labels.dtype == np.float32
    assert len(one) == 3
    # The band is that of this list: another negative, another choice.
    assert written(made([6.0, 2.0]), Dark(), [2.5, 5.7, -1.5, -1.9, 9.0, 0.1]).doc_rows.tolist() == [10, 11, 100, 101]


def test_every_kept_dark_example_lies_between_the_hardest_negative_and_the_positive() -> None:
    draw = np.random.default_rng(0)
    kept = 0
    for _ in range(300):
        flags = [0, 0, 0, 0]
        flags[draw.integers(4)] = POSITIVE
        scores = (3 * draw.standard_normal(4)).tolist()
        one = made(scores, flags)
        after = written(one, Dark(reinforced=2, noisy=1), (3 * draw.standard_normal(6)).tolist())
        place = flags.index(POSITIVE)
        hardest = max(s for s, f in zip(scores, flags, strict=True) if not f)
        dark = after.teacher_scores[(after.flags & DARK) != 0]
        assert ((hardest < dark) & (dark < scores[place])).all()
        assert (scores[place] > hardest) or not len(dark)  # an empty band gives none
        kept += len(dark)
    assert kept > 20


@pytest.mark.parametrize(
    ("teacher", "flags"),
    [
        ([6.0, -2.0], [0, 0]),  # no label
        ([NAN, -2.0], [POSITIVE, 0]),  # the teacher never scored it
        ([6.0, NAN], [POSITIVE, 0]),  # no negative whose score is known
        ([6.0, 5.0], [POSITIVE, POSITIVE]),
        ([-2.0, 6.0], [POSITIVE, 0]),  # the teacher disagrees with the label
    ],
)
@pytest.mark.parametrize("join", ["join", "replace"])
def test_lists_that_get_no_dark_examples(teacher: list[float], flags: list[int], join: Any) -> None:
    one = made(teacher, flags)
    after = written(one, Dark(join=join), [2.5] * 6)
    assert after.doc_rows.tolist() == one.doc_rows.tolist() and after.flags.tolist() == flags
    empty = add_dark(one, Dark(join=join), rows=ROWS[:0], scores=np.zeros(0, np.float32), kinds=[])
    assert len(empty) == len(one)


def test_dark_examples_may_replace_as_many_of_the_last_negatives() -> None:
    rule, scores = Dark(reinforced=2, noisy=1, join="replace"), [2.0, 2.1, 2.2, 9.0, 9.0, 9.0]
    one = made([6.0, -2.0, 5.0, -3.0, -4.0, -5.0], [POSITIVE, 0, POSITIVE, 0, 0, 0])
    after = written(one, rule, scores)
    assert after.doc_rows.tolist() == [10, 11, 12, 100, 101, 102]  # as long as before; both positives stay
    assert after.flags.tolist() == [POSITIVE, 0, POSITIVE, DARK, DARK, DARK]
    np.testing.assert_allclose(after.teacher_scores, [6.0, -2.0, 5.0, 2.0, 2.1, 2.2], rtol=1e-6)
    # One negative stays in any case, or the list would have lost its hardest.
    short = written(made([6.0, -2.0, -3.0]), rule, scores)
    assert short.doc_rows.tolist() == [10, 11, 100, 101, 102]
    joined = written(one, rule.model_copy(update={"join": "join"}), scores)
    assert joined.doc_rows.tolist() == [*range(10, 16), 100, 101, 102]


def test_examples_in_the_band_are_counted_kept_or_not() -> None:
    scores = np.array([2.5, 5.7, -1.5, -1.9, 9.0, 0.1], dtype=np.float32)
    one = made([6.0, -2.0, -3.0])  # band (-1.6, 5.6)
    assert in_band(one, Dark(reinforced=1, noisy=1), scores) == 3
    assert len(written(one, Dark(reinforced=1, noisy=1), scores.tolist())) == 3 + 2
    assert in_band(one, Dark(band_margin=0.0), np.array([6.0, -2.0, 5.9], dtype=np.float32)) == 1  # the ends lie outside
    assert in_band(made([-2.0, 6.0]), Dark(), scores) == 0  # an empty band
    assert in_band(made([6.0, -2.0], [0, 0]), Dark(), scores) == 0  # no label
    assert in_band(one, Dark(), scores[:0]) == 0


def test_without_the_band_the_first_of_each_kind_are_kept() -> None:
    after = written(made([-2.0, 6.0]), Dark(reinforced=1, noisy=2, band_filter=False), [9.0, -9.0, 1.0, 1.0, 1.0, 1.0])
    assert after.doc_rows.tolist() == [10, 11, 100, 101, 103]


# -- pairs -----------------------------------------------------------------------------------------------


def test_pairs_become_places_and_those_with_an_absent_passage_are_dropped() -> None:
    one = made([1.0, 2.0, 3.0])
    pairs = [(12, 10, 0.25), (11, 99, 0.5), (99, 10, 0.5), (10, 11, 1.0)]
    assert resolve(one, pairs) == ([2, 0], [0, 1], [0.25, 1.0])
    assert resolve(one, []) == ([], [], [])
    # After dark examples took the last negative's place its pairs are gone, the others still point at their passages.
    after = written(made([6.0, -2.0, -3.0]), Dark(reinforced=1, noisy=0, join="replace"), [2.0] * 6)
    assert after.doc_rows.tolist() == [10, 11, 100]
    assert resolve(after, [(10, 12, 0.5), (10, 11, 0.75)]) == ([0], [1], [0.75])
