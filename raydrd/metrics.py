"""Metrics per query: ir-measures (trec_eval) over our ranked tables, in the order the run gives.

Denominator: the judged queries that have at least one relevant passage. Such a query counts 0 when the run
does not hold it; a query without a relevant passage counts nowhere, whatever the run returns for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydrd.errors import InputError
from raydrd.spine.tables import CANDIDATES, QUERIES, check

if TYPE_CHECKING:
    from ir_measures.measures import Measure

DEFAULT_METRICS = ("nDCG@10", "RR@10", "R@100")
_QUERIES_PER_BLOCK = 512  # trec_eval takes dicts of strings: a block bounds their memory


def _parse(name: str, min_relevance: int) -> tuple[str, Measure]:
    import ir_measures

    try:
        measure = ir_measures.parse_measure(name)
    except (NameError, ValueError, KeyError) as error:
        raise InputError(
            f"metric {name!r} is not known ({error}); write names such as nDCG@10, RR@10, R@100, AP@1000, Success@5"
        ) from error
    column = str(measure)
    if "rel" in measure.SUPPORTED_PARAMS and "rel" not in measure.params:
        measure = measure(rel=min_relevance)
    return column, measure


def canonical(name: str) -> str:
    """The name a metric has in our tables: `MRR@10` is `RR@10`, `NDCG@10` is `nDCG@10`.

    Raises:
        InputError: no such metric.
    """
    return _parse(name, 1)[0]


def judged(queries: pa.Table, *, min_relevance: int = 1) -> np.ndarray:
    """Rows of the queries with at least one passage of grade >= `min_relevance`, int64, ascending."""
    lists = check(queries, QUERIES, "queries")["grades"].combine_chunks()
    relevant = pc.greater_equal(lists.flatten(), min_relevance)
    rows = pc.list_parent_indices(lists).filter(relevant)
    return np.unique(rows.to_numpy(zero_copy_only=False)).astype(np.int64)


def _grades(query: dict[str, list[int]], row: int) -> dict[str, int]:
    grades = {str(doc): grade for doc, grade in zip(query["doc_rows"], query["grades"], strict=True)}
    if len(grades) != len(query["doc_rows"]):
        raise ValueError(f"queries: row {row} judges the same passage twice")
    return grades


def _ranking(doc_rows: list[int], row: int) -> dict[str, float]:
    # trec_eval sorts by score and breaks ties by the id as a string; -rank keeps the order of the run.
    ranking = {str(doc): -float(rank) for rank, doc in enumerate(doc_rows)}
    if len(ranking) != len(doc_rows):
        raise ValueError(f"run: query row {row} holds the same passage twice")
    return ranking


def per_query(
    run: pa.Table,
    queries: pa.Table,
    *,
    metrics: tuple[str, ...] = DEFAULT_METRICS,
    min_relevance: int = 1,
) -> pa.Table:
    """Metrics of every judged query: `query_row` int64 ascending, and one float64 column a metric.

    Args:
        run: CANDIDATES; the order within a row is the ranking, scores are not looked at.
        queries: QUERIES; `query_row` of the run is a row of this table.
        metrics: names of ir-measures; the column has the canonical name (`MRR@10` gives `RR@10`).
        min_relevance: the least grade binary metrics count as relevant, where the name does not say it
            (`RR(rel=2)@10`). nDCG takes the grades as linear gains, discounted by log2 (trec_eval).

    Returns:
        One row for every query with a passage of grade >= `min_relevance`; 0 where the run lacks the query.

    Raises:
        InputError: an unknown metric.
        ValueError: a query or a passage twice, or a query row outside the table.
    """
    import ir_measures

    named = dict(_parse(name, min_relevance) for name in metrics)
    run = check(run, CANDIDATES, "run")
    rows = judged(queries, min_relevance=min_relevance)
    place = {int(row): index for index, row in enumerate(rows)}
    where = {int(row): index for index, row in enumerate(run["query_row"].to_pylist())}
    if len(where) != run.num_rows:
        raise ValueError("run: a query row stands in it twice")
    if outside := [row for row in where if not 0 <= row < queries.num_rows]:
        raise ValueError(f"run: query row {outside[0]} is outside the {queries.num_rows} queries")

    values = {name: np.zeros(len(rows)) for name in named}
    for start in range(0, len(rows), _QUERIES_PER_BLOCK):
        block = rows[start : start + _QUERIES_PER_BLOCK]
        judgements = queries.take(pa.array(block)).select(["doc_rows", "grades"]).to_pylist()
        qrels = {str(row): _grades(query, int(row)) for row, query in zip(block, judgements, strict=True)}
        present = [int(row) for row in block if int(row) in where]
        ranked = run["doc_rows"].take(pa.array([where[row] for row in present], pa.int64())).to_pylist()
        rankings = {str(row): _ranking(docs, row) for row, docs in zip(present, ranked, strict=True) if docs}
        if not rankings:
            continue
        columns = {measure: name for name, measure in named.items()}
        for found in ir_measures.iter_calc(list(columns), qrels, rankings):
            values[columns[found.measure]][place[int(found.query_id)]] = found.value
    return pa.table({"query_row": pa.array(rows, pa.int64()), **{name: pa.array(v) for name, v in values.items()}})


def means(table: pa.Table) -> dict[str, float]:
    """The mean of each metric column of `per_query`'s table.

    Raises:
        InputError: there is no judged query to average over.
    """
    if not table.num_rows:
        raise InputError("no query has a relevant passage: there is nothing to average; check the judgements")
    return {name: float(np.mean(table[name].to_numpy())) for name in table.column_names if name != "query_row"}
