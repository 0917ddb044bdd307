"""near_tokens, rescore_tokens: passages that hold a token near a query's token, by a FAISS index; then exact MaxSim of these.

The index holds every token vector of every passage (usually IVF,PQ: compressed lists), so what it finds are tokens. A
passage's first score sums, over the query's tokens, the best of its tokens that were found; where none was, the worst that
this token of the query found stands in (XTR's imputation, arXiv 2304.01982).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.spine.parts import Parts
from raydrd.spine.ragged import RaggedReader
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.spine.tables import CANDIDATES
from raydrd.stages.indexfile import opened
from raydrd.stages.late.pack import codec_of, lists_in, open_passages
from raydrd.stages.late.pairs import pair_scores
from raydrd.stages.shards import parts_of, pending

QUERIES = 256  # of a shard
FEW_QUERIES = 64


def default_factory(tokens: int, width: int) -> str:
    """IVF and PQ by size: 4 times the root of the tokens as lists, a byte for every 4 numbers; Flat where tokens are few."""
    lists = 1 << int(np.log2(max(1.0, min(4 * tokens**0.5, tokens / 40))))
    if lists < 8 or tokens < 40 * 256:
        return "Flat"
    return f"IVF{lists},PQ{next(n for n in range(max(1, width // 4), 0, -1) if width % n == 0)}"


def look_into(index: Any, probes: int) -> None:
    """So many lists of an inverted file are looked at for each vector asked."""
    import faiss

    lists = faiss.try_extract_index_ivf(index)
    if lists is not None:
        lists.nprobe = min(probes, int(lists.nlist))


def near(
    index: Any, starts: NDArray[np.int64], query_TD: NDArray[np.float32], *, each: int, depth: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows and first scores of at most `depth` passages with tokens near a query's, best first; ties by row.

    Args:
        starts: number of each passage's first token, and of all tokens: int64 [passages + 1].
        each: tokens that are looked up for each of the query's.
    """
    scores_TK, tokens_TK = index.search(np.ascontiguousarray(query_TD, dtype=np.float32), min(each, int(starts[-1])))
    there = tokens_TK >= 0
    if not there.any():
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    worst_T = np.where(there, scores_TK, np.inf).min(1)
    worst_T[~np.isfinite(worst_T)] = 0.0
    places, _ = np.nonzero(there)
    rows = np.searchsorted(starts, tokens_TK[there], side="right") - 1
    gains = (scores_TK - worst_T[:, None])[there].astype(np.float64)
    # Of a passage's tokens the best for each of the query's: highest gain first, then the first of each pair.
    order = np.lexsort((-gains, rows, places))
    first = np.ones(len(order), dtype=bool)
    first[1:] = (rows[order][1:] != rows[order][:-1]) | (places[order][1:] != places[order][:-1])
    kept = order[first]
    found, where = np.unique(rows[kept], return_inverse=True)
    sums = np.bincount(where, weights=gains[kept]) + worst_T.sum()
    best = np.lexsort((found, -sums))[:depth]
    return found[best], sums[best].astype(np.float32)


def starts_of(passages: Parts) -> NDArray[np.int64]:
    """Number of each passage's first token, and of all: int64 [passages + 1]; of vectors as they are, or compressed ones."""
    counts = [np.diff(lists_in(table.column(0)).offsets.to_numpy()) for _, table in passages.each()]  # vectors stay unread
    return np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)


def lists_table(query_rows: NDArray[np.int64], rows: list[NDArray[np.int64]], scores: list[NDArray[np.float32]]) -> pa.Table:
    """Candidates, a list a query; lists may be of different length."""
    return pa.table([pa.array(query_rows, pa.int64()), pa.array(rows), pa.array(scores)], schema=CANDIDATES)


class NearAsker:
    """Queries' tokens asked of the token index, which is mapped, not loaded."""

    def __init__(
        self, *, index: Folder, queries: Parts, passages: Parts, out: Folder, each: int, depth: int, probes: int
    ) -> None:
        self.index = opened(index.local("index.faiss"))
        look_into(self.index, probes)
        self.queries, self.starts, self.out, self.each, self.depth = (
            RaggedReader(queries),
            starts_of(passages),
            out,
            each,
            depth,
        )

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        asked = np.arange(shard["lo"], shard["hi"])
        found = [near(self.index, self.starts, q, each=self.each, depth=self.depth) for q in self.queries.take(asked)]
        self.out.write_table(shard["name"], lists_table(asked, [rows for rows, _ in found], [scores for _, scores in found]))
        return {}


@stage(version=1)
def near_tokens(
    work: Work, *, index: Artifact, queries: Artifact, passages: Artifact, each: int, depth: int, probes: int
) -> dict[str, Any]:
    """Candidates by an index of token vectors. passages: the vectors that it was filled with, for whose token is whose."""
    q = parts_of(queries)
    work.cluster.map(
        NearAsker,
        {
            "index": index.folder / "index", "queries": q, "passages": parts_of(passages), "out": work.shards,
            "each": each, "depth": depth, "probes": probes,
        },
        pending(work, q.rows, QUERIES, "parquet"),
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=q.rows <= FEW_QUERIES,
        models=False,
    )  # fmt: skip
    return {"rows": q.rows, "unit": "queries", "k": depth}


class Rescorer:
    """Candidates in the order of their MaxSim, the k best of them."""

    def __init__(
        self, *, candidates: Parts, queries: Parts, passages: Parts, codec: Folder | None, out: Folder, k: int
    ) -> None:
        self.candidates, self.out, self.k = candidates, out, k
        self.queries, self.passages = RaggedReader(queries), open_passages(passages, codec)

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        asked = self.candidates.slice(shard["lo"], shard["hi"])
        rows, scores = [], []
        for query, found in zip(asked["query_row"].to_pylist(), asked["doc_rows"].to_pylist(), strict=True):
            docs = np.sort(np.array(found, dtype=np.int64))  # in the order of the files
            made = pair_scores(self.queries, self.passages, np.full(len(docs), query), docs)
            best = np.lexsort((docs, -made))[: self.k]
            rows.append(docs[best])
            scores.append(made[best])
        self.out.write_table(shard["name"], lists_table(asked["query_row"].to_numpy(), rows, scores))
        return {}


@stage(version=1)
def rescore_tokens(work: Work, *, candidates: Artifact, queries: Artifact, passages: Artifact, k: int) -> dict[str, Any]:
    """The k of each query's candidates with the highest MaxSim; ties by row."""
    pool = parts_of(candidates)
    work.cluster.map(
        Rescorer,
        {
            "candidates": pool, "queries": parts_of(queries), "passages": parts_of(passages), "codec": codec_of(passages),
            "out": work.shards, "k": k,
        },
        pending(work, pool.rows, QUERIES, "parquet"),
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=pool.rows <= FEW_QUERIES,
    )  # fmt: skip
    return {"rows": pool.rows, "unit": "queries", "k": k}
