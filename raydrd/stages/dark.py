"""write_dark: ADAM's dark examples as passages of a side corpus; later stages read them like any other passage."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from raydrd.methods.dark import Dark, build
from raydrd.spine.parts import Parts, part_name, ranges
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.spine.tables import CANDIDATES, CORPUS, DARK
from raydrd.stages.assemble import rows_of
from raydrd.stages.load import table
from raydrd.stages.shards import parts_of, total_counts, write_counted


class Writer:
    """Dark texts of a block of queries. Each query owns `slots` rows of the side corpus, so that blocks need not agree."""

    def __init__(self, *, scored: Parts, queries: Parts, corpus: Parts, out: Folder, rule: Dark) -> None:
        self.scored, self.queries, self.corpus, self.out, self.rule = scored, queries, corpus, out, rule

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        lo, hi, slots = shard["lo"], shard["hi"], 2 * self.rule.built
        scored = self.scored.slice(lo, hi)
        rows = rows_of(scored, self.queries)
        first = int(scored["query_row"].to_numpy().min())
        asked = self.queries.slice(first, int(scored["query_row"].to_numpy().max()) + 1, ["query_id", "text"])[
            "text"
        ].to_pylist()
        sources = [[d for d in row.student_order().tolist() if d not in row.positives][: self.rule.sources] for row in rows]
        wanted = sorted({d for own in sources for d in own} | {row.positives[0] for row in rows if row.positives})
        texts = dict(zip(wanted, self.corpus.take(np.array(wanted, dtype=np.int64), ["text"])["text"].to_pylist(), strict=True))
        ids, written, records = [], [], []
        made = 0
        for number, (row, negatives) in enumerate(zip(rows, sources, strict=True)):
            found = []
            if row.positives:
                found = build(
                    self.rule,
                    query_id=row.query_id,
                    query=asked[row.query_row - first],
                    positive=texts[row.positives[0]],
                    negatives=[texts[d] for d in negatives],
                )
            made += len(found)
            start = self.corpus.rows + (lo + number) * slots
            ids += [f"dark:{row.query_id}:{one.kind}:{one.number}" for one in found] + [""] * (slots - len(found))
            written += [one.text for one in found] + [""] * (slots - len(found))
            records.append(
                {
                    "query_row": row.query_row,
                    "doc_rows": [start + at for at in range(len(found))],
                    "scores": [0.0] * len(found),
                    "kinds": [one.kind for one in found],
                    "recipes": [json.dumps(one.recipe) for one in found],
                }
            )
        name, listed = part_name(lo, hi, "parquet"), pa.Table.from_pylist(records, schema=DARK)
        self.out.write_table(f"corpus/{part_name(lo * slots, hi * slots, 'parquet')}", pa.table([ids, written], schema=CORPUS))
        self.out.write_table(f"candidates/{name}", listed.select(CANDIDATES.names))
        return write_counted(self.out, f"dark/{name}", listed, made=made)


@stage(version=2)
def write_dark(work: Work, *, scored: Artifact, data: Artifact, corpus: Artifact, rule: Dark) -> dict[str, Any]:
    """Reinforced negatives and noisy positives for every labelled query of `scored`; tables `corpus`, `candidates`, `dark`.

    `candidates` and `dark` have one row for each row of `scored`; their `doc_rows` follow the corpus' last row.
    """
    candidates = parts_of(scored)
    shards = [
        {"name": part_name(lo, hi, "parquet"), "lo": lo, "hi": hi, "rows": hi - lo} for lo, hi in ranges(candidates.rows, 2048)
    ]
    passages = table(corpus, "corpus")
    work.cluster.map(
        Writer,
        {
            "scored": candidates,
            "queries": table(data, "queries/train"),
            "corpus": passages,
            "out": work.shards,
            "rule": rule,
        },
        # The file written last says that a shard is whole.
        [shard for shard in shards if not work.shards.exists(f"dark/{shard['name']}")],
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=candidates.rows <= 2048,
        models=False,
    )
    return {"rows": candidates.rows, "unit": "queries", **total_counts(work, "made", under="dark/")}


def dark_candidates(dark: Artifact) -> Artifact:
    """What `write_dark` wrote, seen as candidates, so that any teacher scores it: the same artifact, one table of it."""
    files = {name: size for name, size in dark.manifest["files"].items() if name.startswith("shards/candidates/")}
    return replace(dark, manifest={**dark.manifest, "files": files})
