"""Metrics agree with loops written by hand, in the run's own order, over every judged query."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from raydrd.errors import InputError
from raydrd.metrics import canonical, judged, means, per_query
from raydrd.spine.tables import CANDIDATES, QUERIES


def _queries(grades: list[dict[int, int]]) -> pa.Table:
    rows = [{"query_id": f"q{i}", "text": "t", "doc_rows": list(g), "grades": list(g.values())} for i, g in enumerate(grades)]
    return pa.Table.from_pylist(rows, QUERIES)


def _run(rankings: dict[int, list[int]], scores: list[float] | None = None) -> pa.Table:
    rows = [
        {"query_row": row, "doc_rows": docs, "scores": scores or [float(-i) for i in range(len(docs))]}
        for row, docs in rankings.items()
    ]
    return pa.Table.from_pylist(rows, CANDIDATES)


def _ndcg(ranking: list[int], grades: dict[int, int], k: int) -> float:
    def dcg(gains: list[int]) -> float:
        return sum(max(gain, 0) / math.log2(rank + 2) for rank, gain in enumerate(gains[:k]))

    ideal = dcg(sorted(grades.values(), reverse=True))
    return dcg([grades.get(doc, 0) for doc in ranking]) / ideal if ideal else 0.0


def _rr(ranking: list[int], grades: dict[int, int], k: int, least: int) -> float:
    for rank, doc in enumerate(ranking[:k]):
        if grades.get(doc, 0) >= least:
            return 1 / (rank + 1)
    return 0.0


def _recall(ranking: list[int], grades: dict[int, int], k: int, least: int) -> float:
    relevant = {doc for doc, grade in grades.items() if grade >= least}
    return len(relevant & set(ranking[:k])) / len(relevant)


@pytest.mark.parametrize("least", [1, 2])
def test_metrics_agree_with_loops_on_random_graded_data(least: int) -> None:
    rng = np.random.default_rng(3)
    grades: list[dict[int, int]] = []
    rankings: dict[int, list[int]] = {}
    for row in range(700):  # more than one block
        docs = rng.choice(60, size=int(rng.integers(0, 9)), replace=False)
        grades.append({int(doc): int(rng.integers(-1, 4)) for doc in docs})
        if rng.random() < 0.9:
            rankings[row] = [int(doc) for doc in rng.permutation(60)[: int(rng.integers(0, 40))]]
    shuffled = {int(row): rankings[int(row)] for row in rng.permutation(list(rankings))}
    table = per_query(_run(shuffled), _queries(grades), metrics=("nDCG@10", "RR@10", "R@20"), min_relevance=least)

    expected = [row for row, judgements in enumerate(grades) if any(g >= least for g in judgements.values())]
    assert table["query_row"].to_pylist() == expected
    assert 0 < len(expected) < len(grades)
    ranked = [rankings.get(row, []) for row in expected]
    pairs = [(docs, grades[row]) for docs, row in zip(ranked, expected, strict=True)]
    assert table["nDCG@10"].to_pylist() == pytest.approx([_ndcg(d, g, 10) for d, g in pairs])
    assert table["RR@10"].to_pylist() == pytest.approx([_rr(d, g, 10, least) for d, g in pairs])
    assert table["R@20"].to_pylist() == pytest.approx([_recall(d, g, 20, least) for d, g in pairs])
    assert means(table)["RR@10"] == pytest.approx(np.mean([_rr(d, g, 10, least) for d, g in pairs]))


def test_equal_scores_keep_the_order_of_the_run() -> None:
    # trec_eval alone would put "9" before "10" before "2" here: ids as strings, descending.
    for relevant, value in ((2, 1.0), (9, 0.5), (10, 1 / 3)):
        table = per_query(_run({0: [2, 9, 10]}, [1.0, 1.0, 1.0]), _queries([{relevant: 1}]))
        assert table["RR@10"].to_pylist() == pytest.approx([value])


def test_cutoffs_are_inclusive() -> None:
    table = per_query(_run({0: list(range(200))}), _queries([{9: 1, 99: 1, 100: 1}]))
    assert table["RR@10"].to_pylist() == [0.1]
    assert table["R@100"].to_pylist() == pytest.approx([2 / 3])
    table = per_query(_run({0: list(range(200))}), _queries([{10: 1}]), metrics=("RR@10", "nDCG@10"))
    assert means(table) == {"RR@10": 0.0, "nDCG@10": 0.0}


def test_queries_missing_from_the_run_count_zero_and_unjudged_ones_not_at_all() -> None:
    queries = _queries([{5: 1}, {}, {5: 0}, {5: 1}, {5: 1}])
    table = per_query(_run({0: [5], 1: [5], 2: [5], 3: []}), queries)
    assert table["query_row"].to_pylist() == [0, 3, 4] == judged(queries).tolist()
    assert table["RR@10"].to_pylist() == [1.0, 0.0, 0.0]
    assert means(table)["RR@10"] == pytest.approx(1 / 3)
    assert means(per_query(_run({}), queries))["nDCG@10"] == 0.0


def test_a_query_table_in_several_chunks_gives_the_same_rows() -> None:
    queries = _queries([{1: 1}, {}, {2: 1}])
    chunked = pa.concat_tables([queries.slice(0, 1), queries.slice(1)])
    run = _run({0: [1], 2: [3, 2]})
    assert per_query(run, chunked).equals(per_query(run, queries))
    assert per_query(run, queries)["RR@10"].to_pylist() == [1.0, 0.5]
    assert per_query(run.slice(1), queries)["RR@10"].to_pylist() == [0.0, 0.5]


def test_mrr_is_rr() -> None:
    assert canonical("MRR@10") == "RR@10" == canonical("RR@10")
    table = per_query(_run({0: [4, 5]}), _queries([{5: 1}]), metrics=("MRR@10",))
    assert table.column_names == ["query_row", "RR@10"]
    assert table["RR@10"].to_pylist() == [0.5]


def test_mistakes_are_named() -> None:
    queries = _queries([{1: 1}])
    with pytest.raises(InputError, match="'nDGC@10' is not known"):
        per_query(_run({0: [1]}), queries, metrics=("nDGC@10",))
    with pytest.raises(ValueError, match="query row 0 holds the same passage twice"):
        per_query(_run({0: [1, 1]}), queries)
    with pytest.raises(ValueError, match="query row 7 is outside the 1 queries"):
        per_query(_run({7: [1]}), queries)
    twice = pa.concat_tables([_run({0: [1]})] * 2)
    with pytest.raises(ValueError, match="stands in it twice"):
        per_query(twice, queries)
    with pytest.raises(InputError, match="nothing to average"):
        means(per_query(_run({0: [1]}), _queries([{}])))
