"""Pairs of neighbours in the teacher's order: the ones a pairwise teacher is worth asking about.

PairDistill (Huang and Chen, EMNLP 2024, arXiv 2410.01383): a pointwise teacher puts the candidates in order, and a
pairwise one then compares passages that stand close together. Pure: no files, no clock.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from raydrd.config import Frozen
from raydrd.methods.lists import Row


class NeighbourPairs(Frozen):
    """`pairs` of the pairs {(i, j): i < j <= i + window, j < top_k} of 0-based teacher ranks, drawn uniformly.

    The defaults are PairDistill's for MS MARCO. A query with fewer candidates has fewer pairs and gives what it has.
    """

    top_k: int = Field(20, ge=2, description="first ranks of the teacher's order that pairs come from (K)")
    window: int = Field(5, ge=1, description="largest distance of two ranks in a pair")
    pairs: int = Field(8, ge=1, description="pairs drawn a query; all, where there are fewer")
    seed: int = Field(4680, description="seed of the draws; the same pairs for the same seed on any machine")

    def __call__(self, row: Row) -> list[tuple[int, int]]:
        """(left, right) rows of the corpus, left the higher by teacher score (ties: the lower row), best first.

        Without replacement; the draw depends on (seed, query id) and the teacher's order only. Empty with fewer than
        two candidates.
        """
        order = row.teacher_order()[: self.top_k].tolist()
        near = [
            (left, right) for i, left in enumerate(order) for right in order[i + 1 : i + 1 + self.window]
        ]  # at most available(top_k, window)
        drawn = row.sample(np.arange(len(near), dtype=np.int64), self.pairs, seed=self.seed, salt="pairs")
        return [near[i] for i in drawn.tolist()]


def available(k: int, window: int) -> int:
    """How many pairs of neighbours `k` candidates have: w*k - w*(w + 1)/2 with w = min(window, k - 1).

    Raises:
        ValueError: k or window below 0.
    """
    if k < 0 or window < 0:
        raise ValueError(f"k={k}, window={window}: neither can be negative")
    near = max(0, min(window, k - 1))
    return near * k - near * (near + 1) // 2
