"""Objectives of students with token vectors: an original's token vectors again, and both kinds of score of a hybrid."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from raydrd.config import Frozen
from raydrd.methods.losses import Loss, listwise_kl
from raydrd.methods.maxsim import tokens_in
from raydrd.methods.objectives import Comm, Distil, ListBatch, Losses, TextBatch, Vectors
from raydrd.methods.pacing import SelfPaced
from raydrd.models.latelayout import TOKENS


class SameTokens(Frozen):
    """Reproduce the token vectors of the encoder a student was cut from, and of a hybrid the pooled ones too.

    Squared distance, summed over dimensions; the mean over tokens (over texts, for pooled vectors). Both models cut texts
    alike and leave out the same pieces, so the n-th vector of a text stands against the n-th.
    """

    kind: Literal["same_tokens"] = "same_tokens"

    @property
    def needs_pool(self) -> bool:
        return False

    def __call__(self, vectors: Vectors, batch: TextBatch, comm: Comm) -> dict[str, Loss]:
        found: dict[str, Loss] = {}
        for name, target in batch.targets.items():
            level = "same_tokens" if target.ndim == 3 else "same_vectors"
            made, wanted = (_counted(vectors[name]), _counted(target)) if target.ndim == 3 else (vectors[name], target)
            if len(made) == len(wanted):
                total = ((made - wanted) ** 2).sum()
            elif len(made):
                raise ValueError(
                    f"same_tokens: {len(made)} token vectors against {len(wanted)}: the texts were cut differently"
                )
            else:
                total = vectors[name].sum()  # zeros, where only the counts are asked for
            before, count = found.get(level, (torch.zeros((), device=target.device), 0.0))
            found[level] = (before + total, count + float(len(wanted)))
        return found


def _counted(vectors_BTD: Tensor) -> Tensor:
    """[tokens, D]: one text after the other."""
    return vectors_BTD[tokens_in(vectors_BTD)]


class Both(Frozen):
    """A hybrid: one objective of its pooled vectors and of its token vectors, added; and tokens teach the pooled ones.

    The last is a KL from the softmax over a list's MaxSim scores, which pass no gradient here, to that over its pooled
    scores: the finer level teaches the coarser, as MD2PR's does (arXiv 2312.16821). The token level has no anchor: an
    anchor's scores are of pooled vectors.
    """

    kind: Literal["both"] = "both"
    objective: Losses
    token_scale: float = Field(1.0, gt=0, description="of MaxSim scores, which are sums over a query's tokens")
    distil: float = Field(1.0, ge=0, description="weight of the KL from token scores to pooled ones; 0: none")

    @property
    def needs_pool(self) -> bool:
        return self.objective.needs_pool

    @property
    def pacing(self) -> SelfPaced | None:
        return self.objective.pacing

    def __call__(self, vectors: Vectors, batch: ListBatch, comm: Comm) -> dict[str, Loss]:
        pooled = {role: vectors[role] for role in ("query", "passage")}
        tokens = {role: vectors[role + TOKENS] for role in ("query", "passage")}
        found = dict(self.objective(pooled, batch, comm))
        terms = tuple(t for t in self.objective.terms if not (isinstance(t, Distil) and t.source == "anchor"))
        finer = self.objective.model_copy(update={"score_scale": self.token_scale, "terms": terms})
        found |= {f"{name} of tokens": loss for name, loss in finer(tokens, batch, comm).items()}
        if self.distil:
            taught_QN = batch.scores(tokens).detach() * self.token_scale
            own_QN = batch.scores(pooled) * self.objective.score_scale
            total, count = listwise_kl(own_QN, taught_QN, mask_QN=batch.mask_QN)
            found["tokens to pooled"] = (total * self.distil, count)
        return found


TokenObjective = SameTokens | Both
