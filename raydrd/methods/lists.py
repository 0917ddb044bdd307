"""Rules that turn one query's scored candidates into one training list. Pure: no files, no Ray, no clock.

A rule is a value; called with a `Row` it gives a `TrainingList`, or None where the query teaches nothing.
Ranks are 1-based places in the teacher's order.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator, model_validator

from raydrd.config import Frozen

Rows = NDArray[np.int64]

# What a passage of a list is, bit by bit. Terms of a loss read these, never a label's value.
POSITIVE, DARK, SUSPECT = 1, 2, 4  # judged relevant; written for the query; perhaps an unlabelled positive


@dataclass(frozen=True, eq=False)
class Row:
    """One query with its candidates.

    `doc_rows` int64 [C] are rows of the corpus, `scores` float32 [C] the retriever's, `teacher_scores`
    float32 [C] the teacher's raw logits; `positives` are the rows judged relevant (grade > 0), inside the
    candidates or not. A labelled positive that no search found may stand among the candidates with score
    -inf, so that the teacher scores it too. `pairs` are (left row, right row, P(left is better)).

    Raises:
        ValueError: lengths differ, a passage is there twice, or a score is NaN.
    """

    query_id: str
    query_row: int
    doc_rows: Rows
    scores: NDArray[np.float32]
    teacher_scores: NDArray[np.float32]
    positives: tuple[int, ...] = ()
    pairs: tuple[tuple[int, int, float], ...] = ()

    def __post_init__(self) -> None:
        sizes = {len(self.doc_rows), len(self.scores), len(self.teacher_scores)}
        if len(sizes) != 1:
            raise ValueError(f"query {self.query_id}: candidates and their scores differ in number: {sorted(sizes)}")
        if len(set(self.doc_rows.tolist())) != len(self.doc_rows):
            raise ValueError(f"query {self.query_id}: a passage is twice among the candidates")
        for name, values in (("score", self.scores), ("teacher score", self.teacher_scores)):
            if np.isnan(values).any():
                passage = int(self.doc_rows[int(np.isnan(values).argmax())])
                raise ValueError(f"query {self.query_id}: the {name} of passage row {passage} is NaN")

    def teacher_order(self) -> Rows:
        """Candidates by descending teacher score, ties by ascending row."""
        return self.doc_rows[np.lexsort((self.doc_rows, -self.teacher_scores))]

    def student_order(self) -> Rows:
        """Candidates that the retriever found, by descending score, ties by ascending row."""
        order = self.doc_rows[np.lexsort((self.doc_rows, -self.scores))]
        return order[: int(np.isfinite(self.scores).sum())]

    def first_rank(self, order: Rows) -> int | None:
        """1-based rank of the first judged positive in `order`; None if none is there."""
        places = np.flatnonzero(np.isin(order, self.positives))
        return int(places[0]) + 1 if len(places) else None

    def sample(self, pool: Rows, n: int, *, seed: int, salt: str) -> Rows:
        """`n` of `pool` (all of it, if shorter), uniformly without replacement, in the pool's order.

        The draw depends on (seed, query_id, salt) and the pool only: not on how the work is split, nor on
        Python's hash seed. Raw PCG64 output is used because NumPy promises it stable across versions, unlike
        `choice`.
        """
        if n >= len(pool):
            return pool
        digest = sha256(f"{seed}\x1f{self.query_id}\x1f{salt}".encode()).digest()
        keys = np.random.PCG64(int.from_bytes(digest, "big")).random_raw(len(pool))
        return pool[np.sort(np.argsort(keys, kind="stable")[:n])]

    def training_list(self, doc_rows: Rows, labels: NDArray[np.float32]) -> TrainingList:
        """`doc_rows` with their labels and, where known, teacher scores."""
        known = dict(zip(self.doc_rows.tolist(), self.teacher_scores.tolist(), strict=True))
        teacher = np.array([known.get(row, np.nan) for row in doc_rows.tolist()], dtype=np.float32)
        flags = np.where(np.isin(doc_rows, self.positives), POSITIVE, 0).astype(np.int8)
        return TrainingList(doc_rows=doc_rows, labels=labels, teacher_scores=teacher, flags=flags)


@dataclass(frozen=True, eq=False)
class TrainingList:
    """What training reads for one query, all of length N.

    `doc_rows` int64; `labels` float32, of which only the order has a meaning; `teacher_scores` float32, NaN
    where the teacher never saw the passage (a positive outside the candidates); `flags` int8.
    """

    doc_rows: Rows
    labels: NDArray[np.float32]
    teacher_scores: NDArray[np.float32]
    flags: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.doc_rows)


class GradedList(Frozen):
    """CL-DRD's list: `graded` passages in exact order, above a `hard` block, above a `rest` block.

    Group 1 is the judged positives in their given order, then the teacher's first `graded` that are not among
    them, cut to `graded`; so a positive may push the teacher's last out, which then is in no group. Group 2
    is `hard` passages drawn from teacher ranks graded+1..hard_until, group 3 `rest` passages from below that;
    positives are never in either. Inside groups 2 and 3 no order is asked for.

    Labels are 1, 1/2, .. 1/graded, then -0.25, then -0.5, as in the official code; only their order matters.
    None of them marks padding, and neither would -1: lists that come out short (few candidates) are short,
    and whoever batches them masks the difference. With `positives="teacher"` (the paper's T variant), and for
    a query without judgements, group 1 is the teacher's first `graded`.
    """

    kind: Literal["graded"] = "graded"
    graded: int = Field(ge=1, description="passages in exact order (K)")
    hard: int = Field(ge=0, description="passages drawn from the teacher's ranks graded+1..hard_until")
    rest: int = Field(ge=0, description="passages drawn from the teacher's ranks below that")
    hard_until: int = Field(50, ge=1, description="last teacher rank of the hard pool")
    positives: Literal["qrels", "teacher"] = Field("qrels", description="what leads the list; teacher needs no labels")
    seed: int = Field(4680, description="seed of the draws; the same lists for the same seed on any machine")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.hard and self.hard_until <= self.graded:
            raise ValueError(
                f"hard={self.hard} passages come from ranks {self.graded + 1}..{self.hard_until}, which are "
                f"none; set hard_until above {self.graded} or hard=0"
            )
        if self.graded + self.hard + self.rest < 2:
            raise ValueError("a list of one passage has no order; raise graded, hard or rest")
        return self

    def __call__(self, row: Row) -> TrainingList | None:
        """The list; None if there are fewer than two passages to put in order."""
        order = row.teacher_order()
        leading = _distinct(row.positives) if self.positives == "qrels" else order[:0]
        top = np.concatenate([leading, _without(order[: self.graded], leading)])[: self.graded]
        below = max(self.graded, self.hard_until)
        near = _without(order[self.graded : below] if self.hard else order[:0], leading)
        far = _without(order[below:], leading)
        hard = row.sample(near, self.hard, seed=self.seed, salt="hard")
        rest = row.sample(far, self.rest, seed=self.seed, salt="rest")
        labels = np.concatenate([1.0 / np.arange(1, len(top) + 1), np.full(len(hard), -0.25), np.full(len(rest), -0.5)]).astype(
            np.float32
        )
        if len(labels) < 2:
            return None
        return row.training_list(np.concatenate([top, hard, rest]), labels)


class TopAndSampled(Frozen):
    """The plain list: `top` positives first, then `negatives` passages drawn from the first `pool` non-positives,
    by rank.

    Positives are the judged ones in their given order (those past `top` are left out, never taken as
    negatives); with `positives="teacher"`, and for a query without judgements, they are the teacher's first
    `top`. Labels: 1 for positives, 0 for the others. A short pool gives what it has.
    """

    kind: Literal["sampled"] = "sampled"
    negatives: int = Field(ge=1, description="passages drawn as negatives")
    pool: int = Field(ge=1, description="how many first-ranked non-positives they are drawn from")
    top: int = Field(1, ge=1, description="positives kept")
    ranking: Literal["teacher", "student"] = Field("teacher", description="whose ranks the pool is cut by")
    positives: Literal["qrels", "teacher"] = Field("qrels", description="what leads the list; teacher needs no labels")
    unlabelled: bool = Field(True, description="false: a query without judgements gives no list")
    seed: int = Field(4680, description="seed of the draws")

    def __call__(self, row: Row) -> TrainingList | None:
        """The list; None if there is no positive or no negative."""
        if not self.unlabelled and not row.positives:
            return None
        judged = _distinct(row.positives) if self.positives == "qrels" else _distinct(())
        positives = judged if len(judged) else row.teacher_order()[: self.top]
        order = row.teacher_order() if self.ranking == "teacher" else row.student_order()
        pool = _without(order, positives)[: self.pool]
        top, negatives = (
            positives[: self.top],
            row.sample(pool, self.negatives, seed=self.seed, salt="negatives"),
        )
        if not len(top) or not len(negatives):
            return None
        labels = np.repeat(np.array([1.0, 0.0], dtype=np.float32), [len(top), len(negatives)])
        return row.training_list(np.concatenate([top, negatives]), labels)


class Confusing(Frozen):
    """PROD's data progressive rule, for MS MARCO or NQ: queries the teacher answers and the student does not.

    MARCO (`rule: within`): the first positive's rank is student_from..student_to for the student and at most
    `teacher_to` (1) for the teacher. NQ (`rule: better`): the teacher ranks it better than the student, and at
    most `teacher_to` (15). Both ranks are over the student's own list, so a query whose positives the student did
    not find is never kept. The list: the first positive, then the student's first `negatives` non-positives in
    their order: the passages that beat the positive, then filler.
    """

    kind: Literal["confusing"] = "confusing"
    rule: Literal["within", "better"] = "within"
    student_from: int = Field(2, ge=1)
    student_to: int = Field(15, ge=1)
    teacher_to: int | None = Field(None, ge=1, validate_default=True, description="none: 1 for within, 15 for better")
    negatives: int = Field(15, ge=1)

    @field_validator("teacher_to")
    @classmethod
    def _preset(cls, value: int | None, info: ValidationInfo) -> int | None:
        return value if value is not None else {"within": 1, "better": 15}.get(info.data.get("rule", ""))

    def keeps(self, student: int | None, teacher: int | None) -> bool:
        """Whether a query with these ranks (None: absent) is kept."""
        assert self.teacher_to is not None  # set by the preset
        if student is None or teacher is None or teacher > self.teacher_to:
            return False
        if self.rule == "better":
            return teacher < student
        return self.student_from <= student <= self.student_to

    def __call__(self, row: Row) -> TrainingList | None:
        """The list; None if the query is not confusing, or has no negative."""
        found = row.student_order()
        reranked = row.teacher_order()
        reranked = reranked[np.isin(reranked, found)]
        if not self.keeps(row.first_rank(found), row.first_rank(reranked)):
            return None
        positives = _distinct(row.positives)
        negatives = _without(found, positives)[: self.negatives]
        if not len(negatives):
            return None
        labels = np.repeat(np.array([1.0, 0.0], dtype=np.float32), [1, len(negatives)])
        return row.training_list(np.concatenate([positives[:1], negatives]), labels)


class AroundPairs(Frozen):
    """PairDistill's line: passages of the query's compared pairs, filled up to `size`, by descending teacher score.

    The filler is drawn from the other scored passages. Where the pairs alone hold more than `size` passages the
    best-scored stay: a pair whose partner was cut is dropped by whoever resolves pairs to places.
    """

    kind: Literal["around_pairs"] = "around_pairs"
    size: int = Field(64, ge=2)
    seed: int = Field(4680, description="seed of the filler's draw")

    def __call__(self, row: Row) -> TrainingList | None:
        """The list; None if fewer than two passages are scored."""
        order = row.teacher_order()
        paired = {passage for left, right, _ in row.pairs for passage in (left, right)}
        inside = order[np.isin(order, list(paired))][: self.size]
        filler = row.sample(_without(order, inside), self.size - len(inside), seed=self.seed, salt="filler")
        chosen = order[np.isin(order, np.concatenate([inside, filler]))]
        if len(chosen) < 2:
            return None
        return row.training_list(chosen, (1.0 / np.arange(1, len(chosen) + 1)).astype(np.float32))


ListRule = Annotated[GradedList | TopAndSampled | Confusing | AroundPairs, Field(discriminator="kind")]


def _distinct(rows: tuple[int, ...]) -> Rows:
    return np.array(list(dict.fromkeys(rows)), dtype=np.int64)


def _without(rows: Rows, excluded: Rows) -> Rows:
    return rows[~np.isin(rows, excluded)]
