"""When to strike: moments spread over the length of an undisturbed run, dealt to several runs."""

from __future__ import annotations

import random
from dataclasses import dataclass

KINDS = ("driver", "actor", "worker", "node")


@dataclass(frozen=True)
class Kill:
    """One kill that is planned.

    wait: seconds of work after the kill before it in the same run (or after the run's start).
    alone: of a driver, its own process only; what it started is left behind.
    starting: of a driver that was killed before, while it starts again rather than at work.
    during: how the label of the stage begins that it waits for; any when empty.
    """

    kind: str
    wait: float
    alone: bool = False
    starting: bool = False
    during: str = ""


def spread(kills: int, *, seconds: float, kinds: tuple[str, ...], runs: int, seed: int) -> list[list[Kill]]:
    """For every run its kills in order. The length of the run is cut into as many pieces as there are kills, each has one.

    The pieces go to the runs in turn, so that each run is hit from its beginning to its end. Kinds go round.
    """
    draw = random.Random(seed)
    piece = seconds / kills
    moments = [(number + draw.random()) * piece for number in range(kills)]
    order = [kinds[number % len(kinds)] for number in range(kills)]
    draw.shuffle(order)
    planned = []
    for run in range(runs):
        before = 0.0
        mine: list[Kill] = []
        for number in range(run, kills, runs):
            starting = order[number] == "driver" and bool(mine) and mine[-1].kind == "driver" and draw.random() < 0.2
            wait = draw.uniform(0.0, 6.0) if starting else moments[number] - before
            mine.append(Kill(order[number], wait, alone=draw.random() < 0.5, starting=starting))
            before = before if starting else moments[number]
        planned.append(mine)
    return [mine for mine in planned if mine]
