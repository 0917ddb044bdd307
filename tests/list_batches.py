"""Hand-made batches of lists, and values and gradients of objectives on them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from raydrd.methods.lists import POSITIVE
from raydrd.methods.objectives import ListBatch, Losses
from raydrd.training.comm import Alone
from tests.reference import matrix

NAN = math.nan
GARBAGE = 1e4  # stands where nobody may look: in padding, and in the dark examples' columns of other queries


def made(full: Tensor, teacher: Any = None, *, flags: Any = None, **more: Any) -> tuple[dict[str, Tensor], ListBatch]:
    """A batch whose inner products are `full` [Q, Q * N]: each query against all lists, one after the other.

    Queries are unit vectors, so the gradient of passage n in dimension q is that of the score of q and n.
    """
    queries, columns = full.shape
    width = columns // queries
    batch = ListBatch(
        rows={"query": torch.arange(queries), "passage": torch.arange(columns)},
        index_QN=torch.arange(columns).reshape(queries, width),
        doc_rows_QN=torch.arange(columns).reshape(queries, width),
        labels_QN=matrix([[1.0 / (n + 1) for n in range(width)]] * queries),
        teacher_QN=torch.zeros(queries, width, dtype=torch.float64) if teacher is None else matrix(teacher),
        mask_QN=torch.ones(queries, width, dtype=torch.bool),
        flags_QN=torch.tensor([[POSITIVE] + [0] * (width - 1)] * queries if flags is None else flags),
    )
    vectors = {"query": torch.eye(queries, dtype=torch.float64), "passage": full.T.clone().requires_grad_()}
    return vectors, replace(batch, **more)


def own(lists: Any) -> Tensor:
    """[Q, Q * N] with these scores for each query's own list, and garbage for the others'."""
    lists = matrix(lists)
    full = torch.full((len(lists), lists.numel()), GARBAGE, dtype=torch.float64)
    for q, row in enumerate(lists):
        full[q, q * len(row) : (q + 1) * len(row)] = row
    return full


def means(objective: Losses, vectors: dict[str, Tensor], batch: ListBatch) -> dict[str, Tensor]:
    return {name: total / max(count, 1.0) for name, (total, count) in objective(vectors, batch, Alone()).items()}


def value(objective: Losses, vectors: dict[str, Tensor], batch: ListBatch) -> float:
    return sum(loss.item() for loss in means(objective, vectors, batch).values())


def slopes(objective: Losses, vectors: dict[str, Tensor], batch: ListBatch) -> Tensor:
    """dL/d(full) [Q, Q * N]."""
    total = torch.stack(list(means(objective, vectors, batch).values())).sum()
    return torch.autograd.grad(total, vectors["passage"])[0].T


def own_slopes(objective: Losses, vectors: dict[str, Tensor], batch: ListBatch) -> list[list[float]]:
    """The part of `slopes` on each query's own list; the rest is zero, which is checked."""
    found = slopes(objective, vectors, batch)
    width = batch.mask_QN.shape[1]
    mine = torch.stack([found[q, q * width : (q + 1) * width] for q in range(len(found))])
    assert int(found.ne(0).sum()) == int(mine.ne(0).sum())
    return [[float(x) for x in row] for row in mine]


def compared(pairs: Any, p: Any) -> dict[str, Any]:
    return {"pairs_P3": torch.as_tensor(pairs).reshape(-1, 3), "pair_p_P": torch.as_tensor(p, dtype=torch.float64)}
