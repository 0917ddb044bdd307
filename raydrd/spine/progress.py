"""What a person sees while waiting: one line a stage, one bar with rate and ETA for what takes long."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from tqdm import tqdm

LINE_SECONDS = 30.0  # between lines of progress where there is no terminal to draw a bar on


class Shown(Protocol):
    """What moves: a bar, or now and then a line."""

    n: float

    def update(self, n: float = 1) -> Any: ...

    def set_postfix(self, **values: Any) -> None: ...


def say(line: str) -> None:
    """One line on standard output, at once, never through the middle of a bar."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def remark(line: str) -> None:
    """One line on standard error, at once, never through the middle of a bar: what goes wrong, or is waited for."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


_notes: list[str] = []  # of this process


def note(line: str) -> None:
    """Something that a worker wants a person to know; it travels with the result of its shard."""
    _notes.append(line)


def noted() -> list[str]:
    """What was noted since this was last asked."""
    found = _notes[:]
    _notes.clear()
    return found


def per_second(rate: float) -> str:
    """`1,234/s`, `3.4/s`, `0.8/min`."""
    if 0 < rate < 0.05:
        return f"{60 * rate:.1f}/min"
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"


@contextmanager
def bar(label: str, total: int, unit: str) -> Iterator[Shown]:
    """A progress bar with rate and ETA on a terminal's standard error; elsewhere (jobs, pipes) a line every half minute."""
    if not sys.stderr.isatty():
        yield Lines(label, total, unit)
        return
    with tqdm(total=total, desc=label, unit=f" {unit}", unit_scale=True, leave=False, dynamic_ncols=True, delay=0.5) as shown:
        yield shown


class Lines:
    """Progress as plain lines, for logs."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit, self.n, self.extra = label, total, unit, 0.0, ""
        self.said = time.monotonic()
        self.first: tuple[float, float] | None = None  # when work was first seen to move, and how far it was

    def update(self, n: float = 1) -> None:
        self.n += n
        now = time.monotonic()
        if self.first is None and self.n > 0:
            self.first = (now, self.n)  # the rate leaves out the start of processes
        if now - self.said < LINE_SECONDS or self.first is None or self.n <= self.first[1]:
            return
        self.said = now
        rate = (self.n - self.first[1]) / (now - self.first[0])
        left = (self.total - self.n) / rate
        print(
            f"  {self.label}: {self.n:,.0f} of {self.total:,} {self.unit}, {per_second(rate)}, {left:,.0f} s left{self.extra}",
            file=sys.stderr,
            flush=True,
        )

    def set_postfix(self, **values: Any) -> None:
        self.extra = "".join(f", {name} {value}" for name, value in values.items())
