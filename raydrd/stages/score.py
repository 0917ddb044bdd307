"""score: a teacher's raw logits for candidates. A teacher is anything that scores (query, passage)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.batching import SpecialTokens, token_batches
from raydrd.layout import tokenizer_digest
from raydrd.parts import Parts, TokenReader, VectorReader, part_name, ranges
from raydrd.precision import Precision
from raydrd.stages.load import table
from raydrd.stages.shards import parts_of, pending
from raydrd.storage import Folder
from raydrd.store import Artifact, Located, Work, stage
from raydrd.tables import SCORED


def queries_per_shard(work: Work, candidates: Parts) -> int:
    """Shards of half a minute or so: what a killed run loses at most, and how often the bar moves."""
    pairs = work.cluster.resources.pairs_per_shard or (65_536 if work.cluster.has_gpu else 4096)
    depth = len(candidates.slice(0, 1, ["doc_rows"])["doc_rows"][0])
    return max(1, pairs // max(1, depth))


def flat(candidates: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(query row, passage row) of every pair, in order."""
    lists = candidates["doc_rows"].combine_chunks()
    counts = lists.value_lengths().to_numpy(zero_copy_only=False)
    return np.repeat(candidates["query_row"].to_numpy(), counts), lists.flatten().to_numpy()


def with_scores(candidates: pa.Table, scores: NDArray[np.float32]) -> pa.Table:
    """Candidates with teacher scores in a list beside their own.

    Raises:
        ValueError: a score is not finite.
    """
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f"the teacher gave {scores[row]} for pair {row} of this shard; try precision: fp32")
    lists = candidates["doc_rows"].combine_chunks()
    starts = lists.offsets.to_numpy().astype(np.int32)
    column = pa.ListArray.from_arrays(pa.array(starts - starts[0]), pa.array(scores.astype(np.float32)))
    return pa.table([*(candidates[name] for name in SCORED.names[:3]), column], schema=SCORED)


@stage(version=1)
def import_teacher(work: Work, *, source: Located) -> dict[str, Any]:
    """A cross-encoder's files in the store, so that every worker finds them there."""
    for file in sorted(p for p in source.where.iterdir() if p.suffix in (".safetensors", ".json", ".txt", ".model")):
        with (work.folder / "model").writing(file.name) as target, file.open("rb") as data:
            shutil.copyfileobj(data, target, 1 << 22)
    size = sum(p.stat().st_size for p in source.where.glob("*.safetensors"))
    return {"rows": 1, "unit": "model", "tokenizer": tokenizer_digest(source.where), "size_mb": size / 1e6}


class PairScorer:
    """A cross-encoder over (query, passage): ids joined from the token store, raw float32 logits out."""

    def __init__(
        self,
        *,
        model: Folder,
        candidates: Parts,
        queries: Parts,
        passages: Parts,
        out: Folder,
        max_length: int,
        precision: Precision,
        tokens_per_batch: int | None,
    ) -> None:
        from torch import nn
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from raydrd.devices import TOKENS_PER_BATCH, inference, keep_freed_memory, prepare, this_device
        from raydrd.errors import InputError

        path = model.local_folder()
        self.device = this_device()
        self.model = AutoModelForSequenceClassification.from_pretrained(
            path, use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
        if self.model.config.num_labels != 1:
            raise InputError(f"teacher: it has {self.model.config.num_labels} outputs, a reranker has 1; choose another model")
        keep_freed_memory()
        self.model = self.model.float().eval().to(self.device)
        # The layer that gives the logit, whatever the family calls it.
        last = tuple(m for m in self.model.modules() if isinstance(m, nn.Linear) and m.out_features == 1)
        prepare(self.model, precision, exact=last)
        self.special = SpecialTokens.of(AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False))
        limit = self.special.max_length or max_length
        self.max_length = min(max_length, limit)
        self.budget = tokens_per_batch or TOKENS_PER_BATCH[self.device.type]
        self.candidates, self.out = candidates, out
        self.queries, self.passages = TokenReader(queries), TokenReader(passages)
        self.inference: Callable[[], AbstractContextManager[None]] = lambda: inference(self.device, precision)

    def scores(self, query_rows: NDArray[np.int64], doc_rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Raw logits [pairs] of these pairs."""
        lengths = self.special.pair_lengths(self.queries.lengths(query_rows), self.passages.lengths(doc_rows), self.max_length)
        q, p = self.queries.take(query_rows), self.passages.take(doc_rows)
        result = np.empty(len(doc_rows), dtype=np.float32)
        with self.inference():
            for batch in token_batches(lengths, tokens_per_batch=self.budget):
                pairs = [self.special.pair(q[i], p[i], self.max_length) for i in batch]
                inputs = {name: t.to(self.device) for name, t in self.special.model_inputs(pairs).items()}
                result[batch] = self.model(**inputs).logits[:, 0].float().cpu().numpy()
        return result

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        candidates = self.candidates.slice(shard["lo"], shard["hi"])
        query_rows, doc_rows = flat(candidates)
        self.out.write_table(shard["name"], with_scores(candidates, self.scores(query_rows, doc_rows)))
        return {"pairs": len(doc_rows)}


@stage(version=1)
def score_pairs(
    work: Work,
    *,
    candidates: Artifact,
    query_tokens: Artifact,
    passage_tokens: Artifact,
    teacher: Located,
    max_length: int,
    precision: Precision,
) -> dict[str, Any]:
    """Candidates with a cross-encoder's logits. `teacher.where` is the folder of its files."""
    pool = parts_of(candidates)
    results = work.cluster.map(
        PairScorer,
        {
            "model": teacher.where,
            "candidates": pool,
            "queries": parts_of(query_tokens),
            "passages": parts_of(passage_tokens),
            "out": work.shards,
            "max_length": max_length,
            "precision": precision,
            "tokens_per_batch": work.cluster.resources.tokens_per_batch,
        },
        pending(work, pool.rows, queries_per_shard(work, pool), "parquet"),
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=pool.rows <= 32,
    )
    pairs, busy = sum(r["pairs"] for r in results), sum(r["busy_seconds"] for r in results)
    return {"rows": pool.rows, "unit": "queries", "pairs": pairs, "per_second": pairs / busy if busy else None}


class VectorScorer:
    """A bi-encoder teacher: inner products of vectors that are already stored."""

    def __init__(self, *, candidates: Parts, queries: Parts, passages: Parts, out: Folder) -> None:
        self.candidates, self.out = candidates, out
        self.queries, self.passages = VectorReader(queries), VectorReader(passages)

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        candidates = self.candidates.slice(shard["lo"], shard["hi"])
        query_rows, doc_rows = flat(candidates)
        scores = np.empty(len(doc_rows), dtype=np.float32)
        for lo in range(0, len(doc_rows), 16_384):  # bounds the copies of vectors
            block = slice(lo, lo + 16_384)
            q, p = self.queries.take(query_rows[block]), self.passages.take(doc_rows[block])
            scores[block] = np.einsum("nd,nd->n", q, p)
        self.out.write_table(shard["name"], with_scores(candidates, scores))
        return {"pairs": len(doc_rows)}


@stage(version=1)
def score_vectors(work: Work, *, candidates: Artifact, queries: Artifact, passages: Artifact) -> dict[str, Any]:
    """Candidates with a bi-encoder teacher's inner products."""
    pool = parts_of(candidates)
    results = work.cluster.map(
        VectorScorer,
        {"candidates": pool, "queries": parts_of(queries), "passages": parts_of(passages), "out": work.shards},
        pending(work, pool.rows, 4096, "parquet"),
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=pool.rows <= 20_000,
        models=False,
    )
    return {"rows": pool.rows, "unit": "queries", "pairs": sum(r["pairs"] for r in results)}


@stage(version=1)
def rerank(work: Work, *, scored: Artifact, k: int) -> dict[str, Any]:
    """Candidates in the teacher's order: what searching with the teacher over these candidates would give."""
    found = parts_of(scored)
    for part, rows in found.each():
        docs, teacher = rows["doc_rows"].to_pylist(), rows["teacher_scores"].to_pylist()
        ordered = [
            sorted(zip(d, t, strict=True), key=lambda pair: (-pair[1], pair[0]))[:k] for d, t in zip(docs, teacher, strict=True)
        ]
        out = pa.table(
            [rows["query_row"], [[d for d, _ in q] for q in ordered], [[t for _, t in q] for q in ordered]],
            schema=SCORED.remove(3),
        )
        work.shards.write_table(part.name, out)
    return {"rows": found.rows, "unit": "queries"}


class ScoreTaker:
    """Ready-made scores (query row, passage row, score) as scored candidates, one row a query."""

    def __init__(self, *, given: Parts, out: Folder) -> None:
        self.given, self.out = given, out

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        rows = pa.concat_tables(part for _, part in self.given.each())
        query_rows, doc_rows = rows["query_row"].to_numpy(), rows["doc_row"].to_numpy()
        scores = rows["score"].to_numpy().astype(np.float32)
        order = np.lexsort((doc_rows, -scores, query_rows))
        queries, starts = np.unique(query_rows[order], return_index=True)
        offsets = np.append(starts, len(order))
        for lo, hi in ranges(len(queries), 20_000):
            inside = order[offsets[lo] : offsets[hi]]
            cuts = pa.array(offsets[lo : hi + 1] - offsets[lo], pa.int32())
            docs = pa.ListArray.from_arrays(cuts, pa.array(doc_rows[inside], pa.int64()))
            teacher = pa.ListArray.from_arrays(cuts, pa.array(scores[inside]))
            columns = [pa.array(queries[lo:hi], pa.int64()), docs, teacher, teacher]
            self.out.write_table(part_name(lo, hi, "parquet"), pa.table(columns, schema=SCORED))
        return {"queries": len(queries), "pairs": len(order)}


@stage(version=1)
def take_scores(work: Work, *, data: Artifact) -> dict[str, Any]:
    """The ready-made teacher scores that came with the collection: each query's scored passages are its candidates.

    Passages by descending score, ties by row; the retriever's own score is not known and set to the teacher's.
    """
    results = work.cluster.map(
        ScoreTaker,
        {"given": table(data, "scores/train"), "out": work.shards},
        [{"name": "all", "rows": 1}],
        label=work.label,
        unit="tables",
        marks=work.shards / "attempts",
        inline=work.cluster.is_local,
        models=False,
    )
    return {"rows": results[0]["queries"], "unit": "queries", "pairs": results[0]["pairs"]}
