"""known: what a teacher's score book holds of the pairs that are asked for, found bucket by bucket on the actors.

Every actor takes some buckets: it reads the asked pairs, keeps those of its buckets, and looks for them in the book's
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
from raydrd.spine.scorebook import BUCKETS, ENTRIES, Book, buckets_of, digests, entries, keys_of
from raydrd.spine.storage import Folder
from raydrd.spine.store import Work

PLACES = 1 << 20  # a pair's place is its row times this, and its number among the row's pairs
PAIRS_PER_LOOKUP = 500_000  # asked pairs that an actor looks for at once: some 100 MB
ROWS_AT_ONCE = 500_000  # entries of the book that they are compared with at once
FEW_PAIRS = 200_000  # looked for in this process sooner than an actor starts
FOUND = pa.schema([("place", pa.int64()), ("score", pa.float32())])


@dataclass(frozen=True)
class Asked:
    """Pairs of texts by row: queries [N], one or two passages [N] each, and the pairs' places [N], ascending."""

    query_rows: NDArray[np.int64]
    doc_rows: tuple[NDArray[np.int64], ...]
    places: NDArray[np.int64]

    def at(self, chosen: NDArray[Any]) -> Asked:
        return Asked(self.query_rows[chosen], tuple(rows[chosen] for rows in self.doc_rows), self.places[chosen])


def pair_name(query_rows: NDArray[np.int64], doc_rows: tuple[NDArray[np.int64], ...], number: int) -> str:
    """A pair for a person: rows of the tables, as every stage counts them."""
    passages = " and ".join(str(int(rows[number])) for rows in doc_rows)
    return f"query row {int(query_rows[number])}, passage row {passages}"


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


def matches(wanted: NDArray[np.uint64], kept: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each row of `wanted` the first equal row of `kept`, -1 where there is none; both [.., 6], all columns compared.

    By sorted hashes: a hash table of whole keys takes several times the memory of the keys.
    """
    hashes = [_hash(keys) for keys in (wanted, kept)]
    order = np.argsort(hashes[1], kind="stable")
    ordered = hashes[1][order]
    at = np.searchsorted(ordered, hashes[0])
    found = np.full(len(wanted), -1)
    left = np.arange(len(wanted))
    while len(left):  # once, and again only for different keys of the same hash
        left = left[at[left] < len(order)]
        left = left[ordered[at[left]] == hashes[0][left]]
        rows = order[at[left]]
        equal = (wanted[left] == kept[rows]).all(axis=1)
        found[left[equal]] = rows[equal]
        left = left[~equal]
        at[left] += 1
    return found


def _hash(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 bits of each row. The numbers are parts of digests, so no more than telling the columns apart is needed."""
    result = np.zeros(len(keys), dtype=np.uint64)
    for column in keys.T:
        result = result * np.uint64(0x9E3779B97F4A7C15) + column  # any odd number; modulo 2^64
    return result


class Lookup:
    """Finds the asked pairs of some buckets in the book's files."""

    def __init__(self, *, asked: Parts, ask: Ask, queries: Parts, passages: Parts | Chain, book: Book, out: Folder) -> None:
        self.asked, self.ask, self.book, self.out = asked, ask, book, out
        self.keys = Keys(queries, passages)

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        lo, hi = shard["lo"], shard["hi"]
        mine = [self.keys.inside(self.ask(rows, part.lo), lo, hi) for part, rows in self.asked.each()]
        places = np.concatenate([np.zeros(0, np.int64), *(asked.places for asked in mine)])
        nothing = [self.keys.entries(asked, np.zeros(len(asked.places), np.float32)) for asked in mine]
        wanted = keys_of(pa.concat_tables([ENTRIES.empty_table(), *nothing]))
        del mine, nothing
        scores = np.zeros(len(places), dtype=np.float32)
        left = np.arange(len(places))  # not found so far: of scores that stand there twice the first file's counts
        for file in self.book.together(lo, hi, ROWS_AT_ONCE):
            rows = matches(wanted[left], keys_of(file))
            there = rows >= 0
            scores[left[there]] = file["score"].to_numpy()[rows[there]]
            left = left[~there]
        found = np.ones(len(places), dtype=bool)
        found[left] = False
        places, scores = places[found], scores[found]
        order = np.argsort(places)  # pairs asked both ways round come in two runs of places, and they are looked for by place
        self.out.write_arrow(shard["name"], pa.table([places[order], scores[order]], schema=FOUND))
        return {"found": len(places), "left": int((~found).sum())}


@dataclass(frozen=True)
class Known:
    """What was found, in files by bucket: a value that travels to the scoring actors."""

    folder: Folder
    names: tuple[str, ...]
    left: int | None = None  # asked pairs that the book lacks; None: not counted


def look_up(
    work: Work,
    *,
    asked: Parts,
    ask: Ask,
    pairs: int,
    queries: Parts,
    passages: Parts | Chain,
    book: Book,
    turn: str = "known",
) -> Known:
    """The scores that the book holds of the pairs that `asked` asks for.

    Looked up once for a stage (once a `turn`), also when it is resumed: so the pairs that are left are the same, and so are
    the batches that they are scored in.
    """
    out, done, left = work.shards / "scratch" / turn, f"scratch/{turn}/done.json", None
    if not work.shards.exists(done):
        count = min(BUCKETS, max(1, -(-pairs // PAIRS_PER_LOOKUP))) if book.files() else 0
        cuts = [BUCKETS * n // count for n in range(count + 1)] if count else []
        shards = [
            {"name": f"buckets-{lo:02d}-{hi:02d}.arrow", "lo": lo, "hi": hi, "rows": hi - lo}
            for lo, hi in zip(cuts, cuts[1:], strict=False)
        ]
        results = work.cluster.map(
            Lookup,
            {"asked": asked, "ask": ask, "queries": queries, "passages": passages, "book": book, "out": out},
            [shard for shard in shards if not out.exists(str(shard["name"]))],
            label=f"look up {work.label}",
            unit="buckets",
            marks=work.shards / "attempts",
            inline=pairs <= FEW_PAIRS,
            models=False,
        )
        left = sum(int(one["left"]) for one in results) if shards and len(results) == len(shards) else None
        work.shards.write_json(done, [shard["name"] for shard in shards])
    return Known(out, tuple(work.shards.read_json(done)), left)


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
