"""CL-DRD: Curriculum Learning for Dense Retrieval Distillation (Zeng, Zamani, Vinay; SIGIR 2022, arXiv 2204.13679).

1. A retriever is fine-tuned on lists of passages that a stronger ranker has put in order.
2. Model, loss and candidate pool stay the same; only the granularity of the order asked for changes.
3. Step 1: the teacher's top 5 in exact order, above a block of hard passages, above a block of easier ones.
4. Step 2: an exact top 10 above the two blocks. Step 3: the exact order of all 30.
5. The loss uses the teacher's ranks, never its scores.

Differs from the authors' program in: (1) every labelled positive is kept, where theirs keeps the last one; (2) softplus
in place of log(1 + exp), the same value without overflow; (3) towers may be shared, theirs are two; (4) optional steps
before the curriculum that a small start needs: `recover` gives a cut student its vector space back, `queries` adds
unlabelled queries made from passages (they take the teacher's order alone, the paper's "T" variant); (5) `score_scale`
for students with unit vectors, whose scores are too close together for a logistic loss.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raydrd.config import Frozen
from raydrd.flow.lab import Lab
from raydrd.flow.learn import distil, started
from raydrd.flow.teach import scored_candidates
from raydrd.methods.lists import GradedList
from raydrd.methods.objectives import Losses, Ordered
from raydrd.setting import Setting
from raydrd.spine.store import Artifact
from raydrd.stages.assemble import assemble
from raydrd.training.plan import TrainConfig

SUMMARY = "CL-DRD (SIGIR 2022): a curriculum over the teacher's order, from coarse to fine"


class Step(Frozen):
    """One step of the curriculum: the shape of its lists, and how long they are learnt."""

    lists: GradedList
    train: TrainConfig


class Loss(Frozen):
    score_scale: float = Field(1.0, gt=0, description="multiplies the student's scores: 20 for unit vectors")
    in_batch: Literal["none", "next", "all"] = "none"


class Config(Setting):
    curriculum: tuple[Step, ...] = Field(min_length=1)
    loss: Loss = Loss()

    def reads_scores(self) -> bool:
        return False

    def trainings(self) -> tuple[TrainConfig, ...]:
        return tuple(step.train for step in self.curriculum)


def run(cfg: Config, lab: Lab) -> Artifact:
    """The distilled student."""
    student = started(lab)
    scored = scored_candidates(lab, student)  # once: the pool is not refreshed between steps
    objective = Losses(terms=(Ordered(in_batch=cfg.loss.in_batch),), score_scale=cfg.loss.score_scale)
    for number, step in enumerate(cfg.curriculum, 1):
        label = f"step {number}: {step.lists.graded}/{step.lists.hard}/{step.lists.rest}"
        lists = lab.store.run(assemble, f"lists of {label}", scored=scored, data=lab.train_data, rule=step.lists)
        student = distil(lab, student, label, lists, objective, step.train)
    return student


def variants(cfg: Config) -> dict[str, Config]:
    """The recipe without its idea: the last step for all updates, and the steps in the reversed order."""
    if len(cfg.curriculum) < 2:
        return {}
    first, *others = cfg.curriculum
    train = first.train
    for step in others:
        train = train.plus(step.train)
    longest = cfg.curriculum[-1].model_copy(update={"train": train})
    # The schedules stay in their places: only what is asked for is reversed.
    turned = tuple(
        step.model_copy(update={"lists": other.lists})
        for step, other in zip(cfg.curriculum, reversed(cfg.curriculum), strict=True)
    )
    return {
        "curriculum: last step only": cfg.model_copy(update={"curriculum": (longest,)}),
        "curriculum: reversed": cfg.model_copy(update={"curriculum": turned}),
    }
