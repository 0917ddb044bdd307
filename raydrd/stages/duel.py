"""duel: pairs of one query's candidates, and a pairwise reranker's P(left is better than right)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.methods.neighbours import NeighbourPairs
from raydrd.models.prompts import Prompt
from raydrd.spine.parts import Parts
from raydrd.spine.precision import Precision
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Located, Work, stage
from raydrd.spine.tables import PAIRS
from raydrd.stages.assemble import rows_of
from raydrd.stages.load import table
from raydrd.stages.score import open_scorer
from raydrd.stages.shards import chain_of, parts_of, pending, total_counts, write_counted


class PairSampler:
    """Neighbouring candidates by pointwise teacher score."""

    def __init__(self, *, scored: Parts, queries: Parts, out: Folder, rule: NeighbourPairs) -> None:
        self.scored, self.queries, self.out, self.rule = scored, queries, out, rule

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        rows = rows_of(self.scored.slice(shard["lo"], shard["hi"]), self.queries)
        found = [self.rule(row) for row in rows]
        columns = [
            [row.query_row for row in rows],
            [[left for left, _ in pairs] for pairs in found],
            [[right for _, right in pairs] for pairs in found],
            [[] for _ in rows],
        ]
        return write_counted(self.out, shard["name"], pa.table(columns, schema=PAIRS), pairs=sum(map(len, found)))


@stage(version=1)
def sample_pairs(work: Work, *, scored: Artifact, data: Artifact, rule: NeighbourPairs) -> dict[str, Any]:
    """Pairs to compare, one row for each row of `scored`; left is the better by the pointwise teacher."""
    candidates = parts_of(scored)
    work.cluster.map(
        PairSampler,
        {"scored": candidates, "queries": table(data, "queries/train"), "out": work.shards, "rule": rule},
        pending(work, candidates.rows, 20_000, "parquet"),
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=candidates.rows <= 20_000,
        models=False,
    )
    return {"rows": candidates.rows, "unit": "queries", **total_counts(work, "pairs")}


class Duellist:
    """A pairwise reranker over blocks of queries."""

    def __init__(
        self,
        *,
        kind: Literal["cross_encoder", "prompted"],
        model: Folder,
        prompt: Prompt | None,
        pairs: Parts,
        queries: Parts,
        passages: Parts,
        out: Folder,
        max_length: int,
        precision: Precision,
        tokens_per_batch: int | None,
        symmetrize: bool,
    ) -> None:
        self.scorer = open_scorer(
            kind,
            model,
            prompt=prompt,
            queries=queries,
            passages=passages,
            max_length=max_length,
            precision=precision,
            tokens_per_batch=tokens_per_batch,
        )
        self.pairs, self.out, self.symmetrize = pairs, out, symmetrize

    def _log_p(self, query: NDArray[np.int64], a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
        from raydrd.models.answers import pairwise_log_p

        gaps = self.scorer.scores(query, a, b)
        if not np.isfinite(gaps).all():
            raise ValueError("the pairwise teacher gave a score that is not finite; try precision: fp32")
        return pairwise_log_p(gaps)

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        rows = self.pairs.slice(shard["lo"], shard["hi"])
        left, right = (rows[name].combine_chunks() for name in ("left", "right"))
        counts = left.value_lengths().to_numpy(zero_copy_only=False)
        query = np.repeat(rows["query_row"].to_numpy(), counts)
        a, b = left.flatten().to_numpy(), right.flatten().to_numpy()
        from raydrd.models.answers import symmetrized

        log_p = self._log_p(query, a, b)
        # Position bias is told even when it is not paid for: on every eighth query's pairs.
        asked = slice(None) if self.symmetrize else np.repeat(np.arange(shard["lo"], shard["hi"]) % 8 == 0, counts)
        back = self._log_p(query[asked], b[asked], a[asked])
        both, off = symmetrized(log_p[asked], back)
        p = both if self.symmetrize else np.exp(log_p)
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
        column = pa.ListArray.from_arrays(offsets, pa.array(p.astype(np.float32)))
        table_ = pa.table([rows["query_row"], left, right, column], schema=PAIRS)
        counts = {"pairs": len(p), "against": int((p < 0.5).sum()), "off": float(off.sum()), "checked": len(off)}
        return write_counted(self.out, shard["name"], table_, **counts)


@stage(version=1)
def score_duels(
    work: Work,
    *,
    pairs: Artifact,
    query_tokens: Artifact,
    passage_tokens: Artifact,
    kind: str,
    teacher: Located,
    prompt: Prompt | None,
    max_length: int,
    precision: Precision,
    symmetrize: bool,
) -> dict[str, Any]:
    """Pairs with P(left is better). `against`: share where the pairwise teacher turns the pointwise order round."""
    pool = parts_of(pairs)
    resources = work.cluster.resources
    size = max(1, (resources.pairs_per_shard or 4096) // max(1, int(pairs.metrics["pairs"]) // max(1, pool.rows)))
    work.cluster.map(
        Duellist,
        {
            "kind": kind,
            "model": teacher.where,
            "prompt": prompt,
            "pairs": pool,
            "queries": parts_of(query_tokens),
            "passages": chain_of(passage_tokens),
            "out": work.shards,
            "max_length": max_length,
            "precision": precision,
            "tokens_per_batch": resources.tokens_per_batch,
            "symmetrize": symmetrize,
        },
        pending(work, pool.rows, size, "parquet"),
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=pool.rows <= 32,
    )
    total = total_counts(work, "pairs", "against", "off", "checked")
    return {
        "rows": pool.rows,
        "unit": "queries",
        "pairs": total["pairs"],
        "against": total["against"] / max(1, total["pairs"]),
        "inconsistency": total["off"] / max(1, total["checked"]),
    }
