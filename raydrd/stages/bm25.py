"""bm25: the lexical baseline, and a source of candidates; the whole corpus' index in bm25s' own layout."""

from __future__ import annotations

from typing import Any

import numpy as np

from raydrd.spine.parts import Parts
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.stages.load import table
from raydrd.stages.search import QUERY_BLOCK, top_k, write_candidates
from raydrd.stages.shards import pending


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
        # Words numbered in order: left to bm25s their numbers, and so the files, differ from process to process.
        numbers = {word: number for number, word in enumerate(sorted({word for row in words for word in row}))}
        index.index(([[numbers[word] for word in row] for row in words], numbers), show_progress=False)
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
