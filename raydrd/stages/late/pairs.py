"""MaxSim of given pairs of texts, by their stored token vectors."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raydrd.spine.parts import ranges
from raydrd.spine.ragged import RaggedReader, rectangle

AT_ONCE = 256  # passages of a query


class Texts(Protocol):
    """Token vectors by row: as they are stored, or decompressed."""

    width: int

    def take(self, rows: NDArray[np.int64]) -> list[NDArray[np.floating]]: ...


def scores_of(query_TD: NDArray[np.float32], passages: Texts, doc_rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """MaxSim of one query with these passages, float32 [passages]."""
    import torch

    from raydrd.methods.maxsim import maxsim

    scores = np.empty(len(doc_rows), dtype=np.float32)
    query_QTD = torch.from_numpy(query_TD)[None]
    for lo, hi in ranges(len(doc_rows), AT_ONCE):
        there = torch.from_numpy(rectangle(passages.take(doc_rows[lo:hi]), passages.width))
        scores[lo:hi] = maxsim(query_QTD, there)[0].numpy()
    return scores


def pair_scores(
    queries: RaggedReader, passages: Texts, query_rows: NDArray[np.int64], doc_rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """MaxSim of pairs, float32 [pairs]; pairs of one query that stand together are done at once."""
    scores = np.empty(len(doc_rows), dtype=np.float32)
    edges = np.flatnonzero(np.diff(query_rows, prepend=-1, append=-1))
    for lo, hi in zip(edges[:-1], edges[1:], strict=True):
        query = queries.padded(query_rows[lo : lo + 1])[0]
        scores[lo:hi] = scores_of(query, passages, doc_rows[lo:hi])
    return scores
