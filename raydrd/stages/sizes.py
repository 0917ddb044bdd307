"""sizes: stored vectors at every width and number type, by the indexes they would ship in: bytes, metrics, search time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.metrics import judged, means, per_query
from raydrd.rounds import alternate
from raydrd.spine.parts import Parts, matrix, ranges
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.spine.tables import CANDIDATES
from raydrd.stages.cutting import cut
from raydrd.stages.index import TRAINING_VECTORS, sample
from raydrd.stages.indexfile import FACTORIES, NumberType, made
from raydrd.stages.load import table
from raydrd.stages.lookup import best_of
from raydrd.stages.recall import one_thread
from raydrd.stages.shards import parts_of

MOST_QUERIES = 1000
TIMED_QUERIES = 64  # one after the other
ROUNDS = 15  # of timing, at most ..
TIMED_ROWS = 250_000  # .. and so many that a query looks at about as many passages in all of them
BLOCK = 50_000  # passages that are in memory at a time: some 200 MB of 384 dimensions, in all sizes together
FEW_ROWS = 100_000
HALVED = 4  # widths that are measured where the student names none: its own, a half, a quarter, an eighth


@dataclass
class Size:
    """One width and number type: an index that holds one block at a time, and what its queries [Q, dim] found so far."""

    dim: int
    type: NumberType
    index: Any
    asked: NDArray[np.float32]
    scores: NDArray[np.float32]
    rows: NDArray[np.int64]
    seconds: float = 0.0  # of a query, over all blocks

    @property
    def name(self) -> str:
        return f"{self.dim} {self.type}"

    def search(self, block: NDArray[np.float32], lo: int, k: int) -> None:
        """Look at passages lo, lo + 1, ...; of equal scores the earlier row wins."""
        self.index.reset()
        self.index.add(block)
        scores, rows = best_of(self.index, self.asked, k)
        scores = np.concatenate([self.scores, scores], axis=1)
        rows = np.concatenate([self.rows, rows + lo], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        self.scores, self.rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)

    def one_by_one(self, k: int) -> None:
        """What is timed: queries as they come to a server of one thread."""
        for query in self.asked[:TIMED_QUERIES]:
            self.index.search(query[None], k)


def widths(width: int, dims: list[int] | None, also: int | None) -> list[int]:
    """The widths to measure, falling: the named ones, else the whole and its halves while they are whole bytes of bits."""
    halves = [width >> n for n in range(HALVED) if n == 0 or width % (8 << n) == 0]
    return sorted({width, *(dims or halves), *([also] if also else [])}, reverse=True)


class Sizer:
    """All sizes at once, block by block of passages: memory does not grow with the corpus."""

    def __init__(
        self,
        *,
        passages: Parts,
        vectors: Parts,
        queries: Parts,
        dims: list[int],
        normalize: bool,
        metrics: tuple[str, ...],
        k: int,
        out: Folder,
    ) -> None:
        self.passages, self.vectors, self.queries, self.dims = passages, vectors, queries, dims
        self.normalize, self.metrics, self.k, self.out = normalize, metrics, k, out

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        every = pa.concat_tables(part for _, part in self.queries.each())
        rows = judged(every)
        if len(rows) > MOST_QUERIES:
            rows = rows[np.linspace(0, len(rows) - 1, MOST_QUERIES).astype(np.int64)]
        sizes = self._opened(matrix(self.vectors.take(rows, ["vector"])))
        blocks = ranges(self.passages.rows, BLOCK)
        for lo, hi in blocks:
            stored = matrix(self.passages.slice(lo, hi, ["vector"]))
            for dim in self.dims:
                block = cut(stored, dim, normalize=self.normalize)
                for one in sizes:
                    if one.dim == dim:
                        one.search(block, lo, self.k)
            contestants: dict[str, Callable[[], None]] = {one.name: partial(one.one_by_one, self.k) for one in sizes}
            with one_thread():
                found = alternate(contestants, max(1, min(ROUNDS, TIMED_ROWS // self.passages.rows)))
            for one in sizes:
                one.seconds += found.median(one.name) / min(TIMED_QUERIES, len(rows))
        return {"queries": len(rows), "sizes": self._measured(sizes, every.take(pa.array(rows)), rows)}

    def _opened(self, asked: NDArray[np.floating]) -> list[Size]:
        """Trained indexes, with nothing in them."""
        seen = sample(self.passages, TRAINING_VECTORS)
        found = []
        for dim in self.dims:
            queries, learnt = (cut(one, dim, normalize=self.normalize) for one in (asked, seen))
            for type_, factory in FACTORIES.items():
                if type_ == "binary" and dim % 8:
                    continue
                index = made(factory, dim)
                if not index.is_trained:
                    index.train(learnt)
                nothing = np.empty((len(asked), 0))
                found.append(Size(dim, type_, index, queries, nothing.astype(np.float32), nothing.astype(np.int64)))
        return found

    def _measured(self, sizes: list[Size], queries: pa.Table, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Numbers of each size; metrics by query are written beside."""
        tables, told = [], []
        for one in sizes:
            run = pa.table([np.arange(len(rows)), list(one.rows), list(one.scores)], schema=CANDIDATES)
            values = per_query(run, queries, metrics=self.metrics)
            about = {"dim": one.dim, "type": one.type, "bytes": int(one.index.sa_code_size()), "ms": 1e3 * one.seconds}
            told.append({**about, "means": means(values)})
            named = {"dim": [one.dim] * len(rows), "type": [one.type] * len(rows), "query_row": rows}
            columns = {name: values[name] for name in values.column_names if name != "query_row"}
            tables.append(pa.table({**named, **columns}))
        self.out.write_table("by_query.parquet", pa.concat_tables(tables))
        return told


@stage(version=1)
def measure_sizes(
    work: Work,
    *,
    passages: Artifact,
    queries: Artifact,
    data: Artifact,
    name: str,
    dims: list[int] | None,
    also: int | None,
    normalize: bool,
    metrics: list[str],
    k: int,
) -> dict[str, Any]:
    """Bytes a passage, metrics on the queries of table `name` and milliseconds a query of every width and number type.

    At most 1,000 judged queries, evenly spaced; milliseconds on one thread, a query at a time, in alternating rounds.

    Args:
        passages, queries: whole vectors. dims: widths to measure, None: the whole and its halves. also: one more.
    """
    p = parts_of(passages)
    chosen = widths(int(passages.metrics["width"]), dims, also)
    results = work.cluster.map(
        Sizer,
        {
            "passages": p, "vectors": parts_of(queries), "queries": table(data, name), "dims": chosen, "normalize": normalize,
            "metrics": tuple(metrics), "k": k, "out": work.folder,
        },
        [{"name": "sizes", "rows": p.rows}],
        label=work.label,
        unit="passages",
        marks=work.shards / "attempts",
        inline=p.rows <= FEW_ROWS,
        models=False,
    )  # fmt: skip
    return {"rows": int(results[0]["queries"]), "unit": "queries", "passages": p.rows, "sizes": results[0]["sizes"]}
