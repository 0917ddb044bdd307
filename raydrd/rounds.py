"""Contestants timed side by side: in turn, round by round, so that what slows the machine for a while slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Rounds:
    """Seconds of each contestant in each round, and what each gave in the first."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def sum_of(self, total: str, parts: tuple[str, ...]) -> None:
        """Add a contestant whose time is that of others together, round by round."""
        self.seconds[total] = [sum(times) for times in zip(*(self.seconds[part] for part in parts), strict=True)]

    def speedup(self, name: str, over: str) -> float:
        """How many times as fast `name` is as `over`: the median over rounds of the ratio inside each round.

        What slows the machine for a while slows both sides of a round, and so leaves their ratio alone.
        """
        return statistics.median(b / a for a, b in zip(self.seconds[name], self.seconds[over], strict=True))


def alternate(contestants: dict[str, Callable[[], Any]], rounds: int) -> Rounds:
    """Run all contestants once to warm up, then in turn (A B C, A B C, ...) so many rounds."""
    found = Rounds({name: [] for name in contestants})
    for name, run in contestants.items():
        found.results[name] = run()
    for _ in range(rounds):
        for name, run in contestants.items():
            began = time.perf_counter()
            run()
            found.seconds[name].append(time.perf_counter() - began)
    return found
