"""A stage that makes no progress says what it waits for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Self

from raydrd.spine.progress import remark
from raydrd.spine.storage import Folder

LATER = 5  # so many times the first wait between further lines
SEATS = "seats"  # where actors of a pool mark that they have begun, and that they are ready


class Waiting:
    """Beside work that should move: when nothing has for `seconds`, a line with `why`, and again every five times as long.

    `why` is asked in a thread of its own, only then; what it cannot find out is said too, and ends nothing.
    """

    def __init__(self, label: str, seconds: float, why: Callable[[], str], what: str = "finished") -> None:
        self.label, self.seconds, self.why, self.what = label, seconds, why, what
        self.last = self.said = time.monotonic()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def moved(self) -> None:
        self.last = self.said = time.monotonic()

    def _look(self) -> None:
        while not self.ended.wait(min(1.0, self.seconds / 4)):
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Say the line if it is due."""
        last, said = self.last, self.said
        if now - said < self.seconds * (LATER if said > last else 1):
            return
        try:
            why = self.why()
        except Exception as error:
            why = f"what it waits for cannot be found out ({type(error).__name__}: {error})"
        if self.last == last and not self.ended.is_set():  # it has not moved meanwhile
            self.said = now
            remark(f"  {self.label}: nothing {self.what} for {now - last:.0f} s; {why}")

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join(timeout=10)


def pool_line(marks: Folder, done: set[str], size: int, each: str, room: str) -> str:
    """What a pool of `size` actors waits for, by the marks that they leave: actors, models, or shards under way.

    Args:
        marks: `seats/NAME.begun` and `.ready` of each actor, `SHARD.N` of each attempt at a shard.
        done: names of finished shards.
        each: what an actor needs, in words.
        room: what the cluster has, in words.
    """
    names = list(marks.files())
    begun, ready = (sum(n.startswith(f"{SEATS}/") and n.endswith(end) for n in names) for end in (".begun", ".ready"))
    tried = {n.rpartition(".")[0] for n in names if not n.startswith(f"{SEATS}/")}
    under_way = sorted(tried - done)
    if begun == 0:
        return f"waiting for {size} actor{'s' if size > 1 else ''} of {each} each, 0 of {size} started ({room})"
    if ready == 0:
        return f"{begun} of {size} actors started, none has loaded its model yet ({room})"
    if under_way:
        more = f" and {len(under_way) - 3} more" if len(under_way) > 3 else ""
        return f"{min(ready, size)} of {size} actors ready, at work on {', '.join(under_way[:3])}{more} ({room})"
    return f"{min(ready, size)} of {size} actors ready, no shard has reached them ({room})"
