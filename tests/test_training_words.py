"""The word level in training: which pairs it reads, its weight, its projection."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raydrd.methods.lists import DARK, POSITIVE, SUSPECT
from raydrd.methods.objectives import Distil, ListBatch
from raydrd.training.comm import Alone
from raydrd.training.job import Job
from raydrd.training.loop import train_loop
from raydrd.training.words import chosen
from tests.training_jobs import (
    CPU,
    METHODS,
    assert_same,
    gradients,
    losses_of,
    make_job,
    train_until_killed,
    weights,
    word_teacher,
)


def test_the_word_level_reads_positives_and_the_best_scored_surviving_negatives() -> None:
    flags = [[POSITIVE, SUSPECT, 0, 0, 0], [0, POSITIVE, POSITIVE, DARK, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    nan = math.nan
    teacher = [[9.0, 8.0, 1.0, 3.0, 2.0], [1.0, nan, 5.0, 7.0, 2.0], [1.0, 4.0, nan, 2.0, 3.0], [nan] * 5]
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[2, 4] = False
    nothing = torch.zeros(4, 5, dtype=torch.int64)
    batch = ListBatch(
        rows={}, index_QN=nothing, doc_rows_QN=nothing, labels_QN=nothing, teacher_QN=torch.tensor(teacher), mask_QN=mask,
        flags_QN=torch.tensor(flags),
    )  # fmt: skip
    pairs = [tuple(pair) for pair in chosen(batch, 2).tolist()]
    # A query without a label has the teacher's favourite for a positive; one without scores has no pair.
    assert pairs == [(0, 0), (0, 3), (0, 4), (1, 1), (1, 4), (1, 0), (2, 1), (2, 3), (2, 0)]
    assert chosen(batch, 0).tolist() == [[0, 0], [1, 1], [2, 1]]
    assert len(chosen(batch, 99)) == 1 + 3 + 1 + 2 + 1 + 2  # nobody is taken twice


def test_the_word_levels_weight_warms_up(tmp_path: Path) -> None:
    job = make_job(tmp_path, kind="rich", objective=losses_of(Distil()), words=word_teacher(tmp_path, weight=0.8, warmup=0.5))
    found = {u: gradients(job, progress=u) for u in (0.0, 0.25, 0.5, 0.9)}
    full = found[0.5][1]["words"]
    assert full > 1e-3
    assert [found[u][1]["words"] for u in (0.0, 0.25, 0.9)] == pytest.approx([0.0, full / 2, full], rel=1e-6)
    slopes = {u: grads["projection"] for u, (grads, _) in found.items()}
    assert slopes[0.0].eq(0).all() and slopes[0.5].abs().max() > 1e-4
    torch.testing.assert_close(slopes[0.25] * 2, slopes[0.5])
    without, losses = gradients(replace(job, words=None))
    assert "projection" not in without and list(losses) == ["distil"]
    assert_same(without, {n: g for n, g in found[0.0][0].items() if n != "projection"}, 1e-7)


def test_the_word_level_is_learnt(tmp_path: Path) -> None:
    words = word_teacher(tmp_path, weight=1.0, warmup=0.0)
    job = make_job(tmp_path, kind="rich", objective=losses_of(Distil(weight=1e-6)), words=words)
    job = replace(job, config=job.config.model_copy(update={"max_steps": 24, "learning_rate": 1e-2}))
    train_loop(job, Alone(), CPU)
    curve = [row[1] for row in job.out.read_json("curve.json")]
    assert np.mean(curve[-4:]) < 0.7 * np.mean(curve[:4])


@pytest.mark.parametrize("stop", [1, 4])
def test_a_word_level_run_goes_on_with_its_projection_and_leaves_it_behind(tmp_path: Path, stop: int) -> None:
    from sentence_transformers import SentenceTransformer

    def worded(home: Path, **rule: Any) -> Job:
        words = word_teacher(home, **{"weight": 1.0, "warmup": 0.3, **rule})
        return make_job(home, kind="rich", objective=METHODS["md2pr"], words=words, dropout=0.1, save_seconds=0.0)

    calm, hit = worded(tmp_path / "calm"), worded(tmp_path / "hit")
    train_loop(calm, Alone(), CPU)
    train_until_killed(hit, stop)
    begun = load_file(hit.scratch.local(f"checkpoint-{stop:09d}.safetensors"))
    torch.manual_seed(99)
    train_loop(hit, Alone(), CPU)
    assert all(torch.equal(weights(calm)[n], weights(hit)[n]) for n in weights(calm))
    assert calm.out.read_json("curve.json") == hit.out.read_json("curve.json")
    # The last checkpoint is that after step 5 of 6: weights and moments of the projection too, the same in both.
    last, other = (load_file(job.scratch.local("checkpoint-000000005.safetensors")) for job in (calm, hit))
    name = "projection.weight"
    assert {f"model.{name}", f"optimizer.{name}.exp_avg", f"optimizer.{name}.exp_avg_sq", f"optimizer.{name}.step"} <= set(last)
    assert all(torch.equal(last[n], other[n]) for n in last) and last.keys() == other.keys()
    assert not torch.equal(last[f"model.{name}"], begun[f"model.{name}"])
    # What is saved is the start's own tensors, and loads as any model does.
    begin = load_file(calm.start.local("model.safetensors"))
    assert {n: t.shape for n, t in weights(calm).items()} == {n: t.shape for n, t in begin.items() if "pooler" not in n}
    assert SentenceTransformer(str(calm.out.local("model")), device="cpu").encode(["wave"]).shape == (1, 32)
    # And it did something: without the word level training ends elsewhere.
    plain = make_job(tmp_path / "plain", kind="rich", objective=METHODS["md2pr"], dropout=0.1)
    train_loop(plain, Alone(), CPU)
    assert any(not torch.equal(weights(plain)[n], weights(calm)[n]) for n in weights(calm))
