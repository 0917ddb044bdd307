"""PairDistill: Pairwise Relevance Distillation for Dense Retrieval (Huang and Chen; EMNLP 2024, arXiv 2410.01383).

1. Pointwise rerankers give absolute scores that are badly calibrated between passages of similar relevance.
2. A pairwise reranker, which reads both passages at once, orders them better.
3. The retriever's candidates are scored pointwise; neighbours in that order are compared pairwise: P(d_i > d_j | q).
4. The student learns the list (KL), the pairs (KL on score gaps), and an in-batch term.
5. Then the better student mines again, and so on. No step needs a label.

Differs from the authors' program in: (1) every worker trains on its own lists, theirs all read the same ones; (2) the
in-batch term sees the whole step's passages, theirs one micro-batch of one worker; (3) pairs are drawn by seed, and
queries with few candidates give what they have; (4) `symmetrize` asks the pairwise teacher in both orders (off, as in
theirs). The single-vector form (`form: dpr`) is theirs too: no in-batch term, other queries' passages in the list KL.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from raydrd.config import Frozen
from raydrd.flow.lab import Lab
from raydrd.flow.learn import distil, started
from raydrd.flow.listing import listed
from raydrd.flow.preflight import scale_of
from raydrd.flow.retrieve import tell_mined_once
from raydrd.flow.teach import duels, scored_candidates
from raydrd.methods.lists import AroundPairs
from raydrd.methods.neighbours import NeighbourPairs
from raydrd.methods.objectives import Contrastive, Distil, Losses, Pairwise
from raydrd.setting import PairTeacher, Setting
from raydrd.spine.store import Artifact
from raydrd.training.plan import TrainConfig

SUMMARY = "PairDistill (EMNLP 2024): pairwise preferences between neighbours, mined again in rounds"


class Loss(Frozen):
    form: Literal["colbert", "dpr"] = Field(
        "colbert", description="colbert: with the in-batch term; dpr: list KL over the batch"
    )
    lambda_pair: float = Field(3.0, ge=0, description="3 in the authors' ColBERT runs, 1 in their DPR runs; 0: no pairs")
    tau: float = Field(1.0, gt=0, description="of the student only")
    positive: Literal["teacher_top1", "gold", "either"] = Field("teacher_top1", description="of the in-batch term")
    score_scale: float = Field(1.0, gt=0, description="multiplies the student's scores: 20 for unit vectors")


class Config(Setting):
    pairwise: PairTeacher
    pairs: NeighbourPairs = NeighbourPairs()
    symmetrize: bool = Field(False, description="ask the pairwise teacher in both orders: twice the cost")
    lists: AroundPairs = AroundPairs()
    loss: Loss = Loss()
    rounds: tuple[TrainConfig, ...] = Field(min_length=1, description="one training each; candidates are mined before each")

    def pair_teachers(self) -> tuple[Any, ...]:
        return (self.pairwise,)

    def scores_anew(self) -> str:
        return "what each round mines anew" if len(self.rounds) > 1 else ""

    def trainings(self) -> tuple[TrainConfig, ...]:
        return self.rounds


def objective(loss: Loss, scale: float) -> Losses:
    """L = KL(softmax(t) || softmax(s / tau)) + lambda_pair KL(p || sigmoid((s_i - s_j) / tau)) + L_IB."""
    terms: list[Any] = [Distil(temperature=loss.tau, teacher_scale=scale, over="list" if loss.form == "colbert" else "batch")]
    if loss.lambda_pair:
        terms.append(Pairwise(weight=loss.lambda_pair, temperature=loss.tau))
    if loss.form == "colbert":
        terms.append(Contrastive(own_negatives=False, positive=loss.positive))
    return Losses(terms=tuple(terms), score_scale=loss.score_scale)


def run(cfg: Config, lab: Lab) -> Artifact:
    """The distilled student."""
    if len(cfg.rounds) > 1:
        tell_mined_once(lab)
    student = started(lab)
    for number, config in enumerate(cfg.rounds, 1):
        label = f"round {number}"
        # What a teacher scored in an earlier round is found in its score book.
        scored = scored_candidates(lab, student, label=label)
        pairs = None
        if cfg.loss.lambda_pair:
            pairs = duels(lab, lab.teachers[cfg.pairwise], scored, cfg.pairs, symmetrize=cfg.symmetrize, label=label)
        made = listed(lab, label, scored, cfg.lists, pairs=pairs)
        student = distil(lab, student, label, made.lists, objective(cfg.loss, scale_of(lab, lab.teacher)), config)
    return student


def variants(cfg: Config) -> dict[str, Config]:
    """The recipe without each of its ideas."""
    found = {"pairwise term: none": cfg.model_copy(update={"loss": cfg.loss.model_copy(update={"lambda_pair": 0.0})})}
    if len(cfg.rounds) > 1:
        first = cfg.rounds[0]
        for other in cfg.rounds[1:]:
            first = first.plus(other)
        found["rounds: mined once"] = cfg.model_copy(update={"rounds": (first,)})
    return found
