"""trial: labelled pairs of the dev queries, to try a pairwise teacher on before it is paid for."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from raydrd.spine.store import Artifact, Work, stage
from raydrd.spine.tables import PAIRS
from raydrd.stages.assemble import positives_of
from raydrd.stages.load import table
from raydrd.stages.shards import parts_of


@stage(version=1)
def labelled_pairs(work: Work, *, candidates: Artifact, data: Artifact, name: str, each: int) -> dict[str, Any]:
    """Each query's first labelled positive (left) with its first `each` other candidates: the right answer is left.

    One row for each row of `candidates`; a query without a positive has no pairs. Made for a sample of queries.
    """
    queries = table(data, name)
    pairs = 0
    for part, found in parts_of(candidates).each():
        asked = queries.slice(0, queries.rows, ["doc_rows", "grades"]).take(found["query_row"]).to_pylist()
        left, right = [], []
        for query, docs in zip(asked, found["doc_rows"].to_pylist(), strict=True):
            positives = positives_of(query)
            others = [d for d in docs if d not in positives][:each] if positives else []
            left.append(list(positives[:1]) * len(others))
            right.append(others)
            pairs += len(others)
        empty: list[list[float]] = [[] for _ in left]
        work.shards.write_table(part.name, pa.table([found["query_row"], left, right, empty], schema=PAIRS))
    return {"rows": parts_of(candidates).rows, "unit": "queries", "pairs": pairs}
