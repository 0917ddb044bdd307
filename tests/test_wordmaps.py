"""The loss of MD2PR's word level against the numbers of the reference (section 6.5) and plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from raydrd.methods.wordmaps import WordMaps, row_divergences, word_loss
from tests.reference import near

THERE = [[0.30, 0.10, 0.10], [0.05, 0.20, 0.0]]
BACK = [[0.20, 0.10], [0.05, 0.30], [0.02, 0.02]]
STUDENT = [[1.0, 0.2, -0.3], [0.1, 0.8, 0.4]]


def maps64(*values: Any) -> list[Tensor]:
    return [torch.tensor([value], dtype=torch.float64) for value in values]


def everything(student_BQP: Tensor) -> tuple[Tensor, Tensor]:
    pairs, queries, passages = student_BQP.shape
    return torch.ones(pairs, queries, dtype=torch.bool), torch.ones(pairs, passages, dtype=torch.bool)


def slow_half(teacher: list[list[float]], student: list[list[float]], uniform: bool) -> float:
    total = weights = 0.0
    for t, s in zip(teacher, student, strict=True):
        mass = sum(t)
        if mass == 0:
            continue
        norm = math.log(sum(math.exp(x) for x in s))
        kl = sum(a / mass * (math.log(a / mass) - (b - norm)) for a, b in zip(t, s, strict=True) if a > 0)
        weight = 1.0 if uniform else mass
        total, weights = total + weight * kl, weights + weight
    return total / weights if weights else 0.0


def slow_word_loss(
    there: Tensor, back: Tensor, student: Tensor, queries: list[int], passages: list[int], uniform: bool
) -> float:
    total = 0.0
    for b, (q, p) in enumerate(zip(queries, passages, strict=True)):
        one = slow_half(there[b, :q, :p].tolist(), student[b, :q, :p].tolist(), uniform)
        other = slow_half(back[b, :p, :q].tolist(), student[b, :q, :p].T.tolist(), uniform)
        total += (one + other) / 2
    return total


def random_maps(queries: list[int], passages: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Maps of pairs of these lengths, with rubbish in the padding."""
    draw = torch.Generator().manual_seed(seed)
    shape = len(queries), max(queries) + 1, max(passages) + 2
    there, back = (torch.rand(s, generator=draw, dtype=torch.float64) for s in (shape, (shape[0], shape[2], shape[1])))
    student = 3 * torch.randn(shape, generator=draw, dtype=torch.float64)
    there[0, 0] = back[1, 1] = 0  # tokens that look at special tokens only
    there[1, 0, 1] = 0
    masks = [torch.arange(n) < torch.tensor(lengths)[:, None] for n, lengths in ((shape[1], queries), (shape[2], passages))]
    return there, back, student, masks[0], masks[1]


# -- the loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.1046247),
        ({"row_weights": "uniform"}, 0.1361356),
        ({"directions": "query"}, 0.1463892),
        ({"directions": "passage"}, 0.0628602),
    ],
)
def test_the_reference_vectors(options: dict[str, Any], expected: float) -> None:
    there, back, student = maps64(THERE, BACK, STUDENT)
    total, count = word_loss(there, back, student, *everything(student), **options)
    assert (total.item(), count) == (near(expected), 1.0)


def test_the_reference_vectors_of_single_tokens() -> None:
    there, back, student = maps64(THERE, BACK, STUDENT)
    queries, passages = everything(student)
    divergences, mass = row_divergences(there, student, queries, passages)
    assert divergences[0].tolist() == near([0.0131350, 0.4128976]) and mass[0].tolist() == near([0.5, 0.25])
    divergences, mass = row_divergences(back, student.mT, passages, queries)
    assert divergences[0].tolist() == near([0.0046397, 0.1130859, 0.0600389]) and mass[0].tolist() == near([0.3, 0.35, 0.04])


@pytest.mark.parametrize("row_weights", ["mass", "uniform"])
def test_the_same_maps_cost_nothing(row_weights: Any) -> None:
    *_, student, queries, passages = random_maps([3, 5], [4, 2])
    there = student.masked_fill(~passages[:, None, :], -torch.inf).softmax(2) * 0.3
    back = student.mT.masked_fill(~queries[:, None, :], -torch.inf).softmax(2) * 0.1
    total, count = word_loss(there, back, student.requires_grad_(), queries, passages, row_weights=row_weights)
    assert (total.item(), count) == (pytest.approx(0, abs=1e-12), 2.0)
    assert torch.autograd.grad(total, student)[0].abs().max() < 1e-12


@pytest.mark.parametrize("uniform", [False, True])
def test_the_loss_equals_a_plain_loop(uniform: bool) -> None:
    lengths = [3, 5, 1], [4, 2, 6]
    there, back, student, queries, passages = random_maps(*lengths)
    total, count = word_loss(there, back, student, queries, passages, row_weights="uniform" if uniform else "mass")
    assert total.item() == pytest.approx(slow_word_loss(there, back, student, *lengths, uniform), abs=1e-12)
    assert count == 3.0
    single, _ = word_loss(there.float(), back.float(), student.float(), queries, passages, row_weights="mass")
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(slow_word_loss(there, back, student, *lengths, False), abs=1e-5)


def test_the_gradient_is_that_of_differences() -> None:
    there, back, student, queries, passages = random_maps([3, 2], [2, 3])
    assert torch.autograd.gradcheck(lambda s: word_loss(there, back, s, queries, passages)[0], student.requires_grad_())


@pytest.mark.parametrize("rubbish", [7.0, -1e30, math.inf, -math.inf, math.nan])
def test_padding_has_no_influence(rubbish: float) -> None:
    there, back, student = maps64(THERE, BACK, STUDENT)
    plain = student.clone().requires_grad_()
    expected, _ = word_loss(there, back, plain, *everything(plain))
    wide = [torch.full(shape, rubbish, dtype=torch.float64) for shape in ((1, 4, 5), (1, 5, 4), (1, 4, 5))]
    wide[0][:, :2, :3], wide[1][:, :3, :2], wide[2][:, :2, :3] = there, back, student
    queries, passages = (torch.arange(n) < real for n, real in ((4, 2), (5, 3)))
    padded = wide[2].requires_grad_()
    total, count = word_loss(wide[0], wide[1], padded, queries[None], passages[None])
    assert (total.item(), count) == (near(0.1046247), 1.0)
    gradient = torch.autograd.grad(total, padded)[0]
    torch.testing.assert_close(gradient[:, :2, :3], torch.autograd.grad(expected, plain)[0])
    assert gradient.abs().sum() == gradient[:, :2, :3].abs().sum() > 0


def test_where_the_padding_stands_does_not_matter() -> None:
    there, back, student, queries, passages = random_maps([3, 5], [4, 2])
    expected, _ = word_loss(there, back, student, queries, passages)
    rows, columns = torch.randperm(student.shape[1]), torch.randperm(student.shape[2])
    moved = (there[:, rows][:, :, columns], back[:, columns][:, :, rows], student[:, rows][:, :, columns])
    total, count = word_loss(*moved, queries[:, rows], passages[:, columns])
    assert (total.item(), count) == (pytest.approx(expected.item(), abs=1e-12), 2.0)


@pytest.mark.parametrize("row_weights", ["mass", "uniform"])
def test_rows_without_mass_are_left_out(row_weights: Any) -> None:
    there, back, student = maps64(THERE, BACK, STUDENT)
    expected, _ = word_loss(there, back, student, *everything(student), row_weights=row_weights, directions="query")
    longer = torch.cat([there, torch.zeros(1, 1, 3)], 1), torch.cat([student, torch.tensor([[[9.0, -9.0, 0.0]]])], 1)
    scores = longer[1].requires_grad_()
    total, _ = word_loss(
        longer[0], torch.zeros(1, 3, 3), scores, *everything(scores), row_weights=row_weights, directions="query"
    )
    assert total.item() == pytest.approx(expected.item(), abs=1e-12)
    assert torch.autograd.grad(total, scores)[0][0, 2].tolist() == [0, 0, 0]


@pytest.mark.parametrize("row_weights", ["mass", "uniform"])
def test_a_pair_without_mass_or_tokens_adds_nothing(row_weights: Any) -> None:
    there, back, student = (torch.cat([m, m, m]) for m in maps64(THERE, BACK, STUDENT))
    there[1], back[1] = 0, 0
    queries, passages = everything(student)
    passages[2] = False  # a place of the batch that holds no pair
    scores = student.requires_grad_()
    total, count = word_loss(there, back, scores, queries, passages, row_weights=row_weights)
    assert (total.item(), count) == (near(0.1046247 if row_weights == "mass" else 0.1361356), 2.0)
    gradient = torch.autograd.grad(total, scores)[0]
    assert gradient[0].abs().sum() > 0 and gradient[1:].abs().sum() == 0


def test_a_teacher_that_is_not_a_number_is_not_hidden() -> None:
    there, back, student = maps64(THERE, BACK, STUDENT)
    there[0, 1, 1] = math.nan
    assert word_loss(there, back, student, *everything(student))[0].isnan()


def test_half_precision_is_raised() -> None:
    there, back, student = maps64(THERE, BACK, STUDENT)
    total, _ = word_loss(there, back, student.bfloat16(), *everything(student))
    assert total.dtype == torch.float32 and total.item() == pytest.approx(0.1046247, abs=2e-3)


def test_shapes_that_do_not_fit_are_refused() -> None:
    there, back, student = maps64(THERE, BACK, STUDENT)
    queries, passages = everything(student)
    with pytest.raises(ValueError, match=r"\(1, 2, 3\)"):
        word_loss(there, back.mT, student, queries, passages)
    with pytest.raises(ValueError, match=r"masks are torch.int64"):
        word_loss(there, back, student, queries.long(), passages)


# -- the config ---------------------------------------------------------------------------------------


def test_the_weight_grows_linearly() -> None:
    rule = WordMaps()
    assert [rule.weight_at(p) for p in (0.0, 0.025, 0.05, 0.1, 0.5, 1.0)] == pytest.approx([0, 0.125, 0.25, 0.5, 0.5, 0.5])
    assert WordMaps(warmup=0).weight_at(0.0) == 0.5
    assert WordMaps(warmup=1).weight_at(0.5) == 0.25
    with pytest.raises(ValueError, match="progress 1.5"):
        rule.weight_at(1.5)


@pytest.mark.parametrize("wrong", [{"weight": -1}, {"layers": 0}, {"negatives": -1}, {"projection": 0}, {"rows": 1}])
def test_impossible_rules_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        WordMaps(**wrong)
