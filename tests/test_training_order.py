"""Which examples a step reads, its learning rate, and what weight decay is for."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from raydrd.training.loop import adamw
from raydrd.training.plan import TrainConfig, batch_of, epochs_of, step_seed
from tests.worlds import tiny_encoder


@pytest.mark.parametrize(("examples", "size"), [(10, 3), (7, 7), (5, 8), (100, 16), (1, 1)])
def test_every_epoch_holds_each_example_once(examples: int, size: int) -> None:
    steps = math.ceil(4 * examples / size)
    order = np.concatenate([batch_of(s, seed=3, examples=examples, size=size) for s in range(steps)])
    assert all(len(batch_of(s, seed=3, examples=examples, size=size)) == size for s in range(steps))
    epochs = [tuple(order[e * examples : (e + 1) * examples]) for e in range(4)]
    assert all(sorted(epoch) == list(range(examples)) for epoch in epochs)
    if examples >= 10:
        assert len(set(epochs)) == 4


def test_the_order_depends_on_seed_and_step_alone() -> None:
    wanted = [batch_of(s, seed=1, examples=50, size=8) for s in range(20)]
    np.random.seed(9)  # noqa: NPY002  (global state that must not matter)
    torch.manual_seed(9)
    for step in reversed(range(20)):
        np.testing.assert_array_equal(batch_of(step, seed=1, examples=50, size=8), wanted[step])
    assert any((batch_of(s, seed=2, examples=50, size=8) != wanted[s]).any() for s in range(3))
    # A smaller batch walks through the same order.
    fine = np.concatenate([batch_of(s, seed=1, examples=50, size=4) for s in range(40)])
    np.testing.assert_array_equal(fine, np.concatenate(wanted))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_rank_slices_are_disjoint_and_complete(world: int) -> None:
    for step in range(10):
        batch = batch_of(step, seed=0, examples=40, size=8)
        slices = [np.array_split(batch, world)[rank] for rank in range(world)]
        assert Counter(np.concatenate(slices).tolist()) == Counter(batch.tolist())
        assert {len(s) for s in slices} == {8 // world}


def test_dropout_seeds_differ_by_step_and_rank() -> None:
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(4)}
    assert len(seeds) == 600 and all(0 <= s < 2**63 for s in seeds)
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3)


def test_the_rate_warms_up_and_decays_linearly() -> None:
    config = TrainConfig(learning_rate=1.0, train_batch_size=1, max_steps=10, warmup_steps=4)
    rates = [config.rate(s, 10) for s in range(10)]
    np.testing.assert_allclose(rates[:4], [0.2, 0.4, 0.6, 0.8])
    np.testing.assert_allclose(rates[4:], [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    share = TrainConfig(learning_rate=1.0, train_batch_size=1, max_steps=10, warmup_ratio=0.2)
    assert [share.rate(s, 10) for s in range(3)] == pytest.approx([1 / 3, 2 / 3, 1.0])
    one = TrainConfig(learning_rate=1.0, train_batch_size=1, max_steps=1, warmup_steps=100)
    assert one.rate(0, 1) == 1.0
    for steps in range(1, 30):
        assert all(0 < config.rate(s, steps) <= 1 for s in range(steps))


def test_epochs_become_steps() -> None:
    config = TrainConfig(learning_rate=1, train_batch_size=8, num_train_epochs=1.5)
    assert config.steps(100) == 19 and config.steps(1) == 1
    assert config.model_copy(update={"max_steps": 5}).steps(100) == 5


def test_weight_decay_is_for_matrices(tmp_path: Path) -> None:
    from raydrd.models.encoders import load_biencoder

    model = load_biencoder(tiny_encoder(tmp_path / "m"))
    optimizer = adamw(model, TrainConfig(learning_rate=1, train_batch_size=1, max_steps=1, weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = dict(model.named_parameters())
    assert len(decay) == len(names)
    for name, parameter in names.items():
        bare = name.endswith("bias") or "LayerNorm" in name
        assert decay[id(parameter)] == (0.0 if bare else 0.3), name


def test_epochs_follow_the_order_of_examples() -> None:
    for examples, size in ((10, 4), (7, 7), (3, 8)):
        for step in range(8):
            places = np.arange(step * size, (step + 1) * size)
            assert epochs_of(step, examples=examples, size=size).tolist() == (places // examples).tolist()
            numbers = batch_of(step, seed=1, examples=examples, size=size)
            pairs = list(zip(numbers.tolist(), epochs_of(step, examples=examples, size=size).tolist(), strict=True))
            assert len(set(pairs)) == size  # an example is never twice in an epoch
