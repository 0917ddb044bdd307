"""Mix: any list rule, dark examples, compared pairs, filter, pacing and terms, step by step; the papers' parts freely joined.

A step's lists are made from candidates that the student mined when `mine` last said so. Plain listwise KL, the baseline
that the papers are measured against, is one step with one term.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from raydrd.config import Frozen
from raydrd.errors import InputError
from raydrd.flow.lab import Lab
from raydrd.flow.learn import distil, started
from raydrd.flow.listing import listed
from raydrd.flow.preflight import scale_of
from raydrd.flow.retrieve import tell_mined_once
from raydrd.flow.teach import duels, scored_candidates
from raydrd.flow.teachers import reader
from raydrd.methods.dark import Dark
from raydrd.methods.filters import Filter
from raydrd.methods.lists import ListRule
from raydrd.methods.neighbours import NeighbourPairs
from raydrd.methods.objectives import Contrastive, Distil, Losses, MarginMSE, Pairwise, Term
from raydrd.methods.pacing import SelfPaced, check_batches
from raydrd.methods.wordmaps import WordMaps
from raydrd.setting import PairTeacher, Setting, check_words
from raydrd.spine.store import Artifact
from raydrd.training.plan import TrainConfig

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

    @property
    def compares(self) -> bool:
        """Whether a term reads compared pairs."""
        return any(isinstance(term, Pairwise) for term in self.terms)

    @property
    def reads_dark(self) -> bool:
        return any(isinstance(term, Distil) and term.over == "list" for term in self.terms)

    @property
    def reads_suspects(self) -> bool:
        """Whether a term leaves out what the filter marks."""
        contrasts = any(isinstance(term, Contrastive) and term.own_negatives for term in self.terms)
        return contrasts or any(isinstance(term, Distil) and term.suspects == "mask" for term in self.terms)

    @property
    def reads_scores(self) -> bool:
        """Whether something reads the teacher's scores, and not only the order that they give."""
        terms = any(isinstance(t, MarginMSE) or (isinstance(t, Distil) and t.source == "teacher") for t in self.terms)
        return terms or any(part is not None for part in (self.dark, self.filter, self.pacing))

    @property
    def has_gated(self) -> bool:
        """Whether there is something that pacing can take from a query."""
        if self.pacing is None or self.pacing.scope == "dark":
            return self.dark is not None and self.reads_dark
        gated = (Distil, Contrastive) if self.pacing.scope == "all" else (Distil,)
        return any(isinstance(term, gated) for term in self.terms)


class Config(Setting):
    score_scale: float = Field(1.0, gt=0, description="multiplies the student's scores: 20 for unit vectors")
    pairwise: PairTeacher | None = None
    symmetrize: bool = False
    steps: tuple[Step, ...] = Field(min_length=1)

    def pair_teachers(self) -> tuple[Any, ...]:
        return (self.pairwise,) if self.pairwise is not None else ()

    def reads_scores(self) -> bool:
        return any(step.reads_scores for step in self.steps)

    def scores_anew(self) -> str:
        if any(step.dark is not None for step in self.steps):
            return "dark examples"
        return "what a step mines anew" if any(step.mine for step in self.steps[1:]) else ""

    def trainings(self) -> tuple[TrainConfig, ...]:
        return tuple(step.train for step in self.steps)

    def check_parts(self) -> None:
        for number, step in enumerate(self.steps):
            _refuse(self, step, f"steps.{number}")

    def check_models(self, student: dict[str, Any], teachers: dict[Any, dict[str, Any]]) -> None:
        for step in self.steps:
            if step.words is not None:
                check_words(self, student, teachers, layers=step.words.layers)


def _refuse(cfg: Config, step: Step, where: str) -> None:
    """Parts that do not go together, before anything is paid for."""
    if step.compares and (step.pairs is None or cfg.pairwise is None):
        raise InputError(
            f"{where}: a pairwise term needs pairs and, at the top, a pairwise teacher; add both, or drop the term"
        )
    if step.pairs is not None and not step.compares:
        raise InputError(f"{where}: pairs are compared but no term reads them; add {{kind: pairwise}}, or remove pairs")
    if step.dark is not None and not step.reads_dark:
        raise InputError(f"{where}: dark examples are read by {{kind: distil}} over the list only; add it, or remove dark")
    if step.train.train_group_size is not None and step.pairs is not None:
        raise InputError(
            f"{where}: train_group_size draws passages anew each epoch, pairs need them to stay; remove one of them"
        )
    if step.filter is not None and not step.reads_suspects:
        raise InputError(
            f"{where}: the filter's marks are read by {{kind: contrastive}} with own negatives and by {{kind: distil, "
            "suspects: mask}; add one of them, or remove filter"
        )
    gated = all(term.kind in ("distil", "contrastive") for term in step.terms) and step.words is None
    if step.pacing is not None and step.pacing.scope == "all" and not gated:
        raise InputError(
            f"{where}: pacing.scope: all gates distil and contrastive only; write scope: dark, or drop the other terms"
        )
    if step.pacing is not None and not step.has_gated:
        needed = {"dark": "dark examples", "distil": "a distil term", "all": "a distil or contrastive term"}[step.pacing.scope]
        raise InputError(
            f"{where}: pacing.scope: {step.pacing.scope} gates {needed}, and there is none; add it, write another scope, or "
            "remove pacing"
        )
    check_batches(step.pacing, cfg.resources, where=f"{where}.pacing")
    if any(isinstance(term, Distil) and term.over == "global" for term in step.terms):
        raise InputError(f"{where}: over: global compares with a bi-encoder's vectors; only recipe prod offers it")


def _scaled(term: Any, scale: float) -> Any:
    """The term with the teacher's scale, where it reads teacher scores and names none of its own."""
    reads = isinstance(term, MarginMSE) or (isinstance(term, Distil) and term.source == "teacher")
    return term.model_copy(update={"teacher_scale": scale}) if reads and "teacher_scale" not in term.model_fields_set else term


def run(cfg: Config, lab: Lab) -> Artifact:
    """The distilled student."""
    if any(step.mine for step in cfg.steps[1:]):
        tell_mined_once(lab)
    student, scored, pairs, threshold = started(lab), None, None, None
    filtered = 0  # steps filtered by a quantile: the rounds in which a threshold moves
    for number, step in enumerate(cfg.steps):
        label = f"step {number + 1}"
        if scored is None or step.mine:
            scored = scored_candidates(lab, student, label=label, positives=True)
        if step.pairs is not None and cfg.pairwise is not None:
            pairs = duels(lab, lab.teachers[cfg.pairwise], scored, step.pairs, symmetrize=cfg.symmetrize, label=label)
        moves = step.filter is not None and step.filter.mode == "quantile"  # the other modes have no threshold to smooth
        made = listed(
            lab, label, scored, step.lists, dark=step.dark, pairs=pairs if step.pairs else None, filter=step.filter,
            round=filtered if moves else 0, previous=threshold if moves else None, anchored=student if step.anchored else None,
            confidence=step.pacing.confidence if step.pacing else "softmax",
        )  # fmt: skip
        if moves:
            threshold, filtered = made.threshold, filtered + 1
        scale = scale_of(lab, lab.teacher)
        objective = Losses(terms=tuple(_scaled(t, scale) for t in step.terms), score_scale=cfg.score_scale, pacing=step.pacing)
        student = distil(
            lab, student, label, made.lists, objective, step.train, dark=made.dark,
            words=step.words, word_teacher=reader(lab.teacher) if step.words else None,
        )  # fmt: skip
    return student


IDEAS = {"dark": "dark examples", "pacing": "self-paced", "filter": "filter", "words": "word level"}


def _fitting(step: Step) -> Step:
    """The step less the parts that nothing in it reads any more."""
    for name, read in (("pairs", "compares"), ("dark", "reads_dark"), ("filter", "reads_suspects"), ("pacing", "has_gated")):
        if not getattr(step, read):
            step = step.model_copy(update={name: None})
    return step


def variants(cfg: Config) -> dict[str, Config]:
    """The mix without each of its parts."""
    found: dict[str, Config] = {}
    for name, idea in IDEAS.items():
        if any(getattr(step, name) is not None for step in cfg.steps):
            steps = tuple(_fitting(step.model_copy(update={name: None})) for step in cfg.steps)
            found[f"{idea}: none"] = cfg.model_copy(update={"steps": steps})
    for kind in dict.fromkeys(term.kind for step in cfg.steps for term in step.terms):
        kept = [tuple(term for term in step.terms if term.kind != kind) for step in cfg.steps]
        if all(kept):
            steps = tuple(_fitting(step.model_copy(update={"terms": t})) for step, t in zip(cfg.steps, kept, strict=True))
            found[f"{kind} term: none"] = cfg.model_copy(update={"steps": steps})
    if len(cfg.steps) > 1 and all(step.train.max_steps for step in cfg.steps):
        train = cfg.steps[0].train
        for step in cfg.steps[1:]:
            train = train.plus(step.train)
        last = cfg.steps[-1].model_copy(update={"train": train})
        found["curriculum: last step only"] = cfg.model_copy(update={"steps": (last,)})
    return found
