"""Objectives on hand-made batches: the numbers of the reference, through `Losses`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from raydrd.methods.lists import DARK, POSITIVE, SUSPECT
from raydrd.methods.losses import Loss
from raydrd.methods.objectives import Contrastive, Distil, DuelBatch, Duels, ListBatch, Losses, Ordered, Pairwise
from raydrd.methods.pacing import SelfPaced
from raydrd.training.comm import Alone
from tests.list_batches import GARBAGE, NAN, compared, made, means, own, own_slopes, slopes, value
from tests.reference import PAIR_P, PAIR_S, PAIRS, PROD_PREVIOUS, PROD_S, PROD_Z, matrix, near

# -- CL-DRD (section 2.5) -----------------------------------------------------------------------------


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


# -- PROD (section 3.5) -------------------------------------------------------------------------------


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


# -- PairDistill (section 4.5) ------------------------------------------------------------------------


MATRIX = [[1.5, 0.5, 0.2, -0.4], [0.3, -0.1, 1.1, 0.9]]  # two queries, two passages each


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


# -- ADAM (section 5.5) -------------------------------------------------------------------------------


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


# -- MD2PR (section 6.5) ------------------------------------------------------------------------------


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


# -- cross-encoders -----------------------------------------------------------------------------------


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
