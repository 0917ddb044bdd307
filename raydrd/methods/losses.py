"""Distillation losses as pure functions of score matrices.

Every loss returns `(total, count)`: a scalar tensor with its graph, summed and not averaged, and the number
it is to be divided by. `count` depends on labels and masks only, so micro-batches and data-parallel ranks add
up exactly: add the totals, add the counts, divide once.

Shapes: Q queries, N passages in a query's own list, M columns of an in-batch list, G queries in the global
batch. A mask is True where there is a passage. Padding has no value of its own: whatever scores, labels and
teacher scores hold there (NaN included) changes nothing and gets a gradient of exactly zero. Scores below
float32 are raised to float32 first; float64 stays.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softplus

Loss = tuple[Tensor, float]


def taken(rows: Tensor, index: Tensor) -> Tensor:
    """`rows[index]`, with the gradients of a row that is taken several times always added up in the same order.

    Those of plain indexing are not on several cores, and a run made again would not end in the same weights.
    """
    return rows.index_select(0, index.flatten()).reshape(*index.shape, *rows.shape[1:])


def lambda_mrr(scores_QN: Tensor, labels_QN: Tensor, mask_QN: Tensor | None = None) -> Loss:
    """Pairwise logistic loss weighted by the change in reciprocal rank (CL-DRD).

    Zeng et al., SIGIR 2022, arXiv 2204.13679; the form is that of the authors' program.
    For every pair with y_i > y_j: |1/rank(i) - 1/rank(j)| * softplus(-(s_i - s_j)), where rank is the place
    in the student's *current* order (stable: ties by position) and carries no gradient. Only the order of
    labels counts, never their size, and no label value is reserved. `count` is the number of pairs, pooled
    over the queries.

    Memory: [Q, U, M] with U the largest number of passages that beat another one, so in-batch lists, whose
    many columns share one lowest label, cost N*M a query and not M*M.
    """
    mask_QN = _mask(scores_QN, mask_QN)
    scores_QN = _clean(scores_QN, mask_QN)
    upper_QU, pairs_QUN = _ordered_pairs(labels_QN, mask_QN)
    with torch.no_grad():
        reciprocal_QN = 1.0 / _ranks(scores_QN, mask_QN)
        weights_QUN = (reciprocal_QN.gather(1, upper_QU)[:, :, None] - reciprocal_QN[:, None, :]).abs_()
        weights_QUN.mul_(pairs_QUN)
    gaps_QUN = scores_QN[:, None, :] - scores_QN.gather(1, upper_QU)[:, :, None]
    return (weights_QUN * softplus(gaps_QUN)).sum(), float(pairs_QUN.sum())


def listwise_kl(
    scores_QN: Tensor,
    teacher_QN: Tensor,
    *,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    scale_by_t2: bool = False,
    mask_QN: Tensor | None = None,
    target_mask_QN: Tensor | None = None,
    weights_Q: Tensor | None = None,
) -> Loss:
    """KL(softmax(teacher / T_t) || softmax(student / T_s)) summed over lists; `count`: lists with a passage.

    `target_mask_QN`: where the teacher's share may lie, if not everywhere in the mask (PairDistill's DPR form: other
    queries' passages stand in the student's softmax only). `weights_Q` multiply each list's loss, not the count.

    One temperature on both sides with `scale_by_t2` is PROD's kd (Lin et al., WWW 2023); a student
    temperature only is PairDistill's L_KD (Huang and Chen, EMNLP 2024). A passage whose teacher score is
    unknown (NaN) must be masked out by the caller: `mask & ~teacher.isnan()`.

    Raises:
        ValueError: a temperature that is not positive, or `scale_by_t2` with two different temperatures.
    """
    if student_temperature <= 0 or teacher_temperature <= 0:
        raise ValueError(f"temperatures must be positive, got {student_temperature} and {teacher_temperature}")
    if scale_by_t2 and student_temperature != teacher_temperature:
        raise ValueError(
            f"scale_by_t2 needs one temperature on both sides, got student {student_temperature} "
            f"and teacher {teacher_temperature}"
        )
    mask_QN = _mask(scores_QN, mask_QN)
    with torch.no_grad():
        taught_QN = mask_QN if target_mask_QN is None else mask_QN & target_mask_QN
        target_QN = _log_softmax(_clean(teacher_QN, taught_QN) / teacher_temperature, taught_QN)
        shares_QN = target_QN.exp() * taught_QN
    student_QN = _log_softmax(_clean(scores_QN, mask_QN) / student_temperature, mask_QN)
    lists_Q = (shares_QN * (target_QN - student_QN)).sum(dim=1)
    total = (lists_Q if weights_Q is None else lists_Q * weights_Q).sum()
    scale = student_temperature**2 if scale_by_t2 else 1.0
    return total * scale, float(taught_QN.any(dim=1).sum())


def contrastive(
    scores_QM: Tensor,
    *,
    positive: int | Tensor = 0,
    mask_QM: Tensor | None = None,
    weights_Q: Tensor | None = None,
) -> Loss:
    """InfoNCE: -log softmax of the positive's column (one for all, or int64 [Q]); the mask limits the
    denominator.

    `count` is the queries whose positive is not masked; the others add nothing. `weights_Q` multiply each query's
    loss, not the count.
    """
    mask_QM = _mask(scores_QM, mask_QM)
    columns_Q = torch.as_tensor(positive, dtype=torch.int64, device=scores_QM.device).expand(len(scores_QM))
    counts_Q = mask_QM.gather(1, columns_Q[:, None])[:, 0]
    logs_QM = _log_softmax(_clean(scores_QM, mask_QM), mask_QM)
    weighted_Q = counts_Q if weights_Q is None else counts_Q * weights_Q
    return -(logs_QM.gather(1, columns_Q[:, None])[:, 0] * weighted_Q).sum(), float(counts_Q.sum())


def pair_kl(scores_QN: Tensor, pairs_P3: Tensor, p_P: Tensor, *, temperature: float = 1.0) -> Loss:
    """KL([p, 1-p] || [sigmoid(d), 1 - sigmoid(d)]) with d = (s_i - s_j) / temperature, summed over pairs (PairDistill).

    Huang and Chen, EMNLP 2024. `pairs_P3` int64 rows (query, i, j), `p_P` = P(i is better than j); `count` is the number
    of pairs: the mean is over pairs, not over queries. The stable form p softplus(-d) + (1 - p) softplus(d) - H(p) is
    finite at p = 0 and p = 1; no pairs give 0 with a graph.

    Raises:
        ValueError: the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    scores_QN = scores_QN.float() if scores_QN.dtype in (torch.float16, torch.bfloat16) else scores_QN
    query_P, left_P, right_P = pairs_P3.unbind(1)
    row_P, scores = query_P * scores_QN.shape[1], scores_QN.flatten()
    gaps_P = (taken(scores, row_P + left_P) - taken(scores, row_P + right_P)) / temperature
    p_P = p_P.to(gaps_P.dtype)
    entropy_P = -torch.xlogy(p_P, p_P) - torch.xlogy(1 - p_P, 1 - p_P)
    losses_P = p_P * softplus(-gaps_P) + (1 - p_P) * softplus(gaps_P) - entropy_P
    return losses_P.sum(), float(len(p_P))


def logistic(logits_P: Tensor, p_P: Tensor) -> Loss:
    """Binary cross-entropy of sigmoid(logit) against p, summed: how a pairwise cross-encoder learns from labels."""
    total = (p_P * softplus(-logits_P) + (1 - p_P) * softplus(logits_P)).sum()
    return total, float(len(p_P))


def margin_mse(scores_QN: Tensor, teacher_QN: Tensor, mask_QN: Tensor | None = None) -> Loss:
    """((s_0 - s_j) - (t_0 - t_j))^2 for the columns j >= 1 (Hofstätter et al., arXiv 2010.02666).

    `count` is the number of such pairs with both passages there. Unknown (NaN) teacher scores: see
    `listwise_kl`.
    """
    mask_QN = _mask(scores_QN, mask_QN)
    errors_QN = _clean(scores_QN, mask_QN) - _clean(teacher_QN, mask_QN)
    pairs_QN = mask_QN[:, 1:] & mask_QN[:, :1]
    squares_QN = (errors_QN[:, :1] - errors_QN[:, 1:]).square()
    return (squares_QN * pairs_QN).sum(), float(pairs_QN.sum())


def in_batch(
    scores_QGN: Tensor,
    labels_QN: Tensor,
    doc_rows_GN: Tensor,
    *,
    mask_GN: Tensor | None = None,
    relevant_QP: Tensor | None = None,
    pool: Literal["all", "next"] = "all",
    label: float | None = None,
    offset: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Own lists followed by other queries' passages (CL-DRD's in-batch option): scores, labels, mask, all [Q,
    M].

    The first N of the M columns are the query's own list, then come whole lists of the queries after it,
    wrapping around: all G - 1 of them, or the next one. An appended passage is masked where it is padding,
    where the query's own list has it already, and where it is among the query's `relevant_QP`.

    Args:
        scores_QGN: float [Q, G * N], each query of this device against every passage of the global batch.
        labels_QN: float [Q, N], labels of the queries' own lists. doc_rows_GN: int64 [G, N], corpus rows of
        all lists. mask_GN: bool [G, N], True where there is a passage. relevant_QP: int64 [Q, P], corpus rows
        judged relevant; fill up with -1, which is no row. label: label of the appended passages. None: half
        below the query's lowest label, so below every passage of
            its list. The official code's fixed -0.5 ties with the `rest` group.
        offset: the first of these Q queries is list `offset` of the global batch.

    Raises:
        ValueError: shapes that do not fit together.
    """
    queries, own = labels_QN.shape
    lists = len(doc_rows_GN)
    if scores_QGN.shape != (queries, lists * own) or doc_rows_GN.shape[1] != own or offset + queries > lists:
        raise ValueError(
            f"in_batch: scores {tuple(scores_QGN.shape)}, labels {tuple(labels_QN.shape)}, doc_rows "
            f"{tuple(doc_rows_GN.shape)}, offset {offset} do not fit; expected [Q, G*N], [Q, N], [G, N] "
            f"and offset + Q <= G"
        )
    device = scores_QGN.device
    mask_GN = _mask(doc_rows_GN, mask_GN)
    first_Q = torch.arange(queries, device=device) + offset
    blocks = torch.arange(lists if pool == "all" else min(2, lists), device=device)
    order_QB = (first_Q[:, None] + blocks) % lists
    columns_QM = (order_QB[:, :, None] * own + torch.arange(own, device=device)).flatten(1)

    own_mask_QN = mask_GN[first_Q]
    rows_QM = doc_rows_GN.flatten()[columns_QM]
    # What stands in the padding of the own list is not a listed passage.
    listed_QM = ((rows_QM[:, :, None] == rows_QM[:, None, :own]) & own_mask_QN[:, None, :]).any(dim=2)
    if relevant_QP is not None:
        listed_QM |= (rows_QM[:, :, None] == relevant_QP[:, None, :]).any(dim=2)
    mask_QM = mask_GN.flatten()[columns_QM] & ~listed_QM
    mask_QM[:, :own] = own_mask_QN

    if label is None:
        lowest_Q = labels_QN.masked_fill(~own_mask_QN, torch.inf).amin(dim=1) - 0.5
    else:
        lowest_Q = labels_QN.new_full((queries,), label)
    labels_QM = lowest_Q[:, None].repeat(1, columns_QM.shape[1])
    labels_QM[:, :own] = labels_QN
    return scores_QGN.gather(1, columns_QM), labels_QM, mask_QM


def _mask(like_QN: Tensor, mask_QN: Tensor | None) -> Tensor:
    if mask_QN is None:
        return torch.ones_like(like_QN, dtype=torch.bool)
    if mask_QN.shape != like_QN.shape or mask_QN.dtype != torch.bool:
        raise ValueError(f"mask is {mask_QN.dtype} {tuple(mask_QN.shape)}; expected torch.bool of shape {tuple(like_QN.shape)}")
    return mask_QN


def _clean(scores_QN: Tensor, mask_QN: Tensor) -> Tensor:
    """Scores with zeros in the padding: times 0, an inf or NaN there would still spoil gradients."""
    if scores_QN.dtype in (torch.float16, torch.bfloat16):
        scores_QN = scores_QN.float()
    return scores_QN.masked_fill(~mask_QN, 0.0)


def _log_softmax(scores_QN: Tensor, mask_QN: Tensor) -> Tensor:
    """Log-softmax over the unmasked columns; 0 in the padding."""
    lowest = torch.finfo(scores_QN.dtype).min
    return log_softmax(scores_QN.masked_fill(~mask_QN, lowest), dim=1).masked_fill(~mask_QN, 0.0)


def _ranks(scores_QN: Tensor, mask_QN: Tensor) -> Tensor:
    """1-based place of each column in descending order, ties by position, padding last."""
    order_QN = scores_QN.masked_fill(~mask_QN, -torch.inf).argsort(dim=1, descending=True, stable=True)
    places_N = torch.arange(1, scores_QN.shape[1] + 1, device=scores_QN.device, dtype=scores_QN.dtype)
    return torch.zeros_like(scores_QN).scatter_(1, order_QN, places_N.expand_as(scores_QN))


def _ordered_pairs(labels_QN: Tensor, mask_QN: Tensor) -> tuple[Tensor, Tensor]:
    """Columns that may be the better half of a pair [Q, U], and where y_i > y_j holds [Q, U, N]."""
    lowest_Q1 = labels_QN.masked_fill(~mask_QN, torch.inf).amin(dim=1, keepdim=True)
    better_QN = mask_QN & (labels_QN > lowest_Q1)
    most = int(better_QN.sum(dim=1).max()) if better_QN.numel() else 0
    upper_QU = better_QN.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    first_QU1 = labels_QN.gather(1, upper_QU)[:, :, None]
    pairs_QUN = (first_QU1 > labels_QN[:, None, :]) & mask_QN[:, None, :]
    return upper_QU, pairs_QUN & better_QN.gather(1, upper_QU)[:, :, None]
