"""Mix: any list rule, dark examples, compared pairs, filter, pacing and terms, step by step; the papers' parts freely joined.

A step's lists are made from candidates that the student mined when `mine` last said so. Plain listwise KL, the baseline
that the papers are measured against, is one step with one term.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from raydrd.config import Frozen
from raydrd.dark import Dark
from raydrd.errors import InputError
from raydrd.filters import Filter
from raydrd.flow.lab import Lab
from raydrd.flow.learn import distil, started
from raydrd.flow.listing import listed
from raydrd.flow.preflight import scale_of
from raydrd.flow.teach import duels, scored_candidates
from raydrd.flow.teachers import reader
from raydrd.lists import ListRule
from raydrd.neighbours import NeighbourPairs
from raydrd.objectives import Distil, Losses, MarginMSE, Pairwise, Term
from raydrd.pacing import SelfPaced
from raydrd.setting import PairTeacher, Setting, check_words
from raydrd.store import Artifact
from raydrd.training.plan import TrainConfig
from raydrd.wordmaps import WordMaps

SUMMARY = "the parts of all papers, freely joined: curriculum + dark examples + pairs + filter is a config"


class Step(Frozen):
    """One training: from which candidates, in which lists, under which terms."""

    mine: bool = Field(False, description="mine and score anew with the current student (the first step always does)")
    lists: ListRule
    dark: Dark | None = None
    pairs: NeighbourPairs | None = None
    filter: Filter | None = None
    pacing: SelfPaced | None = None
    words: WordMaps | None = None
    terms: tuple[Term, ...] = Field(min_length=1)
    train: TrainConfig

    @property
    def anchored(self) -> bool:
        return any(isinstance(term, Distil) and term.source == "anchor" for term in self.terms)


class Config(Setting):
    score_scale: float = Field(1.0, gt=0, description="multiplies the student's scores: 20 for unit vectors")
    pairwise: PairTeacher | None = None
    symmetrize: bool = False
    steps: tuple[Step, ...] = Field(min_length=1)

    def pair_teachers(self) -> tuple[Any, ...]:
        return (self.pairwise,) if self.pairwise is not None else ()

    def trainings(self) -> tuple[TrainConfig, ...]:
        return tuple(step.train for step in self.steps)

    def check_models(self, student: dict[str, Any], teachers: dict[Any, dict[str, Any]]) -> None:
        for number, step in enumerate(self.steps):
            _refuse(self, step, f"steps.{number}")
            if step.words is not None:
                check_words(self, student, teachers, layers=step.words.layers)


def _refuse(cfg: Config, step: Step, where: str) -> None:
    """Parts that do not go together, before anything is paid for."""
    pairwise = any(isinstance(term, Pairwise) for term in step.terms)
    if pairwise and (step.pairs is None or cfg.pairwise is None):
        raise InputError(
            f"{where}: a pairwise term needs pairs and, at the top, a pairwise teacher; add both, or drop the term"
        )
    if step.pairs is not None and not pairwise:
        raise InputError(f"{where}: pairs are compared but no term reads them; add {{kind: pairwise}}, or remove pairs")
    if step.dark is not None and not any(isinstance(term, Distil) and term.over == "list" for term in step.terms):
        raise InputError(f"{where}: dark examples are read by {{kind: distil}} over the list only; add it, or remove dark")
    if step.train.train_group_size is not None and step.pairs is not None:
        raise InputError(
            f"{where}: train_group_size draws passages anew each epoch, pairs need them to stay; remove one of them"
        )
    gated = all(term.kind in ("distil", "contrastive") for term in step.terms) and step.words is None
    if step.pacing is not None and step.pacing.scope == "all" and not gated:
        raise InputError(
            f"{where}: pacing.scope: all gates distil and contrastive only; write scope: dark, or drop the other terms"
        )
    if any(isinstance(term, Distil) and term.over == "global" for term in step.terms):
        raise InputError(f"{where}: over: global compares with a bi-encoder's vectors; only recipe prod offers it")


def _scaled(term: Any, scale: float) -> Any:
    """The term with the teacher's scale, where it reads teacher scores and names none of its own."""
    reads = isinstance(term, MarginMSE) or (isinstance(term, Distil) and term.source == "teacher")
    return term.model_copy(update={"teacher_scale": scale}) if reads and "teacher_scale" not in term.model_fields_set else term


def run(cfg: Config, lab: Lab) -> Artifact:
    """The distilled student."""
    student, scored, pairs, threshold = started(lab), None, None, None
    for number, step in enumerate(cfg.steps):
        label = f"step {number + 1}"
        if scored is None or step.mine:
            scored = scored_candidates(lab, student, label=label, positives=True, known=scored)
        if step.pairs is not None and cfg.pairwise is not None:
            pairs = duels(lab, lab.teachers[cfg.pairwise], scored, step.pairs, symmetrize=cfg.symmetrize, label=label)
        made = listed(
            lab, label, scored, step.lists, dark=step.dark, pairs=pairs if step.pairs else None, filter=step.filter,
            round=number if threshold else 0, previous=threshold, anchored=student if step.anchored else None,
            confidence=step.pacing.confidence if step.pacing else "softmax",
        )  # fmt: skip
        if made.threshold is not None and step.filter is not None and step.filter.mode == "quantile":
            threshold = made.threshold  # smoothed with the next one; the other modes have none to smooth
        scale = scale_of(lab, lab.teacher)
        objective = Losses(terms=tuple(_scaled(t, scale) for t in step.terms), score_scale=cfg.score_scale, pacing=step.pacing)
        student = distil(
            lab, student, label, made.lists, objective, step.train, dark=made.dark,
            words=step.words, word_teacher=reader(lab.teacher) if step.words else None,
        )  # fmt: skip
    return student


IDEAS = {"dark": "dark examples", "pacing": "self-paced", "filter": "filter", "words": "word level"}


def variants(cfg: Config) -> dict[str, Config]:
    """The mix without each of its parts."""
    found: dict[str, Config] = {}
    for name, idea in IDEAS.items():
        if any(getattr(step, name) is not None for step in cfg.steps):
            steps = tuple(step.model_copy(update={name: None}) for step in cfg.steps)
            found[f"{idea}: none"] = cfg.model_copy(update={"steps": steps})
    for kind in dict.fromkeys(term.kind for step in cfg.steps for term in step.terms):
        kept = [tuple(term for term in step.terms if term.kind != kind) for step in cfg.steps]
        if all(kept):
            gone = {"pairs": None} if kind == "pairwise" else {"dark": None} if kind == "distil" else {}
            steps = tuple(step.model_copy(update={"terms": t, **gone}) for step, t in zip(cfg.steps, kept, strict=True))
            found[f"{kind} term: none"] = cfg.model_copy(update={"steps": steps})
    if len(cfg.steps) > 1 and all(step.train.max_steps for step in cfg.steps):
        train = cfg.steps[0].train
        for step in cfg.steps[1:]:
            train = train.plus(step.train)
        last = cfg.steps[-1].model_copy(update={"train": train})
        found["curriculum: last step only"] = cfg.model_copy(update={"steps": (last,)})
    return found
