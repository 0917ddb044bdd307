"""What a training run is: its numbers, its order of examples, its learning rate. Pure functions of the step."""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from raydrd.config import Frozen


class TrainConfig(Frozen):
    """Numbers of one training stage, named as in Hugging Face's TrainingArguments. All of them are identity."""

    learning_rate: float = Field(gt=0)
    train_batch_size: int = Field(ge=1, description="examples a step over all workers and micro-batches")
    num_train_epochs: float | None = Field(None, gt=0)
    max_steps: int | None = Field(None, ge=1, description="overrides num_train_epochs")
    warmup_steps: int | None = Field(None, ge=0)
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="share of the steps, if warmup_steps is not given")
    weight_decay: float = Field(0.01, ge=0, description="never on biases and layer norms")
    adam_epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)
    dropout: float | None = Field(None, ge=0, lt=1, description="none: as the model's config says")
    gradient_checkpointing: bool = False
    train_group_size: int | None = Field(
        None, ge=2, description="passages a query and step: its first, and others of its list drawn anew each epoch; none: all"
    )
    seed: int = 4680

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if self.max_steps is None and self.num_train_epochs is None:
            raise ValueError("write num_train_epochs or max_steps")
        return self

    def steps(self, examples: int) -> int:
        """Updates for this many examples; the last batch of an epoch is filled from the next."""
        if self.max_steps is not None:
            return self.max_steps
        assert self.num_train_epochs is not None
        return max(1, math.ceil(self.num_train_epochs * examples / self.train_batch_size))

    def plus(self, other: TrainConfig) -> TrainConfig:
        """This training, longer by the other's updates (or epochs)."""
        if self.max_steps is not None and other.max_steps is not None:
            return self.model_copy(update={"max_steps": self.max_steps + other.max_steps})
        epochs = (self.num_train_epochs or 0) + (other.num_train_epochs or 0)
        return self.model_copy(update={"num_train_epochs": epochs, "max_steps": None})

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of update `step` (0-based): linear warm-up, then linear decay to 0."""
        warm = self.warmup_steps if self.warmup_steps is not None else round(self.warmup_ratio * steps)
        warm = min(warm, steps - 1)
        if step < warm:
            return self.learning_rate * (step + 1) / (warm + 1)
        return self.learning_rate * (steps - step) / max(1, steps - warm)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, examples: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(examples)


def batch_of(step: int, *, seed: int, examples: int, size: int) -> NDArray[np.int64]:
    """Examples of global batch `step`: a window over endless shuffled epochs. Nothing else decides the order.

    Every epoch holds each example once and has its own order; a batch may cross from one epoch into the next.
    """
    places = np.arange(step * size, (step + 1) * size)
    epochs, inside = places // examples, places % examples
    return np.concatenate([_permutation(seed, int(e), examples)[inside[epochs == e]] for e in np.unique(epochs)])


def epochs_of(step: int, *, examples: int, size: int) -> NDArray[np.int64]:
    """The epoch that each example of global batch `step` belongs to, in the order of `batch_of`."""
    return np.sort(np.arange(step * size, (step + 1) * size) // examples)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the dropout of one rank in one step: resuming needs no saved generator state."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:8], "big") >> 1
