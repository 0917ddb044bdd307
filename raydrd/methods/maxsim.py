"""MaxSim, the score of late interaction (Khattab and Zaharia, SIGIR 2020): pure functions of token vectors.

Q queries of T token vectors, P passages of S, D numbers each. A vector of zeros is no token: it adds nothing to a query's
score and is no passage token's rival, so texts of different length lie in one rectangle without a mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raydrd.methods.losses import taken


def maxsim(queries_QTD: Tensor, passages_PSD: Tensor) -> Tensor:
    """Scores [Q, P]: for each token of the query its greatest inner product with a token of the passage, summed.

    A passage without tokens scores 0. One query at a time, and of its products only the places of the greatest are kept
    for the backward pass: memory is Q times P times T, whatever S is.
    """
    there_PS = tokens_in(passages_PSD)
    flat = passages_PSD.flatten(0, 1)
    rows = [_summed(query_TD, (query_TD @ flat.T).unflatten(1, there_PS.shape), there_PS) for query_TD in queries_QTD]
    return torch.stack(rows)


def maxsim_of_lists(queries_QTD: Tensor, passages_PSD: Tensor, index_QN: Tensor) -> Tensor:
    """Scores [Q, N] of each query's own passages: row n of its list is passage `index_QN[q, n]`."""
    rows = []
    for query_TD, index_N in zip(queries_QTD, index_QN, strict=True):
        own_NSD = taken(passages_PSD, index_N)
        products_TNS = (query_TD @ own_NSD.flatten(0, 1).T).unflatten(1, own_NSD.shape[:2])
        rows.append(_summed(query_TD, products_TNS, tokens_in(own_NSD)))
    return torch.stack(rows)


def tokens_in(vectors: Tensor) -> Tensor:
    """Where a vector is a token's, bool, without the last dimension."""
    return vectors.detach().ne(0).any(-1)


def _summed(query_TD: Tensor, products_TPS: Tensor, there_PS: Tensor) -> Tensor:
    """[P] from one query's products. `max` keeps places for the backward pass, `amax` would keep the products."""
    best_TP = products_TPS.masked_fill(~there_PS, -torch.inf).max(dim=2).values
    counted_TP = tokens_in(query_TD)[:, None] & there_PS.any(1)
    return best_TP.masked_fill(~counted_TP, 0.0).sum(0)


def widened(vectors_BTD: Tensor, tokens: int) -> Tensor:
    """The same texts in a rectangle of so many tokens: zeros at the end of each."""
    return torch.nn.functional.pad(vectors_BTD, (0, 0, 0, tokens - vectors_BTD.shape[1]))
