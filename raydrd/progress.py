"""What a person sees while waiting: one line a stage, one bar with rate and ETA for what takes long."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


def say(line: str) -> None:
    """One line on standard output, at once, never through the middle of a bar."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


@contextmanager
def bar(label: str, total: int, unit: str, done: int = 0) -> Iterator[tqdm[None]]:
    """A progress bar with rate and ETA on standard error; where that is no terminal, a line every 30 seconds."""
    live = sys.stderr.isatty()
    with tqdm(
        total=total,
        initial=done,
        desc=label,
        unit=f" {unit}",
        unit_scale=True,
        leave=False,
        file=sys.stderr,
        dynamic_ncols=live,
        ncols=None if live else 100,
        mininterval=0.2 if live else 30.0,
        delay=0.5 if live else 20.0,
    ) as shown:
        yield shown
