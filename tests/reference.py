"""Numbers of the reference (sections 3.5 and 4.5), random lists with padding, and how near a loss has to come."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from raydrd.methods.losses import Loss


def matrix(values: Any, *, grad: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def near(value: Any) -> Any:
    return pytest.approx(value, abs=1e-6)


def mean(loss: Loss) -> Tensor:
    total, count = loss
    return total / count


def gradient(loss: Loss, scores: Tensor) -> list[list[float]]:
    """Of the mean, for a matrix of scores."""
    return torch.autograd.grad(mean(loss), scores)[0].tolist()  # type: ignore[no-any-return]


# Two queries with four passages each: scores of the student, of the teacher, of the student before.
PROD_S = [[2.0, 1.0, 0.0, -1.0], [0.5, 1.5, 1.0, 0.0]]
PROD_Z = [[6.0, 1.0, 2.0, -3.0], [4.0, 3.0, -1.0, 0.0]]
PROD_PREVIOUS = [[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]]

# Scores of two queries, which pairs of their passages are compared, and that the first is the better one.
PAIR_S = [[2.0, 1.0, 0.5, -1.0], [0.2, 0.4, -0.3, 0.1]]
PAIRS = torch.tensor([[0, 0, 1], [0, 1, 3], [0, 2, 3], [1, 0, 1], [1, 2, 3]])
PAIR_P = matrix([0.9, 0.35, 0.6, 0.2, 0.5])


def random_lists(seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, labels and mask of six lists of nine places."""
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(6, 9, generator=draw, dtype=torch.float64)
    labels = torch.randint(-2, 4, (6, 9), generator=draw).double()
    mask = torch.rand(6, 9, generator=draw) < 0.7
    mask[4] = False  # a query that is padding from end to end
    labels[5] = 1.0  # a query with nothing to order
    return scores, labels, mask
