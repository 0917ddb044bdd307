"""Training lists with everything that joins them: dark examples, compared pairs, a filter's marks, anchor scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raydrd.flow.lab import Lab
from raydrd.flow.preflight import scale_of
from raydrd.flow.retrieve import vectors
from raydrd.flow.teach import teach
from raydrd.flow.teachers import Teacher
from raydrd.methods.dark import Dark
from raydrd.methods.filters import Filter
from raydrd.methods.lists import ListRule
from raydrd.methods.pacing import Confidence
from raydrd.spine.store import Artifact
from raydrd.stages.assemble import anchor, assemble
from raydrd.stages.combine import learn_threshold
from raydrd.stages.dark import dark_candidates, write_dark


@dataclass(frozen=True)
class Listed:
    """Training lists; the written passages they name beside the corpus; the filter's threshold for the next round."""

    lists: Artifact
    dark: Artifact | None = None
    threshold: Artifact | None = None


def listed(
    lab: Lab,
    label: str,
    scored: Artifact,
    rule: ListRule,
    *,
    teacher: Teacher | None = None,
    dark: Dark | None = None,
    pairs: Artifact | None = None,
    filter: Filter | None = None,
    round: int = 0,
    previous: Artifact | None = None,
    anchored: Artifact | None = None,
    confidence: Confidence = "softmax",
) -> Listed:
    """Lists of `scored` by `rule`, and what the report should know about them.

    previous: the threshold of the round before. anchored: the student whose scores the lists carry as anchor.
    """
    teacher = teacher or lab.teacher
    scale = scale_of(lab, teacher)
    more: dict[str, Any] = {}
    written = None
    if dark is not None:
        written = lab.store.run(
            write_dark, f"write dark examples ({label})", scored=scored, data=lab.train_data, corpus=lab.data,
            rule=dark.writing(),
        )  # fmt: skip
        taught = teach(
            lab,
            teacher,
            dark_candidates(written),
            lab.train_data,
            "queries/train",
            corpora=[lab.data, written],
            reference=scored,
            label=f"dark, {label}",
        )
        more = {"dark": written, "dark_scored": taught, "dark_rule": dark}
    if pairs is not None:
        more["pairs"] = pairs
        lab.fact(
            label,
            **{
                "pairs compared": pairs.metrics["pairs"],
                "pairwise teacher against the pointwise order": pairs.metrics["against"],
                "its inconsistency when asked in the other order": pairs.metrics["inconsistency"],
            },
        )
    threshold = None
    if filter is not None:
        threshold = lab.store.run(
            learn_threshold,
            f"filter threshold ({label})",
            scored=scored,
            data=lab.train_data,
            rule=filter,
            round=round,
            previous=previous,
        )
        more |= {"filter": filter, "threshold": threshold}
        found = threshold.metrics
        lab.fact(
            label,
            **{
                "filter threshold": found.get("theta"),
                "hidden positives": found.get("hidden"),
                "hidden positives that it filters": found.get("hidden_recall"),
                "passages of those queries that it filters": found.get("filter_rate"),
            },
        )
    lists = lab.store.run(
        assemble, f"lists of {label}", scored=scored, data=lab.train_data, rule=rule, confidence=confidence, scale=scale, **more
    )
    built = written.metrics["made"] if written else None
    _tell(lab, label, lists, paired=pairs is not None, filtered=filter is not None, built=built)
    if anchored is not None:
        passages = [vectors(lab.store, anchored, one, "corpus", lab.precision, "anchor") for one in (lab.data, written) if one]
        lists = lab.store.run(
            anchor,
            f"anchor scores ({label})",
            lists=lists,
            queries=vectors(lab.store, anchored, lab.train_data, "queries/train", lab.precision, "anchor"),
            passages=passages[0] if len(passages) == 1 else passages,
        )
    return Listed(lists, written, threshold)


def _tell(lab: Lab, label: str, lists: Artifact, *, paired: bool, filtered: bool, built: int | None) -> None:
    found = lists.metrics
    lab.fact(label, lists=found["rows"], **{"with a labelled positive": found["labelled"]})
    if paired:
        lab.fact(label, **{"pairs kept in lists": found["pairs"]})
    if filtered:
        lab.fact(label, **{"suspected false negatives": found["suspects"], "of so many negatives": found["negatives"]})
    if built is not None:
        lab.fact(
            label,
            **{
                "dark examples built": built,
                "dark examples in the band": found["in_band"],
                "kept": found["dark"],
                "entropy of the teacher's list (nats)": found.get("entropy"),
                "with dark examples": found.get("entropy_with_dark"),
            },
        )
