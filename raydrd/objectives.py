"""What a training step minimises: objectives are values that turn vectors of a batch into named losses.

A loss is (sum, count); the loop adds sums and counts over micro-batches and workers and divides once, so that the
result depends on the global batch alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from raydrd.config import Frozen
from raydrd.losses import Loss, in_batch, lambda_mrr

Vectors = dict[str, Tensor]


class Comm(Protocol):
    """The workers of a step as one: this rank's place, and tensors of all ranks with gradients to their owners."""

    rank: int
    world: int

    def gather(self, tensor: Tensor) -> Tensor: ...


@dataclass
class ListBatch:
    """Training lists of this rank. `index_QN` points into the batch's distinct passages, -1 never used: see mask.

    rows: role -> corpus or query rows of the distinct texts to encode, int64 [texts].
    """

    rows: dict[str, Tensor]
    index_QN: Tensor
    doc_rows_QN: Tensor
    labels_QN: Tensor
    teacher_QN: Tensor
    mask_QN: Tensor

    def scores(self, vectors: Vectors) -> Tensor:
        """Own scores [Q, N]: inner products of each query with the passages of its list."""
        passages_QND = vectors["passage"][self.index_QN]
        return torch.einsum("qd,qnd->qn", vectors["query"], passages_QND)

    def pool_scores(self, vectors: Vectors, comm: Comm) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [Q, G * N] against every list of the global batch, with their doc rows and mask [G, N]."""
        passages_GND = comm.gather(vectors["passage"][self.index_QN])
        scores_QGN = vectors["query"] @ passages_GND.flatten(0, 1).T
        return scores_QGN, comm.gather(self.doc_rows_QN), comm.gather(self.mask_QN)


@dataclass
class TextBatch:
    """Texts of this rank with the vectors to reproduce: role -> [texts, D]."""

    rows: dict[str, Tensor]
    targets: Vectors


class Ordered(Frozen):
    """CL-DRD's objective: reciprocal-rank-weighted pairs over the order that the labels ask for.

    Only ranks count, never a teacher's score. `score_scale` multiplies the student's scores: unit vectors give
    differences too small for a logistic loss (TAS-B's dot products need 1).
    """

    kind: Literal["ordered"] = "ordered"
    score_scale: float = Field(1.0, gt=0)
    in_batch: Literal["none", "next", "all"] = "none"

    @property
    def needs_pool(self) -> bool:
        return self.in_batch != "none"

    def __call__(self, vectors: Vectors, batch: ListBatch, comm: Comm) -> dict[str, Loss]:
        if self.in_batch == "none":
            return {"lambda_mrr": lambda_mrr(batch.scores(vectors) * self.score_scale, batch.labels_QN, batch.mask_QN)}
        scores_QGN, doc_rows_GN, mask_GN = batch.pool_scores(vectors, comm)
        scores_QM, labels_QM, mask_QM = in_batch(
            scores_QGN * self.score_scale,
            batch.labels_QN,
            doc_rows_GN,
            mask_GN=mask_GN,
            pool=self.in_batch,
            offset=comm.rank * len(batch.labels_QN),
        )
        return {"lambda_mrr": lambda_mrr(scores_QM, labels_QM, mask_QM)}


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


Objective = Ordered | SameVectors
