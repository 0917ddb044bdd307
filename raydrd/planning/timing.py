"""What it takes to time a worker: warmed up, in blocks that grow to the time there is, with the memory it held."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from raydrd.planning.machine import PeakMemory
from raydrd.spine.cluster import set_threads
from raydrd.spine.store import Artifact

WARM = 8  # rows of the first call, which is not timed
RANKED = 200_000  # scores of the timed BM25 ranking


@dataclass(frozen=True)
class Rate:
    """What one worker was seen to do: seconds a unit, seconds to begin, bytes a row kept, peak memory in bytes (0: unknown).

    row_seconds: a row beside its units (BM25: the words of a query, whatever the corpus). once: seconds that the process pays
    for the first stage of this kind, for its libraries. measured: units that were timed.
    """

    seconds: float
    row_seconds: float = 0.0
    start: float = 0.0
    row_bytes: float = 0.0
    memory: int = 0
    once: float = 0.0
    measured: float = 0.0


def timed(build: Callable[[], Callable[[int, int], Any]], rows: int, *, seconds: float, threads: int) -> Rate:
    """`build` gives what does rows lo..hi-1; timed in blocks that grow until `seconds` are used."""
    set_threads(threads)
    with PeakMemory() as peak:
        began = time.monotonic()
        run = build()
        start = time.monotonic() - began
        warm = done = min(WARM, rows)
        run(0, warm)
        spent, counted, block = 0.0, 0, 4 * WARM
        while not counted or (done < rows and spent < seconds):
            lo = done if done < rows else 0  # so few rows that the first call had them all: once more
            fits = int((seconds - spent) * counted / spent) if counted else block
            hi = min(rows, lo + max(warm, min(block, fits)))
            began = time.monotonic()
            run(lo, hi)
            took = time.monotonic() - began
            if block >= 16 * WARM or hi == rows or took > seconds:  # small blocks hold more padding: not counted
                spent, counted = spent + took, counted + hi - lo
            done, block = hi, 4 * block
    return Rate(spent / counted, start=start, memory=peak.bytes, measured=counted)


def ranked() -> float:
    """Seconds a passage of scoring all of a corpus for one query and taking the best: three passes over its scores."""
    import torch

    from raydrd.stages.search import top_k

    scores = torch.rand(1, RANKED)
    top_k(scores, 10)
    began = time.monotonic()
    for _ in range(3):
        top_k(scores, 10)
    return (time.monotonic() - began) / RANKED


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The sample's stages say nothing: they are not the run's."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def kept_bytes(made: Artifact) -> float:
    """Bytes of an artifact's files that grow with its rows: Parquet's footers do not, and would weigh too much here."""
    total = 0.0
    for name, size in made.manifest["files"].items():
        total += size
        if name.endswith(".parquet"):
            with made.home.reading(name) as stream:
                total -= min(size, int(pq.read_metadata(stream).serialized_size) + 12)
    return max(0.0, total)
