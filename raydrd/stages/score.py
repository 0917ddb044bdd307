"""score: a teacher's raw logits for candidates."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.models.layout import describe_reranker, folder_digest
from raydrd.models.prompts import Prompt
from raydrd.spine.parts import Chain, Parts, VectorReader, part_name, ranges
from raydrd.spine.precision import Precision
from raydrd.spine.scorebook import Book
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Located, Work, canonical, stage
from raydrd.spine.tables import SCORED
from raydrd.stages.engine import fill_book
from raydrd.stages.known import Asked, Keys, Known, KnownScores, look_up, pair_name, places_of
from raydrd.stages.load import table
from raydrd.stages.scorers import Scorer, open_scorer
from raydrd.stages.shards import chain_of, parts_of, pending, total_counts, write_counted


def queries_per_shard(work: Work, candidates: Parts) -> int:
    """Shards of half a minute or so: what a killed run loses at most, and how often the bar moves."""
    pairs = work.cluster.resources.pairs_per_shard or (65_536 if work.cluster.has_gpu else 4096)
    return max(1, int(pairs / max(1.0, mean_depth(candidates))))


def mean_depth(candidates: Parts) -> float:
    """Passages a query, by the first part.

    One query says little: lists of a ready-made run, or of dark examples, differ in length, and some are empty.
    """
    lists = candidates.read(candidates.parts[0], ["doc_rows"])["doc_rows"].combine_chunks()
    return len(lists.flatten()) / max(1, len(lists))


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


@stage(version=2)
def import_teacher(
    work: Work, *, source: Located, layers: int | None = None, new_head: bool = False, seed: int = 0
) -> dict[str, Any]:
    """A reranker's files in the store, so that every worker finds them there; cut, or with a new head, if asked."""
    if layers is not None or new_head:
        import tempfile

        from raydrd.models.rerankers import make_reranker, save_reranker

        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            save_reranker(make_reranker(source.where, layers=layers, seed=seed), folder, tokenizer_from=source.where)
            work.folder.upload(Path(scratch))
            return {"rows": 1, "unit": "model", **describe_reranker(folder), "weights": folder_digest(folder)}
    for file in sorted(p for p in source.where.iterdir() if p.suffix in (".safetensors", ".json", ".txt", ".model", ".jinja")):
        with (work.folder / "model").writing(file.name) as target, file.open("rb") as data:
            shutil.copyfileobj(data, target, 1 << 22)
    return {"rows": 1, "unit": "model", **describe_reranker(source.where)}


class PairScorer:
    """Scores blocks of candidates with one teacher: what its book knew is taken, what is computed is added to the book."""

    def __init__(
        self, *, candidates: Parts, out: Folder, kind: str, model: Folder, known: Known, book: Book, label: str, **more: Any
    ) -> None:
        self.scorer = open_scorer(kind, model, **more)
        self.candidates, self.out, self.book, self.label = candidates, out, book, label
        self.known, self.keys = KnownScores(known), Keys(more["queries"], more["passages"])

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        candidates = self.candidates.slice(shard["lo"], shard["hi"])
        asked = asked_pairs(candidates, shard["lo"])
        scores = self.known.of(asked)
        computed = answer(self.scorer, asked, scores, self.book, self.keys, f"{self.label}-{shard['name'].partition('.')[0]}")
        counts = {"pairs": computed, "taken": len(scores) - computed}
        return write_counted(self.out, shard["name"], with_scores(candidates, scores), **counts)


def asked_pairs(candidates: pa.Table, lo: int) -> Asked:
    """Every pair of these candidates, which begin at row `lo`."""
    query_rows, doc_rows = flat(candidates)
    counts = candidates["doc_rows"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
    return Asked(query_rows, (doc_rows,), places_of(counts, lo))


def answer(scorer: Scorer, asked: Asked, scores: NDArray[np.float32], book: Book, keys: Keys, name: str) -> int:
    """Fill in what is NaN in `scores` by asking the teacher, and add it to the book as file `name`; how many there were.

    The book is written before the shard: a run killed in between repeats a shard, and no score is lost to others.

    Raises:
        ValueError: the teacher gave a score that is not finite.
    """
    missing = np.isnan(scores)
    if missing.any():
        left = asked.at(missing)
        scores[missing] = scorer.scores(left.query_rows, *left.doc_rows)
        if not np.isfinite(scores).all():
            row = int(np.isfinite(scores).argmin())
            name = pair_name(asked.query_rows, asked.doc_rows, row)
            raise ValueError(f"the teacher gave {scores[row]} for {name}; try precision: fp32")
        book.add(name, keys.entries(left, scores[missing]))
    return int(missing.sum())


def book_of(work: Work, teacher: Located, about: dict[str, Any]) -> Book:
    """The teacher's book in this store. `about`: what besides its weights and tokenizer decides its scores."""
    return Book.of(work.root, {"weights": teacher.digest or teacher.identity, **about})


@stage(version=1)
def score_pairs(
    work: Work,
    *,
    candidates: Artifact,
    query_tokens: Artifact,
    passage_tokens: Artifact | list[Artifact],
    teacher: Located,
    max_length: int,
    precision: Precision,
    kind: str = "cross_encoder",
    prompt: Prompt | None = None,
    engine: str = "transformers",
) -> dict[str, Any]:
    """Candidates with a reranker's raw scores. `teacher.where` is the folder of its files.

    What any run of this store has asked this teacher before is taken from its score book.
    """
    pool = parts_of(candidates)
    texts: dict[str, Any] = {"queries": parts_of(query_tokens), "passages": chain_of(passage_tokens)}
    book = book_of(work, teacher, about_scores(kind, prompt, max_length, precision, engine))
    wanted: dict[str, Any] = {"asked": pool, "ask": asked_pairs, "pairs": int(pool.rows * mean_depth(pool)), "book": book}
    answered = 0
    if engine != "transformers":
        assert prompt is not None
        answered = fill_book(
            work, **wanted, **texts, model=teacher.where, prompt=prompt, max_length=max_length, precision=precision
        )
    known = look_up(work, **wanted, **texts)
    results = work.cluster.map(
        PairScorer,
        {
            "kind": kind if engine == "transformers" else "answered",
            "prompt": prompt,
            "known": known,
            "book": book,
            "label": work.id,
            "model": teacher.where,
            "candidates": pool,
            **texts,
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
    # The rate is this attempt's.
    computed, busy = sum(r["pairs"] for r in results), sum(r["busy_seconds"] for r in results)
    rate = computed / busy if busy and computed else None
    total = total_counts(work, "pairs", "taken")
    total = {"pairs": total["pairs"] + answered, "taken": total["taken"] - answered}
    return {"rows": pool.rows, "unit": "queries", **total, "per_second": rate}


def about_scores(
    kind: str, prompt: Prompt | None, max_length: int, precision: Precision, engine: str = "transformers"
) -> dict[str, Any]:
    """What besides weights and tokenizer decides a score, and enters the name of a teacher's book.

    Two engines' scores differ in their last bits, or in bf16 by more, so that a list must not be put together from both.
    """
    other = {} if engine == "transformers" else {"engine": engine}
    return {"kind": kind, "prompt": canonical(prompt), "max_length": max_length, "precision": precision, **other}


class VectorScorer:
    """A bi-encoder teacher: inner products of vectors that are already stored."""

    def __init__(self, *, candidates: Parts, queries: Parts, passages: Parts | Chain, out: Folder) -> None:
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
        return write_counted(self.out, shard["name"], with_scores(candidates, scores), pairs=len(doc_rows))


@stage(version=1)
def score_vectors(
    work: Work, *, candidates: Artifact, queries: Artifact, passages: Artifact | list[Artifact]
) -> dict[str, Any]:
    """Candidates with a bi-encoder teacher's inner products."""
    pool = parts_of(candidates)
    work.cluster.map(
        VectorScorer,
        {"candidates": pool, "queries": parts_of(queries), "passages": chain_of(passages), "out": work.shards},
        pending(work, pool.rows, 4096, "parquet"),
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=pool.rows <= 20_000,
        models=False,
    )
    return {"rows": pool.rows, "unit": "queries", **total_counts(work, "pairs")}


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
