"""Vectors whose first numbers are vectors too: one objective asked of several widths at once (Matryoshka)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from raydrd.config import Frozen
from raydrd.methods.losses import Loss
from raydrd.methods.objectives import Comm, ListBatch, Losses, Vectors
from raydrd.methods.pacing import SelfPaced


class Nested(Frozen):
    """The mean, over `dims`, of one objective on vectors cut to their first numbers (Kusupati et al., arXiv 2205.13147).

    sentence-transformers' MatryoshkaLoss, with the mean in place of the sum, so that a learning rate keeps its meaning.
    A teacher's own vectors and scores stay whole. Masks and labels know nothing of widths, so every width counts alike.
    """

    kind: Literal["nested"] = "nested"
    objective: Losses
    dims: tuple[int, ...] = Field(min_length=1)
    normalize: bool = Field(description="cut vectors get unit length again, as the student's own have")

    @property
    def needs_pool(self) -> bool:
        return self.objective.needs_pool

    @property
    def pacing(self) -> SelfPaced | None:
        return self.objective.pacing

    def __call__(self, vectors: Vectors, batch: ListBatch, comm: Comm) -> dict[str, Loss]:
        found = [
            self.objective({role: first_numbers(v, dim, self.normalize) for role, v in vectors.items()}, batch, comm)
            for dim in self.dims
        ]
        return {name: (torch.stack([one[name][0] for one in found]).mean(), count) for name, (_, count) in found[0].items()}


def first_numbers(vectors_BD: Tensor, dim: int, normalize: bool) -> Tensor:
    """[B, dim]; vectors of that width stay as they are."""
    if dim == vectors_BD.shape[1]:
        return vectors_BD
    cut_Bd = vectors_BD[:, :dim]
    return torch.nn.functional.normalize(cut_Bd, dim=-1) if normalize else cut_Bd
