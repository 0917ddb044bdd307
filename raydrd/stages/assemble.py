"""assemble: scored candidates -> training lists, by a pure rule. Draws are seeded by (seed, query id)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from raydrd.lists import GradedList, Row, TopAndSampled
from raydrd.parts import Parts
from raydrd.stages.load import table
from raydrd.stages.shards import parts_of, pending, rows_written
from raydrd.storage import Folder
from raydrd.store import Artifact, Work, stage
from raydrd.tables import LISTS


class Assembler:
    """Joins scored candidates with their query's id and positives, and applies the rule."""

    def __init__(self, *, scored: Parts, queries: Parts, out: Folder, rule: GradedList | TopAndSampled) -> None:
        self.scored, self.queries, self.out, self.rule = scored, queries, out, rule

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        scored = self.scored.slice(shard["lo"], shard["hi"])
        query_rows = scored["query_row"].to_numpy()
        # A ready-made run may leave queries out: rows are found by number, not by place.
        first = int(query_rows.min())
        queries = self.queries.slice(first, int(query_rows.max()) + 1).take(query_rows - first)
        rows = []
        for candidate, query in zip(scored.to_pylist(), queries.to_pylist(), strict=True):
            row = Row(
                query_id=query["query_id"],
                query_row=candidate["query_row"],
                doc_rows=np.array(candidate["doc_rows"], dtype=np.int64),
                scores=np.array(candidate["scores"], dtype=np.float32),
                teacher_scores=np.array(candidate["teacher_scores"], dtype=np.float32),
                positives=tuple(d for d, g in zip(query["doc_rows"], query["grades"], strict=True) if g > 0),
            )
            made = self.rule(row)
            if made is not None:
                rows.append((row.query_row, made.doc_rows, made.labels, made.teacher_scores))
        columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[], [], [], []]
        self.out.write_table(shard["name"], pa.table(columns, schema=LISTS))
        return {"lists": len(rows), "passages": sum(len(row[1]) for row in rows)}


@stage(version=1)
def assemble(work: Work, *, scored: Artifact, data: Artifact, rule: GradedList | TopAndSampled) -> dict[str, Any]:
    """Training lists of every scored train query that the rule does not drop."""
    candidates = parts_of(scored)
    work.cluster.map(
        Assembler,
        {"scored": candidates, "queries": table(data, "queries/train"), "out": work.shards, "rule": rule},
        pending(work, candidates.rows, 10_000, "parquet"),
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=candidates.rows <= 20_000,
        models=False,
    )
    return {"rows": rows_written(work), "unit": "lists"}
