"""What does not fit a device's memory is split, tried again and remembered; the result is that of a device with room."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydrd.errors import StageError
from raydrd.methods.objectives import Contrastive, Distil, Losses, Ordered
from raydrd.methods.pacing import SelfPaced
from raydrd.models.devices import TokenBudget, fitting
from raydrd.models.encoders import Encoder
from raydrd.spine.progress import noted
from raydrd.training.comm import Alone
from raydrd.training.loop import train_loop
from raydrd.training.step import Step
from tests.training_jobs import CPU, METHODS, assert_same, gradients, make_job, method_job, weights

LENGTHS = np.array([3, 9, 5, 9, 1, 7, 2, 8])


class Small:
    """A device that holds so many padded tokens at once."""

    def __init__(self, room: int) -> None:
        self.room, self.done, self.tries = room, [], 0  # type: ignore[var-annotated]

    def __call__(self, batch: Any) -> None:
        self.tries += 1
        if len(batch) * LENGTHS[batch].max() > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.done += batch.tolist()


@pytest.mark.parametrize("room", [9, 10, 18, 40, 1000])
def test_batches_are_halved_until_they_fit_and_every_text_is_read_once(room: int) -> None:
    noted()
    budget, device = TokenBudget(CPU, 64), Small(room)
    budget.each(LENGTHS, device)
    assert sorted(device.done) == list(range(len(LENGTHS)))
    assert budget.tokens == 64 if room == 1000 else 9 <= budget.tokens <= room or room < 18
    said = noted()
    if room < 63:
        assert said[0].startswith("a batch of 63 padded tokens did not fit the memory of cpu; it goes on with ")
    assert len(said) <= 2 and bool(said) == (room < 63)
    tries, device.tries, device.done = device.tries, 0, []
    budget.each(LENGTHS, device)  # the worker remembers: nothing is tried that does not fit
    assert sorted(device.done) == list(range(len(LENGTHS))) and not noted()
    assert device.tries < tries or room == 1000


def test_a_text_that_fits_nowhere_ends_the_stage() -> None:
    with pytest.raises(StageError, match="a single text of 9 tokens does not fit the memory of cpu; set precision=bf16"):
        TokenBudget(CPU, 64).each(LENGTHS, Small(8))


def test_only_a_lack_of_memory_is_tried_again() -> None:
    def fails(error: Exception) -> Any:
        raise error

    assert fitting(lambda: 7) == 7
    for lack in (torch.OutOfMemoryError("x"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")):
        assert fitting(lambda lack=lack: fails(lack)) is None  # type: ignore[misc]
    for other in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("CUDA out of memory")):
        with pytest.raises(type(other)):
            fitting(lambda other=other: fails(other))  # type: ignore[misc]


# -- embedding and scoring ---------------------------------------------------------------------------


def _cramped(monkeypatch: pytest.MonkeyPatch, owner: Any, room: int) -> list[int]:
    """A model with room for so many padded tokens a call; the sizes of the calls that it went through with."""
    forward, sizes = owner.forward, []

    def tight(self: Any, input_ids: Any = None, attention_mask: Any = None, **more: Any) -> Any:
        if input_ids.numel() > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        sizes.append(input_ids.numel())
        return forward(self, input_ids, attention_mask, **more)

    monkeypatch.setattr(owner, "forward", tight)
    return sizes


def test_vectors_are_the_same_on_a_small_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raydrd.stages.embed import Embedder

    job = make_job(tmp_path)

    def embedder() -> Any:
        return Embedder(
            model=job.start, role="passage", tokens=job.examples.tokens["passage"], out=job.out, precision="fp32",
            storage="float32", tokens_per_batch=512,
        )  # fmt: skip

    wanted = embedder().encode(np.arange(40))
    sizes = _cramped(monkeypatch, Encoder, 100)
    small = embedder()
    np.testing.assert_allclose(small.encode(np.arange(40)), wanted, atol=1e-6)
    assert max(sizes) <= 100 and len(sizes) > 4 and small.budget.tokens <= 100
    _cramped(monkeypatch, Encoder, 1)
    with pytest.raises(StageError, match="a single text of 16 tokens"):
        embedder().encode(np.arange(40))


def test_a_rerankers_scores_are_the_same_on_a_small_device(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BertForSequenceClassification

    from raydrd.spine.storage import Folder
    from raydrd.stages.scorers import CrossEncoderScorer

    job = make_job(tmp_path)

    def scores() -> Any:
        scorer = CrossEncoderScorer(
            Folder.of(toy / "reranker"), queries=job.examples.tokens["query"], passages=job.examples.tokens["passage"],
            max_length=40, precision="fp32", tokens_per_batch=512,
        )  # fmt: skip
        return scorer.scores(np.arange(36) % 12, np.arange(36))

    wanted = scores()
    assert np.ptp(wanted) > 0.1
    sizes = _cramped(monkeypatch, BertForSequenceClassification, 90)
    np.testing.assert_allclose(scores(), wanted, atol=1e-5)
    assert max(sizes) <= 90 and len(sizes) > 6


# -- training ------------------------------------------------------------------------------------------


class Memory:
    """A device with room for the graph of so many padded tokens; it runs full in the forward or in the backward pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int, when: str = "forward") -> None:
        self.refused, self.most = 0, 0
        forward, spread, held = Step._forward, Step._spread, [0]

        def full(tokens: int) -> None:
            if tokens > room:
                self.refused += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

        def counted(step: Any, rows: Any, group: Any) -> Any:
            held[0] = sum(step.texts.inputs(rows, chunk, CPU)[1]["input_ids"].numel() for chunk in group)
            self.most = max(self.most, held[0])
            if when == "forward":
                full(held[0])
            return forward(step, rows, group)

        def late(step: Any, *args: Any) -> Any:
            done = spread(step, *args)
            if when == "backward":  # gradients are there already, and must not be counted twice
                full(held[0])
            return done

        monkeypatch.setattr(Step, "_forward", counted)
        monkeypatch.setattr(Step, "_spread", late)


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_that_does_not_fit_has_the_same_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, when: str
) -> None:
    job = method_job(tmp_path, name)
    whole, losses = gradients(job, progress=0.3)
    # Room for some queries at once, then for less than one query with its list.
    for room in (150, 40):
        memory = Memory(monkeypatch, room, when)
        cut, cut_losses = gradients(job, progress=0.3)
        assert memory.refused > 0
        assert_same(whole, cut, 1e-5)
        assert losses == pytest.approx(cut_losses, rel=1e-4)


def test_the_smaller_size_is_remembered_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = make_job(tmp_path / "calm", config={"seed": 2})
    train_loop(calm, Alone(), CPU)
    memory = Memory(monkeypatch, 120)
    job = make_job(tmp_path / "small", config={"seed": 2})
    train_loop(job, Alone(), CPU)
    # Six queries at once, then three, then one: what the first step had to learn, the other five know.
    assert 1 <= memory.refused <= 4
    for name, value in weights(calm).items():
        torch.testing.assert_close(weights(job)[name], value, atol=1e-5, rtol=0)
    from raydrd.training import notes

    said = notes.read(job.scratch)[0]["say"]
    assert said.startswith("rank 0: a step did not fit the memory of cpu; it goes on with ")
    assert "resources.per_device_train_batch_size=" in said


def test_batch_topk_still_sees_the_whole_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pacing = SelfPaced(mode="batch_topk", rho0=0.5)
    objective = Losses(terms=(Distil(), Contrastive(in_batch=False)), score_scale=20, pacing=pacing)
    job = make_job(tmp_path, kind="rich", objective=objective)
    whole, losses = gradients(job)
    memory = Memory(monkeypatch, 60)
    cut, cut_losses = gradients(job)
    assert memory.refused and losses == pytest.approx(cut_losses, rel=1e-4)
    assert_same(whole, cut, 1e-5)


def test_dropout_does_not_make_a_retry_another_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is begun again draws its dropout as one that was cut so from the start."""
    objective = Losses(terms=(Ordered(in_batch="all"),), score_scale=20)
    job = make_job(tmp_path, dropout=0.3, objective=objective, tokens_per_batch=64)
    roomy = Memory(monkeypatch, 10**9)
    wanted, _ = gradients(replace(job, per_device=3), seed=4)
    tight = Memory(monkeypatch, roomy.most, "backward")
    found, _ = gradients(job, seed=4)
    assert tight.refused == 1
    assert_same(wanted, found, 0.0)


def test_the_word_level_is_cut_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raydrd.training.words import Words

    job = method_job(tmp_path, "md2pr")
    whole, losses = gradients(job, progress=0.3)
    loss, refused = Words.loss, []

    def tight(self: Any, batch: Any) -> Any:
        if len(batch.labels_QN) > 2:
            refused.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(self, batch)

    monkeypatch.setattr(Words, "loss", tight)
    cut, cut_losses = gradients(job, progress=0.3)
    assert refused and losses == pytest.approx(cut_losses, rel=1e-4)
    assert_same(whole, cut, 1e-5)


def test_one_text_that_does_not_fit_ends_training_with_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path)
    memory = Memory(monkeypatch, 4)
    with pytest.raises(StageError, match="training on one text at a time does not fit the memory of cpu; set train.gradient"):
        train_loop(job, Alone(), CPU)
    assert memory.refused < 30
