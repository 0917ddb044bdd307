"""escalate: what of a cheap teacher's list goes on to an expensive one, and both teachers' scores as one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from raydrd.methods.escalation import LEVELS, By, Line, Sums, budget, chosen, gaps, highest_level, levels, line
from raydrd.spine.parts import Parts
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.spine.tables import CANDIDATES, SCORED
from raydrd.stages.shards import parts_of, pending, total_counts, write_counted

FEW_ROWS = 20_000  # chosen or joined in this process sooner than an actor starts


class Counter:
    """How many candidates of a block of queries lie at each level of the gap to the best of their list."""

    def __init__(self, *, scored: Parts, out: Folder) -> None:
        self.scored, self.out = scored, out

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        lists = self.scored.slice(shard["lo"], shard["hi"])["teacher_scores"].to_pylist()
        found = [levels(gaps(np.array(scores, np.float32))) for scores in lists]
        there, counts = np.unique(np.concatenate(found), return_counts=True)
        self.out.write_json(shard["name"], {"levels": there.tolist(), "counts": counts.tolist()})
        return {}


@stage(version=1)
def share_budget(work: Work, *, scored: Artifact, share: float) -> dict[str, Any]:
    """The level of the gap up to which candidates go on, so that all queries together stay within `share`.

    `level` in its metrics is -1 where as many candidates lie at the lowest level alone: the gap cannot tell them apart.
    """
    found = parts_of(scored)
    names = [{**one, "name": f"counts/{one['lo']}.json"} for one in pending(work, found.rows, FEW_ROWS, "json")]
    work.cluster.map(
        Counter,
        {"scored": found, "out": work.shards},
        [one for one in names if not work.shards.exists(str(one["name"]))],
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=found.rows <= FEW_ROWS,
        models=False,
    )
    counts = np.zeros(LEVELS, dtype=np.int64)
    for one in names:
        told = work.shards.read_json(str(one["name"]))
        counts[told["levels"]] += told["counts"]
    return {"rows": found.rows, "unit": "queries", "level": highest_level(counts, share)}


class Chooser:
    """Of a block of queries, the candidates that go on."""

    def __init__(self, *, scored: Parts, out: Folder, by: By, share: float | None, pairs: int | None, level: int) -> None:
        self.scored, self.out, self.by, self.share, self.pairs, self.level = scored, out, by, share, pairs, level

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        found = self.scored.slice(shard["lo"], shard["hi"])
        docs, scores, asked, of = [], [], 0, 0
        for number, row in enumerate(found.to_pylist()):
            cheap, student = np.array(row["teacher_scores"], np.float32), np.array(row["scores"], np.float32)
            if self.level >= 0:
                places = np.flatnonzero(levels(gaps(cheap)) <= self.level).tolist()
            else:
                count = budget(shard["lo"] + number, len(cheap), share=self.share, pairs=self.pairs)
                places = chosen(cheap, student, count, by=self.by).tolist()
            docs.append([row["doc_rows"][place] for place in places])
            scores.append([row["scores"][place] for place in places])
            asked, of = asked + len(places), of + len(cheap)
        table = pa.table([found["query_row"], docs, scores], schema=CANDIDATES)
        return write_counted(self.out, shard["name"], table, pairs=asked, of=of)


@stage(version=1)
def choose(
    work: Work, *, scored: Artifact, by: By, share: float | None, pairs: int | None, level: Artifact | None = None
) -> dict[str, Any]:
    """Candidates to ask the expensive teacher about, a row for each row of `scored`; some rows may be empty.

    level: of `share_budget`, where one budget is shared among all queries; without it, or where it found none, every list
    has its own. `pairs` in its metrics: how many there are, `of` so many that the cheap teacher scored.
    """
    found = parts_of(scored)
    work.cluster.map(
        Chooser,
        {
            "scored": found,
            "out": work.shards,
            "by": by,
            "share": share,
            "pairs": pairs,
            "level": int(level.metrics["level"]) if level is not None else -1,
        },
        pending(work, found.rows, FEW_ROWS, "parquet"),
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=found.rows <= FEW_ROWS,
        models=False,
    )
    return {"rows": found.rows, "unit": "queries", **total_counts(work, "pairs", "of")}


def both(cheap: dict[str, Any], expensive: dict[str, Any]) -> tuple[list[int], list[float]]:
    """Places in the cheap teacher's list of what the expensive one scored, and its scores."""
    place = {doc: number for number, doc in enumerate(cheap["doc_rows"])}
    return [place[doc] for doc in expensive["doc_rows"]], expensive["teacher_scores"]


class Summer:
    """What a line is drawn from, of a block of queries."""

    def __init__(self, *, cheap: Parts, expensive: Parts, out: Folder) -> None:
        self.cheap, self.expensive, self.out = cheap, expensive, out

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        sums = []
        tables = (parts.slice(shard["lo"], shard["hi"]).to_pylist() for parts in (self.cheap, self.expensive))
        for cheap, expensive in zip(*tables, strict=True):
            places, scores = both(cheap, expensive)
            sums.append(Sums.of(np.array(cheap["teacher_scores"])[places], np.array(scores)))
        self.out.write_json(shard["name"], asdict(Sums.total(sums)))
        return {}


@stage(version=1)
def fit_line(work: Work, *, cheap: Artifact, expensive: Artifact) -> dict[str, Any]:
    """The line between two teachers' scores, from the pairs that both have scored: see `raydrd.methods.escalation.line`."""
    tables = {"cheap": parts_of(cheap), "expensive": parts_of(expensive)}
    rows = tables["cheap"].rows
    names = [{**one, "name": f"sums/{one['lo']}.json"} for one in pending(work, rows, FEW_ROWS, "json")]
    work.cluster.map(
        Summer,
        {**tables, "out": work.shards},
        [one for one in names if not work.shards.exists(str(one["name"]))],
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=rows <= FEW_ROWS,
        models=False,
    )
    sums = Sums.total(Sums(**work.shards.read_json(str(one["name"]))) for one in names)
    return {"rows": rows, "unit": "queries", **asdict(line(sums))}


class Joiner:
    """The cheap teacher's scores of a block of queries with the expensive one's in their places."""

    def __init__(self, *, cheap: Parts, expensive: Parts, line: Line, out: Folder) -> None:
        self.cheap, self.expensive, self.line, self.out = cheap, expensive, line, out

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        found = self.cheap.slice(shard["lo"], shard["hi"])
        joined = []
        for cheap, expensive in zip(found.to_pylist(), self.expensive.slice(shard["lo"], shard["hi"]).to_pylist(), strict=True):
            places, scores = both(cheap, expensive)
            own = np.array(cheap["teacher_scores"], dtype=np.float32)
            own[places] = self.line.on_cheap_scale(np.array(scores))
            joined.append(own)
        self.out.write_table(shard["name"], pa.table([*(found[n] for n in SCORED.names[:3]), joined], schema=SCORED))
        return {}


@stage(version=1)
def join_scores(work: Work, *, cheap: Artifact, expensive: Artifact, fitted: Artifact) -> dict[str, Any]:
    """One score a candidate, on the cheap teacher's scale: the expensive teacher's where it was asked."""
    tables = {"cheap": parts_of(cheap), "expensive": parts_of(expensive)}
    rows = tables["cheap"].rows
    known = {name: fitted.metrics[name] for name in ("slope", "offset", "agreement", "pairs")}
    work.cluster.map(
        Joiner,
        {**tables, "line": Line(**known), "out": work.shards},
        pending(work, rows, FEW_ROWS, "parquet"),
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=rows <= FEW_ROWS,
        models=False,
    )
    return {"rows": rows, "unit": "queries"}
