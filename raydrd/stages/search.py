"""search: exact blocked top-k over sharded vectors, and BM25; candidates by descending score, ties by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.errors import InputError
from raydrd.spine.parts import Parts, VectorReader
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.spine.tables import CANDIDATES
from raydrd.stages.load import table
from raydrd.stages.shards import parts_of, pending

QUERY_BLOCK = 1024  # queries a shard: 1024 x 20,000 float32 scores are 80 MB
FEW_DOT_PRODUCTS = 2 * 10**9  # query-passage-dimension products done in this process rather than by an actor


def top_k(scores_QN: Any, k: int) -> tuple[Any, Any]:
    """The k highest of each row and their columns, [Q, k] each; equal scores in ascending column order, exactly.

    `torch.topk` leaves the order of ties open, also at the k-th place. Rows where that matters are sorted in full.
    """
    import torch

    k = min(k, scores_QN.shape[1])
    values_QK, columns_QK = scores_QN.topk(k, dim=1)
    last_Q1 = values_QK[:, -1:]
    undecided_Q = (scores_QN == last_Q1).sum(1) > (values_QK == last_Q1).sum(1)
    # Equal values inside the k: order by column, then (stably) by value.
    columns_QK, by_column = columns_QK.sort(dim=1)
    values_QK = values_QK.gather(1, by_column)
    values_QK, by_value = values_QK.sort(dim=1, descending=True, stable=True)
    columns_QK = columns_QK.gather(1, by_value)
    for row in torch.nonzero(undecided_Q).flatten().tolist():
        full, order = scores_QN[row].sort(descending=True, stable=True)
        values_QK[row], columns_QK[row] = full[:k], order[:k]
    return values_QK, columns_QK


def merge(values_QA: Any, rows_QA: Any, values_QB: Any, rows_QB: Any, k: int) -> tuple[Any, Any]:
    """Two ranked lists a query as one; every row of A is smaller than any of B, so ties keep A first."""
    import torch

    values = torch.cat([values_QA, values_QB], dim=1)
    rows = torch.cat([rows_QA, rows_QB], dim=1)
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values[:, :k], rows.gather(1, order)[:, :k]


def write_candidates(
    out: Folder, name: str, query_rows: NDArray[np.int64], rows: NDArray[np.int64], scores: NDArray[np.float32]
) -> None:
    """A rectangular block of candidates as one part."""
    queries, k = rows.shape
    offsets = pa.array(np.arange(0, queries * k + 1, k) if k else np.zeros(queries + 1), pa.int32())
    out.write_table(
        name,
        pa.table(
            [
                pa.array(query_rows, pa.int64()),
                pa.ListArray.from_arrays(offsets, pa.array(rows.ravel(), pa.int64())),
                pa.ListArray.from_arrays(offsets, pa.array(scores.ravel(), pa.float32())),
            ],
            schema=CANDIDATES,
        ),
    )


class Searcher:
    """A block of queries against all passages, part by part; memory holds one part's scores at a time."""

    def __init__(self, *, queries: Parts, passages: Parts, out: Folder, k: int) -> None:
        from raydrd.models.devices import this_device

        self.device = this_device()
        self.queries, self.passages, self.out, self.k = VectorReader(queries), VectorReader(passages), out, k

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        import torch

        queries_QD = torch.from_numpy(self.queries.slice(shard["lo"], shard["hi"])).to(self.device)
        best: tuple[Any, Any] | None = None
        for number, part in enumerate(self.passages.parts.parts):
            block = torch.from_numpy(np.array(self.passages.part(number))).to(self.device, torch.float32)
            values, columns = top_k(queries_QD @ block.T, self.k)
            rows = columns + part.lo
            best = (values, rows) if best is None else merge(*best, values, rows, self.k)
        assert best is not None
        query_rows = np.arange(shard["lo"], shard["hi"])
        write_candidates(self.out, shard["name"], query_rows, best[1].cpu().numpy(), best[0].cpu().numpy())
        return {}


@stage(version=1)
def search(work: Work, *, queries: Artifact, passages: Artifact, k: int) -> dict[str, Any]:
    """The k passages of highest inner product for every query, exactly; float32 whatever was stored."""
    q, p = parts_of(queries), parts_of(passages)
    products = q.rows * p.rows * int(passages.metrics["width"])
    work.cluster.map(
        Searcher,
        {"queries": q, "passages": p, "out": work.shards, "k": k},
        pending(work, q.rows, QUERY_BLOCK, "parquet"),
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=products <= FEW_DOT_PRODUCTS,
    )
    return {"rows": q.rows, "unit": "queries", "k": min(k, p.rows)}


# -- BM25 -----------------------------------------------------------------------------------------


def _words(texts: list[str]) -> Any:
    import bm25s
    import Stemmer

    return bm25s.tokenize(texts, stopwords="en", stemmer=Stemmer.Stemmer("english"), return_ids=False, show_progress=False)


class Bm25Builder:
    """The whole corpus' BM25 index (Lucene's formula, k1 1.2, b 0.75, English stems and stop words)."""

    def __init__(self, *, corpus: Parts, out: Folder) -> None:
        self.corpus, self.out = corpus, out

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        import tempfile
        from pathlib import Path

        import bm25s

        words = [row for _, part in self.corpus.each(["text"]) for row in _words(part["text"].to_pylist())]
        index = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
        index.index(words, show_progress=False)
        with tempfile.TemporaryDirectory() as scratch:
            index.save(scratch)
            self.out.upload(Path(scratch))
        return {}


@stage(version=1)
def bm25_index(work: Work, *, data: Artifact) -> dict[str, Any]:
    """A BM25 index of the corpus, saved in bm25s' own memory-mapped layout."""
    corpus = table(data, "corpus")
    work.cluster.map(
        Bm25Builder,
        {"corpus": corpus, "out": work.folder / "bm25"},
        [{"name": "index", "rows": corpus.rows}],
        label=work.label,
        unit="passages",
        marks=work.shards / "attempts",
        inline=corpus.rows <= 20_000,
        models=False,
    )
    return {"rows": corpus.rows, "unit": "passages"}


class Bm25Searcher:
    def __init__(self, *, index: Folder, queries: Parts, out: Folder, k: int) -> None:
        import bm25s

        self.index = bm25s.BM25.load(str(index.local_folder()), mmap=True)
        self.queries, self.out = queries, out
        self.k = min(k, int(self.index.scores["num_docs"]))

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        import torch

        texts = self.queries.slice(shard["lo"], shard["hi"], ["text"])["text"].to_pylist()
        rows, scores = [], []
        for words in _words(texts):
            # get_scores and our own top-k: bm25s' retrieve leaves ties open.
            found = self.index.get_scores(words) if words else np.zeros(int(self.index.scores["num_docs"]), np.float32)
            values, columns = top_k(torch.from_numpy(np.asarray(found, dtype=np.float32))[None], self.k)
            rows.append(columns[0].numpy())
            scores.append(values[0].numpy())
        query_rows = np.arange(shard["lo"], shard["hi"])
        write_candidates(self.out, shard["name"], query_rows, np.stack(rows), np.stack(scores))
        return {}


@stage(version=1)
def bm25_search(work: Work, *, index: Artifact, data: Artifact, name: str, k: int) -> dict[str, Any]:
    """The k passages of highest BM25 score for every query of table `name`; passages sharing no word score 0."""
    queries = table(data, name)
    work.cluster.map(
        Bm25Searcher,
        {"index": index.folder / "bm25", "queries": queries, "out": work.shards, "k": k},
        pending(work, queries.rows, QUERY_BLOCK, "parquet"),
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=queries.rows * int(index.metrics["rows"]) <= 200_000_000,
        models=False,
    )
    return {"rows": queries.rows, "unit": "queries", "k": k}


# -- several sources ------------------------------------------------------------------------------


class Joiner:
    """Interleaves ranked lists: rank 1 of each source, then rank 2 of each, passages once."""

    def __init__(self, *, sources: list[Parts], out: Folder, depth: int) -> None:
        self.sources, self.out, self.depth = sources, out, depth

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        tables = [source.slice(shard["lo"], shard["hi"]) for source in self.sources]
        if any(t["query_row"] != tables[0]["query_row"] for t in tables):
            raise ValueError(f"rows {shard['lo']}..{shard['hi']}: the sources rank different queries")
        lists = [t["doc_rows"].to_pylist() for t in tables]
        joined = []
        for ranked in zip(*lists, strict=True):
            longest = max(map(len, ranked))
            order = dict.fromkeys(r[i] for i in range(longest) for r in ranked if i < len(r))
            joined.append(list(order)[: self.depth])
        scores = [[1.0 / rank for rank in range(1, len(rows) + 1)] for rows in joined]
        self.out.write_table(shard["name"], pa.table([tables[0]["query_row"], joined, scores], schema=CANDIDATES))
        return {}


@stage(version=1)
def join_candidates(work: Work, *, sources: list[Artifact], depth: int) -> dict[str, Any]:
    """One candidate list a query out of several; its scores are reciprocal ranks of the joined list."""
    tables = [parts_of(source) for source in sources]
    if len({t.rows for t in tables}) > 1:
        raise InputError(
            "candidates.sources: data.run leaves out train queries, so it cannot be joined; complete it, or write [run] alone"
        )
    work.cluster.map(
        Joiner,
        {"sources": tables, "out": work.shards, "depth": depth},
        pending(work, tables[0].rows, 50_000, "parquet"),
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=tables[0].rows <= 20_000,
        models=False,
    )
    return {"rows": tables[0].rows, "unit": "queries"}
