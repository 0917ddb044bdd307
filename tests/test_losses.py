"""Losses against the numbers of the reference (sections 2.5, 3.5) and slow plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from raydrd.methods.losses import contrastive, in_batch, lambda_mrr, listwise_kl, margin_mse
from tests.reference import PROD_S, PROD_Z, gradient, matrix, mean, near, random_lists


def slow_lambda_mrr(scores: list[list[float]], labels: list[list[float]], mask: list[list[bool]]) -> tuple[float, int]:
    total, count = 0.0, 0
    for s, y, there in zip(scores, labels, mask, strict=True):
        places = sorted((i for i in range(len(s)) if there[i]), key=lambda i: -s[i])
        rank = {i: place for place, i in enumerate(places, start=1)}
        for i in rank:
            for j in rank:
                if y[i] > y[j]:
                    total += abs(1 / rank[i] - 1 / rank[j]) * math.log1p(math.exp(s[j] - s[i]))
                    count += 1
    return total, count


# -- CL-DRD -------------------------------------------------------------------------------------------

TWO = [[1.0, 0.5, 0.0, 0.0]] * 2
VECTORS = [
    ([[1.23, 2.01, 0.4, 1.02], [0.45, 1.04, 1.02, 3.12]], TWO, 0.4723458),
    ([[2.01, 1.23, 1.02, 0.4], [3.12, 1.04, 1.02, 0.45]], TWO, 0.1135619),
    ([[2.01, 1.23, 1.02, 0.4], [0.45, 1.04, 1.02, 3.12]], TWO, 0.4333458),
    ([[1.23, 2.01, 0.4, 1.02], [3.12, 1.04, 1.02, 0.45]], TWO, 0.1525619),
    ([[1.23, 2.01, 0.4, 1.02]], [[1.0, 0.5, 0.0, -0.5]], 0.2004894),
    ([[1.23, 2.01, 0.4, 1.02]], [[10.0, 3.0, 2.0, -7.0]], 0.2004894),  # the size of labels does not matter
    ([[1.23, 2.01, 0.4, 1.02]], [[1.0, 0.5, -0.5, -2.0]], 0.2004894),
    ([[1.23, 2.01, 0.4, 1.02]], [[1.0, 0.5, -0.5, -1.0]], 0.2004894),  # 0.2534911 if -1 were a sentinel
    ([[0.7, -0.2, 1.5, 0.1, 0.9]], [[3.0, 2.0, 1.0, 0.0, 0.0]], 0.3703229),
    # Pooled over 9 + 4 pairs; the mean of per-query means would be 0.2885452.
    (
        [[0.7, -0.2, 1.5, 0.1, 0.9], [0.3, 0.6, -0.1, 0.2, 0.0]],
        [[3.0, 2.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]],
        0.3199982,
    ),
    ([[0.0, 200.0]], [[1.0, 0.0]], 100.0),  # log(1 + exp(200)) written out is inf in float32
]


@pytest.mark.parametrize(("scores", "labels", "expected"), VECTORS)
def test_lambda_mrr_has_the_reference_values(scores: list[list[float]], labels: list[list[float]], expected: float) -> None:
    assert mean(lambda_mrr(matrix(scores), matrix(labels))).item() == near(expected)


def test_lambda_mrr_has_the_reference_gradients() -> None:
    scores = matrix(VECTORS[0][0], grad=True)
    first, second = gradient(lambda_mrr(scores, matrix(TWO)), scores)
    assert first == near([-0.0493367, 0.0037291, 0.0200853, 0.0255223])
    assert second == near([-0.0915496, -0.0366131, 0.0135730, 0.1145897])
    scores = matrix([[0.7, -0.2, 1.5, 0.1, 0.9]], grad=True)
    (row,) = gradient(lambda_mrr(scores, matrix([[3, 2, 1, 0, 0]])), scores)
    assert row == near([-0.0688545, -0.0990764, 0.0900974, 0.0229570, 0.0548765])


def test_a_huge_gap_stays_finite_in_single_precision() -> None:
    scores = torch.tensor([[0.0, 200.0]], requires_grad=True)
    loss = mean(lambda_mrr(scores, torch.tensor([[1.0, 0.0]])))
    assert loss.item() == pytest.approx(100.0)
    assert torch.autograd.grad(loss, scores)[0].tolist() == [[-0.5, 0.5]]


STAGES = [
    ((5, 12, 13), 291, 0.2082155, 0.1443240),
    ((10, 10, 10), 345, 0.1821828, 0.1262795),
    ((30, 0, 0), 435, 0.1467692, 0.1017327),
    ((20, 5, 5), 415, 0.1536890, 0.1065291),
]


@pytest.mark.parametrize(("shape", "pairs", "mean_weight", "flat_loss"), STAGES)
def test_stage_constants(shape: tuple[int, int, int], pairs: int, mean_weight: float, flat_loss: float) -> None:
    graded, hard, rest = shape
    labels = matrix([[*(1 / k for k in range(1, graded + 1)), *[-0.25] * hard, *[-0.5] * rest]])
    total, count = lambda_mrr(torch.zeros_like(labels), labels)  # all equal: ranks are list positions
    assert count == pairs
    assert total.item() / count == near(flat_loss)
    assert total.item() / count / math.log(2) == near(mean_weight)


def test_lambda_mrr_equals_a_plain_loop() -> None:
    scores, labels, mask = random_lists()
    scores[0, :4] = 0.25  # ties keep the order of the list
    total, count = lambda_mrr(scores, labels, mask)
    expected, pairs = slow_lambda_mrr(scores.tolist(), labels.tolist(), mask.tolist())
    assert pairs > 20
    assert (total.item(), count) == (pytest.approx(expected, abs=1e-12), pairs)


def test_micro_batches_add_up() -> None:
    scores, labels, mask = random_lists()
    parts = [lambda_mrr(scores[i : i + 2], labels[i : i + 2], mask[i : i + 2]) for i in (0, 2, 4)]
    total, count = lambda_mrr(scores, labels, mask)
    assert sum(part[0].item() for part in parts) == pytest.approx(total.item(), abs=1e-12)
    assert sum(part[1] for part in parts) == count


LOSSES = {
    "lambda_mrr": lambda s, y, m: lambda_mrr(s, y, m),
    "listwise_kl": lambda s, y, m: listwise_kl(s, y, student_temperature=2.0, mask_QN=m),
    "contrastive": lambda s, y, m: contrastive(s, mask_QM=m),
    "margin_mse": lambda s, y, m: margin_mse(s, y, m),
}


@pytest.mark.parametrize("name", LOSSES)
def test_what_stands_in_the_padding_changes_nothing(name: str) -> None:
    scores, labels, mask = random_lists()
    mask[:3, 0] = True
    clean = scores.clone().requires_grad_()
    total, count = LOSSES[name](clean, labels, mask)
    expected = torch.autograd.grad(total, clean)[0]
    assert expected[~mask].eq(0).all()
    assert expected[mask].ne(0).any()
    for garbage in (math.nan, math.inf, -math.inf, 1e300, -1.0):
        dirty = scores.masked_fill(~mask, garbage).requires_grad_()
        again, same_count = LOSSES[name](dirty, labels.masked_fill(~mask, garbage), mask)
        assert (again.item(), same_count) == (total.item(), count)
        assert torch.equal(torch.autograd.grad(again, dirty)[0], expected)


@pytest.mark.parametrize("name", ["lambda_mrr", "listwise_kl"])
def test_the_order_of_documents_does_not_matter(name: str) -> None:
    scores, labels, mask = random_lists()
    shuffled = torch.randperm(9, generator=torch.Generator().manual_seed(5))
    total, count = LOSSES[name](scores, labels, mask)
    again, same = LOSSES[name](scores[:, shuffled], labels[:, shuffled], mask[:, shuffled])
    assert (again.item(), same) == (pytest.approx(total.item(), abs=1e-12), count)


@pytest.mark.parametrize("name", LOSSES)
def test_analytic_gradients(name: str) -> None:
    scores, labels, mask = random_lists()
    mask[:3, 0] = True
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, labels, mask)[0], (scores,))


def test_descent_on_the_scores_reaches_the_order_of_the_labels() -> None:
    labels = matrix([[0.2, 1.0, -0.5, 0.5, 0.25, 1 / 3]])
    scores = matrix([[0.5, -1.0, 2.0, 0.1, 0.0, 1.0]], grad=True)
    for _ in range(600):
        (slope,) = torch.autograd.grad(mean(lambda_mrr(scores, labels)), scores)
        scores.data -= 2.0 * slope
    assert scores.argsort(descending=True).tolist() == labels.argsort(descending=True).tolist()


def test_half_precision_is_raised_and_nothing_to_order_costs_nothing() -> None:
    scores = torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16, requires_grad=True)
    assert lambda_mrr(scores, torch.tensor([[1.0, 0.0]]))[0].dtype == torch.float32
    total, count = lambda_mrr(scores, torch.zeros(1, 2))
    assert (total.item(), count) == (0.0, 0.0)
    assert torch.autograd.grad(total, scores)[0].tolist() == [[0.0, 0.0]]


def test_a_mask_of_another_shape_or_type_is_refused() -> None:
    scores, labels, mask = random_lists()
    with pytest.raises(ValueError, match=r"expected torch\.bool of shape \(6, 9\)"):
        lambda_mrr(scores, labels, mask.float())
    with pytest.raises(ValueError, match=r"expected torch\.bool"):
        contrastive(scores, mask_QM=mask[0])


# -- in-batch lists -----------------------------------------------------------------------------------


def test_in_batch_appends_the_other_lists_masked_where_they_would_be_wrong() -> None:
    doc_rows = torch.tensor([[10, 11], [11, 20], [30, 31]])
    labels = matrix([[1.0, 0.0], [1.0, -0.5], [1.0, 0.5]])
    scores = torch.arange(18, dtype=torch.float64).reshape(3, 6)
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    relevant = torch.tensor([[30, -1], [20, 11], [-1, -1]])
    got_scores, got_labels, got_mask = in_batch(scores, labels, doc_rows, mask_GN=mask, relevant_QP=relevant)
    # Query 1's columns are its own list, query 2's, query 0's.
    assert got_scores.tolist() == [[0, 1, 2, 3, 4, 5], [8, 9, 10, 11, 6, 7], [16, 17, 12, 13, 14, 15]]
    # Lowest own label less a half; query 2's second column is padding, so its lowest is 1.
    assert got_labels.tolist() == [
        [1, 0, -0.5, -0.5, -0.5, -0.5],
        [1, -0.5, -1, -1, -1, -1],
        [1, 0.5, 0.5, 0.5, 0.5, 0.5],
    ]
    assert got_mask.tolist() == [
        [True, True, False, True, False, False],  # 11 is listed, 30 is relevant, 31 is padding
        [True, True, True, False, True, False],  # 31 is padding, 11 is listed
        [True, False, True, True, True, True],  # an own column of padding stays masked
    ]


def test_in_batch_next_list_fixed_label_and_a_slice_of_the_global_batch() -> None:
    doc_rows = torch.arange(6).reshape(3, 2)
    labels = matrix([[1.0, 0.5], [1.0, 0.5], [1.0, 0.5]])
    scores = torch.arange(18, dtype=torch.float64).reshape(3, 6)
    whole = in_batch(scores, labels, doc_rows, pool="next", label=-0.5)
    assert whole[0].tolist() == [[0, 1, 2, 3], [8, 9, 10, 11], [16, 17, 12, 13]]
    assert whole[1].tolist() == [[1, 0.5, -0.5, -0.5]] * 3
    part = in_batch(scores[1:], labels[1:], doc_rows, pool="next", label=-0.5, offset=1)
    for got, expected in zip(part, whole, strict=True):
        assert torch.equal(got, expected[1:])
    alone = in_batch(scores[:1, :2], labels[:1], doc_rows[:1], pool="next")
    assert alone[0].shape == (1, 2)
    with pytest.raises(ValueError, match="do not fit"):
        in_batch(scores, labels, doc_rows, offset=1)


def test_in_batch_lists_have_the_loss_of_a_plain_loop() -> None:
    draw = torch.Generator().manual_seed(1)
    scores = torch.randn(4, 20, generator=draw, dtype=torch.float64)
    doc_rows = torch.randint(0, 30, (4, 5), generator=draw)
    lists = in_batch(scores, matrix([[1, 1 / 2, 1 / 3, -0.25, -0.5]] * 4), doc_rows)
    total, count = lambda_mrr(*lists)
    expected, pairs = slow_lambda_mrr(*(part.tolist() for part in lists))
    assert (total.item(), count) == (pytest.approx(expected, abs=1e-12), pairs)
    assert not lists[2].all()  # the draw has passages in common, or this says little


# -- contrastive and margins --------------------------------------------------------------------------


def test_contrastive_has_the_reference_values() -> None:
    assert mean(contrastive(matrix(PROD_S[:1]))).item() == near(0.4401897)
    assert mean(contrastive(matrix(PROD_S[1:]))).item() == near(1.7873387)
    full = matrix([[1.5, 0.5, 0.2, -0.4], [0.3, -0.1, 1.1, 0.9]])
    firsts = torch.tensor([0, 2])
    others = torch.tensor([[True, False, True, True], [True, True, True, False]])
    assert mean(contrastive(full, positive=firsts, mask_QM=others)).item() == near(0.4560248)
    assert mean(contrastive(full[:1], mask_QM=others[:1])).item() == near(0.3521349)
    assert mean(contrastive(full[1:], positive=2, mask_QM=others[1:])).item() == near(0.5599147)
    # A wrong program leaves the query's own other passages in the denominator.
    assert mean(contrastive(full, positive=firsts)).item() == near(0.7629100)


def test_a_query_without_its_positive_is_not_counted() -> None:
    mask = torch.tensor([[True] * 4, [False, True, True, True]])
    total, count = contrastive(matrix(PROD_S), mask_QM=mask)
    assert (total.item(), count) == (near(0.4401897), 1.0)
    assert margin_mse(matrix(PROD_S), matrix(PROD_Z), mask)[1] == 3.0


def test_margin_mse_by_hand() -> None:
    total, count = margin_mse(matrix([[2.0, 1.0, 0.0]]), matrix([[5.0, 1.0, 4.0]]))
    assert (total.item(), count) == ((1.0 - 4.0) ** 2 + (2.0 - 1.0) ** 2, 2.0)
    mask = torch.tensor([[True, True, False]])
    total, count = margin_mse(matrix([[2.0, 1.0, 0.0]]), matrix([[5.0, 1.0, math.nan]]), mask)
    assert (total.item(), count) == (9.0, 1.0)
