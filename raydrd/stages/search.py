"""search: exact blocked top-k over sharded vectors, merging of sources; candidates by descending score, ties by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.errors import InputError
from raydrd.spine.parts import Parts, matrix, ranges
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.spine.tables import CANDIDATES
from raydrd.stages.shards import parts_of, pending
from raydrd.stages.spread import Spread, agreed, missing_partials, plan_spread, read_partial, write_partial

QUERY_BLOCK = 1024  # queries multiplied at a time: 1024 x 20,000 float32 scores are 80 MB
RUN = 64  # columns whose greatest score is compared first
MOST_COLUMNS = 65_536  # passages compared at a time, where parts are larger than that
GPU_HELD_BYTES = 1 << 30  # passage vectors that stay on a GPU between shards
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


def above(scores_QN: Any, least_Q: Any) -> tuple[Any, Any]:
    """Queries and columns of all scores greater than their query's least, by query, then by column.

    The greatest of each run of columns is found in a tenth of the time in which all are compared, and few runs hold any.
    """
    import torch

    even = scores_QN.shape[1] // RUN * RUN
    query, run = (scores_QN[:, :even].unflatten(1, (-1, RUN)).amax(2) > least_Q[:, None]).nonzero(as_tuple=True)
    columns = run[:, None] * RUN + torch.arange(RUN, device=run.device)
    which, inside = (scores_QN[query[:, None], columns] > least_Q[query][:, None]).nonzero(as_tuple=True)
    query, column = query[which], columns[which, inside]
    if even == scores_QN.shape[1]:
        return query, column
    more, last = (scores_QN[:, even:] > least_Q[:, None]).nonzero(as_tuple=True)
    query, column = torch.cat([query, more]), torch.cat([column, last + even])
    query, order = query.sort(stable=True)
    return query, column[order]


def merge(lists: list[tuple[Any, Any]], k: int) -> tuple[Any, Any]:
    """Ranked lists a query (values and rows, [Q, any] each) as one; rows ascend from list to list, so ties keep the earlier."""
    import torch

    values = torch.cat([one[0] for one in lists], dim=1)
    rows = torch.cat([one[1] for one in lists], dim=1)
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


class Best:
    """The k best passages so far of a block of queries; passages come in the order of their rows.

    What lives long lies in two buffers made at the start: kept as a list that grows and is merged, it tears holes into
    the heap, and memory grows with the corpus (measured: 310 to 620 MB from 100,000 to 1,000,000 passages).
    """

    def __init__(self, queries_QD: Any, k: int) -> None:
        import torch

        self.queries_QD, self.k = queries_QD, k
        # First what is settled, best first, then what was found since, in the order of rows: [Q, 3 k] holds any `add`.
        self.values = torch.empty((len(queries_QD), 3 * k), device=queries_QD.device)
        self.rows = torch.empty(self.values.shape, dtype=torch.int64, device=queries_QD.device)
        self.held = 0  # columns of them that are filled
        self.settled = False  # whether the k-th column is the k-th best value of some time ago

    def add(self, scores_QN: Any, lo: int) -> None:
        """Scores of passages lo, lo + 1, ... Of equal ones the earlier row wins: what does not beat the k-th is out."""
        if not (self.settled and self._take(scores_QN, lo)):
            values, columns = top_k(scores_QN, min(self.k, scores_QN.shape[1]))
            self._hold(values, columns + lo)

    def _take(self, scores_QN: Any, lo: int) -> bool:
        """Hold those that beat the k-th, in the order of their rows: mostly few, and picking them is cheaper than sorting all.

        Returns:
            False where a query has more than k of them; then nothing is held.
        """
        import torch

        query, column = above(scores_QN, self.values[:, self.k - 1])
        count_Q = torch.bincount(query, minlength=len(scores_QN))
        wide = int(count_Q.max())
        if wide > self.k:
            return False
        if wide:
            place = torch.arange(len(query), device=query.device) - (count_Q.cumsum(0) - count_Q)[query]
            values = torch.full((len(scores_QN), wide), -torch.inf, device=scores_QN.device)
            rows = torch.zeros(values.shape, dtype=torch.int64, device=scores_QN.device)
            values[query, place] = scores_QN[query, column]
            rows[query, place] = column + lo
            self._hold(values, rows)
        return True

    def _hold(self, values: Any, rows: Any) -> None:
        wide = values.shape[1]
        self.values[:, self.held : self.held + wide] = values
        self.rows[:, self.held : self.held + wide] = rows
        self.held += wide
        if self.held >= self.k * (2 if self.settled else 1):
            self.settle()

    def settle(self) -> tuple[Any, Any]:
        """Values and rows, [Q, k] each (fewer where there are fewer passages), best first."""
        values, rows = merge([(self.values[:, : self.held], self.rows[:, : self.held])], self.k)
        self.held = values.shape[1]
        self.values[:, : self.held], self.rows[:, : self.held] = values, rows
        self.settled = self.held == self.k
        return self.values[:, : self.held], self.rows[:, : self.held]


class Searcher:
    """Queries against passages, part by part; memory holds one part's scores at a time and what is best so far.

    Vectors are read, used and let go, except that a GPU keeps those of one range for the next shard.
    """

    def __init__(self, *, queries: Parts, passages: Parts, out: Folder, k: int) -> None:
        from raydrd.models.devices import this_device

        self.device = this_device()
        self.queries, self.passages, self.out, self.k = queries, passages, out, k
        self.room = GPU_HELD_BYTES if self.device.type == "cuda" else 0
        self.kept: dict[int, Any] = {}  # passage vectors on the device by their first row, of the range of the last shard
        self.range = (0, 0)
        self.scores: Any = None

    def tiles(self, first: int, last: int) -> Iterator[tuple[int, Any]]:
        """(first row, float32 vectors on the device) of passages first..last-1, in order."""
        if self.range != (first, last):
            self.range, self.kept = (first, last), {}
        for part in self.passages.parts:
            if part.hi <= first or part.lo >= last:
                continue
            read: Any = None
            for lo in range(part.lo, part.hi, MOST_COLUMNS):
                tile = self.kept.get(lo)
                if tile is None:
                    read = matrix(self.passages.read(part)) if read is None else read
                    tile = self._on_device(read[lo - part.lo : lo - part.lo + MOST_COLUMNS])
                    if sum(one.nbytes for one in self.kept.values()) + tile.nbytes <= self.room:
                        self.kept[lo] = tile
                yield lo, tile

    def compared(self, queries_QD: Any, passages_ND: Any) -> Any:
        """Scores [Q, N], in memory that the next ones take: freed and asked for again, it would grow with the corpus."""
        import torch

        shape = len(queries_QD), len(passages_ND)
        if self.scores is None or self.scores.numel() < shape[0] * shape[1]:
            self.scores = torch.empty(shape[0] * shape[1], device=self.device)
        return torch.mm(queries_QD, passages_ND.T, out=self.scores[: shape[0] * shape[1]].view(shape))

    def _on_device(self, stored: NDArray[np.floating]) -> Any:
        import torch

        return torch.from_numpy(np.array(stored)).to(self.device).to(torch.float32)

    def found(self, lo: int, hi: int, first: int, last: int, block: int) -> Iterator[tuple[Any, Any]]:
        """Rows and scores of queries lo..hi-1, block by block, among passages first..last-1."""
        stored = matrix(self.queries.slice(lo, hi, ["vector"]))
        k = min(self.k, last - first)
        blocks = [Best(self._on_device(stored[a:b]), k) for a, b in ranges(hi - lo, block)]
        for row, tile in self.tiles(first, last):
            for best in blocks:
                best.add(self.compared(best.queries_QD, tile), row)
        for best in blocks:
            values, rows = best.settle()
            yield rows.cpu().numpy(), values.cpu().numpy()

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        lo, hi = shard["lo"], shard["hi"]
        if "first" in shard:
            write_partial(self.out, shard["name"], self.found(lo, hi, shard["first"], shard["last"], shard["block"]))
        else:
            rows, scores = next(self.found(lo, hi, 0, self.passages.rows, hi - lo))
            write_candidates(self.out, shard["name"], np.arange(lo, hi), rows, scores)
        return {}


class Merger:
    """What the ranges found, one range after the other in the order of their rows, as candidates."""

    def __init__(self, *, spread: Spread, scratch: Folder, queries: int, out: Folder, k: int) -> None:
        self.spread, self.scratch, self.queries, self.out, self.k = spread, scratch, queries, out, k

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        import torch

        lo, hi = shard["lo"], shard["hi"]
        lists: list[tuple[Any, Any]] = []
        for one in self.spread.ranges:
            rows, scores = read_partial(self.scratch, self.spread, one, lo, hi, self.queries)
            lists = [merge([*lists, (torch.from_numpy(scores), torch.from_numpy(rows))], self.k)]
        values, found = lists[0]
        write_candidates(self.out, shard["name"], np.arange(lo, hi), found.numpy(), values.numpy())
        return {}


def search_ranges(
    work: Work, searcher: type, arguments: dict[str, Any], missing: list[dict[str, Any]], *, spread: Spread, inline: bool
) -> None:
    """Fill the missing shards of queries: at once where there is one range of passages, else range by range and merged.

    Args:
        arguments: of the searcher, `queries` and `k` among them; where it writes is added.
        inline: one range is little enough for this process.
    """
    marks = work.shards / "attempts"
    if len(spread.ranges) == 1:
        here = {**arguments, "out": work.shards}
        work.cluster.map(searcher, here, missing, label=work.label, unit="queries", marks=marks, inline=inline)
    elif missing:
        scratch, count = work.shards / "scratch", arguments["queries"].rows
        spread = agreed(scratch, spread)
        shards = missing_partials(spread, scratch, count, missing)
        label = f"{work.label}, {len(spread.ranges)} ranges"
        work.cluster.map(searcher, {**arguments, "out": scratch}, shards, label=label, unit="M scores", marks=marks)
        work.cluster.map(
            Merger,
            {"spread": spread, "scratch": scratch, "queries": count, "out": work.shards, "k": arguments["k"]},
            missing,
            label=f"{work.label}, merging",
            unit="queries",
            marks=marks,
            models=False,
        )


@stage(version=1)
def search(work: Work, *, queries: Artifact, passages: Artifact, k: int) -> dict[str, Any]:
    """The k passages of highest inner product for every query, exactly; float32 whatever was stored.

    A large corpus is searched range by range (`spread.py`) and the ranges are merged; the result is the same.
    """
    q, p = parts_of(queries), parts_of(passages)
    width = int(passages.metrics["width"])
    missing = pending(work, q.rows, QUERY_BLOCK, "parquet")
    spread = plan_spread(
        p.parts,
        stored=sum(passages.manifest["files"].values()),
        queries=q.rows,
        width=width,
        k=k,
        block=QUERY_BLOCK,
        gpu=work.cluster.has_gpu,
    )
    arguments: dict[str, Any] = {"queries": q, "passages": p, "k": k}
    inline = q.rows * p.rows * width <= FEW_DOT_PRODUCTS
    search_ranges(work, Searcher, arguments, missing, spread=spread, inline=inline)
    return {"rows": q.rows, "unit": "queries", "k": min(k, p.rows)}


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
