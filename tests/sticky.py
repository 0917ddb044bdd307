"""Trainings for tests that go wrong in workers of their own: in a module that other processes can import."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from raydrd.training.job import Job
from raydrd.training.plan import batch_of


@dataclass(frozen=True)
class Sticky:
    """Examples of which one rank never gets a certain share: the first process that asks for it sleeps for ever."""

    inner: Any
    mark: str
    share: tuple[int, ...]

    @property
    def tokens(self) -> Any:
        return self.inner.tokens

    def open(self) -> Any:
        return StickySource(self)


class StickySource:
    def __init__(self, examples: Sticky) -> None:
        self.examples, self.inner = examples, examples.inner.open()

    def __len__(self) -> int:
        return len(self.inner)

    def width(self) -> Any:
        return self.inner.width()

    def batch(self, numbers: Any, *more: Any) -> Any:
        if tuple(numbers.tolist()) == self.examples.share and not Path(self.examples.mark).exists():
            Path(self.examples.mark).write_text("stuck\n")
            time.sleep(10_000)
        return self.inner.batch(numbers, *more)


def stuck(job: Job, mark: Path, *, rank: int, world: int, step: int) -> Job:
    """The job, whose `rank` sleeps for ever in this step, once: it leaves a `mark` before."""
    size = job.config.train_batch_size
    numbers = batch_of(step, seed=job.config.seed, examples=len(job.examples.open()), size=size)
    share = tuple(np.array_split(numbers, world)[rank].tolist())
    return replace(job, examples=Sticky(job.examples, str(mark), share))  # type: ignore[arg-type]
