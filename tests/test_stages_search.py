"""Search is exact whatever the blocks, BM25 and joined sources give what they promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from raydrd.errors import InputError, StageError
from raydrd.spine.store import Store
from raydrd.spine.tables import CANDIDATES
from raydrd.stages import search as search_stage
from raydrd.stages.bm25 import bm25_index, bm25_search
from raydrd.stages.load import table
from raydrd.stages.search import join_candidates, search, top_k
from tests.stage_inputs import candidate_lists, open_data, put, put_vectors, whole, whole_texts


def _stable(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


@pytest.mark.parametrize("k", [1, 2, 7, 40, 41])
@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
def test_top_k_equals_a_full_stable_sort(k: int, levels: int) -> None:
    scores = np.random.default_rng(levels).integers(-levels, levels, (50, 40)).astype(np.float32)
    values, columns = top_k(torch.from_numpy(scores), k)
    expected_values, expected_columns = _stable(scores, k)
    np.testing.assert_array_equal(columns.numpy(), expected_columns)
    np.testing.assert_array_equal(values.numpy(), expected_values)


@pytest.mark.parametrize("part", [3, 10, 64, 1000])
@pytest.mark.parametrize("block", [1, 5, 1024])
def test_search_is_exact_with_ties_by_row_whatever_the_blocks(
    store: Store, part: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    # Small integers: their products are exact in any order of summation, and tie by the dozen.
    queries, passages = rng.integers(-2, 3, (11, 4)), rng.integers(-2, 3, (130, 4))
    monkeypatch.setattr(search_stage, "QUERY_BLOCK", block)
    made = store.run(
        search, queries=put_vectors(store, "q", queries, 4), passages=put_vectors(store, "p", passages, part), k=20
    )
    found = whole(made)
    assert found.schema == CANDIDATES
    values, rows = _stable((queries @ passages.T).astype(np.float32), 20)
    assert found["query_row"].to_pylist() == list(range(11))
    np.testing.assert_array_equal(np.array(found["doc_rows"].to_pylist()), rows)
    np.testing.assert_array_equal(np.array(found["scores"].to_pylist()), values)


def test_search_of_real_vectors_and_of_fewer_passages_than_k(store: Store) -> None:
    rng = np.random.default_rng(1)
    queries, passages = rng.standard_normal((9, 16)), rng.standard_normal((30, 16))
    made = whole(
        store.run(search, queries=put_vectors(store, "q", queries), passages=put_vectors(store, "p", passages, 7), k=99)
    )
    values, rows = _stable((queries.astype(np.float32) @ passages.astype(np.float32).T), 99)
    np.testing.assert_array_equal(np.array(made["doc_rows"].to_pylist()), rows)
    np.testing.assert_allclose(np.array(made["scores"].to_pylist()), values, atol=1e-5)
    assert rows.shape == (9, 30)


def test_bm25_puts_shared_rare_words_first_and_the_rest_by_row(store: Store, toy: Path) -> None:
    data = open_data(store, toy / "data")
    index = store.run(bm25_index, data=data)
    found = whole(store.run(bm25_search, index=index, data=data, name="queries/test", k=60))
    texts, queries = whole_texts(data, "corpus"), whole_texts(data, "queries/test")
    from tests.worlds import SUBJECTS

    content = {word for words in SUBJECTS.values() for word in words}
    for query, docs, scores in zip(queries, found["doc_rows"].to_pylist(), found["scores"].to_pylist(), strict=True):
        assert sorted(docs) == list(range(60)) and scores == sorted(scores, reverse=True)
        words = set(query.split()) & content
        sharing = {row for row, text in enumerate(texts) if words & set(text.split())}
        assert sharing and sharing <= set(docs[: sum(s > 0 for s in scores)])
        for a, b in zip(range(59), range(1, 60), strict=True):
            assert scores[a] > scores[b] or docs[a] < docs[b]


def test_bm25_of_queries_without_any_known_word(store: Store, tmp_path: Path, toy: Path) -> None:
    import shutil

    shutil.copytree(toy / "data", tmp_path / "d")
    with (tmp_path / "d" / "queries.jsonl").open("a") as stream:
        stream.write('{"_id": "x1", "text": "zyzzyva qwertz"}\n{"_id": "x2", "text": "the of and"}\n')
    with (tmp_path / "d" / "qrels" / "test.tsv").open("a") as stream:
        stream.write("x1\td00\t1\nx2\td01\t1\n")
    data = open_data(store, tmp_path / "d")
    found = whole(store.run(bm25_search, index=store.run(bm25_index, data=data), data=data, name="queries/test", k=5))
    ids = table(data, "queries/test").slice(0, 14)["query_id"].to_pylist()
    for name in ("x1", "x2"):
        row = found.slice(ids.index(name), 1).to_pylist()[0]
        assert row["doc_rows"] == [0, 1, 2, 3, 4] and row["scores"] == [0.0] * 5


def test_sources_are_joined_rank_by_rank(store: Store) -> None:
    a = put(store, "a", candidate_lists([[1, 2, 3], [5], []]))
    b = put(store, "b", candidate_lists([[2, 9, 1, 4], [6, 5], [7]]))
    found = whole(store.run(join_candidates, sources=[a, b], depth=4))
    assert found["doc_rows"].to_pylist() == [[1, 2, 9, 3], [5, 6], [7]]
    assert found["scores"].to_pylist()[1] == [1.0, 0.5]
    assert whole(store.run(join_candidates, sources=[b, a], depth=2))["doc_rows"].to_pylist() == [[2, 1], [6, 5], [7]]


def test_a_run_that_leaves_queries_out_is_not_joined_by_place(store: Store) -> None:
    full = put(store, "a", candidate_lists([[1], [2], [3]]))
    part = put(store, "b", candidate_lists([[4], [5]]))
    with pytest.raises(InputError, match=r"data.run leaves out train queries"):
        store.run(join_candidates, sources=[full, part], depth=4)
    other = put(store, "c", candidate_lists([[4], [5], [6]]).set_column(0, CANDIDATES.field(0), pa.array([0, 2, 3])))
    with pytest.raises(StageError, match="the sources rank different queries"):
        store.run(join_candidates, sources=[full, other], depth=4)
