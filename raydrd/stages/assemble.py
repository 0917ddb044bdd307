"""assemble: scored candidates -> training lists, by a pure rule, with what joins them. Draws are seeded by query id."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.methods.additions import Threshold, add_dark, in_band, mark_suspects, resolve, sureness
from raydrd.methods.dark import Dark, entropy
from raydrd.methods.filters import Filter
from raydrd.methods.lists import DARK, POSITIVE, SUSPECT, ListRule, Row, TrainingList
from raydrd.methods.pacing import Confidence
from raydrd.spine.parts import Chain, Parts, VectorReader
from raydrd.spine.ragged import RaggedReader
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.spine.tables import LISTS
from raydrd.stages.late.pairs import pair_scores
from raydrd.stages.load import table
from raydrd.stages.shards import chain_of, parts_of, pending, rows_written, total_counts, write_counted

COUNTS = ("suspects", "negatives", "dark", "in_band", "pairs", "labelled")
ENTROPIES = ("entropy", "entropy_with_dark", "lists_with_dark")  # nats, summed over the lists with dark examples


def positives_of(query: dict[str, Any]) -> tuple[int, ...]:
    """Rows judged relevant, in the order of the judgements."""
    return tuple(d for d, g in zip(query["doc_rows"], query["grades"], strict=True) if g > 0)


def rows_of(scored: pa.Table, queries: Parts, pairs: pa.Table | None = None) -> list[Row]:
    """Scored candidates joined with their query's id and positives, and the query's compared pairs."""
    query_rows = scored["query_row"].to_numpy()
    if not len(query_rows):
        return []
    # A ready-made run may leave queries out: rows are found by number, not by place.
    first = int(query_rows.min())
    asked = queries.slice(first, int(query_rows.max()) + 1).take(query_rows - first)
    compared: list[tuple[tuple[int, int, float], ...]] = [()] * len(query_rows)
    if pairs is not None:
        columns = (pairs[name].to_pylist() for name in ("left", "right", "probabilities"))
        compared = [tuple(zip(*one, strict=True)) for one in zip(*columns, strict=True)]
    return [
        Row(
            query_id=query["query_id"],
            query_row=candidate["query_row"],
            doc_rows=np.array(candidate["doc_rows"], dtype=np.int64),
            scores=np.array(candidate["scores"], dtype=np.float32),
            # Candidates that no teacher has scored yet train teachers.
            teacher_scores=np.array(candidate.get("teacher_scores") or [0.0] * len(candidate["scores"]), dtype=np.float32),
            positives=positives_of(query),
            pairs=found,
        )
        for candidate, query, found in zip(scored.to_pylist(), asked.to_pylist(), compared, strict=True)
    ]


class Assembler:
    """Applies the rule to a block of queries, then adds what joins the lists."""

    def __init__(
        self,
        *,
        scored: Parts,
        queries: Parts,
        out: Folder,
        rule: ListRule,
        pairs: Parts | None,
        dark: tuple[Dark, Parts, Parts] | None,  # rule, what was written (kinds), its teacher scores
        bar: Threshold | None,
        confidence: Confidence,
        scale: float,
    ) -> None:
        self.scored, self.queries, self.out, self.rule = scored, queries, out, rule
        self.pairs, self.dark, self.bar, self.confidence, self.scale = pairs, dark, bar, confidence, scale

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        lo, hi = shard["lo"], shard["hi"]
        pairs = self.pairs.slice(lo, hi) if self.pairs else None
        written = self.dark[1].slice(lo, hi).to_pylist() if self.dark else None
        taught = self.dark[2].slice(lo, hi)["teacher_scores"].to_pylist() if self.dark else None
        lists: list[dict[str, Any]] = []
        counts: dict[str, float] = dict.fromkeys((*COUNTS, *ENTROPIES), 0)
        for number, row in enumerate(rows_of(self.scored.slice(lo, hi), self.queries, pairs)):
            made = self.rule(row)
            if made is None:
                continue
            if self.bar is not None:
                made = mark_suspects(made, self.bar)
            sure = sureness(made, self.confidence, self.scale)
            if self.dark and written is not None and taught is not None:
                own = written[number]
                plain, scores = made, np.array(taught[number], dtype=np.float32)
                made = add_dark(
                    made, self.dark[0], rows=np.array(own["doc_rows"], dtype=np.int64), scores=scores, kinds=own["kinds"]
                )
                counts["in_band"] += in_band(plain, self.dark[0], scores)
                if (made.flags & DARK).any():
                    for name, one in (("entropy", plain), ("entropy_with_dark", made)):
                        counts[name] += entropy(one.teacher_scores[~np.isnan(one.teacher_scores)] * self.scale)
                    counts["lists_with_dark"] += 1
            left, right, p = resolve(made, row.pairs)
            counts["suspects"] += int(((made.flags & SUSPECT) != 0).sum())
            counts["negatives"] += int(((made.flags & (DARK | POSITIVE)) == 0).sum())
            counts["dark"] += int(((made.flags & DARK) != 0).sum())
            counts["pairs"] += len(p)
            counts["labelled"] += int(not np.isnan(sure))
            lists.append(_record(row, made, sure, left, right, p))
        return write_counted(self.out, shard["name"], pa.Table.from_pylist(lists, schema=LISTS), **counts)


def _record(row: Row, made: TrainingList, sure: float, left: list[int], right: list[int], p: list[float]) -> dict[str, Any]:
    return {
        "query_row": row.query_row,
        "doc_rows": made.doc_rows,
        "labels": made.labels,
        "teacher_scores": made.teacher_scores,
        "flags": made.flags,
        "anchor_scores": [],
        "relevant": row.positives,
        "confidence": sure,
        "pair_left": left,
        "pair_right": right,
        "pair_p": p,
    }


@stage(version=2)
def assemble(
    work: Work,
    *,
    scored: Artifact,
    data: Artifact,
    rule: ListRule,
    pairs: Artifact | None = None,
    dark: Artifact | None = None,
    dark_scored: Artifact | None = None,
    dark_rule: Dark | None = None,
    filter: Filter | None = None,
    threshold: Artifact | None = None,
    confidence: Confidence = "softmax",
    scale: float = 1.0,
) -> dict[str, Any]:
    """Training lists of every scored train query that the rule does not drop.

    `pairs`, `dark` and `dark_scored` hold one row for each row of `scored`. `threshold` is the artifact of the stage
    of that name. `scale` multiplies teacher scores before a softmax (confidence, entropy).
    """
    candidates = parts_of(scored)
    extra: tuple[Dark, Parts, Parts] | None = None
    if dark_rule is not None and dark is not None and dark_scored is not None:
        extra = (dark_rule, table(dark, "dark"), parts_of(dark_scored))
    bar = None
    if filter is not None:
        known = threshold.metrics if threshold is not None else {}
        bar = Threshold(filter, known.get("theta"), known.get("mean", 0.0), known.get("std", 1.0))
    work.cluster.map(
        Assembler,
        {
            "scored": candidates,
            "queries": table(data, "queries/train"),
            "out": work.shards,
            "rule": rule,
            "pairs": parts_of(pairs) if pairs else None,
            "dark": extra,
            "bar": bar,
            "confidence": confidence,
            "scale": scale,
        },
        pending(work, candidates.rows, 5_000, "parquet"),
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=candidates.rows <= 20_000,
        models=False,
    )
    total = total_counts(work, *COUNTS, *ENTROPIES)
    found = {name: total[name] for name in COUNTS}
    if lists := total["lists_with_dark"]:
        found |= {name: total[name] / lists for name in ENTROPIES[:2]} | {"lists_with_dark": lists}
    return {"rows": rows_written(work), "unit": "lists", **found}


class Anchorer:
    """Lists with the scores that the frozen student of before this stage gives their passages; `tokens`: by MaxSim."""

    def __init__(self, *, lists: Parts, queries: Parts, passages: Parts | Chain, out: Folder, tokens: bool) -> None:
        self.lists, self.out = lists, out
        self.ragged = (RaggedReader(queries), RaggedReader(passages)) if tokens else None
        self.vectors = (VectorReader(queries), VectorReader(passages)) if not tokens else None

    def scores(self, query_rows: NDArray[np.int64], doc_rows: NDArray[np.int64]) -> NDArray[np.float32]:
        if self.ragged is not None:
            return pair_scores(*self.ragged, query_rows, doc_rows)
        assert self.vectors is not None
        scores = np.empty(len(doc_rows), dtype=np.float32)
        for lo in range(0, len(doc_rows), 16_384):  # bounds the copies of vectors
            block = slice(lo, lo + 16_384)
            q, p = (reader.take(rows[block]) for reader, rows in zip(self.vectors, (query_rows, doc_rows), strict=True))
            scores[block] = np.einsum("nd,nd->n", q, p)
        return scores

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        # Whole parts: their names count queries, of which the rule may have dropped some.
        lists = self.lists.folder.read_table(shard["name"])
        docs = lists["doc_rows"].combine_chunks()
        counts = docs.value_lengths().to_numpy(zero_copy_only=False)
        query_rows, doc_rows = np.repeat(lists["query_row"].to_numpy(), counts), docs.flatten().to_numpy()
        scores = self.scores(query_rows, doc_rows)
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
        column = pa.ListArray.from_arrays(offsets, pa.array(scores))
        self.out.write_table(
            shard["name"], lists.set_column(lists.schema.get_field_index("anchor_scores"), "anchor_scores", column)
        )
        return {}


@stage(version=1)
def anchor(work: Work, *, lists: Artifact, queries: Artifact, passages: Artifact | list[Artifact]) -> dict[str, Any]:
    """Lists with `anchor_scores` from a frozen student's stored vectors (PROD: so that it need not sit in the loop)."""
    found = parts_of(lists)
    done = work.shards.files()
    work.cluster.map(
        Anchorer,
        {
            "lists": found,
            "queries": parts_of(queries),
            "passages": chain_of(passages),
            "out": work.shards,
            "tokens": "tokens" in queries.metrics,
        },
        [{"name": part.name, "rows": part.hi - part.lo} for part in found.parts if part.name not in done],
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=found.rows <= 20_000,
        models=False,
    )
    return {**lists.metrics, "rows": lists.metrics["rows"], "unit": "lists"}
