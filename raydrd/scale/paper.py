"""On paper: what a collection of any size costs, from rates measured here and rates assumed for GPUs.

Bytes and the work of CPUs are those of a run of jobs/scale.py; a GPU's rates are the reader's to put in.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

from pydantic import Field

from raydrd.config import Frozen
from raydrd.scale.table import largest
from raydrd.spine.parts import Part, ranges
from raydrd.spine.scorebook import BUCKETS
from raydrd.spine.trouble import amount
from raydrd.stages.known import PAIRS_PER_LOOKUP
from raydrd.stages.search import QUERY_BLOCK
from raydrd.stages.spread import RESULT_BYTES, plan_spread

# Rows of one file, as the stages cut them where there is a GPU.
CORPUS_ROWS, TOKEN_ROWS, LIST_ROWS, EMBED_ROWS, SCORED_PAIRS = 20_000, 50_000, 10_000, 16_384, 65_536
ID_BYTES = 60  # of heap for each passage while `load` reads (raydrd.data.ids)
PAIR_BYTES = 150  # of heap for each pair of a lookup (raydrd.stages.known)
HOUR = 3600.0


class World(Frozen):
    """A collection and what is asked of it."""

    name: str = Field(description="for the heading")
    passages: int = Field(ge=1)
    queries: int = Field(ge=1, description="training queries")
    found: int = Field(200, ge=1, description="candidates that search finds for a query")
    scored: int = Field(124, ge=1, description="candidates of a query that the teacher reads")
    width: int = Field(384, ge=1, description="of the vectors")


class Gpu(Frozen):
    """What one GPU is assumed to do; nothing here was measured."""

    passages_per_second: float = Field(20_000, gt=0, description="a six-layer encoder of width 384, 75 tokens a passage, bf16")
    pairs_per_second: float = Field(8_000, gt=0, description="a cross-encoder of that size, 85 tokens a pair, bf16")
    products_per_second: float = Field(5e12, gt=0, description="multiply-adds of exact search, with what picks the best")
    read_bytes_per_second: float = Field(1e9, gt=0, description="from the store to one GPU")


class Measured(Frozen):
    """What a run of jobs/scale.py says, a row: processor seconds, bytes written, and the heap of the largest worker."""

    rate: dict[str, float] = Field(description="rows a processor second, by work")
    size: dict[str, float] = Field(description="bytes a row, by work")
    heap: dict[str, float] = Field(description="bytes of heap of the largest worker, by work")
    book: float = Field(description="bytes of the score book, a pair")

    @staticmethod
    def of(result: dict[str, Any]) -> Measured:
        """From one size of a run."""
        lines = {line["name"]: line for line in result["lines"]}
        return Measured(
            rate={name: line["rate"] for name, line in lines.items()},
            size={name: line["bytes"] / line["rows"] for name, line in lines.items() if "bytes" in line and line["rows"]},
            heap={name: float(largest(line)) for name, line in lines.items()},
            book=result["book"]["bytes"] / result["book"]["pairs"],
        )


@dataclass(frozen=True)
class Cost:
    """One stage: rows, bytes it writes, files it leaves, hours of one core, hours of GPUs, bytes of memory of one worker."""

    stage: str
    rows: int
    unit: str
    bytes: float
    files: int
    cpu_hours: float = 0.0
    gpu_hours: float = 0.0
    memory: float = 0.0
    remark: str = ""


def project(world: World, measured: Measured, gpu: Gpu) -> list[Cost]:
    """Each stage of one round of distillation over this collection, training apart."""
    p, q = world.passages, world.queries
    pairs = q * min(world.scored, p)
    m = measured

    def cpu(work: str, rows: int) -> float:
        return rows / m.rate[work] / HOUR

    stored = p * world.width * 2.0
    parts = tuple(Part("", lo, hi) for lo, hi in ranges(p, EMBED_ROWS))
    spread = plan_spread(parts, stored=int(stored), queries=q, width=world.width, k=world.found, block=QUERY_BLOCK, gpu=True)
    # Every span of queries reads the whole corpus, range by range.
    read = ceil(q / spread.span) * stored
    products = float(q) * p * world.width
    searched = max(products / gpu.products_per_second, read / gpu.read_bytes_per_second) / HOUR
    partial = len(spread.ranges) * q * world.found * RESULT_BYTES if len(spread.ranges) > 1 else 0.0
    lookups = min(BUCKETS, ceil(pairs / PAIRS_PER_LOOKUP))
    shards = ceil(pairs / SCORED_PAIRS)
    found = q * min(world.found, p)
    return [
        Cost("load", p, "passages", p * m.size["draw texts"], ceil(p / CORPUS_ROWS) + 1,
             memory=p * ID_BYTES, remark="one process reads everything twice"),
        Cost("tokenize", p + q, "texts", p * m.size["tokenize passages"] + q * m.size["tokenize queries"],
             ceil(p / TOKEN_ROWS) + ceil(q / TOKEN_ROWS), cpu_hours=cpu("tokenize passages", p) + cpu("tokenize queries", q),
             memory=m.heap["tokenize passages"]),
        Cost("embed", p + q, "texts", stored + q * world.width * 2.0, ceil(p / EMBED_ROWS) + ceil(q / EMBED_ROWS),
             gpu_hours=(p + q) / gpu.passages_per_second / HOUR, remark="memory is the model's"),
        Cost("search", q, "queries", found * RESULT_BYTES + partial, ceil(q / QUERY_BLOCK), gpu_hours=searched,
             memory=m.heap["search"],
             remark=f"{len(spread.ranges)} ranges x {ceil(q / spread.span):,} spans; reads {amount(read)}, "
                    f"{amount(partial)} of partial results in between"),
        Cost("look up", pairs, "pairs", 0.0, lookups, cpu_hours=cpu("look up score, half known", pairs),
             memory=min(m.heap.values()) + pairs / lookups * PAIR_BYTES,
             remark=f"{lookups} lookups; {pairs / lookups / 1e6:,.1f} M pairs each"),
        Cost("score", pairs, "pairs", pairs * (m.size["score, half known"] + m.book), 3 * shards,
             cpu_hours=cpu("score, half known", pairs), gpu_hours=pairs / gpu.pairs_per_second / HOUR,
             memory=m.heap["score, half known"], remark="a third of the files each: scores, counts, book"),
        Cost("assemble", q, "queries", q * m.size["assemble"], 2 * ceil(q / LIST_ROWS), cpu_hours=cpu("assemble", q),
             memory=m.heap["assemble"]),
    ]  # fmt: skip


MSMARCO = World(name="MS MARCO", passages=8_841_823, queries=808_731)
BILLION = World(name="1 B passages", passages=1_000_000_000, queries=10_000_000, scored=100)


def hours(value: float) -> str:
    return f"{value:,.1f}" if value >= 0.1 else ("< 0.1" if value else "")


def rows(costs: list[Cost]) -> list[list[str]]:
    """Header and rows, with the sum last."""
    found = [["stage", "rows", "written", "files", "core hours", "GPU-hours", "memory of a worker", ""]]
    for one in costs:
        size, heap = (amount(value) if value else "" for value in (one.bytes, one.memory))
        work = [hours(one.cpu_hours), hours(one.gpu_hours)]
        found.append([one.stage, f"{one.rows:,} {one.unit}", size, f"{one.files:,}", *work, heap, one.remark])
    written, files = sum(one.bytes for one in costs), sum(one.files for one in costs)
    work = [hours(sum(one.cpu_hours for one in costs)), hours(sum(one.gpu_hours for one in costs))]
    return [*found, ["sum", "", amount(written), f"{files:,}", *work, "", ""]]
