"""combine: labelled positives join the candidates, several teachers become one, a filter's threshold is learnt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raydrd.errors import InputError
from raydrd.methods.filters import Filter, hidden_positive_recall, scale, threshold
from raydrd.spine.parts import Parts
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.spine.tables import CANDIDATES, SCORED
from raydrd.stages.assemble import positives_of, rows_of
from raydrd.stages.load import table
from raydrd.stages.shards import parts_of, pending, total_counts, write_counted

NOT_FOUND = float("-inf")  # the retriever's score of a passage it did not find


class Completer:
    """Candidates of a block of queries with their missing labelled positives at the end."""

    def __init__(self, *, candidates: Parts, queries: Parts, out: Folder) -> None:
        self.candidates, self.queries, self.out = candidates, queries, out

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        found = self.candidates.slice(shard["lo"], shard["hi"])
        rows = found["query_row"].to_numpy()
        first = int(rows.min())
        asked = self.queries.slice(first, int(rows.max()) + 1, ["doc_rows", "grades"]).take(rows - first).to_pylist()
        docs, scores, added = found["doc_rows"].to_pylist(), found["scores"].to_pylist(), 0
        for query, own, own_scores in zip(asked, docs, scores, strict=True):
            missing = [d for d in positives_of(query) if d not in own]
            own += missing
            own_scores += [NOT_FOUND] * len(missing)
            added += len(missing)
        table_ = pa.table([found["query_row"], docs, scores], schema=CANDIDATES)
        return write_counted(self.out, shard["name"], table_, added=added)


@stage(version=1)
def with_positives(work: Work, *, candidates: Artifact, data: Artifact) -> dict[str, Any]:
    """Candidates with every labelled positive among them (score -inf where no search found it), to be scored alike."""
    found = parts_of(candidates)
    work.cluster.map(
        Completer,
        {"candidates": found, "queries": table(data, "queries/train"), "out": work.shards},
        pending(work, found.rows, 20_000, "parquet"),
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=found.rows <= 20_000,
        models=False,
    )
    return {"rows": found.rows, "unit": "queries", **total_counts(work, "added")}


class Cutter:
    """The first candidates of a block of queries."""

    def __init__(self, *, candidates: Parts, out: Folder, k: int) -> None:
        self.candidates, self.out, self.k = candidates, out, k

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        found = self.candidates.slice(shard["lo"], shard["hi"])
        docs, scores = (pc.list_slice(found[name], 0, self.k) for name in ("doc_rows", "scores"))
        self.out.write_table(shard["name"], pa.table([found["query_row"], docs, scores], schema=CANDIDATES))
        return {}


@stage(version=1)
def first_candidates(work: Work, *, candidates: Artifact, k: int) -> dict[str, Any]:
    """The first `k` candidates of every query: what a slow teacher is asked about."""
    found = parts_of(candidates)
    work.cluster.map(
        Cutter,
        {"candidates": found, "out": work.shards, "k": k},
        pending(work, found.rows, 10_000, "parquet"),
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=found.rows <= 20_000,
        models=False,
    )
    return {"rows": found.rows, "unit": "queries"}


# -- ensembles ------------------------------------------------------------------------------------


def standardised(scores: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.float64]:
    """(scores - mean) / std of one query's reference scores; zeros where these are all equal."""
    if not len(reference):
        return np.zeros(len(scores))
    spread = float(reference.std())
    return (scores.astype(np.float64) - float(reference.mean())) / spread if spread > 0 else np.zeros(len(scores))


class Blender:
    """The mean over teachers of a query's standardised scores."""

    def __init__(self, *, members: list[Parts], references: list[Parts], out: Folder) -> None:
        self.members, self.references, self.out = members, references, out

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        lo, hi = shard["lo"], shard["hi"]
        tables = [member.slice(lo, hi) for member in self.members]
        scored = [t["teacher_scores"].to_pylist() for t in tables]
        bases = [reference.slice(lo, hi)["teacher_scores"].to_pylist() for reference in self.references]
        blended = [
            np.mean(
                [
                    standardised(np.array(own, dtype=np.float32), np.array(base, dtype=np.float32))
                    for own, base in zip(query, base_of, strict=True)
                ],
                axis=0,
            ).astype(np.float32)
            for query, base_of in zip(zip(*scored, strict=True), zip(*bases, strict=True), strict=True)
        ]
        self.out.write_table(shard["name"], pa.table([*(tables[0][n] for n in SCORED.names[:3]), blended], schema=SCORED))
        return {}


@stage(version=1)
def blend(work: Work, *, members: list[Artifact], references: list[Artifact] | None = None) -> dict[str, Any]:
    """The same candidates scored by several teachers, as one: the mean of scores standardised within each query.

    `references`: scored lists whose mean and spread standardise (dark examples by those of the real passages); default
    the members themselves.
    """
    tables = [parts_of(member) for member in members]
    bases = [parts_of(reference) for reference in references] if references else tables
    work.cluster.map(
        Blender,
        {"members": tables, "references": bases, "out": work.shards},
        pending(work, tables[0].rows, 10_000, "parquet"),
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=tables[0].rows <= 20_000,
        models=False,
    )
    return {"rows": tables[0].rows, "unit": "queries"}


# -- the filter's threshold -----------------------------------------------------------------------


class Learner:
    """Reads the teacher scores of all training queries once: some 4 bytes a candidate.

    The check with hidden positives filters a query's whole scored list, not the 1 + N list that training draws from it:
    there the guards (`keep`, `most`) count fewer negatives and let fewer be filtered.
    """

    def __init__(self, *, scored: Parts, queries: Parts, out: Folder, rule: Filter, round: int, previous: float | None) -> None:
        self.scored, self.queries, self.out = scored, queries, out
        self.rule, self.round, self.previous = rule, round, previous

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        first: list[float | None] = []
        hidden: list[NDArray[np.float32]] = []
        others: list[NDArray[np.float32]] = []
        for _, part in self.scored.each():
            for row in rows_of(part, self.queries):
                judged = list(dict.fromkeys(row.positives))
                places = [np.flatnonzero(row.doc_rows == d) for d in judged]
                own = row.teacher_scores[np.concatenate(places)] if places else row.teacher_scores[:0]
                first.append(float(own[0]) if len(own) else None)
                hidden.append(own[1:])
                others.append(row.teacher_scores[~np.isin(row.doc_rows, judged)])
        positives = np.array([score for score in first if score is not None])
        if not len(positives):
            return {"positives": 0}
        theta = threshold(self.rule, positives, round=self.round, previous=self.previous)
        mean, std = scale(self.rule, positives)
        check = hidden_positive_recall(self.rule, hidden, others, threshold=theta, positive_scores=first, mean=mean, std=std)
        metrics: dict[str, Any] = {"positives": len(positives), "theta": theta, "mean": mean, "std": std}
        if check is not None:
            metrics |= {"hidden": check.hidden, "hidden_recall": check.recall, "filter_rate": check.rate}
        self.out.write_json("threshold.json", metrics)
        return metrics


@stage(version=1)
def learn_threshold(
    work: Work, *, scored: Artifact, data: Artifact, rule: Filter, round: int, previous: Artifact | None = None
) -> dict[str, Any]:
    """MD2PR's threshold of this round from the positives' teacher scores, smoothed with the last round's.

    Also the check that needs no judge: on queries with two labelled positives or more all but the first are hidden
    among the candidates; how many does the filter catch, and how much does it filter at all?

    Raises:
        InputError: no labelled positive was scored.
    """
    candidates = parts_of(scored)
    found = work.cluster.map(
        Learner,
        {
            "scored": candidates,
            "queries": table(data, "queries/train"),
            "out": work.folder,
            "rule": rule,
            "round": round,
            "previous": previous.metrics["theta"] if previous is not None else None,
        },
        [{"name": "all", "rows": candidates.rows}],
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=candidates.rows <= 20_000,
        models=False,
    )[0]
    if not found["positives"]:
        raise InputError("filter: no labelled positive has a teacher score; labels are needed, or set filter=null")
    names = ("theta", "mean", "std", "hidden", "hidden_recall", "filter_rate")
    return {"rows": found["positives"], "unit": "positives", **{name: found[name] for name in names if name in found}}
