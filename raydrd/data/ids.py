"""A table of texts, checked: its ids as 64-bit hashes in numpy arrays, some 60 bytes a passage at the most.

Two of n different ids share a hash with probability n^2 / 2^65: two in a million for the 8.8 million passages
of MS MARCO.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raydrd.data.findings import Findings
from raydrd.data.formats import Text

Rows = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Where = Callable[[int], tuple[str, int]]  # row -> file and line


@dataclass(frozen=True)
class Ids:
    """Ids of a table, for finding their rows: hashes in ascending order and the row of each."""

    hashes: Hashes
    rows: Rows

    def find(self, ids: list[str]) -> Rows:
        """Row of each id, -1 where there is none."""
        wanted = np.fromiter(map(fingerprint, ids), np.uint64, len(ids))
        if not len(self.hashes):
            return np.full(len(ids), -1, np.int64)
        at = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        return np.where(self.hashes[at] == wanted, self.rows[at], -1)


def fingerprint(text: str) -> int:
    """64 bits of blake2b."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def joined(row: Text, titles: bool) -> str:
    """The text a model sees: title and text with one space between, or the text alone."""
    return f"{row.title} {row.text}" if titles and row.title.strip() else row.text or ""


def read_texts(
    rows: Iterable[Text], titles: bool, noun: str, findings: Findings, kept: list[tuple[str, str]] | None
) -> tuple[Ids, int, Where]:
    """Check a table of passages or queries (`noun`); collects (id, text) in `kept` if given.

    Returns its ids, its number of words, and where each row stands.
    """
    ids, texts, lines = array("Q"), array("Q"), array("Q")
    starts: list[tuple[int, str]] = []  # first row of each file
    words = 0
    for row in rows:
        if not starts or starts[-1][1] != row.file:
            starts.append((len(ids), row.file))
        text = joined(row, titles)
        words += len(text.split())
        if row.text is not None and not text.strip():
            hidden = noun == "passage" and row.title.strip()
            instead = (
                "it has a title: set data.titles=true" if hidden else f"write its text, or remove the {noun} and its judgements"
            )
            findings.error(f"empty {noun}", row.file, row.line, f"the {noun} {row.id!r} has no text", instead)
        ids.append(fingerprint(row.id))
        texts.append(fingerprint(text) if text.strip() else 0)
        lines.append(row.line)
        if kept is not None:
            kept.append((row.id, text))
    files = np.array([start for start, _ in starts], np.int64)

    def where(row: int) -> tuple[str, int]:
        return starts[int(np.searchsorted(files, row, side="right")) - 1][1], int(lines[row])

    def place(row: int, beside: int) -> str:  # "line 3", with the file where it is another
        (file, line), (other, _) = where(row), where(beside)
        return f"line {line}" if file == other else f"{file}:{line}"

    hashes: Hashes = np.frombuffer(ids, np.uint64) if ids else np.empty(0, np.uint64)
    order = np.argsort(hashes, kind="stable")
    for first, again in repeats(hashes, order):
        what = f"the same {noun} id as {place(first, again)}"
        findings.error("duplicate id", *where(again), what, "give every row an id of its own, or remove one")
    if noun == "passage":
        contents: Hashes = np.frombuffer(texts, np.uint64) if texts else np.empty(0, np.uint64)
        for first, again in repeats(contents, np.argsort(contents, kind="stable")):
            if contents[again]:
                what = f"the same text as {place(first, again)}"
                findings.warning(
                    "duplicate passage",
                    *where(again),
                    what,
                    "a copy of a relevant passage counts as wrong; keep one",
                )
    return Ids(hashes[order], order), words, where


def repeats(values: NDArray[np.generic], order: Rows) -> Iterator[tuple[int, int]]:
    """(first row, later row) of values that occur again; `order` sorts them stably."""
    ordered = values[order]
    equal = np.concatenate(([False], ordered[1:] == ordered[:-1]))
    groups = np.maximum.accumulate(np.where(equal, 0, np.arange(len(order))))
    for at in np.flatnonzero(equal):
        yield int(order[groups[at]]), int(order[at])
