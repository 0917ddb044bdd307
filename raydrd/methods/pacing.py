"""Self-paced distillation: which queries the teacher is sure of, and how many of them a step may use.

After ADAM (arXiv 2212.10192), whose abstract restricts the distillation on dark examples to a subset chosen by the
teacher's confidence and lets it grow; the formulas here are this project's reading of it. Confidence is known before
training (the teacher is frozen), so the gate of a step depends on the query and the progress alone.

Shapes: Q queries of a batch, A all training queries whose confidence is known.
"""

from __future__ import annotations

import math
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import Field, model_validator
from torch import Tensor

from raydrd.config import Frozen, Resources
from raydrd.errors import InputError

Confidence = Literal["softmax", "margin", "entropy"]


class SelfPaced(Frozen):
    """Which queries are admitted at which progress u (0 at the first step, 1 at the end).

    The share grows from the surest queries on: rho(u) = rho0 + (rho1 - rho0) * min(1, u / gamma). rho1 below 1 keeps
    the least sure queries out for good: there the label or the teacher is wrong.

    `mode`: `quantile` admits a confidence of at least delta(u), the (1 - rho(u))-quantile over the training queries;
    `threshold` the constant `threshold`, at any u; `batch_topk` the surest rho(u) of each batch, which is coarse for
    small batches (the number is rounded) and needs them whole, in one worker and one piece; `soft` weighs queries below
    delta(u) by confidence / delta(u).

    `scope`, what an ungated query (weight 0) goes without: `dark`: it is distilled on its list without dark
    examples; `distil`: it has no distillation term, its contrastive term stays; `all`: it has no loss at all.
    """

    confidence: Confidence = Field("softmax", description="how sure the teacher is of the labelled positive")
    mode: Literal["quantile", "threshold", "batch_topk", "soft"] = Field(
        "quantile",
        description="how the gate decides; batch_topk only with one training worker and no per_device_train_batch_size",
    )
    rho0: float = Field(0.3, ge=0, le=1, description="share of queries admitted at the start")
    rho1: float = Field(0.9, gt=0, le=1, description="share admitted at the end")
    gamma: float = Field(0.6, gt=0, le=1, description="part of the training after which rho1 is reached")
    threshold: float | None = Field(None, allow_inf_nan=False, description="mode threshold: least confidence, such as 0.5")
    scope: Literal["dark", "distil", "all"] = Field("dark", description="what ungated queries go without")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.rho0 > self.rho1:
            raise ValueError(f"rho0={self.rho0} is above rho1={self.rho1}; the share grows, so write rho0 <= rho1")
        if (self.threshold is not None) != (self.mode == "threshold"):
            raise ValueError(f"mode={self.mode}: threshold belongs to mode threshold, which needs one, such as threshold=0.5")
        if self.mode == "soft" and self.confidence == "margin":
            raise ValueError("mode=soft divides confidences and margins may be negative; write confidence softmax or entropy")
        return self


def check_batches(rule: SelfPaced | None, resources: Resources, *, where: str) -> None:
    """`batch_topk` ranks the queries of what a worker sees at once; `resources` must not decide what that is.

    Resources are no part of an identity: students of another cut of the batch would pass for the same one.

    Args:
        where: the rule's path in the config.

    Raises:
        InputError: mode batch_topk with several workers, or with batches learnt in pieces.
    """
    cut = resources.train_range()[1] > 1 or resources.per_device_train_batch_size is not None
    if rule is not None and rule.mode == "batch_topk" and cut:
        raise InputError(
            f"{where}.mode: batch_topk needs the whole batch at once, resources cut it; write mode: quantile, or "
            "resources.train_workers=1 and resources.per_device_train_batch_size=null"
        )


def confidence(kind: Confidence, teacher_scores: ArrayLike, positive: int) -> float:
    """How sure the teacher is of one query, on its original list (without dark examples).

    `softmax`: the positive's share of softmax(t); `margin`: t(p+) less the highest other score; `entropy`:
    1 - H(softmax(t)) / log N, which asks how decided the teacher is and not whether it agrees with the label.

    Args:
        teacher_scores: float [N], raw logits; NaN (never scored) is left out.
        positive: column of the labelled positive; -1: there is none.

    Returns:
        NaN without a labelled positive that the teacher has scored, and with fewer than two scores: a passage alone
        is no contrast.

    Raises:
        ValueError: an infinite score, or a column that is not there.
    """
    scores = np.asarray(teacher_scores, dtype=np.float64)
    if scores.ndim != 1 or not -1 <= positive < scores.size:
        raise ValueError(f"positive={positive}: -1 or a column of teacher_scores [N], which has shape {scores.shape}")
    if np.isinf(scores).any():
        raise ValueError(f"{int(np.isinf(scores).sum())} of {scores.size} teacher scores are infinite")
    known = scores[~np.isnan(scores)]
    if positive == -1 or np.isnan(scores[positive]) or known.size < 2:
        return math.nan
    if kind == "margin":
        return float(scores[positive] - np.nanmax(np.delete(scores, positive)))
    logs = known - known.max()
    logs -= np.log(np.exp(logs).sum())
    if kind == "entropy":
        entropy = -(np.exp(logs) * logs).sum()
        return float(max(0.0, 1 - entropy / np.log(known.size)))  # equal scores: -2e-16 is 0
    own = int((~np.isnan(scores[:positive])).sum())
    return float(np.exp(logs[own]))


def share(rule: SelfPaced, progress: float) -> float:
    """rho(u): share of the training queries admitted at progress u = step / steps.

    Raises:
        ValueError: progress below 0 or not a number.
    """
    if not progress >= 0:
        raise ValueError(f"progress={progress}: step / steps, from 0 to 1")
    return rule.rho0 + (rule.rho1 - rule.rho0) * min(1.0, progress / rule.gamma)


def delta(sorted_confidences_A: Tensor, share: float) -> float:
    """The (1 - share)-quantile, linearly interpolated, of confidences in ascending order.

    `torch.quantile` would sort again every step and refuses more than 16 million values.

    Args:
        sorted_confidences_A: float [A], ascending, without NaN.
        share: 0 to 1, the part that is to be at or above the result.

    Raises:
        ValueError: no confidences, a NaN among them, ends in the wrong order, or a share outside [0, 1].
    """
    count = sorted_confidences_A.numel()
    if sorted_confidences_A.ndim != 1 or not count:
        raise ValueError(f"no training query has a confidence: shape {tuple(sorted_confidences_A.shape)}; needs [A], A >= 1")
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}: from 0 to 1")
    # NaN sorts last, so the two ends tell; `not <=` is also true for NaN.
    if not float(sorted_confidences_A[0]) <= float(sorted_confidences_A[-1]):
        raise ValueError("confidences must be in ascending order and without NaN")
    place = (1 - share) * (count - 1)
    if abs(place - round(place)) < 1e-9 * count:
        place = round(place)  # (1 - 0.3) * 10 must be 7: a hair above it would shut out the query that stands there
    below = math.floor(place)
    low = float(sorted_confidences_A[below])
    high = float(sorted_confidences_A[min(below + 1, count - 1)])
    return low + (place - below) * (high - low)


def gate(rule: SelfPaced, confidence_Q: Tensor, sorted_confidences_A: Tensor, progress: float) -> Tensor:
    """Weight of each query, float32 [Q] on its device: 1 admitted, 0 not, between only in mode `soft`. No gradient.

    A NaN confidence (no labelled positive, see `confidence`) weighs 0. Both tensors need one dtype, float32 or
    float64. In mode `batch_topk` the batch is `confidence_Q`: what this worker sees, NaN not counted, ties by
    position.

    Args:
        sorted_confidences_A: float [A], ascending, without NaN; read in modes `quantile` and `soft` only.
        progress: u = step / steps.

    Raises:
        ValueError: see `share` and `delta`.
    """
    confidence_Q = confidence_Q.detach()
    known_Q = ~confidence_Q.isnan()
    if rule.mode == "threshold":
        assert rule.threshold is not None  # checked by the rule
        return (confidence_Q >= rule.threshold).float()  # False for NaN
    admitted = share(rule, progress)
    if rule.mode == "batch_topk":
        number = math.floor(admitted * int(known_Q.sum()) + 0.5)
        order_Q = confidence_Q.masked_fill(~known_Q, -torch.inf).argsort(descending=True, stable=True)
        weights_Q = torch.zeros_like(confidence_Q, dtype=torch.float32)
        weights_Q[order_Q[:number]] = 1.0
        return weights_Q
    bar = delta(sorted_confidences_A, admitted)
    passed_Q = confidence_Q >= bar
    if rule.mode == "quantile":
        return passed_Q.float()
    # Where the quotient is taken, 0 <= confidence < bar: never a division by 0.
    return torch.where(passed_Q, 1.0, confidence_Q / bar).nan_to_num(0.0).float()
