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
from raydrd.flow.retrieve import mine, tell_mined_once
from raydrd.flow.teach import ready, teach, trained_teacher
from raydrd.methods.lists import Confusing, TopAndSampled
from raydrd.methods.objectives import Contrastive, Distil, Losses
from raydrd.setting import AnyTeacher, BiEncoderTeacher, Setting
from raydrd.spine.store import Artifact
from raydrd.training.plan import TrainConfig

SUMMARY = "PROD (WWW 2023): progressive teachers, then progressive data, anchored to the student of before"


class Step(Frozen):
    """One teacher's turn. A bi-encoder is compared over the whole batch, a cross-encoder over a query's own list."""

    teacher: AnyTeacher | None = Field(None, description="none: the config's own, the strongest")
    mined_by: Literal["student", "teacher"] = Field("student", description="teacher: the bi-encoder that `miner` names")
    anchor: bool = True
    lists: TopAndSampled = TopAndSampled(negatives=15, pool=100, ranking="student", unlabelled=False)
    train: TrainConfig


class DataProgressive(Frozen):
    """The last step: only queries that `select` finds confusing; presets as the authors': within 2..15 at 1 (MARCO)."""

    select: Confusing = Confusing()
    anchor: bool = True
    train: TrainConfig


class Loss(Frozen):
    ce_weight: float = Field(0.1, gt=0, description="CE_WEIGHT: of the labels")
    kd_weight: float = Field(0.9, gt=0, description="KD_WEIGHT: of the teacher")
    lwf_weight: float = Field(1.0, gt=0, description="LwF_WEIGHT: of the anchor")
    temperature: float = Field(4.0, gt=0)
    score_scale: float = Field(1.0, gt=0, description="multiplies the student's scores: 20 for unit vectors")


class Config(Setting):
    progress: tuple[Step, ...] = Field(min_length=1)
    miner: BiEncoderTeacher | None = Field(
        None,
        description="the bi-encoder that mines where mined_by: teacher; none: the first one among the steps' teachers. "
        "One with `train` that teaches in no step is trained before the first",
    )
    data_progressive: DataProgressive | None = None
    loss: Loss = Loss()

    def teachers(self) -> tuple[Any, ...]:
        mines = (self.miner,) if self.miner is not None else ()
        return tuple(dict.fromkeys([self.teacher, *(self.teacher_of(step) for step in self.progress), *mines]))

    def teacher_of(self, step: Step) -> Any:
        return step.teacher or self.teacher

    @property
    def mining(self) -> BiEncoderTeacher | None:
        """The bi-encoder that mines where a step's mined_by is teacher, if there is such a step."""
        if all(step.mined_by == "student" for step in self.progress):
            return None
        taught = (self.teacher_of(step) for step in self.progress)
        return self.miner or next((one for one in taught if isinstance(one, BiEncoderTeacher)), None)

    def scores_anew(self) -> str:
        return "what each step mines anew"

    def trainings(self) -> tuple[TrainConfig, ...]:
        last = (self.data_progressive.train,) if self.data_progressive else ()
        return (*(step.train for step in self.progress), *last)

    def check_parts(self) -> None:
        taught = [self.teacher_of(step) for step in self.progress]
        if _learns(self.teacher) and self.data_progressive is None and self.teacher not in taught:
            raise InputError(
                "teacher: every step of progress names its own, so this one would never be trained; leave teacher out of the "
                "last step, add data_progressive, or remove teacher.train"
            )
        mined = [number for number, step in enumerate(self.progress) if step.mined_by == "teacher"]
        if self.miner is not None and not mined:
            raise InputError("miner: no step is mined by it; write mined_by: teacher in one of progress, or remove miner")
        if not mined:
            return
        if self.mining is None:
            raise InputError(
                "progress: mined_by: teacher needs a bi_encoder teacher in one of the steps; write student, or name a miner"
            )
        if self.mining.train is not None and self.mining in taught[mined[0] :] and self.mining not in taught[: mined[0]]:
            raise InputError(
                f"progress.{mined[0]}.mined_by: bi_encoder {self.mining.model} would mine before its training, in step "
                f"{taught.index(self.mining) + 1}; write mined_by: student until then"
            )


def _learns(teacher: Any) -> bool:
    """Whether this teacher, or one of an ensemble, is trained here."""
    return any(getattr(one, "train", None) is not None for one in getattr(teacher, "members", (teacher,)))


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
    if len(cfg.trainings()) > 1:
        tell_mined_once(lab)
    student = started(lab)
    if cfg.mining is not None and cfg.mining.train is not None and cfg.mining not in map(cfg.teacher_of, cfg.progress):
        found = mine(lab, student, positives=True)
        lab.teachers[cfg.mining] = trained_teacher(lab, lab.teachers[cfg.mining], lab.deeper[found.id])
    for number, step in enumerate(cfg.progress, 1):
        student = teacher_step(cfg, lab, student, step, f"teacher {number}")
    if cfg.data_progressive is not None:
        last, label = cfg.data_progressive, "confusing queries"
        candidates = mine(lab, student, label=label, positives=True)
        teacher = ready(lab, lab.teacher, candidates)  # trained here only if no step before has used it
        scored = teach(lab, teacher, candidates, lab.train_data, "queries/train", label=label)
        made = listed(lab, label, scored, last.select, anchored=student if last.anchor else None)
        if not made.lists.metrics["rows"]:
            lab.notes.append("data progressive: no query is confusing by its rule, so the step was left out")
            return student
        wanted = objective(cfg.loss, scale_of(lab, lab.teacher), anchor=last.anchor, whole_batch=False)
        student = distil(lab, student, label, made.lists, wanted, last.train)
    return student


def teacher_step(cfg: Config, lab: Lab, student: Artifact, step: Step, label: str) -> Artifact:
    """Mine, train the teacher on what was found, let it score once, distil."""
    wanted = lab.teachers[cfg.teacher_of(step)]
    retriever = student
    if step.mined_by == "teacher":
        model = lab.teachers[cfg.mining].model
        assert model is not None
        retriever = model
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
    confusing = cfg.data_progressive
    if len({cfg.teacher_of(step) for step in cfg.progress}) > 1:
        straight = tuple(step.model_copy(update={"teacher": None}) for step in cfg.progress)
        # Named, for it may be among the steps no more: what it mines stays the same.
        found["progressive teachers: straight to the strongest"] = cfg.model_copy(
            update={"progress": straight, "miner": cfg.mining}
        )
    if any(step.anchor for step in cfg.progress) or (confusing is not None and confusing.anchor):
        loose = tuple(step.model_copy(update={"anchor": False}) for step in cfg.progress)
        last_loose = confusing.model_copy(update={"anchor": False}) if confusing is not None else None
        found["anchor: none"] = cfg.model_copy(update={"progress": loose, "data_progressive": last_loose})
    if confusing is not None:
        *before, last = cfg.progress
        longer = last.model_copy(update={"train": last.train.plus(confusing.train)})
        # Where only the confusing queries had the config's own teacher, the last step's is the strongest that is left.
        unused = _learns(cfg.teacher) and cfg.teacher not in map(cfg.teacher_of, cfg.progress)
        strongest = last.teacher if unused else cfg.teacher
        found["data progressive: none"] = cfg.model_copy(
            update={"progress": (*before, longer), "data_progressive": None, "teacher": strongest}
        )
    return found
