"""MaxSim of given pairs of texts, by their stored token vectors."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raydrd.spine.parts import ranges
from raydrd.spine.ragged import RaggedReader

AT_ONCE = 64  # passages of a query: their products stay in the cache


class Texts(Protocol):
    """Token vectors by row: as they are stored, or decompressed."""

    width: int

    def take(self, rows: NDArray[np.int64]) -> list[NDArray[np.floating]]: ...


def scores_of(query_TD: NDArray[np.float32], passages: Texts, doc_rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """MaxSim of one query with these passages, float32 [passages]; 0 for one without tokens.

    As `raydrd.methods.maxsim` says, over token vectors one after the other in place of a rectangle: some three times as fast.
    """
    import torch

    query, scores = torch.from_numpy(query_TD), np.zeros(len(doc_rows), dtype=np.float32)
    for lo, hi in ranges(len(doc_rows), AT_ONCE):
        texts = passages.take(doc_rows[lo:hi])
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        filled = np.flatnonzero(lengths)
        if len(filled):
            # By torch, whose threads a measurement can count.
            products = (query @ torch.from_numpy(np.concatenate(texts)).float().T).numpy()
            # Texts without tokens have no place of their own among the products.
            starts = (np.cumsum(lengths) - lengths)[filled]
            scores[lo + filled] = np.maximum.reduceat(products, starts, axis=1).sum(0)
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
