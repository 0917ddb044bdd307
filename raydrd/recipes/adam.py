"""ADAM: Dense Retrieval Distillation with Adaptive Dark Examples (Tao et al.; ACL Findings 2024, arXiv 2212.10192).

Implemented from the abstract: the authors' program is not public, and every formula below that the abstract does not
state is this project's reading of it (see the README).

1. A cross-encoder teaches a bi-encoder by its soft labels over a positive and hard negatives.
2. Even hard negatives are trivial to it: its soft label is near one-hot and holds little dark knowledge.
3. So examples of moderate relevance are written: negatives strengthened with pieces of the positive, and positives with
   words masked. They are kept only where the teacher scores them between the hardest negative and the positive.
4. Distillation is self-paced: lists with dark examples are learnt for the queries whose positive the teacher is sure of,
   few at first, more and more later; the others learn from their ordinary lists.
5. Dark examples carry the positive's own words: they never stand in a contrastive denominator.
"""

from __future__ import annotations

from pydantic import Field

from raydrd.config import Frozen
from raydrd.flow.lab import Lab
from raydrd.flow.learn import distil, started
from raydrd.flow.listing import listed
from raydrd.flow.preflight import scale_of
from raydrd.flow.retrieve import tell_mined_once
from raydrd.flow.teach import scored_candidates
from raydrd.methods.dark import Dark
from raydrd.methods.lists import TopAndSampled
from raydrd.methods.objectives import Contrastive, Distil, Losses
from raydrd.methods.pacing import SelfPaced, check_batches
from raydrd.setting import Setting
from raydrd.spine.store import Artifact
from raydrd.training.plan import TrainConfig

SUMMARY = "ADAM (ACL Findings 2024): dark examples of moderate relevance, self-paced; from the abstract"


class Loss(Frozen):
    tau: float = Field(1.0, gt=0, description="temperature of both softmaxes; the loss is times its square")
    lambda_cl: float = Field(0.1, ge=0, description="weight of the contrastive term over originals")
    score_scale: float = Field(1.0, gt=0, description="multiplies the student's scores: 20 for unit vectors")


class Config(Setting):
    lists: TopAndSampled = TopAndSampled(negatives=15, pool=100, ranking="student")
    dark: Dark | None = Dark()
    pacing: SelfPaced | None = SelfPaced()
    loss: Loss = Loss()
    train: TrainConfig
    rounds: int = Field(1, ge=1, description="times that candidates are mined by the current student, and learnt")

    def scores_anew(self) -> str:
        if self.dark is not None:
            return "dark examples"
        return "what each round mines anew" if self.rounds > 1 else ""

    def trainings(self) -> tuple[TrainConfig, ...]:
        return (self.train,) * self.rounds

    def check_parts(self) -> None:
        check_batches(self.pacing, self.resources, where="pacing")


def objective(cfg: Config, scale: float) -> Losses:
    """L = v KL(t_A+ || s_A+) + (1 - v) KL(t_A || s_A) + lambda_cl L_cl; A+ is the list with its dark examples, v the gate."""
    loss = cfg.loss
    contrast = (Contrastive(weight=loss.lambda_cl),) if loss.lambda_cl else ()
    distillation = Distil(temperature=loss.tau, both_sides=True, teacher_scale=scale)
    return Losses(terms=(distillation, *contrast), score_scale=loss.score_scale, pacing=cfg.pacing)


def run(cfg: Config, lab: Lab) -> Artifact:
    """The distilled student."""
    if cfg.rounds > 1:
        tell_mined_once(lab)
    student = started(lab)
    for number in range(1, cfg.rounds + 1):
        label = "dark examples" if cfg.rounds == 1 else f"round {number}"
        scored = scored_candidates(lab, student, label=label, positives=True)
        sure = cfg.pacing.confidence if cfg.pacing else "softmax"
        made = listed(lab, label, scored, cfg.lists, dark=cfg.dark, confidence=sure)
        student = distil(lab, student, label, made.lists, objective(cfg, scale_of(lab, lab.teacher)), cfg.train, dark=made.dark)
    return student


def variants(cfg: Config) -> dict[str, Config]:
    """The recipe without each of its ideas."""
    found: dict[str, Config] = {}
    if cfg.dark is not None:
        found["dark examples: none"] = cfg.model_copy(update={"dark": None, "pacing": None})
        if cfg.dark.reinforced and cfg.dark.noisy:
            both = cfg.dark.reinforced + cfg.dark.noisy  # as many dark examples, all of one kind
            built = max(cfg.dark.built, both)
            positives = cfg.dark.model_copy(update={"reinforced": 0, "noisy": both, "built": built})
            negatives = cfg.dark.model_copy(update={"noisy": 0, "reinforced": both, "built": built})
            found["dark examples: noisy positives only"] = cfg.model_copy(update={"dark": positives})
            found["dark examples: reinforced negatives only"] = cfg.model_copy(update={"dark": negatives})
    if cfg.pacing is not None and cfg.dark is not None:
        found["self-paced: all queries at once"] = cfg.model_copy(update={"pacing": None})
    return found
