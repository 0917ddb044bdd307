"""duel: pairs of one query's candidates, and a pairwise reranker's P(left is better than right)."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from raydrd.methods.neighbours import NeighbourPairs
from raydrd.models.prompts import Prompt
from raydrd.spine.parts import Parts
from raydrd.spine.precision import Precision
from raydrd.spine.scorebook import Book
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Located, Work, stage
from raydrd.spine.tables import PAIRS
from raydrd.stages.assemble import rows_of
from raydrd.stages.engine import fill_book
from raydrd.stages.known import PLACES, Asked, Keys, Known, KnownScores, look_up, places_of
from raydrd.stages.load import table
from raydrd.stages.score import about_scores, answer, book_of
from raydrd.stages.scorers import open_scorer
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


def asked_duels(pairs: pa.Table, lo: int, *, symmetrize: bool) -> Asked:
    """Every pair of these rows, which begin at row `lo`, then those that are also asked the other way round.

    Position bias is told even when it is not paid for: on every eighth query's pairs.
    """
    left, right = (pairs[name].combine_chunks() for name in ("left", "right"))
    counts = left.value_lengths().to_numpy(zero_copy_only=False)
    query = np.repeat(pairs["query_row"].to_numpy(), counts)
    a, b = left.flatten().to_numpy(), right.flatten().to_numpy()
    places = places_of(counts, lo)
    back = np.ones(len(places), bool) if symmetrize else np.repeat(np.arange(lo, lo + len(counts)) % 8 == 0, counts)
    return Asked(
        np.concatenate([query, query[back]]),
        (np.concatenate([a, b[back]]), np.concatenate([b, a[back]])),
        np.concatenate([places, places[back] + PLACES // 2]),
    )


class Duellist:
    """A pairwise reranker over blocks of queries; what its book knew is taken, what it computes is added."""

    def __init__(
        self, *, kind: str, model: Folder, pairs: Parts, out: Folder, symmetrize: bool, known: Known, book: Book, label: str,
        **more: Any,
    ) -> None:  # fmt: skip
        self.scorer = open_scorer(kind, model, **more)
        self.pairs, self.out, self.symmetrize, self.book, self.label = pairs, out, symmetrize, book, label
        self.known, self.keys = KnownScores(known), Keys(more["queries"], more["passages"])

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        from raydrd.models.answers import pairwise_log_p, symmetrized

        rows = self.pairs.slice(shard["lo"], shard["hi"])
        asked = asked_duels(rows, shard["lo"], symmetrize=self.symmetrize)
        is_back = asked.places % PLACES >= PLACES // 2
        gaps = np.concatenate([self.known.of(asked.at(~is_back)), self.known.of(asked.at(is_back))])
        name = f"{self.label}-{shard['name'].partition('.')[0]}"
        computed = answer(self.scorer, asked, gaps, self.book, self.keys, name)
        log_p, back = pairwise_log_p(gaps[~is_back]), pairwise_log_p(gaps[is_back])
        both_ways = np.isin(asked.places[~is_back], asked.places[is_back] - PLACES // 2)
        both, off = symmetrized(log_p[both_ways], back)
        p = both if self.symmetrize else np.exp(log_p)
        left, right = (rows[name].combine_chunks() for name in ("left", "right"))
        offsets = np.concatenate([[0], np.cumsum(left.value_lengths().to_numpy(zero_copy_only=False))])
        column = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(p.astype(np.float32)))
        table_ = pa.table([rows["query_row"], left, right, column], schema=PAIRS)
        counts = {"pairs": len(p), "against": int((p < 0.5).sum()), "off": float(off.sum()), "checked": len(off)}
        return write_counted(self.out, shard["name"], table_, **counts, asked=computed)


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
    engine: str = "transformers",
) -> dict[str, Any]:
    """Pairs with P(left is better). `against`: share where the pairwise teacher turns the pointwise order round.

    What any run of this store has asked this teacher before is taken from its score book; `asked`: what was computed.
    """
    pool = parts_of(pairs)
    resources = work.cluster.resources
    each = max(1, int(pairs.metrics["pairs"]) // max(1, pool.rows))
    size = max(1, (resources.pairs_per_shard or 4096) // each)
    texts: dict[str, Any] = {"queries": parts_of(query_tokens), "passages": chain_of(passage_tokens)}
    book = book_of(work, teacher, {"compares": "pairs", **about_scores(kind, prompt, max_length, precision, engine)})
    ask = partial(asked_duels, symmetrize=symmetrize)
    wanted: dict[str, Any] = {"asked": pool, "ask": ask, "pairs": pool.rows * each * 2, "book": book}
    answered = 0
    if engine != "transformers":
        assert prompt is not None
        answered = fill_book(
            work, **wanted, **texts, model=teacher.where, prompt=prompt, max_length=max_length, precision=precision
        )
    known = look_up(work, **wanted, **texts)
    work.cluster.map(
        Duellist,
        {
            "kind": kind if engine == "transformers" else "answered",
            "model": teacher.where,
            "prompt": prompt,
            "pairs": pool,
            **texts,
            "known": known,
            "book": book,
            "label": work.id,
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
    total = total_counts(work, "pairs", "against", "off", "checked", "asked")
    return {
        "rows": pool.rows,
        "unit": "queries",
        "pairs": total["pairs"],
        "asked": total["asked"] + answered,
        "against": total["against"] / max(1, total["pairs"]),
        "inconsistency": total["off"] / max(1, total["checked"]),
    }
