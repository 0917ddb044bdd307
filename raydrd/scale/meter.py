"""Memory of this process and of every process below it, sampled from /proc while work goes on; what was asked of Ray's store.

Anonymous memory (heaps) is what a machine must have. Pages of mapped files (tokens, vectors, libraries) are told apart: they
are shared, and the system takes them back when it needs room. So is shared memory, which is Ray's object store.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

SECONDS = 0.5
WORKER = "ray::"
IDLE = "ray::IDLE"
_KINDS = {"RssAnon:": "anonymous", "RssFile:": "mapped", "RssShmem:": "shared"}

ObjectStore = Callable[[], dict[str, int]]  # bytes `used` now and bytes `spilled` since the start


@dataclass
class Peak:
    """The most bytes of each kind that a process was seen to have."""

    title: str
    anonymous: int = 0
    mapped: int = 0
    shared: int = 0

    def see(self, now: Peak) -> None:
        self.title = now.title
        self.anonymous = max(self.anonymous, now.anonymous)
        self.mapped = max(self.mapped, now.mapped)
        self.shared = max(self.shared, now.shared)


def resident(pid: int) -> Peak | None:
    """What a process has in memory now; None when it is gone, or has no memory of its own any more."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    found = {
        _KINDS[words[0]]: int(words[1]) * 1024 for line in status.splitlines() if (words := line.split()) and words[0] in _KINDS
    }
    return Peak(title, **found) if found else None


def below(pid: int) -> list[int]:
    """Every process that descends from this one."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            # The name in brackets may hold anything; the parent is the second word after it.
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    found, open_ = [], [pid]
    while open_:
        open_ += (new := children.get(open_.pop(), []))
        found += new
    return found


@dataclass
class Phase:
    """One piece of work: peaks of the driver and, by process id, of what it started."""

    name: str
    began: float
    earlier: frozenset[int]  # workers of what went before, that have not ended yet
    driver: Peak = field(default_factory=lambda: Peak("driver"))
    others: dict[int, Peak] = field(default_factory=dict)
    stored: int = 0  # most bytes in Ray's object store
    spilled: tuple[int, int] = (0, 0)  # bytes since Ray's start, when this began and when it ended

    def workers(self) -> dict[int, Peak]:
        return {pid: peak for pid, peak in self.others.items() if peak.title.startswith(WORKER)}


class Meter:
    """Samples in a thread of its own from `with` to its end; `begin` names what is going on."""

    def __init__(self, object_store: ObjectStore, seconds: float = SECONDS) -> None:
        self.object_store, self.seconds = object_store, seconds
        self.phases: list[Phase] = [Phase("start", time.monotonic(), frozenset())]
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def begin(self, name: str) -> Phase:
        """A new phase; the one before lasts until here."""
        self.sample()
        busy = [pid for pid in below(os.getpid()) if _is_busy(resident(pid))]
        phase = Phase(name, time.monotonic(), frozenset(busy))
        with self.lock:
            spilled = self.phases[-1].spilled[1]
            phase.spilled = (spilled, spilled)
            self.phases.append(phase)
        self.sample()
        return phase

    def sample(self) -> None:
        """Look at all processes once."""
        with self.lock:
            phase = self.phases[-1]
            if (own := resident(os.getpid())) is not None:
                own.title = "driver"
                phase.driver.see(own)
            for pid in below(os.getpid()):
                now = resident(pid)
                if now is None or now.title.startswith(IDLE) or pid in phase.earlier:
                    continue
                phase.others.setdefault(pid, Peak(now.title)).see(now)
            store = self.object_store()
            phase.stored = max(phase.stored, store.get("used", 0))
            phase.spilled = (phase.spilled[0], max(phase.spilled[1], store.get("spilled", 0)))

    def _watch(self) -> None:
        while not self.ended.wait(self.seconds):
            self.sample()

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join(timeout=10)


def _is_busy(now: Peak | None) -> bool:
    return now is not None and now.title.startswith(WORKER) and not now.title.startswith(IDLE)
