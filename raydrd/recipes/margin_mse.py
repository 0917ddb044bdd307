"""Margin-MSE: cross-architecture distillation by margins (Hofstätter et al., arXiv 2010.02666).

1. A teacher scores a query's positive and negatives once.
2. The student learns the teacher's margins between the positive and each negative, by squared error.
"""

from __future__ import annotations

from pydantic import Field

from raydrd.config import Frozen
from raydrd.flow.lab import Lab
from raydrd.flow.learn import distil, started
from raydrd.flow.listing import listed
from raydrd.flow.preflight import scale_of
from raydrd.flow.teach import scored_candidates
from raydrd.methods.lists import TopAndSampled
from raydrd.methods.objectives import Losses, MarginMSE
from raydrd.setting import Setting
from raydrd.spine.store import Artifact
from raydrd.training.plan import TrainConfig

SUMMARY = "Margin-MSE (2020): the teacher's margins between a positive and its negatives"


class Loss(Frozen):
    score_scale: float = Field(1.0, gt=0, description="multiplies the student's scores")


class Config(Setting):
    lists: TopAndSampled = TopAndSampled(negatives=15, pool=100, ranking="student")
    loss: Loss = Loss()
    train: TrainConfig

    def trainings(self) -> tuple[TrainConfig, ...]:
        return (self.train,)


def run(cfg: Config, lab: Lab) -> Artifact:
    """The distilled student."""
    student = started(lab)
    scored = scored_candidates(lab, student, positives=True)
    made = listed(lab, "margins", scored, cfg.lists)
    margins = MarginMSE(teacher_scale=scale_of(lab, lab.teacher))
    return distil(lab, student, "margins", made.lists, Losses(terms=(margins,), score_scale=cfg.loss.score_scale), cfg.train)


def variants(cfg: Config) -> dict[str, Config]:
    """It has one idea, and nothing is left without it."""
    return {}
