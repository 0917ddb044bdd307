"""What a config says of token vectors beyond the student itself: how they are learnt, searched and shipped."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from raydrd.config import Frozen
from raydrd.errors import InputError


class LateInteraction(Frozen):
    """How token vectors are learnt beside pooled ones, in which form they ship, and which passages a query meets."""

    scale: float = Field(1.0, gt=0, description="hybrid: of MaxSim scores in the loss; they are sums over a query's tokens")
    distil: float = Field(1.0, ge=0, description="hybrid: weight of the KL from token scores to pooled ones; 0: none")
    type: Literal["float16", "2bit"] = Field(
        "float16", description="of a vector that ships: float16, or its centroid and two bits a number (ColBERTv2)"
    )
    centroids: int | None = Field(None, ge=2, description="2bit: how many; none: 16 times the root of the tokens, a power of 2")
    candidates: Literal["all", "tokens", "pooled"] = Field(
        "all",
        description="passages scored by MaxSim where the student is used: all, those with tokens near the query's, those near "
        "by pooled vectors; mining, and the test of the student as it was before training, always score all",
    )
    index: str | None = Field(None, description="tokens: FAISS factory string of the token index; none: IVF..,PQ.. by size")
    probes: int = Field(16, ge=1, description="tokens: lists of that index that are looked at for each token of a query")
    near: int = Field(256, ge=1, description="tokens: of each token of a query so many nearest tokens are looked up")
    depth: int = Field(1000, ge=10, description="tokens, pooled: so many passages go on to MaxSim")


def check_late(cfg: Any) -> None:
    """Fields that do not go with the student's kind.

    Raises:
        InputError: settings of single vectors with a student that has token vectors, or the other way round.
    """
    kind, late = cfg.student.kind, cfg.late
    if not cfg.student.tokens:
        if late != LateInteraction():
            raise InputError("late: is of students with token vectors; write student.kind: late_interaction, or remove it")
        return
    for where, wrong in (
        ("vectors", cfg.vectors != type(cfg.vectors)()),
        ("index", cfg.index != "Flat"),
        ("evaluation.sizes", bool(cfg.evaluation.sizes)),
    ):
        if wrong:
            raise InputError(f"{where}: is for one vector a text; of a {kind} student's index `late` says the form; remove it")
    if kind == "late_interaction" and late.candidates == "pooled":
        raise InputError("late.candidates: pooled needs a vector a text; write student.kind: hybrid, or candidates: tokens")
    if kind == "late_interaction" and {"scale", "distil"} & late.model_fields_set:
        raise InputError("late.scale, late.distil: are a hybrid's; write student.kind: hybrid, or remove them")
    if late.candidates != "tokens" and {"index", "probes", "near"} & late.model_fields_set:
        raise InputError("late.index, late.probes, late.near: are of candidates: tokens; write that, or remove them")
    if late.type != "2bit" and late.centroids is not None:
        raise InputError("late.centroids: are of type: 2bit; write that, or remove them")
