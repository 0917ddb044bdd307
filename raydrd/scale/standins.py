"""Stand-ins where a model is not the point: random vectors, and a teacher that reads its texts and says nothing sensible.

Both go the ways of the real ones: vectors are written in the parts that `embed` writes; the teacher's scores are looked up,
computed where missing and added to its book by the functions that `score_pairs` uses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.spine.parts import Chain, Parts, TokenReader, part_name, ranges
from raydrd.spine.scorebook import Book
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.spine.tables import vectors
from raydrd.stages.known import Keys, Known, KnownScores, look_up
from raydrd.stages.score import answer as ask_or_take
from raydrd.stages.score import asked_pairs, mean_depth, queries_per_shard, with_scores
from raydrd.stages.shards import parts_of, pending, total_counts, write_counted

ROWS_PER_DRAW = 65_536
# Not one teacher among others: whoever finds this book must see what it is.
ABOUT = {"kind": "stand-in of raydrd.scale: no model, its scores mean nothing"}


class VectorWriter:
    """Normal random numbers as float16, in parts of `rows_per_part`."""

    def __init__(self, *, width: int, rows_per_part: int, seed: int, out: Folder) -> None:
        self.width, self.size, self.seed, self.out = width, rows_per_part, seed, out

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, shard["lo"]])
        drawn = rng.standard_normal((shard["rows"], self.width), dtype=np.float32).astype(np.float16)
        for lo, hi in ranges(shard["rows"], self.size):
            column = pa.FixedSizeListArray.from_arrays(pa.array(drawn[lo:hi].ravel()), self.width)
            name = part_name(shard["lo"] + lo, shard["lo"] + hi, "arrow")
            self.out.write_arrow(name, pa.table([column], schema=vectors(self.width, "float16")))
        return {}


@stage(version=1)
def random_vectors(work: Work, *, rows: int, width: int, seed: int) -> dict[str, Any]:
    """Random float16 vectors [rows, width] in place of an encoder's."""
    size = work.cluster.resources.rows_per_shard or (16_384 if work.cluster.has_gpu else 2048)  # as `embed` cuts them
    work.cluster.map(
        VectorWriter,
        {"width": width, "rows_per_part": size, "seed": seed, "out": work.shards},
        [{"name": f"rows-{lo}", "lo": lo, "rows": hi - lo} for lo, hi in ranges(rows, -(-ROWS_PER_DRAW // size) * size)],
        label=work.label,
        unit="vectors",
        marks=work.shards / "attempts",
        models=False,
    )
    return {"rows": rows, "unit": "vectors", "width": width, "similarity": "dot"}


class StandIn:
    """Reads both texts of every pair, as a teacher does, and makes a number of them."""

    def __init__(self, *, queries: Parts, passages: Parts | Chain) -> None:
        self.queries, self.passages = TokenReader(queries), TokenReader(passages)

    def scores(self, query_rows: NDArray[np.int64], *doc_rows: NDArray[np.int64]) -> NDArray[np.float32]:
        texts = zip(self.queries.take(query_rows), self.passages.take(doc_rows[0]), strict=True)
        return np.array([(int(q.sum()) * 31 + int(p.sum())) % 10_007 / 1000 for q, p in texts], dtype=np.float32)


class Scoring:
    """`score.PairScorer` with the stand-in for its model."""

    def __init__(self, *, candidates: Parts, out: Folder, known: Known, book: Book, label: str, **texts: Any) -> None:
        self.scorer, self.known, self.keys = StandIn(**texts), KnownScores(known), Keys(**texts)
        self.candidates, self.out, self.book, self.label = candidates, out, book, label

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        candidates = self.candidates.slice(shard["lo"], shard["hi"])
        asked = asked_pairs(candidates, shard["lo"])
        scores = self.known.of(asked)
        name = f"{self.label}-{shard['name'].partition('.')[0]}"
        computed = ask_or_take(self.scorer, asked, scores, self.book, self.keys, name)
        counts = {"pairs": computed, "taken": len(scores) - computed}
        return write_counted(self.out, shard["name"], with_scores(candidates, scores), **counts)


@stage(version=1)
def score_by_standin(work: Work, *, candidates: Artifact, query_tokens: Artifact, passage_tokens: Artifact) -> dict[str, Any]:
    """Candidates with the stand-in's scores: those in its book are taken, the others made and added."""
    pool = parts_of(candidates)
    texts: dict[str, Any] = {"queries": parts_of(query_tokens), "passages": parts_of(passage_tokens)}
    book = Book.of(work.root, ABOUT)
    known = look_up(work, asked=pool, ask=asked_pairs, pairs=int(pool.rows * mean_depth(pool)), book=book, **texts)
    work.cluster.map(
        Scoring,
        {"candidates": pool, "out": work.shards, "known": known, "book": book, "label": work.id, **texts},
        pending(work, pool.rows, queries_per_shard(work, pool), "parquet"),
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        models=False,
    )
    return {"rows": pool.rows, "unit": "queries", **total_counts(work, "pairs", "taken")}
