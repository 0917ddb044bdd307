"""lookup: candidates from an index, as the one who ships it would find them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.spine.parts import Parts, matrix
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.spine.tables import CANDIDATES
from raydrd.stages.indexfile import opened
from raydrd.stages.search import FEW_DOT_PRODUCTS, write_candidates
from raydrd.stages.shards import parts_of, pending

QUERY_BLOCK = 1024


def best_of(index: Any, queries_QD: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores and rows of the k best passages of an index that looks at all, [Q, k] each; ties in the order of the rows.

    Of passages that tie at the k-th place FAISS keeps which it likes.
    """
    scores, rows = index.search(np.ascontiguousarray(queries_QD, dtype=np.float32), min(k, int(index.ntotal)))
    order = np.lexsort((rows, -scores), axis=-1)
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


class Asker:
    """Blocks of queries asked of an index, which is mapped, not loaded."""

    def __init__(self, *, index: Folder, queries: Parts, out: Folder, k: int) -> None:
        self.index, self.queries, self.out, self.k = opened(index.local("index.faiss")), queries, out, k

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        asked = matrix(self.queries.slice(shard["lo"], shard["hi"], ["vector"]))
        scores, rows = best_of(self.index, asked, self.k)
        there = rows >= 0  # FAISS fills up with -1 what the lists that it looks into do not hold
        if there.all():
            write_candidates(self.out, shard["name"], np.arange(shard["lo"], shard["hi"]), rows, scores)
            return {}
        ends = pa.array(np.concatenate([[0], np.cumsum(there.sum(axis=1))]), pa.int32())
        lists = [pa.ListArray.from_arrays(ends, pa.array(found[there])) for found in (rows, scores)]
        queries = pa.array(np.arange(shard["lo"], shard["hi"]), pa.int64())
        self.out.write_table(shard["name"], pa.table([queries, *lists], schema=CANDIDATES))
        return {}


@stage(version=1)
def search_index(work: Work, *, index: Artifact, queries: Artifact, k: int) -> dict[str, Any]:
    """The k best passages of an index for every query; fewer where it looks into few of its lists."""
    q, rows = parts_of(queries), int(index.metrics["rows"])
    work.cluster.map(
        Asker,
        {"index": index.folder / "index", "queries": q, "out": work.shards, "k": k},
        pending(work, q.rows, QUERY_BLOCK, "parquet"),
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=q.rows * rows * int(queries.metrics["width"]) <= FEW_DOT_PRODUCTS,
        models=False,
    )
    return {"rows": q.rows, "unit": "queries", "k": min(k, rows)}
