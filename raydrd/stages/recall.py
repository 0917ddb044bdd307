"""recall: what an approximate index finds of what exact search finds, and how fast both are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydrd.spine.parts import Parts, matrix
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.stages.index import blocks
from raydrd.stages.indexfile import opened, settings_of
from raydrd.stages.search import Best
from raydrd.stages.shards import parts_of

CUTOFFS = (10, 100)
MOST_QUERIES = 1000
TIMED_QUERIES = 64  # asked at once, when it is timed
FEW_ROWS = 100_000


def recall(found_QK: NDArray[np.int64], exact: list[list[int]], cutoff: int) -> float:
    """The mean share of the first `cutoff` exact passages among the first `cutoff` found; found rows are -1 where none is."""
    shares = []
    for mine, true in zip(found_QK[:, :cutoff].tolist(), exact, strict=True):
        wanted = true[:cutoff]
        shares.append(len(set(mine) & set(wanted)) / len(wanted))
    return float(np.mean(shares))


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for FAISS and torch, as many as before afterwards."""
    import faiss
    import torch

    before = (faiss.omp_get_max_threads(), torch.get_num_threads())
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before[0])
        torch.set_num_threads(before[1])


class Prober:
    """Queries asked of the index and, some of them, of all vectors; on one thread."""

    def __init__(self, *, index: Folder, queries: Parts, passages: Parts, run: Parts, depth: int) -> None:
        self.index, self.queries, self.passages, self.run, self.depth = index, queries, passages, run, depth

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        index = opened(self.index.local("index.faiss"))
        rows = np.unique(np.linspace(0, self.queries.rows - 1, min(self.queries.rows, MOST_QUERIES)).astype(np.int64))
        asked = np.array(matrix(self.queries.take(rows, ["vector"])), dtype=np.float32)  # a copy: torch wants to write
        exact = self.run.take(rows, ["doc_rows"])["doc_rows"].to_pylist()
        timed = asked[:TIMED_QUERIES]
        with one_thread():
            found = index.search(asked, self.depth)[1]  # also brings the index into memory, so that what is timed is search
            began = time.perf_counter()
            index.search(timed, self.depth)
            fast = time.perf_counter() - began
            began = time.perf_counter()
            self._exact(timed)
            slow = time.perf_counter() - began
        cutoffs = {f"recall@{n}": recall(found, exact, n) for n in CUTOFFS if n <= self.depth}
        speeds = {"per_second": len(timed) / fast, "exact_per_second": len(timed) / slow}
        return {"queries": len(rows), **cutoffs, **speeds, **settings_of(index)}

    def _exact(self, queries_QD: NDArray[np.float32]) -> None:
        import torch

        best = Best(torch.from_numpy(queries_QD), min(self.depth, self.passages.rows))
        for row, block in blocks(self.passages, 0, self.passages.rows):
            best.add(best.queries_QD @ torch.from_numpy(block).T, row)
        best.settle()


@stage(version=1)
def measure_index(work: Work, *, index: Artifact, queries: Artifact, passages: Artifact, run: Artifact) -> dict[str, Any]:
    """recall@10 and @100 of an index against an exact search of the same vectors, and queries/s of both on one thread.

    At most 1,000 queries, evenly spaced. recall@100 is left out where the exact search is less deep.

    Args:
        run: candidates that `search` found for these queries.
    """
    p, q = parts_of(passages), parts_of(queries)
    depth = min(max(CUTOFFS), int(run.metrics["k"]))
    arguments = {"index": index.folder / "index", "queries": q, "passages": p, "run": parts_of(run), "depth": depth}
    results = work.cluster.map(
        Prober,
        arguments,
        [{"name": "recall", "rows": min(q.rows, MOST_QUERIES)}],
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=p.rows <= FEW_ROWS,
        models=False,
    )
    told = {name: value for name, value in results[0].items() if name not in ("shard", "rows", "busy_seconds", "queries")}
    work.shards.write_json("recall.json", told)
    return {"rows": int(results[0]["queries"]), "unit": "queries", **told}


def about_index(index: Artifact, measured: Artifact | None, served: dict[str, Any] | None = None) -> dict[str, Any]:
    """What is known of an index, for people and for meta.json; `measured` by `measure_index`, None where it is exact.

    served: the form of its vectors, where it is not the encoder's own. int8 and binary ones were what was measured.
    """
    found = {"factory": index.metrics["factory"], "size_mb": round(float(index.metrics["size_mb"]), 3), **(served or {})}
    if found.get("type", "float32") != "float32":
        return {**found, "exact": False}
    if measured is None:
        return {**found, "exact": True}
    told = {name: value for name, value in measured.metrics.items() if name not in ("rows", "unit")}
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in told.items()}
    return {**found, "exact": False, "queries": measured.metrics["rows"], **rounded}
