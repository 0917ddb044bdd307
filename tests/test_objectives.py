"""Objectives on hand-made batches: the numbers of the reference through `Losses`, and what no term may ever look at."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from raydrd.methods.lists import DARK, POSITIVE, SUSPECT
from raydrd.methods.losses import Loss
from raydrd.methods.objectives import Contrastive, Distil, DuelBatch, Duels, ListBatch, Losses, MarginMSE, Ordered, Pairwise
from raydrd.methods.pacing import SelfPaced
from raydrd.training.comm import Alone

NAN = math.nan
GARBAGE = 1e4  # stands where nobody may look: in padding, and in the dark examples' columns of other queries


def matrix(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(value: Any) -> Any:
    return pytest.approx(value, abs=1e-6)


def made(full: Tensor, teacher: Any = None, *, flags: Any = None, **more: Any) -> tuple[dict[str, Tensor], ListBatch]:
    """A batch whose inner products are `full` [Q, Q * N]: each query against all lists, one after the other.

    Queries are unit vectors, so the gradient of passage n in dimension q is that of the score of q and n.
    """
    queries, columns = full.shape
    width = columns // queries
    batch = ListBatch(
        rows={"query": torch.arange(queries), "passage": torch.arange(columns)},
        index_QN=torch.arange(columns).reshape(queries, width),
        doc_rows_QN=torch.arange(columns).reshape(queries, width),
        labels_QN=matrix([[1.0 / (n + 1) for n in range(width)]] * queries),
        teacher_QN=torch.zeros(queries, width, dtype=torch.float64) if teacher is None else matrix(teacher),
        mask_QN=torch.ones(queries, width, dtype=torch.bool),
        flags_QN=torch.tensor([[POSITIVE] + [0] * (width - 1)] * queries if flags is None else flags),
    )
    vectors = {"query": torch.eye(queries, dtype=torch.float64), "passage": full.T.clone().requires_grad_()}
    return vectors, replace(batch, **more)


def own(lists: Any) -> Tensor:
    """[Q, Q * N] with these scores for each query's own list, and garbage for the others'."""
    lists = matrix(lists)
    full = torch.full((len(lists), lists.numel()), GARBAGE, dtype=torch.float64)
    for q, row in enumerate(lists):
        full[q, q * len(row) : (q + 1) * len(row)] = row
    return full


def means(objective: Losses, vectors: dict[str, Tensor], batch: ListBatch) -> dict[str, Tensor]:
    return {name: total / max(count, 1.0) for name, (total, count) in objective(vectors, batch, Alone()).items()}


def value(objective: Losses, vectors: dict[str, Tensor], batch: ListBatch) -> float:
    return sum(loss.item() for loss in means(objective, vectors, batch).values())


def slopes(objective: Losses, vectors: dict[str, Tensor], batch: ListBatch) -> Tensor:
    """dL/d(full) [Q, Q * N]."""
    total = torch.stack(list(means(objective, vectors, batch).values())).sum()
    return torch.autograd.grad(total, vectors["passage"])[0].T


def own_slopes(objective: Losses, vectors: dict[str, Tensor], batch: ListBatch) -> list[list[float]]:
    """The part of `slopes` on each query's own list; the rest is zero, which is checked."""
    found = slopes(objective, vectors, batch)
    width = batch.mask_QN.shape[1]
    mine = torch.stack([found[q, q * width : (q + 1) * width] for q in range(len(found))])
    assert int(found.ne(0).sum()) == int(mine.ne(0).sum())
    return [[float(x) for x in row] for row in mine]


# -- CL-DRD (section 2.5) -----------------------------------------------------------------------------------


def test_ordered_has_the_reference_values_and_gradients() -> None:
    scores = [[1.23, 2.01, 0.4, 1.02], [0.45, 1.04, 1.02, 3.12]]
    labels = {"labels_QN": matrix([[1.0, 0.5, 0.0, 0.0]] * 2)}
    objective = Losses(terms=(Ordered(),))
    vectors, batch = made(own(scores), **labels)
    assert value(objective, vectors, batch) == near(0.4723458)
    first, second = own_slopes(objective, vectors, batch)
    assert first == near([-0.0493367, 0.0037291, 0.0200853, 0.0255223])
    assert second == near([-0.0915496, -0.0366131, 0.0135730, 0.1145897])
    # Pooled over the pairs of both queries; the second list is one shorter in pairs.
    pooled = [[0.7, -0.2, 1.5, 0.1, 0.9], [0.3, 0.6, -0.1, 0.2, 0.0]]
    vectors, batch = made(own(pooled), labels_QN=matrix([[3, 2, 1, 0, 0], [1, 0, 0, 0, 0]]))
    assert value(objective, vectors, batch) == near(0.3199982)
    assert objective(vectors, batch, Alone())["ordered"][1] == 13


def test_a_dark_example_is_in_no_order() -> None:
    labels = matrix([[1.0, 0.5, 0.0, 0.0, 0.0]])
    vectors, batch = made(own([[1.23, 2.01, 0.4, 1.02, 9.0]]), flags=[[POSITIVE, 0, 0, 0, DARK]], labels_QN=labels)
    plain = made(own([[1.23, 2.01, 0.4, 1.02]]), labels_QN=labels[:, :4])
    objective = Losses(terms=(Ordered(),))
    assert value(objective, vectors, batch) == value(objective, *plain)
    assert own_slopes(objective, vectors, batch)[0][4] == 0


# -- PROD (section 3.5) -------------------------------------------------------------------------------------

PROD_S = [[2.0, 1.0, 0.0, -1.0], [0.5, 1.5, 1.0, 0.0]]
PROD_Z = [[6.0, 1.0, 2.0, -3.0], [4.0, 3.0, -1.0, 0.0]]
PROD_PREVIOUS = [[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]]


def test_the_whole_loss_of_prod_and_its_gradient() -> None:
    from raydrd.recipes.prod import Loss as Weights
    from raydrd.recipes.prod import objective as of_recipe

    objective = of_recipe(Weights(), 1.0, anchor=True, whole_batch=False)
    vectors, batch = made(own(PROD_S), PROD_Z, anchor_QN=matrix(PROD_PREVIOUS))
    assert {n: v.item() for n, v in means(objective, vectors, batch).items()} == near(
        {"contrastive": 0.1 * 1.1137642, "distil": 0.9 * 1.9420531, "anchor": 0.4715367}
    )
    assert value(objective, vectors, batch) == near(2.3307610)
    first, second = own_slopes(objective, vectors, batch)
    assert first == near([-0.2109158, 0.2543956, -0.0654003, 0.0219205])
    assert second == near([-0.4970603, 0.1145748, 0.3364653, 0.0460203])
    with pytest.raises(ValueError, match="no anchor scores"):
        objective(vectors, replace(batch, anchor_QN=None), Alone())


def test_the_student_is_scaled_and_so_is_the_anchor_but_not_the_teacher() -> None:
    terms = (Distil(temperature=4, both_sides=True), Distil(temperature=4, both_sides=True, source="anchor"))
    plain = made(own(PROD_S), PROD_Z, anchor_QN=matrix(PROD_PREVIOUS))
    vectors, batch = made(own(PROD_S) / 20, PROD_Z, anchor_QN=matrix(PROD_PREVIOUS) / 20)
    assert value(Losses(terms=terms, score_scale=20), vectors, batch) == near(value(Losses(terms=terms), *plain))
    doubled = (Distil(temperature=4, both_sides=True, teacher_scale=2.0), terms[1])
    halved = made(own(PROD_S), matrix(PROD_Z).div(2).tolist(), anchor_QN=matrix(PROD_PREVIOUS))
    assert value(Losses(terms=doubled), *halved) == near(1.9420531 + 0.4715367)


def test_a_whole_batch_against_a_bi_encoder_teacher_is_one_softmax_over_all_its_passages() -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 12, generator=draw, dtype=torch.float64) for _ in range(2))
    vectors, batch = made(student)
    mask = torch.tensor([[True] * 4, [True, True, True, False], [True, True, False, False]])
    flags = torch.tensor([[POSITIVE, 0, 0, DARK], [POSITIVE, 0, 0, 0], [POSITIVE, 0, 0, 0]])
    taught = {"query": torch.eye(3, dtype=torch.float64), "passage": teacher.T}
    batch = replace(batch, mask_QN=mask, flags_QN=flags, teacher_vectors=taught)
    objective = Losses(terms=(Distil(over="global", temperature=4.0, both_sides=True, teacher_scale=1.5),), score_scale=2.0)
    there = (mask & (flags != DARK)).flatten().tolist()  # 8 of the 12 columns, the same for every query
    expected = 0.0
    for q in range(3):
        s = [2.0 * float(x) / 4 for x, here in zip(student[q], there, strict=True) if here]
        t = [1.5 * float(x) / 4 for x, here in zip(teacher[q], there, strict=True) if here]
        zs, zt = (math.log(sum(math.exp(x) for x in one)) for one in (s, t))
        expected += 16 * sum(math.exp(b - zt) * ((b - zt) - (a - zs)) for a, b in zip(s, t, strict=True))
    found = objective(vectors, batch, Alone())["distil"]
    assert (found[0].item(), found[1]) == (near(expected), 3.0)
    assert slopes(objective, vectors, batch)[:, ~torch.tensor(there)].eq(0).all()
    with pytest.raises(ValueError, match="hold no teacher vectors"):
        objective(vectors, replace(batch, teacher_vectors={}), Alone())


# -- PairDistill (section 4.5) --------------------------------------------------------------------------------

PAIR_S = [[2.0, 1.0, 0.5, -1.0], [0.2, 0.4, -0.3, 0.1]]
PAIRS = torch.tensor([[0, 0, 1], [0, 1, 3], [0, 2, 3], [1, 0, 1], [1, 2, 3]])
PAIR_P = matrix([0.9, 0.35, 0.6, 0.2, 0.5])
MATRIX = [[1.5, 0.5, 0.2, -0.4], [0.3, -0.1, 1.1, 0.9]]  # two queries, two passages each


def compared(pairs: Any, p: Any) -> dict[str, Any]:
    return {"pairs_P3": torch.as_tensor(pairs).reshape(-1, 3), "pair_p_P": torch.as_tensor(p, dtype=torch.float64)}


@pytest.mark.parametrize(
    ("tau", "expected", "gradient"),
    [
        (
            1.0,
            0.2307332,
            [[-0.0337883, 0.1399477, 0.0435149, -0.1496743], [0.0500332, -0.0500332, -0.0197375, 0.0197375]],
        ),
        (
            5.0,
            0.1203425,
            [[-0.0140066, 0.0239541, -0.0010223, -0.0089252], [0.0116001, -0.0116001, -0.0007996, 0.0007996]],
        ),
    ],
)
def test_pairs_have_the_reference_values_and_gradients(tau: float, expected: float, gradient: list[list[float]]) -> None:
    vectors, batch = made(own(PAIR_S), **compared(PAIRS, PAIR_P))
    objective = Losses(terms=(Pairwise(weight=1.0, temperature=tau),))
    assert value(objective, vectors, batch) == near(expected)
    for row, wanted in zip(own_slopes(objective, vectors, batch), gradient, strict=True):
        assert row == near(wanted)


def test_no_pairs_cost_nothing_and_keep_a_graph() -> None:
    vectors, batch = made(own(PAIR_S), **compared(torch.zeros(0, 3, dtype=torch.int64), []))
    total, count = Losses(terms=(Pairwise(),))(vectors, batch, Alone())["pairwise"]
    assert (total.item(), count) == (0.0, 0.0)
    assert torch.autograd.grad(total, vectors["passage"])[0].eq(0).all()


def pair_batch(**more: Any) -> tuple[dict[str, Tensor], ListBatch]:
    pairs = compared([[0, 0, 1], [1, 0, 1]], [0.8, 0.4])
    return made(matrix(MATRIX), [[2.0, 0.0], [1.0, 1.5]], **{**pairs, **more})


def test_the_whole_loss_of_pairdistill() -> None:
    from raydrd.recipes.pairdistill import Loss as Weights
    from raydrd.recipes.pairdistill import objective as of_recipe

    # The reference counts from place 0 of each line; query 1's line is not in the teacher's order, so place 0 is "gold".
    found = means(of_recipe(Weights(positive="gold"), 1.0), *pair_batch())
    assert {n: v.item() for n, v in found.items()} == near(
        {"distil": 0.0634571, "pairwise": 3 * 0.0289932, "contrastive": 0.4560248}
    )
    assert sum(loss.item() for loss in found.values()) == near(0.6064616)
    # The authors' own choice of positive: the teacher's favourite, which for query 1 is its second passage.
    (top,) = means(Losses(terms=(Contrastive(own_negatives=False, positive="teacher_top1"),)), *pair_batch()).values()
    second = math.log(sum(math.exp(x) for x in (0.9, 0.3, -0.1))) - 0.9
    assert top.item() == near((0.3521349 + second) / 2)


def test_the_in_batch_term_leaves_out_the_querys_own_others() -> None:
    for q, expected in enumerate((0.3521349, 0.5599147)):
        one = [[POSITIVE, 0] if n == q else [0, 0] for n in range(2)]
        vectors, batch = pair_batch(flags_QN=torch.tensor(one))
        objective = Losses(terms=(Contrastive(own_negatives=False),))
        (loss,) = objective(vectors, batch, Alone()).values()
        assert (loss[0].item(), loss[1]) == (near(expected), 1.0)
    wrong = value(Losses(terms=(Contrastive(),)), *pair_batch())
    assert wrong == near(0.7629100)  # with the query's own others: right for ADAM and MD2PR, wrong here


def test_pairdistills_form_for_single_vectors() -> None:
    from raydrd.recipes.pairdistill import Loss as Weights
    from raydrd.recipes.pairdistill import objective as of_recipe

    found = means(of_recipe(Weights(form="dpr", lambda_pair=1.0), 1.0), *pair_batch())
    assert {n: v.item() for n, v in found.items()} == near({"distil": 0.3706668, "pairwise": 0.0289932})
    assert sum(loss.item() for loss in found.values()) == near(0.3996600)
    vectors, batch = pair_batch()
    assert value(Losses(terms=(Distil(over="batch", temperature=10.0),)), vectors, batch) == near(0.8061471)
    assert value(Losses(terms=(Distil(),)), vectors, batch) == near(0.0634571)


# -- ADAM (section 5.5) -------------------------------------------------------------------------------------

ADAM_FLAGS = [[POSITIVE, 0, 0, DARK, DARK], [POSITIVE, 0, 0, DARK, 0]]


def adam_batch() -> tuple[dict[str, Tensor], ListBatch]:
    g = GARBAGE
    full = [
        [2.0, 1.0, 0.5, 1.5, 1.2, 0.3, -0.2, 0.1, g, g],
        [0.4, 0.6, -0.5, g, g, 1.0, 1.2, 0.3, 0.9, g],
    ]
    return made(
        matrix(full),
        [[6.0, -3.0, -4.0, 2.0, 0.0], [1.0, 0.5, -2.0, 0.8, NAN]],
        flags=ADAM_FLAGS,
        mask_QN=torch.tensor([[True] * 5, [True] * 4 + [False]]),
        confidence_Q=torch.tensor([0.9998312, 0.6037489]),
        confidences_A=torch.tensor([0.6037489, 0.9998312]),
    )


@pytest.mark.parametrize(("scope", "expected"), [("dark", 0.6296294), ("all", 0.4734382), ("distil", 0.5447169)])
def test_the_whole_loss_of_adam(scope: Any, expected: float) -> None:
    from raydrd.recipes.adam import Config, objective
    from raydrd.recipes.adam import Loss as Weights

    cfg: Config = Config.model_construct(  # type: ignore[call-arg]
        loss=Weights(), pacing=SelfPaced(mode="threshold", threshold=0.9, scope=scope)
    )
    vectors, batch = adam_batch()
    losses = objective(cfg, 1.0)
    found = means(losses, vectors, batch)
    assert sum(loss.item() for loss in found.values()) == near(expected)
    contrast = {"all": 0.7100362, "dark": 0.7100362 + 1.4255751, "distil": 0.7100362 + 1.4255751}[scope]
    assert found["contrastive"].item() == near(0.1 * contrast / 2)  # a wrong program: 1.1281467 and 1.6223714
    distilled = {"dark": 0.8758727 + 0.1698250, "all": 0.8758727, "distil": 0.8758727}[scope]
    assert found["distil"].item() == near(distilled / 2)
    # Query 1 is not admitted: its dark example teaches nothing; nobody looks at the garbage.
    gradient = slopes(losses, vectors, batch)
    assert gradient[0, :5].ne(0).all() and gradient[1, 8] == 0
    assert gradient[matrix(vectors["passage"].T.tolist()) == GARBAGE].eq(0).all()


def test_without_pacing_every_query_learns_from_its_dark_examples() -> None:
    vectors, batch = adam_batch()
    assert value(Losses(terms=(Distil(),)), vectors, batch) == near((0.8758727 + 0.1301083) / 2)
    nobody = Losses(terms=(Distil(),), pacing=SelfPaced(mode="threshold", threshold=1.5))
    assert value(nobody, vectors, batch) == near((0.4628270 + 0.1698250) / 2)
    # Without a labelled positive there is no confidence, so no admission either.
    unknown = replace(batch, confidence_Q=torch.tensor([NAN, 0.9999]))
    half = Losses(terms=(Distil(),), pacing=SelfPaced(mode="threshold", threshold=0.9))
    assert value(half, vectors, unknown) == near((0.4628270 + 0.1301083) / 2)


def test_the_share_of_admitted_queries_grows_with_progress() -> None:
    vectors, batch = adam_batch()
    batch = replace(batch, confidences_A=torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]))
    objective = Losses(terms=(Distil(),), pacing=SelfPaced(rho0=0.0, rho1=0.9, gamma=0.5))
    none, first, both = (value(objective, vectors, replace(batch, progress=u)) for u in (0.0, 0.1, 0.5))
    assert (none, first, both) == near(((0.4628270 + 0.1698250) / 2, (0.8758727 + 0.1698250) / 2, (0.8758727 + 0.1301083) / 2))


# -- MD2PR (section 6.5) ------------------------------------------------------------------------------------


def md2pr_batch(flag: int = SUSPECT) -> tuple[dict[str, Tensor], ListBatch]:
    """The reference's query, and one that brings the two in-batch passages and has no label and no teacher scores."""
    full = [[1.2, 1.4, 0.3, -0.5, 0.2, -0.1, GARBAGE, GARBAGE], [GARBAGE] * 8]
    teacher = [[4.0, 3.5, 0.0, -2.0], [NAN] * 4]
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    return made(matrix(full), teacher, flags=[[POSITIVE, flag, 0, 0], [0] * 4], mask_QN=mask)


def test_suspects_are_kept_in_the_sentence_level_and_masked_in_the_contrastive_term() -> None:
    from raydrd.recipes.md2pr import Loss as Weights
    from raydrd.recipes.md2pr import objective

    vectors, batch = md2pr_batch()
    found = {n: v.item() for n, v in means(objective(Weights(), 1.0), vectors, batch).items()}
    assert found == near({"contrastive": 0.8018511, "distil": 0.2441384})
    assert sum(found.values()) + 0.5 * 0.1046247 == near(1.0983018)  # the word level is added by the loop
    assert value(Losses(terms=(Distil(suspects="mask"),)), vectors, batch) == near(0.3766197)
    assert value(Losses(terms=(Contrastive(),)), *md2pr_batch(flag=0)) == near(1.2386835)
    # On a mask of one side only the target would not sum to 1: no other number may come out.
    gradient = slopes(Losses(terms=(Distil(suspects="mask"),)), vectors, batch)
    assert gradient[0, 1] == 0 and gradient.sum().item() == near(0.0)


# -- what terms may not look at -----------------------------------------------------------------------------

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


# -- cross-encoders -----------------------------------------------------------------------------------------


def test_a_cross_encoders_logits_are_its_scores() -> None:
    logits = matrix([2.0, 1.0, 0.0, -1.0, 0.5, 1.5, 1.0])
    vectors = {"pair": logits[:, None].clone().requires_grad_()}
    _, batch = made(own(PROD_S), mask_QN=torch.tensor([[True] * 4, [True] * 3 + [False]]))
    batch = replace(batch, index_QN=torch.tensor([[0, 1, 2, 3], [4, 5, 6, 0]]))
    objective = Losses(terms=(Contrastive(in_batch=False),))
    second = math.log(sum(math.exp(x) for x in (0.5, 1.5, 1.0))) - 0.5
    assert value(objective, vectors, batch) == near((0.4401897 + second) / 2)


def test_duels_are_a_binary_cross_entropy() -> None:
    batch = DuelBatch(rows={"duel": torch.zeros(3, 3, dtype=torch.int64)}, p_P=matrix([1.0, 0.0, 0.25]))
    vectors = {"duel": matrix([[2.0], [-1.0], [0.5]]).requires_grad_()}
    found: Loss = Duels()(vectors, batch, Alone())["duels"]
    sigma = [1 / (1 + math.exp(-x)) for x in (2.0, -1.0, 0.5)]
    expected = -math.log(sigma[0]) - math.log(1 - sigma[1]) - 0.25 * math.log(sigma[2]) - 0.75 * math.log(1 - sigma[2])
    assert (found[0].item(), found[1]) == (near(expected), 3.0)
    (gradient,) = torch.autograd.grad(found[0], vectors["duel"])
    assert gradient[:, 0].tolist() == near([sigma[0] - 1, sigma[1], sigma[2] - 0.25])
