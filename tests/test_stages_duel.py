"""Pairs are drawn alike however the work is cut, and a duel reads the query and both passages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from transformers import AutoModelForSequenceClassification

from raydrd.methods.neighbours import NeighbourPairs
from raydrd.models.batching import SpecialTokens
from raydrd.spine.store import Artifact, Store
from raydrd.spine.tables import PAIRS
from raydrd.stages.duel import sample_pairs
from tests.recipes import rows, table_rows
from tests.stage_inputs import open_data, put, with_resources
from tests.stage_pools import QUERIES, duel, opened, pool
from tests.worlds import tiny_tokenizer


@pytest.fixture
def data(store: Store, toy: Path) -> Artifact:
    return open_data(store, toy / "data")


def test_pairs_are_the_same_however_the_work_is_cut(store: Store, data: Artifact) -> None:
    rule, scored = NeighbourPairs(top_k=8, window=3, pairs=5), pool()
    whole = store.run(sample_pairs, scored=put(store, "scored", scored), data=data, rule=rule)
    cut = store.run(sample_pairs, scored=put(store, "scored", scored, 5), data=data, rule=rule)
    assert rows(whole) == rows(cut) and whole.metrics["pairs"] == QUERIES * 5
    other = store.run(sample_pairs, scored=put(store, "scored", scored), data=data, rule=rule.model_copy(update={"seed": 1}))
    assert rows(other) != rows(whole)
    short = store.run(sample_pairs, scored=put(store, "one", pool(1)), data=data, rule=rule)
    assert [one["left"] for one in rows(short)] == [[]] * QUERIES and short.metrics["pairs"] == 0


def test_swapping_the_documents_gives_one_minus_p(store: Store, toy: Path, data: Artifact, tmp_path: Path) -> None:
    asked = store.run(
        sample_pairs, scored=put(store, "scored", pool()), data=data, rule=NeighbourPairs(top_k=8, window=3, pairs=5)
    )
    table_ = pa.Table.from_pylist(rows(asked), schema=PAIRS)
    turned = table_.set_column(1, PAIRS.field(1), table_["right"]).set_column(2, PAIRS.field(2), table_["left"])
    count = {"pairs": QUERIES * 5}
    pairs, swapped = put(store, "pairs", table_, **count), put(store, "swapped", turned, **count)
    with_ = opened(store, toy, data)

    def p(made: Artifact) -> np.ndarray:
        return np.array([one["probabilities"] for one in rows(made)], dtype=np.float64)

    both = p(duel(store, pairs, with_, symmetrize=True))
    # p is stored in 32 bits: 1 - p differs from what is stored for the swapped pair in the last of them only.
    np.testing.assert_allclose(p(duel(store, swapped, with_, symmetrize=True)), 1 - both, atol=2**-24, rtol=0)
    once, back = (duel(store, one, with_) for one in (pairs, swapped))
    assert np.abs(p(once) + p(back) - 1).max() > 1e-3, "one order alone is not symmetric"
    np.testing.assert_allclose(both, (p(once) + 1 - p(back)) / 2, atol=1e-6)
    # How far apart the two orders are is told also where only some are asked twice: every eighth query's.
    off = np.abs(p(once) + p(back) - 1)
    assert once.metrics["inconsistency"] == pytest.approx(off[::8].mean(), abs=1e-5)
    assert duel(store, pairs, with_, symmetrize=True).metrics["inconsistency"] == pytest.approx(off.mean(), abs=1e-5)
    assert once.metrics["against"] == pytest.approx((p(once) < 0.5).mean()) and once.metrics["pairs"] == QUERIES * 5
    other = with_resources(store, tmp_path / "cut", pairs_per_shard=15)
    cut = duel(other, pairs, with_)
    np.testing.assert_allclose(p(cut), p(once), atol=1e-6)
    assert cut.metrics["inconsistency"] == pytest.approx(once.metrics["inconsistency"], abs=1e-6)


def test_a_duel_reads_query_and_both_passages(store: Store, toy: Path, data: Artifact) -> None:
    pairs = pa.table([[7], [[3, 3]], [[9, 40]], [[]]], schema=PAIRS)
    made = duel(store, put(store, "two", pairs, pairs=2), opened(store, toy, data))
    model = AutoModelForSequenceClassification.from_pretrained(toy / "reranker").eval()
    special, tokenizer = SpecialTokens.of(tiny_tokenizer()), tiny_tokenizer()
    query, corpus = table_rows(data, "queries/train")[7]["text"], [row["text"] for row in table_rows(data, "corpus")]
    for p, other in zip(rows(made)[0]["probabilities"], (9, 40), strict=True):
        ids = [
            np.array(tokenizer(t, add_special_tokens=False)["input_ids"], np.int32) for t in (query, corpus[3], corpus[other])
        ]
        encoded = special.duel(*ids, 64)
        words = tokenizer.decode(encoded.ids)
        assert words.split("[SEP]")[:3] == [f"[CLS] {query} ", f" {corpus[3]} ", f" {corpus[other]} "]
        logit = model(**special.model_inputs([encoded])).logits[0, 0].item()
        assert p == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)
