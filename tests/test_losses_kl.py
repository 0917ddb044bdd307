"""KL over lists and pairs: the numbers of the reference (sections 3.5, 4.5), and plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from raydrd.methods.losses import Loss, contrastive, listwise_kl, logistic, pair_kl
from tests.reference import PAIR_P, PAIR_S, PAIRS, PROD_PREVIOUS, PROD_S, PROD_Z, gradient, matrix, mean, near, random_lists


def slow_kl(scores: list[float], teacher: list[float]) -> float:
    def log_shares(x: list[float]) -> list[float]:
        return [v - math.log(sum(math.exp(w) for w in x)) for v in x]

    target, student = log_shares(teacher), log_shares(scores)
    return sum(math.exp(t) * (t - s) for t, s in zip(target, student, strict=True))


# -- listwise KL --------------------------------------------------------------------------------------

PAIR_T = [[3.0, 1.0, 0.0, -2.0], [0.5, 2.0, 1.0, -1.0]]


def kd(student: object, teacher: object, temperature: float, *, squared: bool = True) -> Loss:
    return listwise_kl(
        student if isinstance(student, Tensor) else matrix(student),
        matrix(teacher),
        student_temperature=temperature,
        teacher_temperature=temperature,
        scale_by_t2=squared,
    )


@pytest.mark.parametrize(
    ("student", "teacher", "temperature", "squared", "expected"),
    [
        (PROD_S, PROD_Z, 4.0, True, 1.9420531),
        (PROD_S[:1], PROD_Z[:1], 4.0, True, 2.0424766),
        (PROD_S[1:], PROD_Z[1:], 4.0, True, 1.8416297),
        (PROD_S, PROD_PREVIOUS, 4.0, True, 0.4715367),
        (PROD_S[:1], PROD_PREVIOUS[:1], 4.0, True, 0.6195527),
        (PROD_S[1:], PROD_PREVIOUS[1:], 4.0, True, 0.3235208),
        (PROD_S, PROD_Z, 1.0, True, 0.6038365),
        (PROD_S, PROD_Z, 2.0, True, 1.3469345),
        # Answers that a wrong program gives: no T^2, arguments swapped.
        (PROD_S, PROD_Z, 4.0, False, 0.1213783),
        (PROD_Z, PROD_S, 4.0, True, 2.1096872),
        (PROD_PREVIOUS, PROD_S, 4.0, True, 0.4656615),
        (PAIR_S, PAIR_T, 2.0, False, 0.0833857),
        (PAIR_S, PAIR_T, 2.0, True, 0.3335426),
        (PAIR_S, PAIR_T, 4.0, False, 0.0241994),
        (PAIR_S, PAIR_T, 4.0, True, 0.3871898),
    ],
)
def test_kl_with_one_temperature_has_the_reference_values(
    student: object, teacher: object, temperature: float, squared: bool, expected: float
) -> None:
    assert mean(kd(student, teacher, temperature, squared=squared)).item() == near(expected)


@pytest.mark.parametrize(
    ("alpha", "tau", "expected", "per_query"),
    [
        (1.0, 1.0, 0.2140729, (0.1321515, 0.2959943)),
        (1.0, 5.0, 0.4841794, (0.6165303, 0.3518286)),
        (0.5, 1.0, 0.0559614, (0.0050378, 0.1068850)),
    ],
)
def test_kl_with_a_temperature_a_side_has_the_reference_values(
    alpha: float, tau: float, expected: float, per_query: tuple[float, float]
) -> None:
    def loss(rows: slice) -> float:
        scores, teacher = matrix(PAIR_S)[rows], matrix(PAIR_T)[rows]
        return mean(listwise_kl(scores, teacher, student_temperature=tau, teacher_temperature=1 / alpha)).item()

    assert loss(slice(None)) == near(expected)
    assert (loss(slice(0, 1)), loss(slice(1, 2))) == near(per_query)


def test_prod_sum_of_three_terms_and_its_gradient() -> None:
    scores = matrix(PROD_S, grad=True)
    nll, distilled, anchor = contrastive(scores), kd(scores, PROD_Z, 4.0), kd(scores, PROD_PREVIOUS, 4.0)
    assert mean(nll).item() == near(1.1137642)
    loss = 0.1 * mean(nll) + 0.9 * mean(distilled) + mean(anchor)
    assert loss.item() == near(2.3307610)
    first, second = torch.autograd.grad(loss, scores)[0].tolist()
    assert first == near([-0.2109158, 0.2543956, -0.0654003, 0.0219205])
    assert second == near([-0.4970603, 0.1145748, 0.3364653, 0.0460203])


def test_kl_over_a_mask_equals_a_plain_loop_over_the_rest() -> None:
    scores, teacher, mask = random_lists()
    total, count = listwise_kl(scores, teacher, mask_QN=mask)
    rows = [row for row in range(6) if mask[row].any()]
    expected = sum(slow_kl(scores[row][mask[row]].tolist(), teacher[row][mask[row]].tolist()) for row in rows)
    assert (total.item(), count) == (pytest.approx(expected, abs=1e-12), len(rows))


def test_kl_is_least_where_student_and_teacher_agree() -> None:
    teacher = matrix(PAIR_T)
    scores = (teacher + 3.0).requires_grad_()  # a shift is no difference
    loss = listwise_kl(scores, teacher)
    assert mean(loss).item() == near(0.0)
    assert torch.autograd.grad(loss[0], scores)[0].abs().max().item() < 1e-12


@pytest.mark.parametrize("arguments", [{"student_temperature": 0.0}, {"teacher_temperature": 2.0, "scale_by_t2": True}])
def test_kl_refuses_temperatures_without_a_meaning(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="temperature"):
        listwise_kl(matrix(PAIR_S), matrix(PAIR_T), **arguments)  # type: ignore[arg-type]


# -- weights, and targets over a part of the list -----------------------------------------------------


def test_weights_multiply_each_query_and_leave_the_count() -> None:
    scores, teacher, mask = random_lists()
    mask[:3, 0] = True
    weights = matrix([1.0, 0.0, 0.25, 2.0, 1.0, 0.5])
    for loss in (
        lambda rows, w: listwise_kl(scores[rows], teacher[rows], mask_QN=mask[rows], weights_Q=w),
        lambda rows, w: contrastive(scores[rows], mask_QM=mask[rows], weights_Q=w),
    ):
        whole, count = loss(slice(None), weights)
        each = [loss(slice(q, q + 1), None) for q in range(6)]
        expected = sum(float(w) * total.item() for w, (total, _) in zip(weights, each, strict=True))
        assert (whole.item(), count) == (pytest.approx(expected, abs=1e-12), sum(n for _, n in each))
        assert expected != pytest.approx(sum(total.item() for total, _ in each))


def test_a_query_that_weighs_nothing_gets_no_gradient() -> None:
    scores = matrix(PROD_S, grad=True)
    for loss in (
        listwise_kl(scores, matrix(PROD_Z), weights_Q=matrix([1.0, 0.0])),
        contrastive(scores, weights_Q=matrix([1.0, 0.0])),
    ):
        first, second = gradient(loss, scores)
        assert any(first) and second == [0.0] * 4


def test_a_target_over_a_part_of_the_list() -> None:
    """The student's softmax is over four columns, the teacher's over two: PairDistill's DPR form (section 4.5)."""
    full = matrix([[1.5, 0.5, 0.2, -0.4], [1.1, 0.9, 0.3, -0.1]], grad=True)
    teacher = matrix([[2.0, 0.0, math.nan, math.nan], [1.0, 1.5, math.inf, 7.0]])
    own = torch.tensor([[True, True, False, False]] * 2)
    assert mean(listwise_kl(full, teacher, target_mask_QN=own)).item() == near(0.3706668)
    assert mean(listwise_kl(full, teacher, target_mask_QN=own, student_temperature=10.0)).item() == near(0.8061471)
    for row in gradient(listwise_kl(full, teacher, target_mask_QN=own), full):
        assert sum(row) == near(0.0) and min(row[2:]) > 0  # others' passages are only ever pushed away
    total, count = listwise_kl(full, teacher, target_mask_QN=torch.tensor([[True, True, False, False], [False] * 4]))
    assert count == 1.0 and torch.autograd.grad(total, full)[0][1].eq(0).all()
    everywhere = listwise_kl(full, matrix(PROD_Z), target_mask_QN=torch.ones(2, 4, dtype=torch.bool))
    assert everywhere[0].item() == listwise_kl(full, matrix(PROD_Z))[0].item()


# -- pairs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tau", "expected", "per_pair"),
    [
        (1.0, 0.2307332, [0.0881787, 0.7794814, 0.1284016, 0.1377364, 0.0198681]),
        (5.0, 0.1203425, [0.2930559, 0.1255686, 0.0013436, 0.1809447, 0.0007998]),
    ],
)
def test_pair_kl_has_the_reference_values(tau: float, expected: float, per_pair: list[float]) -> None:
    scores = matrix(PAIR_S)
    assert mean(pair_kl(scores, PAIRS, PAIR_P, temperature=tau)).item() == near(expected)
    each = [pair_kl(scores, PAIRS[n : n + 1], PAIR_P[n : n + 1], temperature=tau) for n in range(5)]
    assert [total.item() for total, _ in each] == near(per_pair)


def test_the_mean_is_over_pairs_and_not_over_queries() -> None:
    parts = [mean(pair_kl(matrix(PAIR_S), PAIRS[rows], PAIR_P[rows])).item() for rows in (slice(0, 3), slice(3, 5))]
    assert parts == near([0.3320206, 0.0788023])
    assert sum(parts) / 2 == near(0.2054114)  # what a wrong program gives; the right one is 0.2307332


@pytest.mark.parametrize("tau", [1.0, 5.0, 0.5])
def test_pair_kl_is_a_loop_over_pairs_and_so_is_its_gradient(tau: float) -> None:
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(5, 7, generator=draw, dtype=torch.float64).requires_grad_()
    pairs = torch.stack([torch.randint(0, high, (40,), generator=draw) for high in (5, 7, 7)], dim=1)
    p = torch.rand(40, generator=draw, dtype=torch.float64)
    p[:2] = matrix([0.0, 1.0])
    total, by_hand = 0.0, torch.zeros_like(scores)
    for (q, i, j), prob in zip(pairs.tolist(), p.tolist(), strict=True):
        student = 1 / (1 + math.exp(-(scores[q, i].item() - scores[q, j].item()) / tau))
        total += sum(t * math.log(t / s) for t, s in ((prob, student), (1 - prob, 1 - student)) if t > 0)
        by_hand[q, i] += (student - prob) / (40 * tau)
        by_hand[q, j] -= (student - prob) / (40 * tau)
    loss = pair_kl(scores, pairs, p, temperature=tau)
    assert (loss[0].item(), loss[1]) == (pytest.approx(total, abs=1e-9), 40.0)
    torch.testing.assert_close(torch.autograd.grad(mean(loss), scores)[0], by_hand.detach(), atol=1e-12, rtol=1e-9)


def test_pairs_at_the_edges() -> None:
    scores, pair = matrix([[1.0, 0.0]], grad=True), torch.tensor([[0, 0, 1]])
    assert [pair_kl(scores, pair, matrix([p]))[0].item() for p in (1.0, 0.0)] == near([0.3132617, 1.3132617])
    far = pair_kl(matrix([[1e4, 0.0]], grad=True), pair, matrix([0.0]))[0]
    assert far.item() == pytest.approx(1e4) and pair_kl(scores.bfloat16(), pair, matrix([0.5]))[0].dtype == torch.float32
    total, count = pair_kl(scores, torch.zeros(0, 3, dtype=torch.int64), matrix([]))
    assert (total.item(), count) == (0.0, 0.0)
    assert torch.autograd.grad(total, scores)[0].tolist() == [[0.0, 0.0]]
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        pair_kl(scores, pair, matrix([0.5]), temperature=0.0)


def test_logistic_is_the_binary_cross_entropy() -> None:
    logits, p = matrix([2.0, -1.0, 0.5, 800.0], grad=True), matrix([1.0, 0.0, 0.25, 1.0])
    total, count = logistic(logits, p)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, p, reduction="sum")
    assert (total.item(), count) == (near(expected.item()), 4.0)
    assert torch.autograd.grad(total, logits)[0].tolist() == near((torch.sigmoid(logits) - p).tolist())
    assert logistic(matrix([-800.0]), matrix([1.0]))[0].item() == near(800.0)
    assert logistic(matrix([]), matrix([]))[1] == 0.0
