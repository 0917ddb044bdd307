"""What queries are told apart by when two systems are compared: traits of a query, and bins of a trait."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raydrd.spine.parts import Parts

TRAITS = {
    "query_words": "query length in words",
    "overlap": "share of the query's words in its best relevant passage",
    "judged": "number of judged passages",
}
_WORD = re.compile(r"\w+")
_PASSAGES = 8192  # texts of relevant passages held at once: some tens of MB


def words(text: str) -> list[str]:
    """The words of a text, lower-cased: runs of letters, digits and underscores, in order."""
    return _WORD.findall(text.lower())


def overlap(query: str, passages: list[str]) -> float:
    """Share of the query's distinct words that its best passage holds, in [0, 1]; 0 without a word or a passage."""
    wanted = set(words(query))
    if not wanted:
        return 0.0
    return max((len(wanted.intersection(words(text))) for text in passages), default=0) / len(wanted)


def traits(queries: Parts, corpus: Parts, *, rows: NDArray[np.int64]) -> pa.Table:
    """`query_id`, `query` (its text), `query_words`, `overlap` and `judged` of these rows (ascending) of `queries`.

    Relevant is a grade above 0, as for the metrics. Texts are read in blocks of queries, so that memory does not grow
    with the number of queries.
    """
    chosen = queries.take(rows)
    judged = pc.list_value_length(chosen["doc_rows"]).cast(pa.int64())
    overlaps: list[float] = []
    for lo, hi in _blocks(judged.to_pylist()):
        block = chosen.slice(lo, hi - lo).to_pylist()
        relevant = [[d for d, g in zip(q["doc_rows"], q["grades"], strict=True) if g > 0] for q in block]
        docs = np.array(sorted({doc for found in relevant for doc in found}), dtype=np.int64)
        # Rows come back by parts, and these are ascending: the order of `docs`.
        texts = dict(zip(docs.tolist(), corpus.take(docs, ["text"])["text"].to_pylist(), strict=True))
        overlaps += [overlap(q["text"], [texts[d] for d in found]) for q, found in zip(block, relevant, strict=True)]
    columns: dict[str, Any] = {
        "query_id": chosen["query_id"],
        "query": chosen["text"],
        "query_words": pa.array([len(words(text)) for text in chosen["text"].to_pylist()], pa.int64()),
        "overlap": pa.array(overlaps, pa.float64()),
        "judged": judged,
    }
    return pa.table(columns)


def _blocks(judged: list[int]) -> Iterator[tuple[int, int]]:
    """Ranges of queries with at most `_PASSAGES` judged passages in all, or of one query with more."""
    start = held = 0
    for at, size in enumerate(judged):
        if at > start and held + size > _PASSAGES:
            yield start, at
            start, held = at, 0
        held += size
    if start < len(judged):
        yield start, len(judged)


def bins(values: NDArray[Any], *, most: int = 3) -> list[tuple[float, float]]:
    """Up to `most` ranges [low, high], both inside, that cut `values` [queries] into bins of similar size.

    Equal values stay together: each cut lies between two values, as near to an even share as it can.
    """
    distinct, counts = np.unique(values, return_counts=True)
    up_to = np.cumsum(counts)[:-1]  # queries in the first bin if the cut is after this value
    if not up_to.size:
        return [(float(distinct[0]), float(distinct[-1]))]
    cuts = sorted({int(np.abs(up_to - values.size * part / most).argmin()) + 1 for part in range(1, most)})
    edges = [0, *cuts, distinct.size]
    return [(float(distinct[lo]), float(distinct[hi - 1])) for lo, hi in zip(edges, edges[1:], strict=False)]
