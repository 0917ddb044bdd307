"""Stages whose output is one table in parts: what is still missing, and reading what is there."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq

from raydrd.parts import Chain, Parts, found_ranges, part_name, ranges
from raydrd.store import Artifact, Work


def pending(work: Work, rows: int, size: int, ending: str = "arrow") -> list[dict[str, Any]]:
    """Shards of at most `size` rows that this artifact still lacks, named by the rows they hold.

    What a killed attempt finished is kept, also when it cut the rows otherwise: only the gaps are planned.
    """
    shards = []
    at = 0
    for lo, hi in [*found_ranges(list(work.shards.files())), (rows, rows)]:
        for a, b in ranges(lo - at, size):
            shards.append({"name": part_name(at + a, at + b, ending), "lo": at + a, "hi": at + b, "rows": b - a})
        at = max(at, hi)
    return shards


def rows_written(work: Work) -> int:
    """Rows in all Parquet parts so far, this attempt's and those of one that was killed: read from their footers."""
    total = 0
    for name in work.shards.files():
        if found_ranges([name]) and name.endswith(".parquet"):
            with work.shards.reading(name) as stream:
                total += int(pq.read_metadata(stream).num_rows)
    return total


def parts_of(artifact: Artifact) -> Parts:
    """The parts of an artifact whose shards are one table."""
    names = [name.removeprefix("shards/") for name in artifact.manifest["files"] if name.startswith("shards/")]
    return Parts.of(artifact.shards, names)


def chain_of(artifacts: Artifact | list[Artifact]) -> Parts | Chain:
    """The rows of several artifacts, one after the other."""
    if isinstance(artifacts, Artifact):
        return parts_of(artifacts)
    return parts_of(artifacts[0]) if len(artifacts) == 1 else Chain(tuple(parts_of(one) for one in artifacts))
