"""MD2PR: a Multi-level Distillation Model for Dense Passage Retrieval (arXiv 2312.16821).

Implemented from the abstract: the authors' program is not public, and every formula below that the abstract does not
state is this project's reading of it (see the README).

1. A cross-encoder reads query and passage together and so yields word similarities; a bi-encoder reads them apart.
2. Sentence level: the student learns the teacher's soft label over a list.
3. Word level: which word of the query attends to which word of the passage, and back, from the teacher's attention.
4. Dynamic filter: passages that the teacher scores above a threshold are perhaps unlabelled positives. They stay in the
   soft label, where they are right, and leave the contrastive denominator, where they are wrong.
5. The threshold is learnt from the positives' scores and carried from round to round; each round mines anew.
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
from raydrd.flow.retrieve import mine, tell_mined_once
from raydrd.flow.teach import ready, teach
from raydrd.flow.teachers import reader
from raydrd.methods.filters import Filter
from raydrd.methods.lists import TopAndSampled
from raydrd.methods.objectives import Contrastive, Distil, Losses
from raydrd.methods.wordmaps import WordMaps
from raydrd.setting import Setting, check_words
from raydrd.spine.store import Artifact
from raydrd.training.plan import TrainConfig

SUMMARY = "MD2PR (arXiv 2023): sentence and word level, dynamic false-negative filter; from the abstract"


class Loss(Frozen):
    lambda_s: float = Field(1.0, gt=0, description="weight of the sentence level; the word level's stands in words.weight")
    tau: float = Field(1.0, gt=0, description="temperature of both softmaxes; the loss is times its square")
    score_scale: float = Field(1.0, gt=0, description="multiplies the student's scores: 20 for unit vectors")


class Config(Setting):
    lists: TopAndSampled = TopAndSampled(negatives=15, pool=100, ranking="student")
    filter: Filter | None = Filter(standardise=True)
    words: WordMaps | None = WordMaps()
    loss: Loss = Loss()
    rounds: tuple[TrainConfig, ...] = Field(min_length=1, description="one training each; candidates are mined before each")
    retrain: bool = Field(True, description="a teacher with `train` learns again from each round's candidates")

    def scores_anew(self) -> str:
        return "what each round mines anew" if len(self.rounds) > 1 else ""

    def trainings(self) -> tuple[TrainConfig, ...]:
        return self.rounds

    def check_parts(self) -> None:
        learns = any(getattr(one, "train", None) for one in getattr(self.teacher, "members", (self.teacher,)))
        smooths = self.filter is not None and self.filter.mode == "quantile" and self.filter.smoothing > 0
        if self.retrain and learns and len(self.rounds) > 1 and smooths and self.filter and not self.filter.standardise:
            raise InputError(
                "filter: the teacher learns again each round, so its scores of two rounds do not compare; write "
                "filter.standardise=true, filter.smoothing=0, or retrain=false"
            )

    def check_models(self, student: dict[str, Any], teachers: dict[Any, dict[str, Any]]) -> None:
        if self.words is not None:
            check_words(self, student, teachers, layers=self.words.layers)


def objective(loss: Loss, scale: float) -> Losses:
    """L = L_cl + lambda_s L_sent; the word level is added in the loop, where teacher maps are made."""
    sentence = Distil(weight=loss.lambda_s, temperature=loss.tau, both_sides=True, teacher_scale=scale)
    return Losses(terms=(Contrastive(), sentence), score_scale=loss.score_scale)


def run(cfg: Config, lab: Lab) -> Artifact:
    """The distilled student."""
    if len(cfg.rounds) > 1:
        tell_mined_once(lab)
    student, threshold = started(lab), None
    for number, config in enumerate(cfg.rounds):
        label = f"round {number + 1}"
        candidates = mine(lab, student, label=label, positives=True)
        teacher = ready(lab, lab.teacher, candidates, anew=cfg.retrain and number > 0)
        scored = teach(lab, teacher, candidates, lab.train_data, "queries/train", label=label)
        made = listed(lab, label, scored, cfg.lists, filter=cfg.filter, round=number, previous=threshold)
        threshold = made.threshold
        student = distil(
            lab, student, label, made.lists, objective(cfg.loss, scale_of(lab, teacher)), config,
            words=cfg.words, word_teacher=reader(teacher) if cfg.words else None,
        )  # fmt: skip
    return student


def variants(cfg: Config) -> dict[str, Config]:
    """The recipe without each of its ideas."""
    found: dict[str, Config] = {}
    if cfg.words is not None:
        found["word level: none"] = cfg.model_copy(update={"words": None})
    if cfg.filter is not None:
        found["filter: none"] = cfg.model_copy(update={"filter": None})
    return found
