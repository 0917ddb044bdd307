"""Several widths at once: the mean of the same objective on cut vectors, exactly, however a step is cut."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raydrd.methods.nested import Nested, first_numbers
from raydrd.methods.objectives import Distil, Losses, Ordered
from raydrd.methods.pacing import SelfPaced
from raydrd.outline import outline
from raydrd.spine.store import identify
from raydrd.stages.train import train
from raydrd.training.comm import Alone
from raydrd.training.plan import TrainConfig
from tests.list_batches import means
from tests.test_objectives_unseen import random_batch
from tests.training_jobs import METHODS, assert_same, gradients, make_job, method_job

DIMS = (32, 16, 8)
KL = Losses(terms=(Distil(),), score_scale=20)


def of_widths(objective: Losses, *, dims: tuple[int, ...] = DIMS, normalize: bool = True) -> Nested:
    return Nested(objective=objective, dims=dims, normalize=normalize)


def slow_kl(vectors: dict[str, Tensor], teacher: Tensor, index: Tensor, dim: int, normalize: bool) -> float:
    """Listwise KL of vectors cut to `dim`, mean over queries, number by number."""

    def cut(vector: Tensor) -> list[float]:
        own = [float(x) for x in vector[:dim]]
        size = math.sqrt(sum(x * x for x in own)) if normalize else 1.0
        return [x / size for x in own]

    total = 0.0
    for q, columns in enumerate(index.tolist()):
        query = cut(vectors["query"][q])
        s = [20 * sum(a * b for a, b in zip(query, cut(vectors["passage"][n]), strict=True)) for n in columns]
        t = [float(x) for x in teacher[q]]
        zs, zt = (math.log(sum(math.exp(x) for x in one)) for one in (s, t))
        total += sum(math.exp(b - zt) * ((b - zt) - (a - zs)) for a, b in zip(s, t, strict=True))
    return total / len(index)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_is_the_mean_of_a_slow_loop_over_widths(normalize: bool) -> None:
    draw = torch.Generator().manual_seed(1)
    vectors = {role: torch.randn(n, 12, generator=draw, dtype=torch.float64) / 4 for role, n in (("query", 3), ("passage", 9))}
    teacher = torch.randn(3, 3, generator=draw, dtype=torch.float64)
    _, _, batch = random_batch(0)
    index = torch.arange(9).reshape(3, 3)
    batch = replace(
        batch, index_QN=index, doc_rows_QN=index, labels_QN=teacher, teacher_QN=teacher,
        mask_QN=torch.ones(3, 3, dtype=torch.bool), flags_QN=None, confidence_Q=None, pairs_P3=None,
    )  # fmt: skip
    vectors = {role: torch.nn.functional.normalize(v, dim=1) if normalize else v for role, v in vectors.items()}
    expected = [slow_kl(vectors, teacher, index, dim, normalize) for dim in (12, 5, 2)]
    found = means(of_widths(KL, dims=(12, 5, 2), normalize=normalize), vectors, batch)  # type: ignore[arg-type]
    assert found["distil"].item() == pytest.approx(sum(expected) / 3, rel=1e-9)
    assert max(expected) / min(expected) > 1.05, "the widths say different things"


def test_vectors_of_the_whole_width_stay_as_they_are() -> None:
    vectors = torch.randn(4, 6)
    assert first_numbers(vectors, 6, True) is vectors
    assert first_numbers(vectors, 2, False).equal(vectors[:, :2])
    assert first_numbers(vectors, 2, True).norm(dim=1).tolist() == pytest.approx([1.0] * 4)
    assert first_numbers(torch.zeros(1, 4), 2, True).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_the_mean_of_its_widths(tmp_path: Path, name: str) -> None:
    job = method_job(tmp_path, name)
    whole, losses = gradients(replace(job, objective=of_widths(METHODS[name])), progress=0.3)
    # The word level reads token states, which no width cuts: it stands beside the widths once.
    each = [
        gradients(replace(job, objective=of_widths(METHODS[name], dims=(dim,))), progress=0.3) for dim in DIMS
    ]  # fmt: skip
    plain, plain_losses = gradients(job, progress=0.3)
    assert_same(each[0][0], plain, 1e-6)
    assert losses == pytest.approx({k: sum(one[1][k] for one in each) / 3 for k in plain_losses}, rel=1e-4)
    assert_same(whole, {k: torch.stack([one[0][k] for one in each]).mean(0) for k in plain}, 1e-5)
    assert any(abs(losses[k] - plain_losses[k]) > 1e-4 for k in losses)


@pytest.mark.parametrize("name", ["adam", "prod, whole batch", "md2pr"])
@pytest.mark.parametrize("per_device", [1, 4])
def test_micro_batches_are_one_batch(tmp_path: Path, name: str, per_device: int) -> None:
    job = method_job(tmp_path, name)
    job = replace(job, objective=of_widths(METHODS[name]))
    whole, losses = gradients(job, progress=0.3)
    cut, cut_losses = gradients(replace(job, per_device=per_device, tokens_per_batch=64), progress=0.3)
    assert_same(whole, cut, 1e-5)
    assert losses == pytest.approx(cut_losses, rel=1e-4)


def test_what_a_step_asks_of_an_objective_is_that_of_the_inner_one() -> None:
    pooled = of_widths(Losses(terms=(Ordered(in_batch="all"),)))
    paced = of_widths(Losses(terms=(Distil(),), pacing=SelfPaced(mode="batch_topk")))
    assert pooled.needs_pool and not paced.needs_pool
    assert paced.pacing is not None and paced.pacing.mode == "batch_topk" and pooled.pacing is None


def test_a_plan_tells_the_widths_and_a_training_without_them_keeps_its_identity() -> None:
    config = TrainConfig(learning_rate=1e-3, train_batch_size=4, max_steps=3)
    told = outline("train", {"objective": of_widths(KL), "config": config})
    assert told.endswith("; 1 distil, each at 32, 16, 8 dimensions")
    plain: dict[str, Any] = {"objective": KL, "config": config, "precision": "fp32"}
    # As it was before there were widths: another id would make all trainings of all stores anew.
    assert identify(train, plain)[0] == "99f895f6543d42bc"
    ids = {identify(train, {**plain, "objective": of_widths(KL, dims=dims)})[0] for dims in ((32, 8), (32, 16))}
    assert len(ids | {"99f895f6543d42bc"}) == 3


def test_widths_see_the_vectors_of_the_step_only(tmp_path: Path) -> None:
    """Masked queries and padding count nothing at any width: counts are those of the inner objective."""
    _, vectors, batch = random_batch(3)
    inner = METHODS["adam"]
    found, plain = (one(vectors, batch, Alone()) for one in (of_widths(inner, dims=(4, 2)), inner))  # type: ignore[operator]
    assert {k: count for k, (_, count) in found.items()} == {k: count for k, (_, count) in plain.items()}
    job = make_job(tmp_path, objective=of_widths(Losses(terms=(Ordered(),), score_scale=20)))
    assert max(g.abs().max() for g in gradients(job)[0].values()) > 1e-3
