"""Single queries for the report: those that changed most, with the passages that made the difference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from raydrd.spine.store import Artifact
from raydrd.stages.load import table
from raydrd.stages.shards import parts_of

EXAMPLES, SHOWN = 10, 3  # queries of each kind on the page, and passages of each
_TEXT = 600  # characters of a passage in report.json


def examples(
    data: Artifact, then: pa.Table, now: pa.Table, *, before: Artifact, after: Artifact
) -> dict[str, list[dict[str, Any]]]:
    """The queries that improved most and those hurt most, by the first metric.

    Args:
        data: the collection. then, now: metrics by query of the student before and after (`query_row` and one column a
            metric, same rows). before, after: what the two retrieved.
    """
    metric = next(name for name in now.column_names if name != "query_row")
    rows = now["query_row"].to_numpy()
    old, new = then[metric].to_numpy(), now[metric].to_numpy()
    order = np.lexsort((rows, -(new - old)))
    improved = [i for i in order[:EXAMPLES] if new[i] > old[i]]
    hurt = [i for i in order[::-1][:EXAMPLES] if new[i] < old[i]]
    return {
        name: [_example(data, int(rows[i]), old[i], new[i], before, after) for i in chosen]
        for name, chosen in (("improved", improved), ("hurt", hurt))
    }


def _example(data: Artifact, row: int, old: float, new: float, before: Artifact, after: Artifact) -> dict[str, Any]:
    query = table(data, "queries/test").slice(row, row + 1).to_pylist()[0]
    ranks_before, ranks_after = _ranks(before, row), _ranks(after, row)
    relevant = {d for d, g in zip(query["doc_rows"], query["grades"], strict=True) if g > 0}
    wanted = [*sorted(relevant)[:2], *list(ranks_after)[:SHOWN], *list(ranks_before)[:1]]
    docs = sorted(dict.fromkeys(wanted), key=lambda d: ranks_after.get(d, 10**9))
    texts = table(data, "corpus").take(np.array(sorted(docs), dtype=np.int64)).to_pylist()
    by_row = dict(zip(sorted(docs), texts, strict=True))
    return {
        "query_id": query["query_id"],
        "query": query["text"],
        "metric_before": float(old),
        "metric_after": float(new),
        "passages": [
            {
                "doc_id": by_row[d]["doc_id"],
                "text": by_row[d]["text"][:_TEXT],
                "relevant": d in relevant,
                "rank_before": ranks_before.get(d),
                "rank_after": ranks_after.get(d),
            }
            for d in docs
        ],
    }


def _ranks(run: Artifact, row: int) -> dict[int, int]:
    docs = parts_of(run).slice(row, row + 1)["doc_rows"].to_pylist()[0]
    return {doc: rank for rank, doc in enumerate(docs, 1)}
