"""Orders that a language model writes: windows over a list, reading an answer, grades. Pure: no files, no clock.

RankGPT (Sun et al., EMNLP 2023, arXiv 2304.09542): a window slides over the list from its back to its front, so that the
best passages of the back come along. Differs in that the last window always begins with the first passage, where theirs
leaves the front as it is if the stride does not lead there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NAMED = re.compile(r"\[(\d{1,6})\]")


@dataclass(frozen=True, eq=False)
class Order:
    """A permutation of 0..N-1, best first, int64 [N], and what had to be mended to get it.

    unread: the answer names no passage, and the old order stays. missing: passages that it leaves out, which follow in
    their old order. repeated, unknown: what it names again, or what is not there, and is passed over.
    """

    places: NDArray[np.int64]
    unread: bool
    missing: int
    repeated: int
    unknown: int


def windows(count: int, *, window: int, stride: int) -> list[tuple[int, int]]:
    """Stretches [lo, hi) of a list of `count` that are put in order one after the other, from the back to the front.

    Every passage is in one; the last begins at 0. None for fewer than two passages.

    Raises:
        ValueError: the stride is not 1 to `window`, so that passages would be stepped over.
    """
    if not 1 <= stride <= window:
        raise ValueError(f"stride={stride}: write 1 to {window}, the window")
    if count < 2:
        return []
    lo = max(0, count - window)
    found = [(lo, count)]
    while lo > 0:
        lo = max(0, lo - stride)
        found.append((lo, lo + window))
    return found


def read_order(answer: str, count: int) -> Order:
    """The order of `count` passages in an answer such as `[2] > [1] > [3]`, whose numbers count from 1.

    Only numbers in brackets count, and each only once: a model that chats about a passage by its bare number has not
    ranked it.
    """
    named = [int(number) - 1 for number in _NAMED.findall(answer)]
    known = [place for place in named if 0 <= place < count]
    first = list(dict.fromkeys(known))
    left = [place for place in range(count) if place not in set(first)]
    return Order(
        np.array([*first, *left], dtype=np.int64), unread=not first, missing=len(left) if first else 0,
        repeated=len(known) - len(first), unknown=len(named) - len(known),
    )  # fmt: skip


def grades(count: int) -> NDArray[np.float32]:
    """Grades of a list's passages in their order, float32 [count]: how many stand below, count - 1 to 0."""
    return np.arange(count - 1, -1, -1, dtype=np.float32)
