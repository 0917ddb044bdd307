"""Successive halving among equals: what is compared has seen the same number of updates. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Rungs:
    """Who goes on: of every `reduction` trials one, at grace * reduction^k updates.

    A trial is looked at in each rung once, at its first report from there on. Trials report when a step ends, so in one rung
    they may have seen unlike numbers of updates: a value is compared with those after as many only (Ray's ASHA compares all).
    """

    grace: int
    reduction: float
    values: dict[tuple[int, int], list[float]] = field(default_factory=dict)  # by rung and updates
    passed: set[tuple[str, int]] = field(default_factory=set)  # (trial, rung)

    def stops(self, trial: str, updates: int, value: float) -> bool:
        """Whether the trial is behind: below the best 1 / reduction of those before it. The value is kept."""
        rung = self._rung(updates)
        if rung is None or (trial, rung) in self.passed:
            return False
        self.passed.add((trial, rung))
        others = self.values.setdefault((rung, updates), [])
        behind = bool(others) and value < float(np.percentile(others, 100 * (1 - 1 / self.reduction)))
        others.append(value)
        return behind

    def _rung(self, updates: int) -> int | None:
        """The number of the highest rung that so many updates have reached."""
        rung, at = None, float(self.grace)
        while at <= updates:
            rung, at = 0 if rung is None else rung + 1, at * self.reduction
        return rung
