"""What each rank last reached, written down while it computes, waits or sleeps; and from that, which one is missing."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any, Self

from raydrd.spine.storage import Folder
from raydrd.training.comm import Alone, Ranks

RANKS = "ranks"  # below the stage's scratch folder: N.json of each rank
FAULT = "fault.json"  # what ended the last attempt, in words


class Note:
    """This rank's note, written by a thread when it has changed: also of a rank that is stuck in the middle of a step."""

    def __init__(self, scratch: Folder, comm: Alone | Ranks) -> None:
        self.folder, self.comm = scratch / RANKS, comm
        self.step, self.say = 0, ""
        self.written: dict[str, Any] = {}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._write_on, daemon=True)

    def _write(self) -> None:
        now = {"step": self.step, "entered": self.comm.entered, "world": self.comm.world, "say": self.say}
        if now != self.written:
            self.folder.write_json(f"{self.comm.rank}.json", {**now, "at": time.time()})
            self.written = now

    def _write_on(self) -> None:
        while not self.ended.wait(1.0 if self.folder.is_local else 5.0):
            try:
                self._write()
            except OSError:  # a store that does not answer for a moment is no reason to stop training
                continue

    def __enter__(self) -> Self:
        self._write()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join(timeout=10)
        with suppress(OSError):
            self._write()  # what was said last, also by a training shorter than the thread's sleep


def read(scratch: Folder) -> dict[int, dict[str, Any]]:
    """Rank -> its last note, of the ranks of the newest attempt."""
    folder = scratch / RANKS
    notes = {int(name.partition(".")[0]): folder.read_json(name) for name in folder.files()}
    if not notes:
        return {}
    world = max(notes.values(), key=lambda note: float(note["at"]))["world"]
    return {rank: note for rank, note in notes.items() if rank < world}


def clear(scratch: Folder) -> None:
    """Forget the notes of an attempt that is over."""
    (scratch / RANKS).delete()


def missing(notes: dict[int, dict[str, Any]]) -> list[int]:
    """The ranks that the others wait for: they have begun the fewest collective operations."""
    fewest = min((note["entered"] for note in notes.values()), default=0)
    return sorted(rank for rank, note in notes.items() if note["entered"] == fewest)


def lost_peer(text: str) -> bool:
    """Whether an error of a rank says no more than that another one is gone."""
    return any(
        sign in text for sign in ("onnection reset", "onnection closed", "onnection refused", "roken pipe", "remote process")
    )


def fault(notes: dict[int, dict[str, Any]], dead: list[int], own: dict[int, str], *, limit: float, now: float) -> str:
    """One line: which rank ended an attempt, and the step that it last reached.

    Args:
        dead: ranks whose process is gone.
        own: rank -> what it raised, if that is more than that another one was lost.
        limit: seconds that ranks wait for one another.
        now: when the attempt ended, in seconds since the epoch.
    """
    if not notes:
        return f"the workers could not begin: {'; '.join(own.values()) or 'a process ended'}"
    world = next(iter(notes.values()))["world"]
    # NCCL ends the processes that wait, not the one that they wait for: notes that are all old tell the two apart.
    if world > 1 and now - max(note["at"] for note in notes.values()) >= limit / 2:
        late = missing(notes)
        return f"{_ranks(late, world)} stopped answering at step {_step(notes, late)}; the others waited {limit:g} s"
    if own:
        rank, said = next(iter(own.items()))
        return f"{_ranks([rank], world)} failed at step {_step(notes, [rank])}: {said}"
    return f"{_ranks(dead, world)} ended at step {_step(notes, dead)}: killed, out of memory, or its node is gone"


def _ranks(ranks: list[int], world: int) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} of {world}"


def _step(notes: dict[int, dict[str, Any]], ranks: list[int]) -> int:
    return min((notes[rank]["step"] for rank in ranks if rank in notes), default=0)
