"""Lists, evaluation, and smaller or larger collections made of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raydrd.data.collect import digest
from raydrd.data.spec import Data
from raydrd.methods.lists import GradedList
from raydrd.spine.store import Artifact, Located, Store
from raydrd.spine.tables import SCORED
from raydrd.stages.assemble import assemble
from raydrd.stages.evaluate import evaluate
from raydrd.stages.load import load, make_queries, sample_dev, table
from tests.stage_inputs import candidate_lists, open_data, put, whole, whole_texts, with_resources


def _scored(store: Store, queries: int, size: int) -> Artifact:
    rng = np.random.default_rng(3)
    rows = [rng.permutation(60)[:40].tolist() for _ in range(queries)]
    scores = rng.standard_normal((queries, 40)).astype(np.float32)
    made = pa.table([list(range(queries)), rows, scores.tolist(), (scores + 1).tolist()], schema=SCORED)
    return put(store, "scored", made, size)


def test_lists_do_not_depend_on_how_the_work_was_cut(
    store: Store, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import raydrd.stages.assemble as module

    data = open_data(store, toy / "data")
    rule = GradedList(graded=3, hard=4, rest=5, hard_until=20)
    plan = module.pending
    found = []
    for size in (1, 5, 10_000):
        monkeypatch.setattr(module, "pending", lambda work, rows, _, ending, n=size: plan(work, rows, n, ending))
        other = with_resources(store, tmp_path / str(size))
        made = other.run(assemble, scored=_scored(other, 24, 10), data=data, rule=rule)
        assert made.metrics["rows"] == 24
        found.append(str(whole(made).to_pylist()))  # as text: an unscored positive's NaN equals itself
    assert found[0] == found[1] == found[2]
    reseeded = store.run(assemble, scored=_scored(store, 24, 10), data=data, rule=rule.model_copy(update={"seed": 1}))
    assert str(whole(reseeded).to_pylist()) != found[0]


def test_judged_positives_lead_the_lists(store: Store, toy: Path) -> None:
    data = open_data(store, toy / "data")
    made = whole(store.run(assemble, scored=_scored(store, 24, 10), data=data, rule=GradedList(graded=6, hard=2, rest=2)))
    judged = table(data, "queries/train").slice(0, 24)["doc_rows"].to_pylist()
    for row in made.to_pylist():
        positives = judged[row["query_row"]]
        assert row["doc_rows"][: len(positives)] == positives
        assert not set(row["doc_rows"][6:]) & set(positives)
        assert row["labels"] == sorted(row["labels"], reverse=True)


def test_evaluation_of_a_perfect_and_of_an_empty_run(store: Store, toy: Path) -> None:
    data = open_data(store, toy / "data")
    judged = table(data, "queries/test").slice(0, 12)["doc_rows"].to_pylist()
    for lists, expected in [(judged, 1.0), ([[d for d in range(60) if d not in j] for j in judged], 0.0)]:
        run = put(store, f"run {expected}", candidate_lists(lists))
        made = store.run(evaluate, run=run, data=data, name="queries/test", metrics=["nDCG@10", "RR@10"])
        assert made.metrics["means"] == {"nDCG@10": expected, "RR@10": expected}
        assert whole(made)["query_row"].to_pylist() == list(range(12))


def test_a_dev_sample_keeps_all_judged_passages_under_their_new_numbers(store: Store, toy: Path) -> None:
    data = open_data(store, toy / "data")
    made = store.run(sample_dev, data=data, passages=20, queries=3, seed=0)
    corpus, dev = table(made, "corpus"), table(made, "queries/dev")
    assert corpus.rows == 20 and dev.rows == 3
    texts = {row["doc_id"]: row["text"] for row in table(data, "corpus").slice(0, 60).to_pylist()}
    small = corpus.slice(0, 20).to_pylist()
    assert all(texts[row["doc_id"]] == row["text"] for row in small)
    full = {q["query_id"]: q for q in table(data, "queries/dev").slice(0, 12).to_pylist()}
    ids = table(data, "corpus").slice(0, 60)["doc_id"].to_pylist()
    for query in dev.slice(0, 3).to_pylist():
        assert [small[r]["doc_id"] for r in query["doc_rows"]] == [ids[r] for r in full[query["query_id"]]["doc_rows"]]
    again = store.run(sample_dev, data=data, passages=20, queries=3, seed=1)
    assert table(again, "corpus").slice(0, 20).to_pylist() != small


def test_a_collection_without_dev_queries_has_an_empty_dev_sample(store: Store, toy: Path) -> None:
    data = Data(path=str(toy / "data"), dev_split=None)
    made = store.run(sample_dev, data=store.run(load, data=Located(digest(data), data)), passages=20, queries=3, seed=0)
    assert table(made, "queries/dev").rows == 0 and table(made, "corpus").rows == 20


def test_made_queries_come_after_the_labelled_ones_without_positives(store: Store, toy: Path) -> None:
    data = open_data(store, toy / "data")
    made = store.run(make_queries, data=data, labelled=data, count=10, sentences=1, seed=0)
    rows = table(made, "queries/train").slice(0, made.metrics["rows"]).to_pylist()
    assert len(rows) == 34 and made.metrics["made"] == 10
    assert rows[:24] == table(data, "queries/train").slice(0, 24).to_pylist()
    texts = set(whole_texts(data, "corpus"))
    assert all(r["text"] in texts and r["doc_rows"] == [] and r["query_id"].startswith("made:") for r in rows[24:])
