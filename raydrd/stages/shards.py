"""Stages whose output is one table in parts: what is still missing, and reading what is there."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydrd.spine.parts import Chain, Parts, found_ranges, part_name, ranges
from raydrd.spine.progress import say
from raydrd.spine.ragged import FlatTokens
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work


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


def write_counted(out: Folder, name: str, table: pa.Table, **counts: float) -> dict[str, Any]:
    """Write a shard with its counts beside it, and return these. Counts come first: a shard that is there has them."""
    note_counts(out, name, **counts)
    out.write_table(name, table)
    return dict(counts)


def note_counts(out: Folder, name: str, **counts: float) -> None:
    """The counts of a shard that is about to be written."""
    out.write_json(_counts_of(name), counts)


def total_counts(work: Work, *names: str, under: str = "") -> dict[str, Any]:
    """Sums of the named counts over all shards, this attempt's and those of one that was killed, in row order.

    `under`: the folder of the table whose shards were counted, with its slash, where there are several.
    """
    files = work.shards.files()
    parts = Parts.of(work.shards, [name for name in files if name.startswith(under)]).parts
    counted = [work.shards.read_json(file) for part in parts if (file := _counts_of(part.name)) in files]
    if len(counted) < len(parts):
        say(
            f"{work.label}: {len(parts) - len(counted)} of {len(parts)} shards were begun by an earlier version that kept "
            "no counts; the numbers told of this stage leave them out"
        )
    return {name: sum(one[name] for one in counted) for name in names}


def _counts_of(name: str) -> str:
    """Where the counts of a shard lie: a name that is no part's."""
    return f"counts/{name}.json"


def parts_of(artifact: Artifact) -> Parts:
    """The parts of an artifact whose shards are one table."""
    names = [name.removeprefix("shards/") for name in artifact.manifest["files"] if name.startswith("shards/")]
    return Parts.of(artifact.shards, names)


def tokens_of(artifact: Artifact) -> FlatTokens:
    """The token vectors of an artifact as rows of their own."""
    texts = parts_of(artifact)
    return FlatTokens.of(texts, [int(artifact.shards.read_json(_counts_of(part.name))["tokens"]) for part in texts.parts])


def chain_of(artifacts: Artifact | list[Artifact]) -> Parts | Chain:
    """The rows of several artifacts, one after the other."""
    if isinstance(artifacts, Artifact):
        return parts_of(artifacts)
    return parts_of(artifacts[0]) if len(artifacts) == 1 else Chain(tuple(parts_of(one) for one in artifacts))
