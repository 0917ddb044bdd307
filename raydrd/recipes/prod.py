"""PROD: Progressive Distillation for Dense Retrieval (Lin et al.; WWW 2023, arXiv 2209.13335).

1. The student is distilled in turn from a bi-encoder, a small cross-encoder and a large one (teacher progressive).
2. Each teacher is trained in the pipeline, and each step uses freshly mined negatives.
3. Each cross-encoder step also holds the student to its own previous version (the anchor; "LwF" in the authors' code).
4. Then it trains briefly on the queries that the strongest teacher answers at rank 1 and the student does not (data
   progressive), against the student's own top-ranked negatives, in their order.
5. The 21 commands that the authors launch by hand are this one function.

Differs from the authors' program in: (1) teachers score the mined candidates once, offline, and so does the anchor: no
teacher sits in the training loop, the numbers are the same; (2) gradients go through gathered vectors, theirs are
detached, which trains with 1/W of them on W workers; (3) short lists are masked, theirs repeat passages; (4) a positive
that no search found is scored too.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from raydrd.config import Frozen
from raydrd.errors import InputError
from raydrd.flow.lab import Lab
from raydrd.flow.learn import distil, started
from raydrd.flow.listing import listed
from raydrd.flow.preflight import scale_of
from raydrd.flow.retrieve import mine
from raydrd.flow.teach import ready, teach
from raydrd.lists import Confusing, TopAndSampled
from raydrd.objectives import Contrastive, Distil, Losses
from raydrd.setting import AnyTeacher, BiEncoderTeacher, Setting
from raydrd.store import Artifact
from raydrd.training.plan import TrainConfig

SUMMARY = "PROD (WWW 2023): progressive teachers, then progressive data, anchored to the student of before"


class Step(Frozen):
    """One teacher's turn. A bi-encoder is compared over the whole batch, a cross-encoder over a query's own list."""

    teacher: AnyTeacher | None = Field(None, description="none: the config's own, the strongest")
    mined_by: Literal["student", "teacher"] = Field("student", description="teacher: the bi-encoder of the first step")
    anchor: bool = True
    lists: TopAndSampled = TopAndSampled(negatives=15, pool=100, ranking="student", unlabelled=False)
    train: TrainConfig


class DataProgressive(Frozen):
    """The last step: only queries that `select` finds confusing; presets as the authors': within 2..15 at 1 (MARCO)."""

    select: Confusing = Confusing()
    train: TrainConfig


class Loss(Frozen):
    ce_weight: float = Field(0.1, gt=0, description="CE_WEIGHT: of the labels")
    kd_weight: float = Field(0.9, gt=0, description="KD_WEIGHT: of the teacher")
    lwf_weight: float = Field(1.0, gt=0, description="LwF_WEIGHT: of the anchor")
    temperature: float = Field(4.0, gt=0)
    score_scale: float = Field(1.0, gt=0, description="multiplies the student's scores: 20 for unit vectors")


class Config(Setting):
    progress: tuple[Step, ...] = Field(min_length=1)
    data_progressive: DataProgressive | None = None
    loss: Loss = Loss()

    def teachers(self) -> tuple[Any, ...]:
        return tuple(dict.fromkeys([self.teacher, *(step.teacher for step in self.progress if step.teacher)]))

    def trainings(self) -> tuple[TrainConfig, ...]:
        last = (self.data_progressive.train,) if self.data_progressive else ()
        return (*(step.train for step in self.progress), *last)

    def check_models(self, student: dict[str, Any], teachers: dict[Any, dict[str, Any]]) -> None:
        mined = any(step.mined_by == "teacher" for step in self.progress)
        if mined and not any(isinstance(one, BiEncoderTeacher) for one in self.teachers()):
            raise InputError("progress: mined_by: teacher needs a bi_encoder teacher in one of the steps; write student")


def objective(loss: Loss, scale: float, *, anchor: bool, whole_batch: bool) -> Losses:
    """L = 0.1 NLL + 0.9 kd(s, t; T=4) [+ 1.0 kd(s, s_prev; T=4)]; kd with T on both sides, times T^2."""
    kd: dict[str, Any] = {"temperature": loss.temperature, "both_sides": True}
    terms: list[Any] = [
        Contrastive(weight=loss.ce_weight, in_batch=whole_batch),
        Distil(weight=loss.kd_weight, teacher_scale=scale, over="global" if whole_batch else "list", **kd),
    ]
    if anchor:
        terms.append(Distil(weight=loss.lwf_weight, source="anchor", **kd))
    return Losses(terms=tuple(terms), score_scale=loss.score_scale)


def run(cfg: Config, lab: Lab) -> Artifact:
    """The distilled student."""
    student = started(lab)
    for number, step in enumerate(cfg.progress, 1):
        student = teacher_step(cfg, lab, student, step, f"teacher {number}")
    if cfg.data_progressive is not None:
        last, label = cfg.data_progressive, "confusing queries"
        candidates = mine(lab, student, label=label, positives=True)
        teacher = ready(lab, lab.teacher, candidates)  # trained here only if no step before has used it
        scored = teach(lab, teacher, candidates, lab.train_data, "queries/train", label=label)
        made = listed(lab, label, scored, last.select, anchored=student)
        if not made.lists.metrics["rows"]:
            lab.notes.append("data progressive: no query is confusing by its rule, so the step was left out")
            return student
        wanted = objective(cfg.loss, scale_of(lab, lab.teacher), anchor=True, whole_batch=False)
        student = distil(lab, student, label, made.lists, wanted, last.train)
    return student


def teacher_step(cfg: Config, lab: Lab, student: Artifact, step: Step, label: str) -> Artifact:
    """Mine, train the teacher on what was found, let it score once, distil."""
    wanted = lab.teachers[step.teacher or cfg.teacher]
    retriever = student
    if step.mined_by == "teacher":
        first = lab.teachers[next(one for one in cfg.teachers() if isinstance(one, BiEncoderTeacher))]
        assert first.model is not None
        retriever = first.model
    candidates = mine(lab, retriever, label=label, positives=True)
    teacher = ready(lab, wanted, candidates)
    whole_batch = isinstance(teacher.cfg, BiEncoderTeacher)
    scored = teach(lab, teacher, candidates, lab.train_data, "queries/train", label=label)
    made = listed(lab, label, scored, step.lists, teacher=teacher, anchored=student if step.anchor else None)
    loss = objective(cfg.loss, scale_of(lab, teacher), anchor=step.anchor, whole_batch=whole_batch)
    return distil(lab, student, label, made.lists, loss, step.train, teacher=teacher.model if whole_batch else None)


def variants(cfg: Config) -> dict[str, Config]:
    """The recipe without each of its ideas, with the same updates in all."""
    found: dict[str, Config] = {}
    if len({step.teacher or cfg.teacher for step in cfg.progress}) > 1:
        straight = tuple(step.model_copy(update={"teacher": None}) for step in cfg.progress)
        found["progressive teachers: straight to the strongest"] = cfg.model_copy(update={"progress": straight})
    if any(step.anchor for step in cfg.progress):
        loose = tuple(step.model_copy(update={"anchor": False}) for step in cfg.progress)
        found["anchor: none"] = cfg.model_copy(update={"progress": loose})
    if cfg.data_progressive is not None:
        *before, last = cfg.progress
        longer = last.model_copy(update={"train": last.train.plus(cfg.data_progressive.train)})
        found["data progressive: none"] = cfg.model_copy(update={"progress": (*before, longer), "data_progressive": None})
    return found
