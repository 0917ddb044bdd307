"""known: what a teacher's score book holds of the pairs that are asked for, found bucket by bucket on the actors.

Every actor takes some buckets: it reads the asked pairs, keeps those of its buckets, and joins them with the book's
files. What it finds is written by place (row and number of a pair), so that a scoring shard reads its own stretch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.spine.parts import Chain, Parts, TokenReader
from raydrd.spine.scorebook import BUCKETS, KEY, Book, buckets_of, digests, entries
from raydrd.spine.storage import Folder
from raydrd.spine.store import Work

PLACES = 1 << 20  # a pair's place is its row times this, and its number among the row's pairs
PAIRS_PER_LOOKUP = 2_000_000  # asked pairs that an actor joins at once: some 300 MB
FEW_PAIRS = 200_000  # joined in this process sooner than an actor starts
FOUND = pa.schema([("place", pa.int64()), ("score", pa.float32())])
DONE = "scratch/known/done.json"


@dataclass(frozen=True)
class Asked:
    """Pairs of texts by row: queries [N], one or two passages [N] each, and the pairs' places [N], ascending."""

    query_rows: NDArray[np.int64]
    doc_rows: tuple[NDArray[np.int64], ...]
    places: NDArray[np.int64]

    def at(self, chosen: NDArray[Any]) -> Asked:
        return Asked(self.query_rows[chosen], tuple(rows[chosen] for rows in self.doc_rows), self.places[chosen])


Ask = Callable[[pa.Table, int], Asked]  # rows of a table, and the number of the first -> what they ask for


def places_of(counts: NDArray[np.int64], lo: int) -> NDArray[np.int64]:
    """Places of `counts` pairs in each of the rows lo, lo + 1, ..."""
    starts = np.cumsum(counts) - counts
    return np.repeat((lo + np.arange(len(counts))) * PLACES - starts, counts) + np.arange(int(counts.sum()))


class Keys:
    """Digests of texts by row, each text digested once a call."""

    def __init__(self, queries: Parts, passages: Parts | Chain) -> None:
        self.queries, self.passages = TokenReader(queries), TokenReader(passages)

    @staticmethod
    def _of(reader: TokenReader, rows: NDArray[np.int64]) -> pa.Array:
        distinct, where = np.unique(rows, return_inverse=True)
        return digests(reader.take(distinct)).take(pa.array(where))

    def entries(self, asked: Asked, scores: NDArray[np.float32]) -> pa.Table:
        """Scores of asked pairs as a book keeps them."""
        left, *right = (self._of(self.passages, rows) for rows in asked.doc_rows)
        return entries(self._of(self.queries, asked.query_rows), left, right[0] if right else None, scores)

    def inside(self, asked: Asked, lo: int, hi: int) -> Asked:
        """Of these pairs, those in the buckets lo..hi-1."""
        if (lo, hi) == (0, BUCKETS):
            return asked
        buckets = buckets_of(self._of(self.queries, asked.query_rows))
        return asked.at((buckets >= lo) & (buckets < hi))


class Lookup:
    """Joins the asked pairs of some buckets with the book's files."""

    def __init__(self, *, asked: Parts, ask: Ask, queries: Parts, passages: Parts | Chain, book: Book, out: Folder) -> None:
        self.asked, self.ask, self.book, self.out = asked, ask, book, out
        self.keys = Keys(queries, passages)

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        tables = []
        for part, rows in self.asked.each():
            asked = self.keys.inside(self.ask(rows, part.lo), shard["lo"], shard["hi"])
            none = np.zeros(len(asked.places), dtype=np.float32)
            tables.append(self.keys.entries(asked, none).drop(["score"]).append_column("place", pa.array(asked.places)))
        wanted = pa.concat_tables(tables)
        found = [FOUND.empty_table()]
        for file in self.book.each(shard["lo"], shard["hi"]):
            joined = wanted.join(file, keys=KEY, join_type="inner", use_threads=False)
            found.append(joined.select(FOUND.names).cast(FOUND))
        places = pa.concat_tables(found)
        # Of scores that stand there twice the first file's counts: np.unique gives the first place of each.
        _, first = np.unique(places["place"].to_numpy(), return_index=True)
        self.out.write_arrow(shard["name"], places.take(pa.array(first)))
        return {"found": len(first)}


@dataclass(frozen=True)
class Known:
    """What was found, in files by bucket: a value that travels to the scoring actors."""

    folder: Folder
    names: tuple[str, ...]


def look_up(work: Work, *, asked: Parts, ask: Ask, pairs: int, queries: Parts, passages: Parts | Chain, book: Book) -> Known:
    """The scores that the book holds of the pairs that `asked` asks for.

    Looked up once for a stage, also when it is resumed: so the pairs that are left are the same, and so are the batches
    that they are scored in.
    """
    out = work.shards / "scratch" / "known"
    if not work.shards.exists(DONE):
        count = min(BUCKETS, max(1, -(-pairs // PAIRS_PER_LOOKUP))) if book.files() else 0
        cuts = [BUCKETS * n // count for n in range(count + 1)] if count else []
        shards = [
            {"name": f"buckets-{lo:02d}-{hi:02d}.arrow", "lo": lo, "hi": hi, "rows": hi - lo}
            for lo, hi in zip(cuts, cuts[1:], strict=False)
        ]
        work.cluster.map(
            Lookup,
            {"asked": asked, "ask": ask, "queries": queries, "passages": passages, "book": book, "out": out},
            [shard for shard in shards if not out.exists(str(shard["name"]))],
            label=f"look up {work.label}",
            unit="buckets",
            marks=work.shards / "attempts",
            inline=pairs <= FEW_PAIRS,
            models=False,
        )
        work.shards.write_json(DONE, [shard["name"] for shard in shards])
    return Known(out, tuple(work.shards.read_json(DONE)))


class KnownScores:
    """Found scores by place, memory-mapped."""

    def __init__(self, known: Known) -> None:
        self.columns = []
        for name in known.names:
            table = known.folder.map_arrow(name)
            self.columns.append((table["place"].to_numpy(), table["score"].to_numpy()))

    def of(self, asked: Asked) -> NDArray[np.float32]:
        """The known score of each asked pair, NaN where there is none."""
        scores = np.full(len(asked.places), np.nan, dtype=np.float32)
        if not len(asked.places):
            return scores
        for places, found in self.columns:
            stretch = slice(*np.searchsorted(places, [asked.places[0], asked.places[-1] + 1]))
            at = np.minimum(np.searchsorted(asked.places, places[stretch]), len(scores) - 1)
            ours = asked.places[at] == places[stretch]
            scores[at[ours]] = found[stretch][ours]
        return scores
