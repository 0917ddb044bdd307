"""MaxSim against a slow loop, and every objective over token vectors against the same objective over its scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raydrd.methods.maxsim import maxsim, maxsim_of_lists
from raydrd.methods.objectives import Contrastive, Distil, Losses, MarginMSE, Ordered, Pairwise
from raydrd.methods.tokenwise import Both, SameTokens
from raydrd.models.encoders import cut_layers
from raydrd.models.late import load_late, save_late
from raydrd.models.latelayout import read_late
from raydrd.spine.parts import Parts, part_name
from raydrd.spine.ragged import RaggedReader, ragged_table
from raydrd.spine.storage import Folder
from raydrd.training.comm import Alone
from raydrd.training.job import Job
from raydrd.training.sources import TextExamples
from tests.late_worlds import late_model, slow_maxsim
from tests.list_batches import compared, made
from tests.training_jobs import METHODS, assert_same, gradients, make_job, method_job

LONGEST = {"query": 5, "passage": 9}


def texts_of(role: str, count: int, seed: int) -> Tensor:
    """Unit token vectors of texts of 0 (passages) or 1 to `LONGEST` tokens, [count, longest, 4] float64, zeros behind."""
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, LONGEST[role], 4, generator=draw, dtype=torch.float64)
    vectors = torch.nn.functional.normalize(vectors, dim=-1)
    lengths = torch.randint(int(role == "query"), LONGEST[role] + 1, (count, 1), generator=draw)
    there = torch.arange(LONGEST[role]) < lengths
    if role == "passage":
        there[:, 1] &= torch.rand(count, generator=draw) < 0.5  # a skipped piece in the middle of a text
    return vectors * there[:, :, None]


def bare(text: Tensor) -> Tensor:
    return text[text.ne(0).any(1)]


def test_scores_and_slopes_are_those_of_a_slow_loop() -> None:
    queries, passages = texts_of("query", 6, 0), texts_of("passage", 11, 1)
    assert min(len(bare(p)) for p in passages) == 0, "a passage without tokens is part of it"
    wanted = torch.stack([torch.stack([slow_maxsim(bare(q), bare(p)) for p in passages]) for q in queries])
    torch.testing.assert_close(maxsim(queries, passages), wanted)
    assert wanted.min() < 0, "zeros that stand for no token would win against these"
    index = torch.tensor([[3, 0, 3], [10, 2, 1], [5, 5, 5], [0, 1, 2], [9, 8, 7], [4, 6, 4]])
    torch.testing.assert_close(maxsim_of_lists(queries, passages, index), wanted.gather(1, index))
    weights = torch.randn(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    slopes = []
    for slow in (True, False):
        q, p = queries.clone().requires_grad_(), passages.clone().requires_grad_()
        if slow:
            found = torch.stack([torch.stack([slow_maxsim(bare(q[a]), bare(p[b])) for b in index[a]]) for a in range(6)])
        else:
            found = maxsim_of_lists(q, p, index)
        slopes.append(torch.autograd.grad((found * weights).sum(), (q, p)))
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)
    assert slopes[1][1][passages.eq(0).all(-1)].eq(0).all(), "what is no token learns nothing"


TERMS: dict[str, Any] = {
    "ordered": Ordered(),
    "ordered, next": Ordered(in_batch="next"),
    "ordered, all": Ordered(in_batch="all"),
    "distil": Distil(temperature=2.0),
    "distil, batch": Distil(over="batch"),
    "anchor": Distil(source="anchor"),
    "contrastive": Contrastive(),
    "contrastive, own": Contrastive(in_batch=False),
    "pairwise": Pairwise(),
    "margin mse": MarginMSE(),
}


@pytest.mark.parametrize("name", TERMS)
def test_every_term_over_tokens_is_that_over_their_scores(name: str) -> None:
    """Losses and slopes through MaxSim are those of the score matrix, chained by hand."""
    queries, passages = texts_of("query", 4, 3), texts_of("passage", 12, 4)
    full = maxsim(queries, passages)
    vectors, batch = made(full, torch.randn(4, 3, generator=torch.Generator().manual_seed(5)).tolist())
    batch = replace(
        batch, anchor_QN=torch.randn(4, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64),
        **compared([[0, 0, 1], [2, 1, 2]], [0.9, 0.3]),
    )  # fmt: skip
    objective = Losses(terms=(TERMS[name],), score_scale=3.0)
    ((total, count),) = objective(vectors, batch, Alone()).values()
    (by_score,) = torch.autograd.grad(total, vectors["passage"])
    tokens = {"query": queries.clone().requires_grad_(), "passage": passages.clone().requires_grad_()}
    ((found, counted),) = objective(tokens, batch, Alone()).values()
    assert (found.item(), counted) == (pytest.approx(total.item(), abs=1e-9), count)
    again = {role: t.detach().requires_grad_() for role, t in tokens.items()}
    chained = torch.autograd.grad((maxsim(again["query"], again["passage"]) * by_score.T).sum(), list(again.values()))
    for one, other in zip(torch.autograd.grad(found, list(tokens.values())), chained, strict=True):
        torch.testing.assert_close(one, other)
    assert max(one.abs().max() for one in chained) > 1e-3


def test_a_hybrid_adds_both_levels_and_lets_the_tokens_teach() -> None:
    from raydrd.methods.losses import listwise_kl

    pooled, batch = made(torch.randn(3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    batch = replace(batch, anchor_QN=torch.zeros(3, 3, dtype=torch.float64))
    tokens = {"query": texts_of("query", 3, 7), "passage": texts_of("passage", 9, 8)}
    vectors = pooled | {f"{role} tokens": t.requires_grad_() for role, t in tokens.items()}
    objective = Losses(terms=(Ordered(), Distil(source="anchor")), score_scale=2.0)
    found = Both(objective=objective, token_scale=0.5, distil=3.0)(vectors, batch, Alone())
    assert list(found) == ["ordered", "anchor", "ordered of tokens", "tokens to pooled"]
    own = objective(pooled, batch, Alone())
    assert found["ordered"][0].item() == own["ordered"][0].item()
    finer = Losses(terms=(Ordered(),), score_scale=0.5)(tokens, batch, Alone())["ordered"]
    assert (found["ordered of tokens"][0].item(), found["ordered of tokens"][1]) == (finer[0].item(), finer[1])
    taught = batch.scores(tokens) * 0.5
    kl, lists = listwise_kl(batch.scores(pooled) * 2.0, taught.detach())
    total, count = found["tokens to pooled"]
    assert (total.item(), count) == (pytest.approx(3 * kl.item()), lists)
    slopes = torch.autograd.grad(total, [vectors["passage"], vectors["passage tokens"]], allow_unused=True)
    assert slopes[0].abs().max() > 1e-3 and slopes[1] is None
    assert "tokens to pooled" not in Both(objective=objective, distil=0.0)(vectors, batch, Alone())


def test_token_vectors_travel_through_files(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    texts = [draw.standard_normal((n, 3)).astype(np.float16) for n in (2, 0, 5, 1, 3)]
    folder = Folder.of(tmp_path)
    for lo, hi in ((0, 2), (2, 5)):
        lengths = np.array([len(one) for one in texts[lo:hi]])
        folder.write_arrow(part_name(lo, hi, "arrow"), ragged_table(np.concatenate(texts[lo:hi]), lengths))
    reader = RaggedReader(Parts.of(folder, list(folder.files())))
    rows = np.array([4, 0, 1, 2, 2])
    assert reader.lengths(rows).tolist() == [3, 2, 0, 5, 5] and reader.width == 3
    for one, row in zip(reader.take(rows), rows, strict=True):
        np.testing.assert_array_equal(one, texts[row])
    padded = reader.padded(rows)
    assert padded.shape == (5, 5, 3) and padded.dtype == np.float32
    np.testing.assert_array_equal(padded[0, :3], texts[4].astype(np.float32))
    assert not padded[0, 3:].any() and not padded[2].any()


# -- inside a step --------------------------------------------------------------------------------


def late_job(home: Path, name: str, *, dropout: float = 0.0, wanted: dict[str, Any] | None = None, **changes: Any) -> Job:
    """One of `METHODS` with a late-interaction student in place of a bi-encoder."""
    if not (home / "model").exists():
        late_model(home / "model", dropout=dropout, **(wanted or {}))
    job = method_job(home, name, **changes)
    return replace(job, objective=job.objective.model_copy(update={"score_scale": 2.0}))  # sums, not cosines


CUT = [(name, {}) for name in METHODS] + [("pairdistill", {"query_expansion": True})]


@pytest.mark.parametrize(("name", "wanted"), CUT, ids=lambda one: one if isinstance(one, str) else "")
def test_micro_batches_and_cached_vectors_are_one_batch(tmp_path: Path, name: str, wanted: dict[str, Any]) -> None:
    job = late_job(tmp_path, name, wanted=wanted)
    whole, losses = gradients(job, progress=0.3)
    assert all(v > 0 for v in losses.values()) and max(g.abs().max() for g in whole.values()) > 1e-3
    for per_device in (1, 4):
        cut, cut_losses = gradients(replace(job, per_device=per_device, tokens_per_batch=100), progress=0.3)
        assert_same(whole, cut, 1e-5)
        assert losses == pytest.approx(cut_losses, rel=1e-4)


@pytest.mark.parametrize("per_device", [1, 4])
def test_a_hybrids_micro_batches_are_one_batch(tmp_path: Path, per_device: int) -> None:
    job = late_job(tmp_path, "pairdistill", wanted={"pooled": True})
    job = replace(job, objective=Both(objective=job.objective.model_copy(update={"score_scale": 20.0})))
    whole, losses = gradients(job, progress=0.3)
    assert len(losses) == 7
    cut, cut_losses = gradients(replace(job, per_device=per_device, tokens_per_batch=100), progress=0.3)
    assert_same(whole, cut, 2e-5)
    assert losses == pytest.approx(cut_losses, rel=1e-4)


def test_cached_gradients_with_dropout_see_the_same_dropout_twice(tmp_path: Path) -> None:
    job = late_job(tmp_path, "pairdistill", dropout=0.3, per_device=2, tokens_per_batch=100)
    first, losses = gradients(job, seed=1)
    again, same = gradients(job, seed=1)
    assert_same(first, again, 0.0)
    assert losses == same
    other, _ = gradients(job, seed=2)
    assert max((first[n] - other[n]).abs().max() for n in first) > 1e-4


@pytest.mark.parametrize("pooled", [False, True])
def test_a_cut_student_learns_its_originals_token_vectors(tmp_path: Path, pooled: bool) -> None:
    """Targets come as files without skipped pieces; the student's vectors stand against them one by one."""
    late_model(tmp_path / "whole", pooled=pooled)
    model = load_late(tmp_path / "whole")
    cut_layers(model.backbone, 1)
    save_late(model, read_late(tmp_path / "whole")[0], tmp_path / "model", tokenizer_from=tmp_path / "whole")
    job = make_job(tmp_path, kind="texts")
    tokens = job.examples.tokens
    kept, stores, also = {}, [], []
    for role, parts in tokens.items():
        kept[role] = _vectors(tmp_path / "whole", role, parts, " tokens" if pooled else "")
        folder = Folder.of(tmp_path / f"whole-{role}")
        folder.write_arrow(part_name(0, parts.rows, "arrow"), ragged_table(np.concatenate(kept[role]),
                           np.array([len(one) for one in kept[role]])))  # fmt: skip
        targets = Parts.of(folder, list(folder.files()))
        if pooled:
            also.append((f"{role} tokens", role, targets))
            targets = Parts.of(Folder.of(tmp_path / f"vectors-{role}"), list(Folder.of(tmp_path / f"vectors-{role}").files()))
        stores.append((role, parts, targets))
    job = replace(job, examples=TextExamples(tuple(stores), tuple(also)), objective=SameTokens())
    whole, losses = gradients(job)
    assert list(losses) == (["same_vectors", "same_tokens"] if pooled else ["same_tokens"])
    cut, cut_losses = gradients(replace(job, per_device=2, tokens_per_batch=100))
    assert_same(whole, cut, 1e-5)
    assert losses == pytest.approx(cut_losses, rel=1e-5)
    # By hand: the mean squared distance over the tokens of the step's texts.
    mine = {role: _vectors(tmp_path / "model", role, parts, " tokens" if pooled else "") for role, parts in tokens.items()}
    rows = {role: t.numpy() for role, t in job.examples.open().batch(np.arange(job.config.train_batch_size)).rows.items()}
    pairs = [(mine[role][n], kept[role][n]) for role, numbers in rows.items() for n in numbers]
    by_hand = sum(float(((a - b) ** 2).sum()) for a, b in pairs) / sum(len(a) for a, _ in pairs)
    assert losses["same_tokens"] == pytest.approx(by_hand, rel=1e-4)


def _vectors(folder: Path, role: str, parts: Any, name: str) -> list[np.ndarray]:
    """Vectors of the ids of a token store, text by text."""
    from raydrd.models.late import Reading, load_tokenizer
    from raydrd.spine.parts import TokenReader

    layout, late = read_late(folder)
    assert late is not None
    model, reading = load_late(folder), Reading.of(load_tokenizer(folder, layout), layout, late)
    found = []
    with torch.inference_mode():
        for ids in TokenReader(parts).take(np.arange(parts.rows)):
            one = model.encode(reading.inputs(role, [reading.single(role, ids)]))[name][0]
            found.append(one[one.ne(0).any(1)].numpy())
    return found
