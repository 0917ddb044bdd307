"""The stages of the papers' methods give what the plain way of doing it gives, however the work was cut."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raydrd.errors import InputError
from raydrd.methods.dark import MASK, Dark, rebuild
from raydrd.methods.filters import Filter
from raydrd.methods.lists import Confusing
from raydrd.spine.parts import Parts, part_name, ranges
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Store, canonical
from raydrd.spine.tables import CANDIDATES, SCORED
from raydrd.stages.assemble import anchor, assemble
from raydrd.stages.combine import NOT_FOUND, blend, learn_threshold, with_positives
from raydrd.stages.dark import Writer, dark_candidates, write_dark
from raydrd.stages.load import table
from raydrd.stages.shards import parts_of
from tests.recipes import rows, table_rows
from tests.stage_inputs import open_data, put, put_vectors
from tests.stage_pools import PASSAGES, QUERIES, judged, pool, scored_as


@pytest.fixture
def data(store: Store, toy: Path) -> Artifact:
    return open_data(store, toy / "data")


# -- labelled positives join --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [24, 5])
def test_missing_positives_join_at_the_end(store: Store, data: Artifact, size: int) -> None:
    found = pool().drop(["teacher_scores"]).cast(CANDIDATES)
    made = store.run(with_positives, candidates=put(store, "pool", found, size), data=data)
    before, after, added = found.to_pylist(), rows(made), 0
    for one, other, positives in zip(before, after, judged(data), strict=True):
        missing = [doc for doc in positives if doc not in one["doc_rows"]]
        assert other["doc_rows"] == one["doc_rows"] + missing
        assert other["scores"] == one["scores"] + [NOT_FOUND] * len(missing)
        added += len(missing)
    assert 0 < added == made.metrics["added"]


# -- dark examples ------------------------------------------------------------------------------------


def test_dark_texts_are_the_same_however_the_work_is_cut(store: Store, data: Artifact, tmp_path: Path) -> None:
    rule, scored = Dark(built=5, reinforced=3, noisy=3), pool()
    whole = store.run(write_dark, scored=put(store, "scored", scored), data=data, corpus=data, rule=rule)
    texts, listed = table_rows(whole, "corpus"), table_rows(whole, "dark")
    assert (len(texts), len(listed)) == (QUERIES * 10, QUERIES)
    assert whole.metrics["made"] == sum(len(one["doc_rows"]) for one in listed) == sum(bool(t["doc_id"]) for t in texts) > 200
    # Candidates in other parts, and blocks of other sizes in another order, as several workers would do them.
    cut = store.run(write_dark, scored=put(store, "scored", scored, 7), data=data, corpus=data, rule=rule)
    assert (table_rows(cut, "corpus"), table_rows(cut, "dark")) == (texts, listed) and cut.id != whole.id
    out = Folder.of(tmp_path / "blocks")
    writer = Writer(
        scored=parts_of(put(store, "scored", scored)), queries=table(data, "queries/train"), corpus=table(data, "corpus"),
        out=out, rule=rule,
    )  # fmt: skip
    for lo, hi in reversed(ranges(QUERIES, 5)):
        writer({"name": part_name(lo, hi, "parquet"), "lo": lo, "hi": hi, "rows": hi - lo})
    for name, expected in (("corpus", texts), ("dark", listed)):
        blocks = Parts.of(out / name, list((out / name).files()))
        assert blocks.slice(0, blocks.rows).to_pylist() == expected
    other = store.run(
        write_dark, scored=put(store, "scored", scored), data=data, corpus=data, rule=rule.model_copy(update={"seed": 1})
    )
    assert table_rows(other, "corpus") != texts


def test_dark_texts_can_be_built_again_from_their_recipes(store: Store, data: Artifact) -> None:
    scored, rule = pool(), Dark(built=5, reinforced=3, noisy=3)
    written = store.run(write_dark, scored=put(store, "scored", scored), data=data, corpus=data, rule=rule)
    corpus = [row["text"] for row in table_rows(data, "corpus")]
    texts, queries = table_rows(written, "corpus"), table_rows(data, "queries/train")
    masked = 0
    for one, candidates, query in zip(table_rows(written, "dark"), scored.to_pylist(), queries, strict=True):
        positives = query["doc_rows"]
        negatives = [corpus[doc] for doc in candidates["doc_rows"] if doc not in positives]
        for doc, kind, recipe in zip(one["doc_rows"], one["kinds"], map(json.loads, one["recipes"]), strict=True):
            found = texts[doc - PASSAGES]
            assert found["text"] == rebuild(recipe, positive=corpus[positives[0]], negatives=negatives)
            assert found["doc_id"].startswith(f"dark:{query['query_id']}:{kind}:")
            if kind == "reinforced":  # as long as the negative it was made of, so that length says nothing
                assert len(found["text"].split()) == len(negatives[recipe["negative"]].split())
            masked += MASK in found["text"]
    assert masked > 50
    seen = dark_candidates(written)
    assert rows(seen) == [{name: one[name] for name in CANDIDATES.names} for one in table_rows(written, "dark")]
    assert seen.id == written.id and canonical(seen) == canonical(written)  # no other artifact, and not of another identity


# -- several teachers as one --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [24, 7])
def test_blended_scores(store: Store, size: int) -> None:
    base = pool()
    own = [base["teacher_scores"].to_pylist(), pool(seed=1)["teacher_scores"].to_pylist(), [[3.0] * 12] * QUERIES]
    members = [put(store, f"member {n}", scored_as(base, scores), size) for n, scores in enumerate(own)]
    for one, *each in zip(rows(store.run(blend, members=members)), *own, strict=True):
        raw = np.array(each[:2])  # a member that says the same of all passages adds nothing
        expected = ((raw - raw.mean(1, keepdims=True)) / raw.std(1, keepdims=True)).sum(0) / 3
        np.testing.assert_allclose(one["teacher_scores"], expected, atol=1e-6)
    # Standardised by what they are compared with: a member's scores times ten and plus five change nothing.
    moved = [[10 * score + 5 for score in query] for query in own[0]]
    scaled = put(store, "moved", scored_as(base, moved), size)
    few = [query[:2] for query in own[0]]
    few_docs = base.set_column(1, "doc_rows", pa.array([d[:2] for d in base["doc_rows"].to_pylist()]))
    few_docs = few_docs.set_column(2, "scores", pa.array([d[:2] for d in base["scores"].to_pylist()])).cast(SCORED)
    part = put(store, "few", scored_as(few_docs, few), size)
    big = put(store, "few moved", scored_as(few_docs, [q[:2] for q in moved]), size)
    plain = rows(store.run(blend, members=[part, part], references=[members[0], members[0]]))
    for one, other in zip(plain, rows(store.run(blend, members=[part, big], references=[members[0], scaled])), strict=True):
        np.testing.assert_allclose(one["teacher_scores"], other["teacher_scores"], atol=1e-5)


# -- the filter's threshold ---------------------------------------------------------------------------


def with_first_positives(data: Artifact, scores: list[float]) -> pa.Table:
    """Candidates of the first queries: their first positive with this teacher score, and two others far below."""
    docs = [[positives[0], *[d for d in range(PASSAGES) if d not in positives][:2]] for positives in judged(data)][
        : len(scores)
    ]
    teacher = [[score, -50.0, -60.0] for score in scores]
    return pa.table([list(range(len(scores))), docs, [[3.0, 2.0, 1.0]] * len(scores), teacher], schema=SCORED)


def test_the_threshold_moves_as_in_the_reference(store: Store, data: Artifact) -> None:
    """Methods 6.5: positives' scores 0..10, r = .5, .4, .3, .2, .2."""
    scored, previous, found = put(store, "positives", with_first_positives(data, [float(n) for n in range(11)]), 4), None, []
    for number in range(5):
        previous = store.run(learn_threshold, scored=scored, data=data, rule=Filter(), round=number, previous=previous)
        found.append(previous.metrics["theta"])
    assert found == pytest.approx([5, 4.5, 3.75, 2.875, 2.4375], abs=1e-6)
    assert previous is not None and "hidden" not in previous.metrics and previous.metrics["rows"] == 11
    alone = store.run(learn_threshold, scored=scored, data=data, rule=Filter(smoothing=0), round=2, previous=None)
    assert alone.metrics["theta"] == pytest.approx(3)
    standard = store.run(learn_threshold, scored=scored, data=data, rule=Filter(standardise=True), round=0)
    assert [standard.metrics[name] for name in ("theta", "mean", "std")] == pytest.approx([0, 5, 10**0.5])


def test_a_threshold_needs_a_scored_positive(store: Store, data: Artifact) -> None:
    bare = with_first_positives(data, [1.0, 2.0])
    bare = bare.set_column(1, "doc_rows", pa.array([[50, 51, 52], [53, 54, 55]])).cast(SCORED)
    assert not set(judged(data)[0]) & {50, 51, 52} and not set(judged(data)[1]) & {53, 54, 55}
    with pytest.raises(InputError, match="filter: no labelled positive has a teacher score; labels are needed"):
        store.run(learn_threshold, scored=put(store, "bare", bare), data=data, rule=Filter(), round=0)


# -- the anchor ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [24, 5])
def test_anchor_scores_are_inner_products(store: Store, data: Artifact, size: int) -> None:
    rng = np.random.default_rng(3)
    queries, passages = (rng.normal(size=(n, 8)).astype(np.float32) for n in (QUERIES, PASSAGES))
    # The rule drops queries, so that lists are fewer than the rows that the parts of lists are named by.
    rule = Confusing(student_to=60, teacher_to=60, negatives=4)
    lists = store.run(assemble, scored=put(store, "scored", pool(), size), data=data, rule=rule)
    # Passages of two collections, one after the other: the corpus, and what was written beside it.
    both = [put_vectors(store, "first", passages[:40], 13), put_vectors(store, "second", passages[40:], 13)]
    made = store.run(anchor, lists=lists, queries=put_vectors(store, "queries", queries, 9), passages=both)
    assert 0 < made.metrics["rows"] == len(rows(made)) == len(rows(lists)) < QUERIES
    for one, plain in zip(rows(made), rows(lists), strict=True):
        scores = one.pop("anchor_scores")
        np.testing.assert_allclose(scores, passages[one["doc_rows"]] @ queries[one["query_row"]], atol=1e-5)
        assert plain.pop("anchor_scores") == [] and str(one) == str(plain)  # as text: a NaN is not equal to itself
