"""How an exact search is cut when the corpus is large: ranges of passages x spans of queries, and their partial results.

A range is read once for a whole span of queries. What it found lies under `scratch/` until the ranges are merged, one
record batch for every block of queries, so that a merge reads only the queries it is about.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.spine.parts import Part, ranges
from raydrd.spine.storage import Folder

RANGE_BYTES = 256 << 20  # stored vectors of a range, where partial results leave the choice
PARTIAL_BYTES = 8 << 30  # most bytes of partial results that are kept for a choice of ranges
SHARD_PRODUCTS = 2 * 10**12  # query-passage-dimension products a shard: 55 s of one core (37 G/s measured), 8 s of eight
GPU_FACTOR = 100  # a GPU's shard, in products of a CPU's
MOST_SHARDS = 10_000  # partial files of one search: beyond that shards grow
RESULT_BYTES = 12  # of one found passage: its row and its score
SPAN_BYTES = 256 << 20  # queries of a span with the passages that are held for them: three times k while it is searched


@dataclass(frozen=True)
class Spread:
    """Passage rows lo..hi-1 of each range, how many queries a shard holds, and how many of them are multiplied at a time."""

    ranges: tuple[tuple[int, int], ...]
    span: int
    block: int

    def name(self, passages: tuple[int, int], span: tuple[int, int]) -> str:
        """The partial file of a range and a span of queries: a name that is no part's."""
        return f"rows-{passages[0]:012d}-{passages[1]:012d}-queries-{span[0]:012d}-{span[1]:012d}.arrow"


def cut(parts: tuple[Part, ...], count: int) -> tuple[tuple[int, int], ...]:
    """At most `count` row ranges of about the same size, each of whole parts."""
    rows = parts[-1].hi if parts else 0
    edges = sorted({min((p.hi for p in parts), key=lambda hi: abs(hi - rows * n / count)) for n in range(1, count)} | {0, rows})
    return tuple(zip(edges[:-1], edges[1:], strict=True))


def plan_spread(parts: tuple[Part, ...], *, stored: int, queries: int, width: int, k: int, block: int, gpu: bool) -> Spread:
    """Ranges and spans from sizes alone.

    As many ranges as keep each at `RANGE_BYTES`, but no more than `PARTIAL_BYTES` of partial results allow; never so
    few that one block of queries against a range is more than a shard's work.

    Args:
        parts: of the passages.
        stored: bytes of all passage vectors as they lie in the store.
        block: queries multiplied at a time; a span is a multiple of it.
    """
    rows = parts[-1].hi if parts else 0
    shard = max(SHARD_PRODUCTS * (GPU_FACTOR if gpu else 1), queries * rows * width // MOST_SHARDS)
    affordable = PARTIAL_BYTES // max(1, RESULT_BYTES * queries * min(k, rows))
    count = max(
        min(-(-stored // RANGE_BYTES), affordable),
        -(-min(queries, block) * rows * width // shard),
        1,
    )
    found = cut(parts, count)
    longest = max((hi - lo for lo, hi in found), default=1)
    queries_held = SPAN_BYTES // (3 * RESULT_BYTES * k + 4 * width)
    span = min(shard // max(1, longest * width), queries_held)
    return Spread(found, max(1, span // block) * block, block)


def agreed(scratch: Folder, spread: Spread) -> Spread:
    """The plan that this search was begun with, also when it goes on elsewhere: partial files are named by it."""
    scratch.create("spread.json", json.dumps(asdict(spread)).encode())
    known = scratch.read_json("spread.json")
    return Spread(tuple((lo, hi) for lo, hi in known["ranges"]), known["span"], known["block"])


def missing_partials(spread: Spread, scratch: Folder, queries: int, wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Shards whose partial results are not there yet, for the queries of the `wanted` shards; range by range, so that
    an actor's next shard mostly has the range of its last one."""
    there = set(scratch.files())
    spans = [s for s in ranges(queries, spread.span) if any(w["lo"] < s[1] and w["hi"] > s[0] for w in wanted)]
    shards = []
    for first, last in spread.ranges:
        for lo, hi in spans:
            name = spread.name((first, last), (lo, hi))
            if name not in there:
                scores = max(1, (hi - lo) * (last - first) // 10**6)  # in millions, for the bar
                shard = {"name": name, "lo": lo, "hi": hi, "first": first, "last": last}
                shards.append({**shard, "block": spread.block, "rows": scores})
    return shards


def write_partial(out: Folder, name: str, found: Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]) -> None:
    """Rows and scores [Q, k] of one block of queries after the other, best first; a record batch each."""
    with out.writing(name) as stream:
        writer: Any = None
        for rows, scores in found:
            columns = [
                pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind), rows.shape[1])
                for values, kind in ((rows, pa.int64()), (scores, pa.float32()))
            ]
            batch = pa.record_batch(columns, names=["doc_rows", "scores"])
            writer = writer or pa.ipc.new_file(stream, batch.schema)
            writer.write_batch(batch)
        writer.close()


def read_partial(
    out: Folder, spread: Spread, passages: tuple[int, int], lo: int, hi: int, queries: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What a range found for queries lo..hi-1: rows and scores, [hi - lo, k]. Reads the batches that hold them."""
    rows, scores, block = [], [], spread.block
    for a in range(lo // spread.span * spread.span, hi, spread.span):
        b = min(a + spread.span, queries)
        with out.reading(spread.name(passages, (a, b))) as stream:
            file = pa.ipc.open_file(stream)
            for at in range(max(lo - a, 0) // block * block, min(hi, b) - a, block):
                batch = file.get_batch(at // block)
                batch = batch.slice(max(0, lo - a - at), min(hi - a - at, batch.num_rows) - max(0, lo - a - at))
                k = batch.schema.field("doc_rows").type.list_size
                rows.append(batch.column("doc_rows").flatten().to_numpy().reshape(-1, k))
                scores.append(batch.column("scores").flatten().to_numpy().reshape(-1, k))
    return np.concatenate(rows), np.concatenate(scores)
