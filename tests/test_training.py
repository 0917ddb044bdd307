"""A training run learns, is the same twice, and can be interrupted anywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydrd.methods.objectives import Distil, ListBatch, Losses, Ordered, Pairwise, SameVectors
from raydrd.spine.parts import Parts, part_name
from raydrd.spine.storage import Folder
from raydrd.spine.tables import LISTS
from raydrd.training import checkpoint
from raydrd.training.comm import Alone
from raydrd.training.job import Job
from raydrd.training.loop import adamw, train_loop
from raydrd.training.plan import TrainConfig, batch_of
from raydrd.training.sources import ListExamples, ListSource
from raydrd.training.step import Step
from tests.training_jobs import CPU, QUERIES, losses_of, make_job, train_until_killed, weights
from tests.worlds import tiny_encoder


def test_a_run_learns_and_leaves_a_model_and_its_curve(tmp_path: Path) -> None:
    job = make_job(tmp_path, config={"seed": 1})
    job = replace(job, config=job.config.model_copy(update={"max_steps": 30, "learning_rate": 3e-3}))
    train_loop(job, Alone(), CPU)
    curve = job.out.read_json("curve.json")
    assert [row[0] for row in curve] == list(range(1, 31))
    assert [row[2] for row in curve] == [job.config.rate(s, 30) for s in range(30)]
    assert np.mean([row[1] for row in curve[-4:]]) < 0.6 * np.mean([row[1] for row in curve[:4]])
    assert "tokenizer" in job.out.read_json("about.json")


def test_a_run_is_the_same_twice_and_another_with_another_seed(tmp_path: Path) -> None:
    found = []
    for number, seed in enumerate([1, 1, 2]):
        job = make_job(tmp_path / str(number), dropout=0.1, config={"seed": seed})
        torch.manual_seed(number)  # what came before must not matter
        train_loop(job, Alone(), CPU)
        found.append(weights(job))
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])
    assert any(not torch.equal(found[0][n], found[2][n]) for n in found[0])


@pytest.mark.parametrize("kind", ["lists", "texts"])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_run_that_dies_goes_on_to_the_very_same_weights(
    tmp_path: Path, kind: str, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = SameVectors() if kind == "texts" else Losses(terms=(Ordered(),), score_scale=20)
    calm = make_job(tmp_path / "calm", kind=kind, objective=objective, dropout=0.1)
    train_loop(calm, Alone(), CPU)
    job = replace(make_job(tmp_path / "hit", kind=kind, objective=objective, dropout=0.1), save_seconds=0.0)
    backward, done, limit = Step.backward, [], [stop]

    def dies(self: Step, source: Any, mine: Any, **more: Any) -> dict[str, float]:
        done.append(mine[0].tolist())
        if len(done) > limit[0]:
            raise MemoryError("killed")
        return backward(self, source, mine, **more)

    monkeypatch.setattr(Step, "backward", dies)
    with pytest.raises(MemoryError):
        train_loop(job, Alone(), CPU)
    assert not job.out.exists("curve.json")
    assert checkpoint.latest(job.scratch) == stop
    assert [n for n in job.scratch.files() if n.startswith("checkpoint")] == [f"checkpoint-{stop:09d}.safetensors"]
    torch.manual_seed(99)
    done.clear()
    limit[0] = 99
    train_loop(job, Alone(), CPU)
    order = [batch_of(n, seed=job.config.seed, examples=len(job.examples.open()), size=6).tolist() for n in range(6)]
    assert done == order[stop:]  # the steps that were missing, and no others
    assert all(torch.equal(weights(calm)[n], weights(job)[n]) for n in weights(calm))
    assert job.out.read_json("curve.json") == calm.out.read_json("curve.json")


def test_a_checkpoint_holds_weights_moments_and_curve(tmp_path: Path) -> None:
    from raydrd.models.encoders import load_biencoder

    config = TrainConfig(learning_rate=1e-2, train_batch_size=1, max_steps=9)
    folder = Folder.of(tmp_path / "c")
    assert checkpoint.latest(folder) == 0
    model = load_biencoder(tiny_encoder(tmp_path / "m"))
    optimizer = adamw(model, config)

    def update(m: Any, o: Any, value: float) -> None:
        for p in m.parameters():
            p.grad = torch.full_like(p, value)
        o.step()

    update(model, optimizer, 0.5)
    for step in (1, 2):
        checkpoint.save(folder, step=step, model=model, optimizer=optimizer, curve=[[1, 0.1 + 0.2, 1e-5]])
    assert list(folder.files()) == ["checkpoint-000000002.safetensors"] and checkpoint.latest(folder) == 2
    other = load_biencoder(tiny_encoder(tmp_path / "n", seed=5))
    second = adamw(other, config)
    assert checkpoint.restore(folder, step=2, model=other, optimizer=second) == [[1, 0.1 + 0.2, 1e-5]]
    for m, o in ((model, optimizer), (other, second)):
        update(m, o, -0.25)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_passages_are_drawn_anew_each_epoch_and_alike_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawing(home: Path) -> Job:
        job = make_job(home, kind="rich", objective=losses_of(Distil(), Pairwise()), save_seconds=0.0)
        assert isinstance(job.examples, ListExamples)
        return replace(job, examples=replace(job.examples, group=3, seed=5))

    read, seen = ListSource.batch, []

    def watched(self: ListSource, numbers: Any, width: Any = None, epochs: Any = None) -> Any:
        made = read(self, numbers, width, epochs)
        assert isinstance(made, ListBatch)
        docs = [row[there].tolist() for row, there in zip(made.doc_rows_QN, made.mask_QN, strict=True)]
        seen.append((epochs.tolist(), dict(zip(numbers.tolist(), docs, strict=True))))
        return made

    calm, hit = drawing(tmp_path / "calm"), drawing(tmp_path / "hit")
    monkeypatch.setattr(ListSource, "batch", watched)
    train_loop(calm, Alone(), CPU)
    steps, seen = seen, []
    assert [epochs for epochs, _ in steps] == [[e] * 6 for e in (0, 0, 1, 1, 2, 2)]
    epochs = [{**steps[n][1], **steps[n + 1][1]} for n in (0, 2, 4)]
    assert all(sorted(epoch) == list(range(QUERIES)) for epoch in epochs)  # every list, once an epoch
    changed = [n for n in range(QUERIES) if len({tuple(epoch[n]) for epoch in epochs}) > 1]
    assert len(changed) > 6 and all(len({epoch[n][0] for epoch in epochs}) == 1 for n in range(QUERIES))
    train_until_killed(hit, 3)
    train_loop(hit, Alone(), CPU)
    assert seen == steps  # each step once: it died before it read anything
    assert all(torch.equal(weights(calm)[n], weights(hit)[n]) for n in weights(calm))


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path)

    class Seven(Alone):
        world = 7

    with pytest.raises(ValueError, match="train_batch_size 6 is too small for 7 workers"):
        train_loop(job, Seven(), CPU)
    wild = replace(job, config=job.config.model_copy(update={"learning_rate": 1e30, "warmup_steps": 0}))
    with pytest.raises(ValueError, match="the gradient is not finite; lower learning_rate or set precision: fp32"):
        train_loop(wild, Alone(), CPU)
    empty = Folder.of(tmp_path / "none")
    empty.write_table(part_name(0, 0, "parquet"), LISTS.empty_table())
    nothing = replace(job, examples=replace(job.examples, lists=Parts.of(empty, list(empty.files()))))
    with pytest.raises(ValueError, match="no examples to train on"):
        train_loop(nothing, Alone(), CPU)
