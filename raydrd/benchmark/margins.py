"""What a run's Margin-MSE training read, from its store, and the same as rows of texts with margins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raydrd.errors import InputError
from raydrd.methods.lists import DARK, POSITIVE
from raydrd.models.layout import Layout
from raydrd.spine.parts import Parts
from raydrd.spine.storage import Folder
from raydrd.spine.store import MANIFEST, Artifact
from raydrd.stages.adopt import layout_of
from raydrd.stages.load import table
from raydrd.stages.shards import parts_of
from raydrd.training.plan import TrainConfig


@dataclass(frozen=True)
class Taken:
    """What a run's own Margin-MSE training read, and how it trained."""

    report: dict[str, Any]
    start: Artifact
    data: Artifact
    train_data: Artifact
    lists: Artifact
    config: TrainConfig
    teacher_scale: float
    score_scale: float

    @property
    def updates(self) -> int:
        return self.config.steps(int(self.lists.metrics["rows"]))

    @property
    def warm_up(self) -> int:
        """Updates of the warm-up, as `TrainConfig.rate` counts them."""
        asked = self.config.warmup_steps
        return min(round(self.config.warmup_ratio * self.updates) if asked is None else asked, self.updates - 1)

    @property
    def layout(self) -> Layout:
        return layout_of(self.start)


@dataclass(frozen=True)
class Rows:
    """What the library trains on: columns of texts, query first, and margins [rows, negatives]."""

    columns: dict[str, list[str]]
    margins: list[list[float]]
    left_out: int  # lists that are shorter than the others: the library wants as many negatives in every row


def take(run: Folder, *, store: str | None = None) -> Taken:
    """What the Margin-MSE training of a run read, found through the identities in its store.

    Raises:
        InputError: the run is of another recipe, its store is not there, or its training has no counterpart here.
    """
    report = run.read_json("report.json")
    if report.get("recipe") != "margin_mse":
        raise InputError(f"{run}: a run of {report.get('recipe')}; name a run of margin_mse, whose loss the library has")
    root = Folder.of(store or report["store"])
    made = [_opened(root, f"train/{record['id']}") for record in report["stages"] if record["name"] == "train"]
    # A warm-up on labels is a `train` stage too.
    found = [one for one in made if _margins(one) is not None]
    if not found:
        raise InputError(
            f"{run}: no stage of it learnt margins alone; run its command again, without student.dims if that was set"
        )
    inputs = found[-1].manifest["inputs"]
    margins, config = _margins(found[-1]), TrainConfig.model_validate(inputs["config"]["fields"])
    assert margins is not None
    if config.train_group_size is not None:
        raise InputError(f"{run}: train.train_group_size: the library reads whole lists; name a run without it")
    lists = _opened(root, inputs["lists"]["artifact"])
    return Taken(
        report=report,
        start=_opened(root, inputs["start"]["artifact"]),
        data=_opened(root, report["artifacts"]["data"]),
        train_data=_opened(root, lists.manifest["inputs"]["data"]["artifact"]),
        lists=lists,
        config=config,
        teacher_scale=float(margins["teacher_scale"]),
        score_scale=float(inputs["objective"]["fields"]["score_scale"]),
    )


def _margins(made: Artifact) -> dict[str, Any] | None:
    """The fields of a training's MarginMSE term; None where it learnt something else."""
    terms = made.manifest["inputs"]["objective"]["fields"].get("terms", [])  # none: of several widths at once
    return next((term["fields"] for term in terms if term["component"] == "MarginMSE"), None)


def _opened(root: Folder, name: str) -> Artifact:
    stage, _, id_ = name.partition("/")
    home = root / stage / id_
    try:
        return Artifact(id=id_, stage=stage, home=home, manifest=home.read_json(MANIFEST))
    except FileNotFoundError:
        raise InputError(f"{root}: no {name} here; name the run's store with --store, or run its command again") from None


def places(flags: Sequence[int], teacher: Sequence[float]) -> list[int]:
    """Places of a list that Margin-MSE reads, its positive first; none where the positive's score is unknown.

    As `objectives.MarginMSE` with `positive: either`: the first judged positive, or without one the teacher's best;
    the others are all passages with a known score that were not written for the query.
    """
    known = [n for n, (flag, score) in enumerate(zip(flags, teacher, strict=True)) if not np.isnan(score) and not flag & DARK]
    gold = [n for n, flag in enumerate(flags) if flag & POSITIVE]
    if not known or (gold and gold[0] not in known):
        return []
    first = gold[0] if gold else max(known, key=lambda n: (teacher[n], -n))
    return [first, *(n for n in known if n != first)]


def training_rows(taken: Taken, *, factor: float) -> Rows:
    """All training lists as the library's rows; labels are the teacher's margins times `factor`.

    Raises:
        InputError: no list has a negative.
    """
    lists = [one for _, part in parts_of(taken.lists).each() for one in part.to_pylist()]
    chosen = [places(one["flags"], one["teacher_scores"]) for one in lists]
    width = max((len(found) for found in chosen), default=0)
    if width < 2:
        raise InputError("no training list has a positive and a negative with teacher scores; there is nothing to learn")
    kept = [(one, found) for one, found in zip(lists, chosen, strict=True) if len(found) == width]
    queries = _texts(table(taken.train_data, "queries/train"), [one["query_row"] for one, _ in kept])
    passages = _texts(table(taken.data, "corpus"), [one["doc_rows"][n] for one, found in kept for n in found])
    names = ["positive", *(f"negative_{n}" for n in range(1, width))]
    columns = {"query": [queries[one["query_row"]] for one, _ in kept]}
    columns |= {name: [passages[one["doc_rows"][found[n]]] for one, found in kept] for n, name in enumerate(names)}
    scores = [[one["teacher_scores"][n] for n in found] for one, found in kept]
    margins = [[(own[0] - other) * factor for other in own[1:]] for own in scores]
    return Rows(columns=columns, margins=margins, left_out=len(lists) - len(kept))


def _texts(parts: Parts, wanted: list[int]) -> dict[int, str]:
    rows = np.unique(np.array(wanted, dtype=np.int64))
    return dict(zip(rows.tolist(), parts.take(rows, ["text"])["text"].to_pylist(), strict=True))
