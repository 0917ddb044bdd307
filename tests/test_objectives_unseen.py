"""What no term of an objective may ever look at, and what it counts, on random batches."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from raydrd.methods.lists import DARK, POSITIVE, SUSPECT
from raydrd.methods.objectives import Contrastive, Distil, ListBatch, Losses, MarginMSE, Ordered, Pairwise
from raydrd.methods.pacing import SelfPaced
from raydrd.training.comm import Alone
from tests.list_batches import NAN, compared, made, own, own_slopes, slopes, value
from tests.reference import matrix, near

CONTRASTS = [
    Contrastive(in_batch=pool, own_negatives=negatives, positive=positive, temperature=0.7)
    for pool in (True, False)
    for negatives in (True, False)
    for positive in ("gold", "teacher_top1", "either")
]


def random_batch(seed: int) -> tuple[Tensor, dict[str, Tensor], ListBatch]:
    """Four lists of up to six passages that share some; every kind of flag, unknown teacher scores, padding at the end."""
    draw = torch.Generator().manual_seed(seed)
    full = torch.randn(4, 24, generator=draw, dtype=torch.float64)
    docs = torch.stack([torch.randperm(14, generator=draw)[:6] for _ in range(4)])
    flags = torch.zeros(4, 6, dtype=torch.int64)
    flags[torch.rand(4, 6, generator=draw) < 0.25] = POSITIVE
    flags[(torch.rand(4, 6, generator=draw) < 0.3) & (flags == 0)] = SUSPECT
    dark = torch.rand(4, 6, generator=draw) < 0.25
    dark[:, 0] = False
    flags[dark], docs[dark] = DARK, 1000 + torch.arange(24).reshape(4, 6)[dark]  # written for one query: nobody else's
    mask = torch.arange(6) < torch.randint(3, 7, (4, 1), generator=draw)
    teacher = torch.randn(4, 6, generator=draw, dtype=torch.float64).masked_fill(torch.rand(4, 6, generator=draw) < 0.2, NAN)
    pairs = torch.tensor([[0, 0, 1], [1, 1, 2], [3, 2, 0]])
    vectors, batch = made(full)
    batch = replace(
        batch,
        doc_rows_QN=docs,
        flags_QN=flags,
        mask_QN=mask,
        teacher_QN=teacher,
        anchor_QN=torch.randn(4, 6, generator=draw, dtype=torch.float64),
        relevant_QR=torch.cat([torch.randint(0, 14, (4, 2), generator=draw), torch.full((4, 1), -1)], dim=1),
        confidence_Q=torch.tensor([0.9, 0.5, NAN, 0.2]),
        confidences_A=torch.tensor([0.2, 0.5, 0.9]),
        teacher_vectors={"query": torch.eye(4, dtype=torch.float64), "passage": torch.randn(24, 4, generator=draw).double()},
        progress=0.3,
        **compared(pairs, [0.9, 0.2, 0.5]),
    )
    return full, vectors, batch


def slow_contrastive(term: Contrastive, full: Tensor, batch: ListBatch) -> tuple[float, int]:
    """A plain loop over what may stand in each query's denominator."""
    total, count = 0.0, 0
    assert batch.flags_QN is not None and batch.relevant_QR is not None
    docs, flags, mask = (t.tolist() for t in (batch.doc_rows_QN, batch.flags_QN, batch.mask_QN))
    for q in range(4):
        here = [n for n in range(6) if mask[q][n]]
        gold = [n for n in here if flags[q][n] == POSITIVE]
        known = [n for n in here if flags[q][n] != DARK and not math.isnan(batch.teacher_QN[q, n])]
        best = max(known, key=lambda n: float(batch.teacher_QN[q, n]), default=None)
        positive = {"gold": gold[0] if gold else None, "teacher_top1": best, "either": gold[0] if gold else best}[term.positive]
        if positive is None:
            continue
        columns = {6 * q + positive}
        if term.own_negatives:
            columns |= {6 * q + n for n in here if flags[q][n] == 0}
        listed = {docs[q][n] for n in here if flags[q][n] != DARK} | set(batch.relevant_QR[q].tolist())
        if term.in_batch:
            columns |= {
                6 * other + n
                for other in range(4)
                for n in range(6)
                if other != q and mask[other][n] and flags[other][n] != DARK and docs[other][n] not in listed
            }
        scores = {c: float(full[q, c]) / term.temperature for c in columns}
        total += math.log(sum(map(math.exp, scores.values()))) - scores[6 * q + positive]
        count += 1
    return total, count


@pytest.mark.parametrize("term", CONTRASTS, ids=lambda t: f"{t.in_batch}-{t.own_negatives}-{t.positive}")
def test_contrastive_terms_equal_a_plain_loop_and_never_see_a_dark_example(term: Contrastive) -> None:
    for seed in range(12):
        full, vectors, batch = random_batch(seed)
        objective = Losses(terms=(term,))
        (found,) = objective(vectors, batch, Alone()).values()
        total, count = slow_contrastive(term, full, batch)
        assert (found[0].item(), found[1]) == (near(total), count)
        assert count, "a world without positives says nothing"
        gradient = slopes(objective, vectors, batch)
        assert gradient[:, batch.flagged(DARK).flatten()].eq(0).all()
        assert gradient[:, ~batch.mask_QN.flatten()].eq(0).all()
        # A dark example that anyone looked at would change the loss.
        moved = full.clone()
        moved[:, batch.flagged(DARK).flatten()] = 7.0
        vectors, _ = made(moved)
        (again,) = objective(vectors, batch, Alone()).values()
        assert again[0].item() == found[0].item()


@pytest.mark.parametrize(
    "term", [Ordered(in_batch="all"), Ordered(in_batch="next"), Distil(over="batch"), Distil(over="global"), MarginMSE()]
)
def test_terms_over_a_pool_never_see_a_dark_example(term: Any) -> None:
    for seed in range(6):
        _, vectors, batch = random_batch(seed)
        gradient = slopes(Losses(terms=(term,)), vectors, batch)
        assert gradient.ne(0).any()
        assert gradient[:, batch.flagged(DARK).flatten()].eq(0).all()


def test_a_judged_positive_outside_the_list_is_no_negative() -> None:
    full = matrix([[1.0, 0.0, 3.0, 0.5], [0.2, 0.1, 1.0, 0.4]])
    vectors, batch = made(full, relevant_QR=torch.tensor([[0, 2], [2, -1]]))  # query 1's positive is query 0's too
    objective = Losses(terms=(Contrastive(),))
    first = math.log(sum(math.exp(x) for x in (1.0, 0.0, 0.5))) - 1.0
    second = math.log(sum(math.exp(x) for x in (1.0, 0.4, 0.2, 0.1))) - 1.0
    assert value(objective, vectors, batch) == near((first + second) / 2)
    assert slopes(objective, vectors, batch)[0, 2] == 0
    for pool in ("all", "next"):
        gradient = slopes(Losses(terms=(Ordered(in_batch=pool),)), vectors, batch)
        assert gradient[0, 2] == 0 and gradient[0, 3] != 0
    assert slopes(Losses(terms=(Distil(over="batch"),)), vectors, batch)[0, 2] == 0


def test_of_several_positives_the_first_is_pulled_and_the_others_are_left_alone() -> None:
    vectors, batch = made(own([[0.1, 0.7, 0.4, 0.2]]), flags=[[0, POSITIVE, POSITIVE, 0]])
    objective = Losses(terms=(Contrastive(),))
    assert value(objective, vectors, batch) == near(math.log(sum(math.exp(x) for x in (0.1, 0.7, 0.2))) - 0.7)
    assert slopes(objective, vectors, batch)[0, 2] == 0


def test_which_passage_is_the_positive() -> None:
    flags = [[0, POSITIVE, 0, DARK], [0, 0, 0, DARK], [POSITIVE | SUSPECT, 0, 0, 0], [0, 0, 0, 0]]
    teacher = [[3.0, 1.0, 2.0, 9.0], [1.0, NAN, 4.0, 9.0], [NAN, 1.0, 2.0, 0.0], [NAN] * 4]
    _, batch = made(torch.zeros(4, 16, dtype=torch.float64), teacher, flags=flags)
    found = {which: batch.first_positive(which) for which in ("gold", "teacher_top1", "either")}
    assert {which: has.tolist() for which, (_, has) in found.items()} == {
        "gold": [True, False, True, False],
        "teacher_top1": [True, True, True, False],
        "either": [True, True, True, False],
    }
    chosen = {which: [int(c) for c, h in zip(columns, has, strict=True) if h] for which, (columns, has) in found.items()}
    assert chosen == {"gold": [1, 0], "teacher_top1": [0, 2, 2], "either": [1, 2, 0]}


def test_what_the_teacher_never_scored_teaches_nothing() -> None:
    """A NaN is as if the passage stood in no list; an unlabelled query is as if it were not in the batch."""
    scores, teacher = [[2.0, 1.0, 0.5, -1.0]], [[3.0, NAN, 0.0, -2.0]]
    kept = [0, 2, 3]
    terms: tuple[Any, ...] = (Distil(temperature=2.0), MarginMSE())
    for term in terms:
        objective = Losses(terms=(term,))
        vectors, batch = made(own(scores), teacher)
        short = made(own([[scores[0][n] for n in kept]]), [[teacher[0][n] for n in kept]])
        assert value(objective, vectors, batch) == near(value(objective, *short))
        assert own_slopes(objective, vectors, batch)[0][1] == 0
    vectors, batch = made(own(scores * 2), [[3.0, 1.0, 0.0, -2.0]] * 2, flags=[[POSITIVE, 0, 0, 0], [0] * 4])
    terms = (Contrastive(in_batch=False), MarginMSE(positive="gold"))
    for term in terms:
        gradient = slopes(Losses(terms=(term,)), vectors, batch)
        assert gradient[0].ne(0).any() and gradient[1].eq(0).all()
    (loss,) = Losses(terms=(Contrastive(in_batch=False),))(vectors, batch, Alone()).values()
    assert loss[1] == 1.0


def test_margins_are_those_between_the_positive_wherever_it_stands_and_each_other() -> None:
    vectors, batch = made(own([[1.0, 2.0, 0.0]]), [[0.5, 2.5, 2.0]], flags=[[0, POSITIVE, 0]])
    (loss,) = Losses(terms=(MarginMSE(teacher_scale=2.0),))(vectors, batch, Alone()).values()
    assert (loss[0].item(), loss[1]) == (near((1.0 - 4.0) ** 2 + (2.0 - 1.0) ** 2), 2.0)
    # Labelled, but never scored: no margin is known. The teacher's favourite does not step in for the label.
    unscored = replace(batch, teacher_QN=matrix([[0.5, NAN, 2.0]]))
    (loss,) = Losses(terms=(MarginMSE(),))(vectors, unscored, Alone()).values()
    assert (loss[0].item(), loss[1]) == (0.0, 0.0)


EVERY_TERM: tuple[Any, ...] = (
    Ordered(),
    Ordered(in_batch="all"),
    Distil(),
    Distil(source="anchor", suspects="mask"),
    Distil(over="batch"),
    Distil(over="global"),
    *CONTRASTS,
    Pairwise(),
    MarginMSE(),
)


@pytest.mark.parametrize("pacing", [None, SelfPaced(), SelfPaced(mode="soft", scope="distil"), SelfPaced(scope="all")])
def test_counts_do_not_depend_on_scores(pacing: SelfPaced | None) -> None:
    """The loop learns what to divide by from vectors of zeros, before anything is encoded."""
    objective = Losses(terms=EVERY_TERM, pacing=pacing)
    counted = 0.0
    for seed in range(4):
        full, vectors, batch = random_batch(seed)
        found = objective(vectors, batch, Alone())
        assert len(found) == len(EVERY_TERM)  # terms of one kind do not hide one another
        zeros = objective({role: torch.zeros_like(v) for role, v in vectors.items()}, batch, Alone())
        assert {n: c for n, (_, c) in found.items()} == {n: c for n, (_, c) in zeros.items()}
        assert all(torch.isfinite(total) and total.requires_grad for total, _ in found.values())
        counted += sum(c for _, c in found.values())
    assert counted > 100


def test_weights_multiply_what_is_minimised_and_not_what_it_is_divided_by() -> None:
    _, vectors, batch = random_batch(1)
    for term in (Ordered(), Distil(), Contrastive(), Pairwise(weight=1.0), MarginMSE()):
        (one,) = Losses(terms=(term,))(vectors, batch, Alone()).values()
        (three,) = Losses(terms=(term.model_copy(update={"weight": 3.0}),))(vectors, batch, Alone()).values()
        assert (three[0].item(), three[1]) == (near(3 * one[0].item()), one[1])


def test_only_terms_over_other_queries_need_the_pool() -> None:
    alone: list[Any] = [Ordered(), Distil(), Contrastive(in_batch=False), Pairwise(), MarginMSE()]
    pooled: list[Any] = [Ordered(in_batch="next"), Distil(over="batch"), Distil(over="global"), Contrastive()]
    assert not Losses(terms=tuple(alone)).needs_pool
    assert all(Losses(terms=(*alone, term)).needs_pool for term in pooled)
    # What needs no pool gives the same loss whatever the other queries' passages are.
    full, vectors, batch = random_batch(2)
    other = full.clone()
    for q in range(4):
        keep = full[q, 6 * q : 6 * q + 6].clone()
        other[q] = -3.0
        other[q, 6 * q : 6 * q + 6] = keep
    changed, _ = made(other)
    for term in (*alone, *pooled):
        (one,), (two,) = (Losses(terms=(term,))(v, batch, Alone()).values() for v in (vectors, changed))
        assert (one[0].item() == two[0].item()) == (term in alone)
