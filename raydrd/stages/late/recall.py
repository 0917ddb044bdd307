"""measure_late: what a search of token vectors as they ship finds of what exact MaxSim finds, and how fast both are."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from raydrd.spine.parts import Parts, VectorReader
from raydrd.spine.ragged import RaggedReader
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.stages.late.lookup import Lookup
from raydrd.stages.recall import CUTOFFS, MOST_QUERIES, one_thread
from raydrd.stages.shards import parts_of

TIMED = 16  # queries that are timed, one by one ..
TIMED_SECONDS = 30.0  # .. but no more of them after so long: one alone may be a scan of a whole collection
FEW_ROWS = 20_000


def recall(found: list[list[int]], exact: list[list[int]], cutoff: int) -> float:
    """The mean share of the first `cutoff` exact passages among the first `cutoff` found."""
    shares = [
        len(set(mine[:cutoff]) & set(true[:cutoff])) / len(true[:cutoff])
        for mine, true in zip(found, exact, strict=True)
        if true
    ]
    return float(np.mean(shares))


def per_second(ask: Callable[..., Any], queries: list[tuple[Any, ...]]) -> float:
    """Queries a second, one by one, after one that warms up; of the first ones where they take long."""
    ask(*queries[0])
    began = now = time.perf_counter()
    done = 0
    while done < len(queries) and now - began <= TIMED_SECONDS:
        ask(*queries[done])
        done, now = done + 1, time.perf_counter()
    return done / (now - began)


class LateProber:
    """Some queries asked of the index and of all vectors as they are, on one thread."""

    def __init__(
        self,
        *,
        shipped: dict[str, Any],
        whole: dict[str, Any],
        queries: Parts,
        pooled: Parts | None,
        runs: list[Parts],
        k: int,
    ) -> None:
        self.shipped, self.whole, self.queries, self.pooled, self.runs, self.k = shipped, whole, queries, pooled, runs, k

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        rows = np.unique(np.linspace(0, self.queries.rows - 1, min(self.queries.rows, MOST_QUERIES)).astype(np.int64))
        found, exact = (run.take(rows, ["doc_rows"])["doc_rows"].to_pylist() for run in self.runs)
        cutoffs = {f"recall@{n}": recall(found, exact, n) for n in CUTOFFS if n <= self.k}
        asked = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), TIMED)).astype(np.int64))]
        whole = [self.pooled] if self.pooled is not None else []
        columns = [RaggedReader(self.queries).take(asked), *(list(VectorReader(one).take(asked)) for one in whole)]
        timed = list(zip(*columns, strict=True))
        with one_thread():
            speeds = {"per_second": per_second(partial(Lookup(**self.shipped), k=self.k), timed)}
            same = self.shipped == self.whole
            slow = speeds["per_second"] if same else per_second(partial(Lookup(**self.whole), k=self.k), timed)
        return {"queries": len(rows), **cutoffs, **speeds, "exact_per_second": slow}


@stage(version=1)
def measure_late(
    work: Work,
    *,
    queries: Artifact,
    run: Artifact,
    exact: Artifact,
    shipped: dict[str, Any],
    whole: dict[str, Any],
    pooled: Artifact | None = None,
) -> dict[str, Any]:
    """recall@10 and @100 of a search as it ships against exact MaxSim of the same vectors, and queries/s of both on one thread,
    query by query, without encoding them.

    Args:
        run, exact: candidates that both found for these queries. shipped, whole: what `Lookup` is opened with.
        pooled: the queries' pooled vectors, where these find the candidates.
    """
    k = min(max(CUTOFFS), int(exact.metrics["k"]))
    results = work.cluster.map(
        LateProber,
        {
            "shipped": opening(shipped), "whole": opening(whole), "queries": parts_of(queries),
            "pooled": parts_of(pooled) if pooled is not None else None, "runs": [parts_of(run), parts_of(exact)], "k": k,
        },
        [{"name": "recall", "rows": min(parts_of(queries).rows, MOST_QUERIES)}],
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=int(exact.metrics["rows"]) <= FEW_ROWS,
        models=False,
    )  # fmt: skip
    told = {name: value for name, value in results[0].items() if name not in ("shard", "rows", "busy_seconds", "queries")}
    work.shards.write_json("recall.json", told)
    return {"rows": int(results[0]["queries"]), "unit": "queries", **told}


def opening(inputs: dict[str, Any]) -> dict[str, Any]:
    """Artifacts among the arguments of `Lookup` as the files they stand for."""
    found = dict(inputs)
    passages: Artifact = found["passages"]
    found |= {"passages": parts_of(passages), "codec": passages.folder if "bytes_each" in passages.metrics else None}
    index: Artifact | None = found.get("index")
    folder: Folder | None = index.folder / "index" if index is not None else None
    return {**found, "index": folder}
