"""evaluate: candidates and judgements -> a table of metrics per query."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from raydrd.spine.parts import Parts, part_name
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.stages.load import table
from raydrd.stages.shards import parts_of


class Judge:
    """Metrics of all queries of a split; the tables hold k passages a query, some hundred bytes each."""

    def __init__(self, *, run: Parts, queries: Parts, out: Folder, metrics: tuple[str, ...]) -> None:
        self.run, self.queries, self.out, self.metrics = run, queries, out, metrics

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        from raydrd.metrics import means, per_query

        run = pa.concat_tables(part for _, part in self.run.each())
        queries = pa.concat_tables(part for _, part in self.queries.each())
        found = per_query(run, queries, metrics=self.metrics)
        self.out.write_table(part_name(0, found.num_rows, "parquet"), found)
        return {"queries": found.num_rows, "means": means(found)}


@stage(version=1)
def evaluate(work: Work, *, run: Artifact, data: Artifact, name: str, metrics: list[str]) -> dict[str, Any]:
    """Metrics of every judged query of table `name`, and their means."""
    queries = table(data, name)
    results = work.cluster.map(
        Judge,
        {"run": parts_of(run), "queries": queries, "out": work.shards, "metrics": tuple(metrics)},
        [{"name": "all", "rows": queries.rows}],
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=queries.rows <= 20_000,
        models=False,
    )
    return {"rows": results[0]["queries"], "unit": "queries", "means": results[0]["means"]}
