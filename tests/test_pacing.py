"""The self-paced gate: the reference's vectors (5.5), and how the admitted set moves with progress."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from raydrd.config import Resources, validate
from raydrd.errors import InputError
from raydrd.methods.pacing import SelfPaced, check_batches, confidence, delta, gate, share

CONFIDENCES = [0.05, 0.12, 0.31, 0.40, 0.52, 0.63, 0.71, 0.80, 0.93, 0.99]
STEPS = [0, 150, 300, 450, 600, 1000]
NAN = float("nan")


def test_schedule_of_the_reference() -> None:
    rule = SelfPaced()
    shares = [share(rule, step / 1000) for step in STEPS]
    assert shares == pytest.approx([0.30, 0.45, 0.60, 0.75, 0.90, 0.90], abs=1e-12)
    ordered = torch.tensor(CONFIDENCES, dtype=torch.float64)
    assert [delta(ordered, rho) for rho in shares] == pytest.approx([0.7370, 0.6245, 0.4720, 0.3325, 0.1130, 0.1130], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_admitted_counts_of_the_reference(dtype: torch.dtype) -> None:
    ordered = torch.tensor(CONFIDENCES, dtype=dtype)
    shuffled = ordered[torch.tensor([3, 9, 0, 7, 5, 1, 8, 2, 6, 4])]
    counts = []
    for step in STEPS:
        weights = gate(SelfPaced(), shuffled, ordered, step / 1000)
        assert weights.dtype == torch.float32
        assert set(weights.tolist()) <= {0.0, 1.0}
        assert shuffled[weights == 1].min() > shuffled[weights == 0].max()
        counts.append(int(weights.sum()))
    assert counts == [3, 5, 6, 7, 9, 9]


@pytest.mark.parametrize("size", [1, 2, 7, 100, 1001])
def test_the_admitted_set_has_its_share_and_only_grows(size: int) -> None:
    rule = SelfPaced()
    values = torch.from_numpy(np.random.default_rng(size).random(size)).float()
    ordered = values.sort().values
    before = torch.zeros(size)
    for step in range(101):
        weights = gate(rule, values, ordered, step / 100)
        assert abs(float(weights.mean()) - share(rule, step / 100)) <= 1 / size
        assert bool((weights >= before).all())
        before = weights
    worst = values < np.quantile(ordered.numpy(), 1 - rule.rho1)
    assert float(before[worst].sum()) == 0


def test_delta_is_numpys_quantile_and_meets_an_exact_place() -> None:
    for size in (1, 2, 3, 10, 57):
        ordered = torch.from_numpy(np.sort(np.random.default_rng(size).normal(size=size)))
        for rho in (0.0, 0.1, 0.25, 0.5, 0.9, 1.0):
            assert delta(ordered, rho) == pytest.approx(float(np.quantile(ordered.numpy(), 1 - rho)), abs=1e-12)
    for tenth in range(11):  # (1 - 0.7) * 10 is 3.0000000000000004 in binary
        assert delta(torch.arange(11.0), tenth / 10) == 10 - tenth


@pytest.mark.parametrize("values", [[], [0.5, 0.1], [0.5, NAN], [NAN]])
def test_confidences_that_cannot_be_in_order_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="no training query has a confidence|ascending order and without NaN"):
        delta(torch.tensor(values), 0.5)


def test_shares_outside_their_range_are_refused() -> None:
    for wrong in (-0.1, 1.1, NAN):
        with pytest.raises(ValueError, match="from 0 to 1"):
            delta(torch.tensor([0.1, 0.2]), wrong)
    for wrong in (-0.1, NAN):
        with pytest.raises(ValueError, match="progress"):
            share(SelfPaced(), wrong)
    assert share(SelfPaced(), 1.5) == pytest.approx(0.9)  # past the end: as at the end


def test_constant_bar() -> None:
    rule = SelfPaced(mode="threshold", threshold=0.5)
    values = torch.tensor([0.5, 0.49, NAN, 0.9])
    for progress in (0.0, 1.0):
        assert gate(rule, values, torch.empty(0), progress).tolist() == [1, 0, 0, 1]


def test_top_of_the_batch() -> None:
    rule = SelfPaced(mode="batch_topk")
    values = torch.tensor([0.2, 0.9, NAN, 0.4, 0.4, 0.1])
    assert gate(rule, values, torch.empty(0), 0.0).tolist() == [0, 1, 0, 1, 0, 0]  # 0.3 of 5 is 1.5: two, ties by position
    assert gate(rule, values, torch.empty(0), 0.3).tolist() == [0, 1, 0, 1, 1, 0]
    assert gate(rule, values, torch.empty(0), 1.0).tolist() == [1, 1, 0, 1, 1, 1]  # 0.9 of 5 is 4.5: five
    assert gate(rule, torch.tensor([NAN, NAN]), torch.empty(0), 1.0).tolist() == [0, 0]
    assert gate(rule, torch.empty(0), torch.empty(0), 1.0).shape == (0,)


@pytest.mark.parametrize("cut", [{"train_workers": 2}, {"per_device_train_batch_size": 4}])
def test_the_top_of_the_batch_needs_whole_batches(cut: dict[str, Any]) -> None:
    values = torch.tensor([0.9, 0.8, 0.2, 0.1])
    rule = SelfPaced(mode="batch_topk", rho0=0.5)
    halves = [gate(rule, half, torch.empty(0), 0.0).tolist() for half in (values[:2], values[2:])]
    assert gate(rule, values, torch.empty(0), 0.0).tolist() == [1, 1, 0, 0] != halves[0] + halves[1]
    with pytest.raises(InputError, match="^steps.1.pacing.mode: batch_topk needs the whole batch at once"):
        check_batches(rule, Resources(**cut), where="steps.1.pacing")
    for fine in (Resources(), Resources(train_workers=0)):
        check_batches(rule, fine, where="pacing")
    for other in (None, SelfPaced(), SelfPaced(mode="soft")):
        check_batches(other, Resources(**cut), where="pacing")


def test_soft_weights() -> None:
    rule = SelfPaced(mode="soft")
    ordered = torch.tensor(CONFIDENCES)
    values = torch.tensor([0.0, 0.3685, 0.737, 0.99, NAN])
    weights = gate(rule, values, ordered, 0.0)
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights.numpy(), [0, 0.5, 1, 1, 0], atol=1e-6)
    assert gate(rule, torch.tensor([0.0, 0.4]), torch.zeros(3), 0.0).tolist() == [1, 1]  # a bar of 0: nobody is below it


def test_unknown_confidences_weigh_nothing_in_any_mode() -> None:
    ordered = torch.tensor(CONFIDENCES)
    for mode in ("quantile", "threshold", "batch_topk", "soft"):
        rule = SelfPaced(mode=mode, threshold=-1e9 if mode == "threshold" else None)
        assert gate(rule, torch.tensor([NAN, 0.999]), ordered, 1.0).tolist() == [0, 1]


def test_the_gate_has_no_gradient() -> None:
    values = torch.tensor([0.2, 0.99], requires_grad=True)
    for mode in ("quantile", "soft"):
        assert not gate(SelfPaced(mode=mode), values, torch.tensor(CONFIDENCES), 0.0).requires_grad


@pytest.mark.parametrize(
    ("scores", "softmax", "margin", "entropy"),
    [([6.0, -3.0, -4.0], 0.9998312, 9.0, 0.9984224), ([1.0, 0.5, -2.0], 0.6037489, 0.5, 0.2919525)],
)
def test_confidences_of_the_reference(scores: list[float], softmax: float, margin: float, entropy: float) -> None:
    values = np.array(scores)
    assert confidence("softmax", values, 0) == pytest.approx(softmax, abs=1e-6)
    assert confidence("margin", values, 0) == pytest.approx(margin, abs=1e-6)
    assert confidence("entropy", values, 0) == pytest.approx(entropy, abs=1e-6)


def test_a_passage_never_scored_is_as_if_not_there() -> None:
    plain, holed = np.array([1.0, 0.5, -2.0]), np.array([NAN, 0.5, NAN, 1.0, -2.0])
    for kind in ("softmax", "margin", "entropy"):
        assert confidence(kind, holed, 3) == pytest.approx(confidence(kind, plain, 0))
        assert math.isnan(confidence(kind, holed, 0))
        assert math.isnan(confidence(kind, plain, -1))
        assert math.isnan(confidence(kind, np.array([2.0, NAN]), 0))


def test_extremes_of_confidence() -> None:
    assert confidence("entropy", np.ones(7), 0) == 0
    assert confidence("entropy", np.array([1e4, 0.0, 0.0]), 1) == 1  # decided, though not for the label
    assert confidence("softmax", np.array([1e4, 0.0, 0.0]), 1) == 0
    assert confidence("softmax", np.array([1e4, 0.0, 0.0]), 0) == 1
    assert confidence("margin", np.array([1.0, 4.0]), 0) == -3
    with pytest.raises(ValueError, match="1 of 2 teacher scores are infinite"):
        confidence("softmax", np.array([1.0, -np.inf]), 0)
    for wrong in (2, -2):
        with pytest.raises(ValueError, match="-1 or a column"):
            confidence("softmax", np.array([1.0, 2.0]), wrong)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rho0": 0.95}, "rho0=0.95 is above rho1=0.9"),
        ({"mode": "threshold"}, "threshold belongs to mode threshold, which needs one"),
        ({"threshold": 0.5}, "mode=quantile: threshold belongs to mode threshold"),
        ({"mode": "soft", "confidence": "margin"}, "margins may be negative"),
        ({"gamma": 0.0}, "gamma"),
        ({"rho1": 1.5}, "rho1"),
        ({"scope": "none"}, "scope"),
    ],
)
def test_impossible_gates_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        validate(SelfPaced, values, "toy.yaml")
