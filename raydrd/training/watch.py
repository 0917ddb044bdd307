"""What a person sees of a training under way: the bar, what went wrong with an attempt, what is waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Self

from raydrd.errors import StageError
from raydrd.spine.progress import Shown, remark
from raydrd.spine.storage import Folder
from raydrd.spine.waiting import Waiting
from raydrd.training import notes


class Watch:
    """Moves the bar by what rank 0 writes and passes on what the ranks note, while training blocks the driver.

    `room` says what the cluster has, in words; `workers` what training asks of it.
    """

    def __init__(
        self, label: str, scratch: Folder, shown: Shown, *, seconds: float, workers: str, room: Callable[[], str]
    ) -> None:
        self.label, self.scratch, self.shown, self.workers, self.room = label, scratch, shown, workers, room
        self.said: set[str] = set()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.waiting = Waiting(label, seconds, self.why, what="learnt")

    def why(self) -> str:
        """What a training that does not move waits for."""
        found = notes.read(self.scratch)
        if not found:
            return f"waiting for {self.workers}, none has begun ({self.room()})"
        world = next(iter(found.values()))["world"]
        if len(found) < world:
            late = [rank for rank in range(world) if rank not in found]
            return f"{len(found)} of {world} ranks have begun; waiting for rank {', '.join(map(str, late))} ({self.room()})"
        late = notes.missing(found)
        step, since = found[late[0]]["step"], time.time() - max(found[rank]["at"] for rank in late)
        return f"rank {', '.join(map(str, late))} of {world} is at step {step} since {max(0.0, since):.0f} s"

    def _look(self) -> None:
        while not self.ended.wait(1.0 if self.scratch.is_local else 5.0):
            self._step()

    def _step(self) -> None:
        try:
            if self.scratch.exists("progress.json"):
                found = self.scratch.read_json("progress.json")
                self.shown.set_postfix(loss=f"{found['loss']:.4f}")
                if found["step"] != self.shown.n:
                    self.waiting.moved()
                self.shown.update(found["step"] - self.shown.n)
            if self.scratch.exists(notes.FAULT):
                found = self.scratch.read_json(notes.FAULT)
                self._say(f"{found['text']}; it goes on from its last checkpoint", key=str(found["at"]))
            for note in notes.read(self.scratch).values():
                if note["say"]:
                    self._say(note["say"])
        except (OSError, ValueError, StageError):  # a file that is just being replaced or removed, a store that stutters
            return

    def _say(self, line: str, key: str = "") -> None:
        if (key or line) not in self.said:
            self.said.add(key or line)
            remark(f"  {self.label}: {line}")

    def __enter__(self) -> Self:
        self.waiting.__enter__()
        self.thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.ended.set()
        self.thread.join(timeout=10)
        self.waiting.__exit__(*error)
        if not any(error):
            self._step()  # what a short training noted at its end
