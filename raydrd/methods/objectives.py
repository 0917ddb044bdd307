"""What a training step minimises: an objective is a weighted sum of terms, a term turns a batch's vectors into a loss.

A loss is (sum, count); the loop adds sums and counts over micro-batches and workers and divides once, so that the
result depends on the global batch alone. What a term cannot use it masks: a passage without a teacher score, a query
without a positive, a passage written for the query (dark) or perhaps an unlabelled positive (suspect) where it would
stand as a negative.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from raydrd.config import Frozen
from raydrd.methods.lists import DARK, POSITIVE, SUSPECT
from raydrd.methods.losses import Loss, contrastive, in_batch, lambda_mrr, listwise_kl, logistic, margin_mse, pair_kl, taken
from raydrd.methods.maxsim import maxsim, maxsim_of_lists, widened
from raydrd.methods.pacing import SelfPaced, gate

Vectors = dict[str, Tensor]


class Comm(Protocol):
    """The workers of a step as one: this rank's place, and tensors of all ranks with gradients to their owners.

    offset: place of this rank's first row among the rows of all ranks, when it holds so many.
    """

    rank: int
    world: int

    def offset(self, rows: int) -> int: ...

    def gather(self, tensor: Tensor) -> Tensor: ...


@dataclass
class ListBatch:
    """Training lists of this rank. `index_QN` points into the batch's distinct texts (or pairs); see mask.

    rows: role -> rows of the distinct texts to encode, int64 [texts], or for a cross-encoder pairs int64 [P, 2].
    flags_QN: bits of raydrd.methods.lists. relevant_QR: all judged positives, padded with -1. pairs_P3: (query, left, right).
    progress: share of the updates done, 0 to 1.
    """

    rows: dict[str, Tensor]
    index_QN: Tensor
    doc_rows_QN: Tensor
    labels_QN: Tensor
    teacher_QN: Tensor
    mask_QN: Tensor
    flags_QN: Tensor | None = None
    anchor_QN: Tensor | None = None
    relevant_QR: Tensor | None = None
    confidence_Q: Tensor | None = None
    confidences_A: Tensor | None = None
    pairs_P3: Tensor | None = None
    pair_p_P: Tensor | None = None
    teacher_vectors: Vectors = field(default_factory=dict)
    progress: float = 0.0

    def flagged(self, bit: int) -> Tensor:
        """Where a flag is set, bool [Q, N]; never in the padding."""
        if self.flags_QN is None:
            return torch.zeros_like(self.mask_QN)
        return ((self.flags_QN & bit) != 0) & self.mask_QN

    def scores(self, vectors: Vectors) -> Tensor:
        """Own scores [Q, N]: inner products of each query with its passages, MaxSim of token vectors, or a cross-encoder's
        logits."""
        if "pair" in vectors:
            return taken(vectors["pair"][:, 0], self.index_QN)
        if vectors["passage"].ndim == 3:
            return maxsim_of_lists(vectors["query"], vectors["passage"], self.index_QN)
        passages_QND = taken(vectors["passage"], self.index_QN)
        return torch.einsum("qd,qnd->qn", vectors["query"], passages_QND)

    def pool_scores(self, vectors: Vectors, comm: Comm) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [Q, G * N] against every list of the global batch, with their doc rows and mask [G, N].

        Passages written for one query (dark) are nobody else's negatives: they are masked.
        """
        if vectors["passage"].ndim == 3:
            scores_QGN = self._token_pool(vectors, comm)
            return scores_QGN, comm.gather(self.doc_rows_QN), comm.gather(self.mask_QN & ~self.flagged(DARK))
        passages_GND = comm.gather(taken(vectors["passage"], self.index_QN))
        scores_QGN = vectors["query"] @ passages_GND.flatten(0, 1).T
        return scores_QGN, comm.gather(self.doc_rows_QN), comm.gather(self.mask_QN & ~self.flagged(DARK))

    def _token_pool(self, vectors: Vectors, comm: Comm) -> Tensor:
        """MaxSim [Q, G * N]. Queries travel to the passages, which are many times larger, and scores travel back."""
        queries_QTD, passages_PSD = vectors["query"], vectors["passage"]
        if comm.world == 1:
            return taken(maxsim(queries_QTD, passages_PSD).T, self.index_QN.flatten()).T
        widths_Q = torch.full((len(queries_QTD),), queries_QTD.shape[1], device=queries_QTD.device)
        everyone_GTD = comm.gather(widened(queries_QTD, int(comm.gather(widths_Q).max())))
        own_QNG = taken(maxsim(everyone_GTD, passages_PSD).T, self.index_QN)
        first = comm.offset(len(queries_QTD))
        return comm.gather(own_QNG)[:, :, first : first + len(queries_QTD)].permute(2, 0, 1).flatten(1)

    def first_positive(self, which: Literal["gold", "teacher_top1", "either"]) -> tuple[Tensor, Tensor]:
        """Column of each query's positive, and whether it has one: int64 [Q], bool [Q]."""
        gold_QN = self.flagged(POSITIVE)
        known_QN = self.mask_QN & ~self.teacher_QN.isnan() & ~self.flagged(DARK)
        best_Q = self.teacher_QN.masked_fill(~known_QN, -torch.inf).argmax(dim=1)
        if which == "teacher_top1":
            return best_Q, known_QN.any(dim=1)
        has_Q = gold_QN.any(dim=1)
        column_Q = gold_QN.to(torch.int8).argmax(dim=1)
        if which == "either":
            return torch.where(has_Q, column_Q, best_Q), has_Q | known_QN.any(dim=1)
        return column_Q, has_Q


@dataclass
class TextBatch:
    """Texts of this rank with the vectors to reproduce: role -> [texts, D]."""

    rows: dict[str, Tensor]
    targets: Vectors
    progress: float = 0.0


@dataclass
class DuelBatch:
    """Queries with two passages, rows int64 [P, 3] (query, left, right), and P(left is better)."""

    rows: dict[str, Tensor]
    p_P: Tensor
    progress: float = 0.0


@dataclass
class View:
    """What terms look at: the batch, its scores, and the weight that pacing gives each query."""

    batch: ListBatch
    vectors: Vectors
    comm: Comm
    scores_QN: Tensor
    score_scale: float
    gate_Q: Tensor | None  # 1: with dark examples; None: no pacing
    scope: str

    def distilled(self) -> Tensor | None:
        """Weight of each query in a distillation term."""
        return self.gate_Q if self.scope in ("distil", "all") else None

    def pool(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Own lists followed by the other queries' passages: scores, labels, mask [Q, M] and where a column is own."""
        batch = self.batch
        scores_QGN, doc_rows_GN, mask_GN = batch.pool_scores(self.vectors, self.comm)
        scores_QM, labels_QM, mask_QM = in_batch(
            scores_QGN * self.score_scale,
            batch.labels_QN,
            doc_rows_GN,
            mask_GN=mask_GN,
            relevant_QP=batch.relevant_QR,
            offset=self.comm.offset(len(batch.labels_QN)),
        )
        own_QM = torch.zeros_like(mask_QM)
        own_QM[:, : batch.labels_QN.shape[1]] = True
        return scores_QM, labels_QM, mask_QM, own_QM


class Ordered(Frozen):
    """CL-DRD: reciprocal-rank-weighted pairs over the order that the labels ask for; a teacher's score never counts."""

    kind: Literal["ordered"] = "ordered"
    weight: float = Field(1.0, gt=0)
    in_batch: Literal["none", "next", "all"] = "none"

    @property
    def needs_pool(self) -> bool:
        return self.in_batch != "none"

    def __call__(self, view: View) -> Loss:
        batch = view.batch
        mask_QN = batch.mask_QN & ~batch.flagged(DARK)
        if self.in_batch == "none":
            return lambda_mrr(view.scores_QN, batch.labels_QN, mask_QN)
        scores_QGN, doc_rows_GN, mask_GN = batch.pool_scores(view.vectors, view.comm)
        scores_QM, labels_QM, mask_QM = in_batch(
            scores_QGN * view.score_scale,
            batch.labels_QN,
            doc_rows_GN,
            mask_GN=mask_GN,
            relevant_QP=batch.relevant_QR,
            pool=self.in_batch,
            offset=view.comm.offset(len(batch.labels_QN)),
        )
        return lambda_mrr(scores_QM, labels_QM, mask_QM)


class Distil(Frozen):
    """KL from the teacher's (or the anchor's) softmax over a list to the student's.

    PROD: one temperature on both sides, times its square (`both_sides`); PairDistill: the student's only, and
    `teacher_scale` (its alpha). Lists are read with their dark examples, or, under a gate, without them for the queries
    that it does not admit (ADAM). `suspects: mask` takes perhaps
    unlabelled positives out of both sides. `over: batch` puts other queries' passages into the student's softmax, with
    no share of the teacher's (PairDistill's DPR form), and `over: global` compares the whole batch with a bi-encoder
    teacher (PROD's first step).
    """

    kind: Literal["distil"] = "distil"
    weight: float = Field(1.0, gt=0)
    source: Literal["teacher", "anchor"] = "teacher"
    temperature: float = Field(1.0, gt=0)
    both_sides: bool = Field(False, description="the temperature divides the teacher's scores too, and the loss is times T^2")
    teacher_scale: float = Field(
        1.0, gt=0, description="multiplies the teacher's scores; an anchor has the student's own scale"
    )
    suspects: Literal["keep", "mask"] = "keep"
    over: Literal["list", "batch", "global"] = "list"

    @property
    def needs_pool(self) -> bool:
        return self.over != "list"

    def __call__(self, view: View) -> Loss:
        batch = view.batch
        if self.over == "global":
            return self._global(view)
        target_QN = batch.teacher_QN if self.source == "teacher" else batch.anchor_QN
        if target_QN is None:
            raise ValueError("distil: the lists hold no anchor scores")
        target_QN = target_QN * (self.teacher_scale if self.source == "teacher" else view.score_scale)
        mask_QN = batch.mask_QN & ~target_QN.isnan()
        if self.suspects == "mask":
            mask_QN &= ~batch.flagged(SUSPECT)
        if self.over == "batch":
            return self._batch(view, target_QN, mask_QN)
        if view.gate_Q is None or view.scope != "dark":
            return self._kl(view.scores_QN, target_QN, mask_QN, weights_Q=view.distilled())
        base_QN = mask_QN & ~batch.flagged(DARK)
        dark, count = self._kl(view.scores_QN, target_QN, mask_QN, weights_Q=view.gate_Q)
        plain, _ = self._kl(view.scores_QN, target_QN, base_QN, weights_Q=1 - view.gate_Q)
        return dark + plain, count

    def _kl(self, scores_QN: Tensor, target_QN: Tensor, mask_QN: Tensor, **more: Tensor | None) -> Loss:
        return listwise_kl(
            scores_QN,
            target_QN,
            student_temperature=self.temperature,
            teacher_temperature=self.temperature if self.both_sides else 1.0,
            scale_by_t2=self.both_sides,
            mask_QN=mask_QN,
            **more,
        )

    def _batch(self, view: View, target_QN: Tensor, own_QN: Tensor) -> Loss:
        own_QN = own_QN & ~view.batch.flagged(DARK)
        scores_QM, _, mask_QM, own_QM = view.pool()
        target_QM = torch.zeros_like(scores_QM)
        taught_QM = torch.zeros_like(mask_QM)
        n = own_QN.shape[1]
        target_QM[:, :n], taught_QM[:, :n] = target_QN.masked_fill(~own_QN, 0.0), own_QN
        return self._kl(
            scores_QM, target_QM, torch.where(own_QM, taught_QM, mask_QM), target_mask_QN=taught_QM, weights_Q=view.distilled()
        )

    def _global(self, view: View) -> Loss:
        batch = view.batch
        if not batch.teacher_vectors:
            raise ValueError("distil over global: the examples hold no teacher vectors")
        scores_QM, doc_rows_GN, mask_GN = batch.pool_scores(view.vectors, view.comm)
        target_QM, _, _ = batch.pool_scores(batch.teacher_vectors, view.comm)
        mask_QM = mask_GN.flatten()[None].expand_as(scores_QM)
        return self._kl(
            scores_QM * view.score_scale, target_QM * self.teacher_scale, mask_QM.contiguous(), weights_Q=view.distilled()
        )


class Contrastive(Frozen):
    """InfoNCE of a positive against own negatives and, if `in_batch`, the other queries' passages.

    Never in a denominator: dark examples, suspected positives of the own list, the query's other positives.
    """

    kind: Literal["contrastive"] = "contrastive"
    weight: float = Field(1.0, gt=0)
    temperature: float = Field(1.0, gt=0)
    in_batch: bool = True
    own_negatives: bool = Field(True, description="false: PairDistill's form, only other queries' passages")
    positive: Literal["gold", "teacher_top1", "either"] = "gold"

    @property
    def needs_pool(self) -> bool:
        return self.in_batch

    def __call__(self, view: View) -> Loss:
        batch = view.batch
        column_Q, has_Q = batch.first_positive(self.positive)
        is_positive_QN = torch.zeros_like(batch.mask_QN).scatter_(1, column_Q[:, None], has_Q[:, None])
        others_QN = batch.mask_QN & ~batch.flagged(DARK) & ~batch.flagged(SUSPECT) & ~batch.flagged(POSITIVE)
        # A query without a positive has no column of its own, or its first negative would pass for one.
        own_QN = is_positive_QN | (others_QN & has_Q[:, None]) if self.own_negatives else is_positive_QN
        if not self.in_batch:
            scores_QM, mask_QM = view.scores_QN, own_QN
        else:
            scores_QM, _, mask_QM, own_QM = view.pool()
            mask_QM = torch.cat([own_QN, mask_QM[:, own_QN.shape[1] :]], dim=1)
        weights_Q = view.gate_Q if view.scope == "all" else None
        return contrastive(scores_QM / self.temperature, positive=column_Q, mask_QM=mask_QM, weights_Q=weights_Q)


class Pairwise(Frozen):
    """PairDistill's L_pair: a pairwise reranker's probabilities against the student's score gaps; mean over pairs."""

    kind: Literal["pairwise"] = "pairwise"
    weight: float = Field(3.0, gt=0)
    temperature: float = Field(1.0, gt=0)

    @property
    def needs_pool(self) -> bool:
        return False

    def __call__(self, view: View) -> Loss:
        assert view.batch.pairs_P3 is not None and view.batch.pair_p_P is not None
        return pair_kl(view.scores_QN, view.batch.pairs_P3, view.batch.pair_p_P, temperature=self.temperature)


class MarginMSE(Frozen):
    """The teacher's margins between the positive and each other passage, squared error (arXiv 2010.02666).

    The positive is moved to the first column; queries without one are masked. `teacher_scale` multiplies the teacher's
    scores, where they live on another scale than the student's.
    """

    kind: Literal["margin_mse"] = "margin_mse"
    weight: float = Field(1.0, gt=0)
    teacher_scale: float = Field(1.0, gt=0)
    positive: Literal["gold", "teacher_top1", "either"] = "either"

    @property
    def needs_pool(self) -> bool:
        return False

    def __call__(self, view: View) -> Loss:
        batch = view.batch
        column_Q, has_Q = batch.first_positive(self.positive)
        known_QN = batch.mask_QN & ~batch.teacher_QN.isnan() & ~batch.flagged(DARK) & has_Q[:, None]
        first_QN = torch.zeros_like(batch.mask_QN).scatter_(1, column_Q[:, None], value=True)
        order_QN = first_QN.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        return margin_mse(
            view.scores_QN.gather(1, order_QN),
            batch.teacher_QN.gather(1, order_QN) * self.teacher_scale,
            known_QN.gather(1, order_QN),
        )


Term = Annotated[Ordered | Distil | Contrastive | Pairwise | MarginMSE, Field(discriminator="kind")]


class Losses(Frozen):
    """A weighted sum of terms. `score_scale` multiplies the student's scores: unit vectors give differences too small for
    a softmax or a logistic loss (sentence-transformers scales cosines by 20; TAS-B's dot products need 1)."""

    kind: Literal["losses"] = "losses"
    terms: tuple[Term, ...] = Field(min_length=1)
    score_scale: float = Field(1.0, gt=0)
    pacing: SelfPaced | None = None

    @property
    def needs_pool(self) -> bool:
        return any(term.needs_pool for term in self.terms)

    def __call__(self, vectors: Vectors, batch: ListBatch, comm: Comm) -> dict[str, Loss]:
        gate_Q, scope = None, ""
        if self.pacing is not None and batch.confidence_Q is not None and batch.confidences_A is not None:
            gate_Q = gate(self.pacing, batch.confidence_Q, batch.confidences_A, batch.progress)
            scope = self.pacing.scope
        view = View(batch, vectors, comm, batch.scores(vectors) * self.score_scale, self.score_scale, gate_Q, scope)
        found: dict[str, Loss] = {}
        for term in self.terms:
            total, count = term(view)
            name = term.kind if term.kind != "distil" or term.source == "teacher" else "anchor"
            found[name if name not in found else f"{name} {len(found)}"] = (total * term.weight, count)
        return found


class SameVectors(Frozen):
    """Reproduce the vectors of the encoder a student was cut from: squared distance, summed over dimensions.

    Layer-reduction distillation as sentence-transformers' examples do it (Reimers and Gurevych, arXiv 2004.09813,
    equation 1). It gives a cut student back its vector space before any method teaches it to rank.
    """

    kind: Literal["same_vectors"] = "same_vectors"

    @property
    def needs_pool(self) -> bool:
        return False

    def __call__(self, vectors: Vectors, batch: TextBatch, comm: Comm) -> dict[str, Loss]:
        total = sum(((vectors[role] - target) ** 2).sum() for role, target in batch.targets.items())
        count = float(sum(len(target) for target in batch.targets.values()))
        return {"same_vectors": (torch.as_tensor(total), count)}


class Duels(Frozen):
    """A pairwise cross-encoder learns which of two passages is better: binary cross-entropy of its logit."""

    kind: Literal["duels"] = "duels"

    @property
    def needs_pool(self) -> bool:
        return False

    def __call__(self, vectors: Vectors, batch: DuelBatch, comm: Comm) -> dict[str, Loss]:
        return {"duels": logistic(vectors["duel"][:, 0], batch.p_P)}


Objective = Losses | SameVectors | Duels
