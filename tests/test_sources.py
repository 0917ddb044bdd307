"""Examples by number: what a training list becomes in a batch, in each form, and which passages an epoch draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from raydrd.methods.lists import DARK, POSITIVE, SUSPECT
from raydrd.methods.objectives import DuelBatch, ListBatch
from raydrd.spine.parts import Parts, part_name
from raydrd.spine.storage import Folder
from raydrd.spine.tables import LISTS, vectors
from raydrd.training.sources import ListExamples, ListSource

NAN = float("nan")

# Three lists of 3, 5 and 4 passages; the second has a positive that is not first, dark examples and a suspect.
RECORDS: list[dict[str, Any]] = [
    {"query_row": 4, "doc_rows": [7, 2, 9], "flags": [POSITIVE, 0, 0], "teacher_scores": [3.0, 1.0, NAN], "confidence": 0.75},
    {
        "query_row": 0,
        "doc_rows": [2, 7, 40, 41, 5],
        "flags": [POSITIVE, POSITIVE, DARK, DARK, SUSPECT],
        "teacher_scores": [2.0, 1.5, 1.0, 0.5, 1.75],
        "confidence": 0.25,
        "relevant": [2, 7, 30],
        "pair_left": [0, 1, 4],
        "pair_right": [4, 2, 1],
        "pair_p": [0.9, 0.25, 0.5],
    },
    {
        "query_row": 1,
        "doc_rows": [9, 8, 6, 3],
        "flags": [0] * 4,
        "confidence": NAN,
        "pair_left": [0],
        "pair_right": [3],
        "pair_p": [1.0],
    },
]


def examples(home: Path, *, records: list[dict[str, Any]] | None = None, anchored: bool = False, **more: Any) -> ListExamples:
    """These lists, in two files. Tokens are not needed to make a batch."""
    made = []
    for record in RECORDS if records is None else records:
        size = len(record["doc_rows"])
        anchor = [0.1 * n - record["query_row"] for n in range(size)] if anchored else []
        known = {"labels": [1.0 / (n + 1) for n in range(size)], "teacher_scores": [0.0] * size, "anchor_scores": anchor}
        empty: dict[str, Any] = {name: [] for name in ("relevant", "pair_left", "pair_right", "pair_p")}
        made.append({**empty, **known, **record})
    folder = Folder.of(home)
    rows = pa.Table.from_pylist(made, schema=LISTS)
    folder.write_table(part_name(0, 1, "parquet"), rows.slice(0, 1))
    folder.write_table(part_name(1, len(made), "parquet"), rows.slice(1))
    return ListExamples(lists=Parts.of(folder, list(folder.files())), tokens={}, **more)


def lists_of(source: ListSource, numbers: list[int], **more: Any) -> ListBatch:
    made = source.batch(np.array(numbers), **more)
    assert isinstance(made, ListBatch)
    return made


def drawn(source: ListSource, number: int, epoch: int) -> list[int]:
    batch = lists_of(source, [number], epochs=np.array([epoch]))
    return batch.doc_rows_QN[0, batch.mask_QN[0]].tolist()


# -- whole lists -------------------------------------------------------------------------------------------


def test_a_batch_holds_all_that_its_lists_say(tmp_path: Path) -> None:
    source = examples(tmp_path, anchored=True).open()
    assert len(source) == 3 and source.width() == 5
    batch = lists_of(source, [1, 0], width=6)
    assert batch.mask_QN.tolist() == [[True] * 5 + [False], [True] * 3 + [False] * 3]
    assert batch.rows["query"].tolist() == [0, 4]
    assert batch.rows["passage"].tolist() == [2, 5, 7, 9, 40, 41]  # passages of several lists are encoded once
    assert batch.doc_rows_QN[batch.mask_QN].tolist() == [2, 7, 40, 41, 5, 7, 2, 9]
    assert torch.equal(batch.rows["passage"][batch.index_QN], batch.doc_rows_QN)
    assert batch.flags_QN is not None and batch.anchor_QN is not None and batch.relevant_QR is not None
    assert batch.flags_QN[batch.mask_QN].tolist() == [POSITIVE, POSITIVE, DARK, DARK, SUSPECT, POSITIVE, 0, 0]
    assert batch.flagged(DARK).tolist() == [[False, False, True, True, False, False], [False] * 6]
    assert batch.flagged(POSITIVE)[1].tolist() == [True] + [False] * 5  # padding repeats the first passage, flagless
    np.testing.assert_allclose(batch.labels_QN[1, :3], [1, 1 / 2, 1 / 3])
    assert batch.teacher_QN[1, :2].tolist() == [3.0, 1.0] and batch.teacher_QN[1, 2].isnan()
    np.testing.assert_allclose(batch.anchor_QN[batch.mask_QN], [0.0, 0.1, 0.2, 0.3, 0.4, -4.0, -3.9, -3.8], rtol=1e-6)
    assert batch.relevant_QR.tolist() == [[2, 7, 30], [-1, -1, -1]]
    assert batch.confidence_Q is not None and batch.confidences_A is not None
    assert batch.confidence_Q.tolist() == [0.25, 0.75]
    assert batch.confidences_A.tolist() == [0.25, 0.75]  # ascending, and without the NaN of the third
    assert lists_of(source, [2]).confidence_Q.isnan().all()  # type: ignore[union-attr]


def test_lists_without_anchor_scores_have_none(tmp_path: Path) -> None:
    source = examples(tmp_path).open()
    batch = lists_of(source, [0, 1, 2])
    assert batch.anchor_QN is None
    nobody = lists_of(source, [0, 2])
    assert nobody.relevant_QR is not None and nobody.relevant_QR.shape == (2, 0)


def test_pairs_point_at_their_places(tmp_path: Path) -> None:
    source = examples(tmp_path).open()
    batch = lists_of(source, [2, 0, 1])
    assert batch.pairs_P3 is not None and batch.pair_p_P is not None
    assert batch.pairs_P3.tolist() == [[0, 0, 3], [2, 0, 4], [2, 1, 2], [2, 4, 1]]
    np.testing.assert_allclose(batch.pair_p_P, [1.0, 0.9, 0.25, 0.5], rtol=1e-6)
    none = lists_of(source, [0])
    assert none.pairs_P3 is not None and none.pairs_P3.shape == (0, 3) and none.pairs_P3.dtype == torch.int64


def test_teacher_vectors_stand_beside_the_texts(tmp_path: Path) -> None:
    stores = {}
    matrices = {role: np.random.default_rng(n).standard_normal((50, 3)).astype(np.float32) for n, role in enumerate("qp")}
    for role, short in (("query", "q"), ("passage", "p")):
        folder = Folder.of(tmp_path / short)
        column = pa.FixedSizeListArray.from_arrays(pa.array(matrices[short].ravel()), 3)
        folder.write_arrow(part_name(0, 50, "arrow"), pa.table([column], schema=vectors(3, "float32")))
        stores[role] = Parts.of(folder, list(folder.files()))
    batch = lists_of(examples(tmp_path / "lists", teacher_vectors=stores).open(), [1, 0])
    for role, short in (("query", "q"), ("passage", "p")):
        np.testing.assert_array_equal(batch.teacher_vectors[role], matrices[short][batch.rows[role].numpy()])


# -- draws of train_group_size -----------------------------------------------------------------------------

LONG: list[dict[str, Any]] = [
    {
        "query_row": q,
        "doc_rows": list(range(100 * q, 100 * q + 20)),
        "flags": [POSITIVE] + [0] * 15 + [DARK] * 2 + [0] * 2,
        "confidence": 0.5,
        "anchor_scores": [100.0 * q + n for n in range(20)],
        "pair_left": list(range(19)),
        "pair_right": list(range(1, 20)),
        "pair_p": [n / 20 for n in range(19)],
    }
    for q in range(6)
]


def test_each_epoch_draws_anew_and_the_first_and_dark_ones_always_stay(tmp_path: Path) -> None:
    source = examples(tmp_path, records=LONG, group=8, seed=3).open()
    assert source.width() == 8
    epochs = [drawn(source, 2, e) for e in range(30)]
    for found in epochs:
        assert len(set(found)) == 8 and found == sorted(found)  # the list's own order
        assert {200, 216, 217} <= set(found) <= set(range(200, 220))
    assert len({tuple(found) for found in epochs}) == 30
    assert set().union(*epochs) == set(range(200, 220))  # all get their turn
    assert [drawn(source, 2, e) for e in range(30)] == epochs
    assert lists_of(source, [2]).doc_rows_QN.tolist() == [epochs[0]]  # no epoch is the first one


def test_a_draw_depends_on_seed_epoch_and_query_only(tmp_path: Path) -> None:
    made = examples(tmp_path / "a", records=LONG, group=6, seed=3)
    source, other = made.open(), replace(made, seed=4).open()
    backwards = examples(tmp_path / "b", records=LONG[::-1], group=6, seed=3).open()
    own = [[d - 100 * q for d in drawn(source, q, 0)] for q in range(6)]
    assert len({tuple(found) for found in own}) == 6  # queries do not share a draw
    for q in range(6):
        assert drawn(source, q, 1) == drawn(backwards, 5 - q, 1)
        assert drawn(source, q, 1) != drawn(other, q, 1)
    # Beside whom, and in which place of the batch, does not matter.
    batch = lists_of(source, [5, 2], epochs=np.array([0, 7]))
    assert batch.doc_rows_QN.tolist() == [drawn(source, 5, 0), drawn(source, 2, 7)]


def test_what_stands_beside_a_passage_is_drawn_with_it(tmp_path: Path) -> None:
    source = examples(tmp_path, records=LONG, group=8).open()
    for epoch in range(5):
        batch = lists_of(source, [1, 3], epochs=np.array([epoch, epoch + 1]))
        assert batch.anchor_QN is not None and torch.equal(batch.anchor_QN, batch.doc_rows_QN.float())
        assert batch.flagged(DARK).sum(dim=1).tolist() == [2, 2] and batch.flagged(POSITIVE)[:, 0].all()
        # A pair of neighbours is there if and only if both were drawn, and points at them.
        assert batch.pairs_P3 is not None and batch.pair_p_P is not None
        there = [
            (q, batch.doc_rows_QN[q, left].item(), batch.doc_rows_QN[q, right].item()) for q, left, right in batch.pairs_P3
        ]
        rows = [set(row) for row in batch.doc_rows_QN.tolist()]
        assert there == [
            (q, base + n, base + n + 1)
            for q, base in ((0, 100), (1, 300))
            for n in range(19)
            if {base + n, base + n + 1} <= rows[q]
        ]
        np.testing.assert_allclose(batch.pair_p_P, [left % 100 / 20 for _, left, _ in there], rtol=1e-6)
        assert there


def test_short_lists_are_whole_and_dark_examples_may_be_more_than_the_group(tmp_path: Path) -> None:
    source = examples(tmp_path, group=4).open()
    assert [len(drawn(source, n, 0)) for n in range(3)] == [3, 4, 4]
    assert drawn(source, 0, 5) == [7, 2, 9]
    narrow = examples(tmp_path, group=2).open()
    assert narrow.width() == 3
    assert drawn(narrow, 1, 0) == [2, 40, 41]  # the first and both dark ones, though the group is 2
    assert lists_of(narrow, [0, 1, 2], width=narrow.width()).mask_QN.sum(dim=1).tolist() == [2, 3, 2]
    assert examples(tmp_path, group=99).open().width() == 5


# -- other forms -----------------------------------------------------------------------------------------


def test_pairs_for_a_cross_encoder(tmp_path: Path) -> None:
    source = examples(tmp_path, form="pairs").open()
    batch = lists_of(source, [0, 2], width=5)
    assert batch.rows.keys() == {"pair"}
    assert batch.rows["pair"].tolist() == [[4, 7], [4, 2], [4, 9], [1, 9], [1, 8], [1, 6], [1, 3]]  # no padding is scored
    assert batch.index_QN[batch.mask_QN].tolist() == list(range(7))
    logits = torch.arange(7.0)[:, None]
    scores = batch.scores({"pair": logits})
    assert scores[batch.mask_QN].tolist() == list(range(7))
    assert batch.doc_rows_QN.shape == (2, 5)


def duels_of(source: ListSource, numbers: list[int], **more: Any) -> DuelBatch:
    made = source.batch(np.array(numbers), **more)
    assert isinstance(made, DuelBatch)
    return made


def test_duels_of_the_first_passage_against_each_that_is_no_positive(tmp_path: Path) -> None:
    judged = [
        {**record, "flags": flags} for record, flags in zip(RECORDS, ([1, 0, 0], [1, 1, 0, 0, SUSPECT], [0] * 4), strict=True)
    ]
    source = examples(tmp_path, records=judged, form="duels").open()
    made = duels_of(source, [0, 1])
    rows, p = made.rows["duel"].tolist(), made.p_P.tolist()
    assert sorted((q, *sorted(pair)) for q, *pair in rows) == [(0, 2, 5), (0, 2, 40), (0, 2, 41), (4, 2, 7), (4, 7, 9)]
    for (query, left, right), better in zip(rows, p, strict=True):
        first = {4: 7, 0: 2}[query]
        assert better == (1.0 if left == first else 0.0) and first in (left, right)
    assert made.p_P.dtype == torch.float32


def test_the_better_passage_of_duels_stands_first_as_often_as_second(tmp_path: Path) -> None:
    plain = [{**record, "flags": [POSITIVE] + [0] * 19} for record in LONG]
    made = duels_of(examples(tmp_path, records=plain, form="duels").open(), list(range(6)))
    assert len(made.p_P) == 6 * 19 and abs(float(made.p_P.mean()) - 0.5) < 0.02
    # A model that always answers "left" learns nothing from either the place in the list or the query.
    again = duels_of(examples(tmp_path, records=plain, form="duels").open(), [3])
    assert torch.equal(again.rows["duel"], made.rows["duel"][3 * 19 : 4 * 19])
    assert abs(float(again.p_P.mean()) - 0.5) < 0.05


@pytest.mark.parametrize("form", ["pairs", "duels"])
def test_other_forms_draw_anew_each_epoch_too(tmp_path: Path, form: Any) -> None:
    source = examples(tmp_path, records=LONG, form=form, group=5).open()
    found = [source.batch(np.array([1]), epochs=np.array([e])).rows for e in (0, 0, 1)]
    assert [torch.equal(found[0][r], found[1][r]) for r in found[0]] == [True]
    assert [rows.shape == found[0][r].shape and not torch.equal(rows, found[0][r]) for r, rows in found[2].items()] == [True]
