"""Tables in parts: file names carry the rows they hold, so any row is found without opening the others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.spine.storage import Folder

_NAME = re.compile(r"(?:^|/)part-(\d+)-(\d+)\.(?:parquet|arrow)$")


def part_name(lo: int, hi: int, ending: str) -> str:
    """`part-000000000000-000000008192.arrow` for rows lo..hi-1."""
    return f"part-{lo:012d}-{hi:012d}.{ending}"


def ranges(rows: int, size: int) -> list[tuple[int, int]]:
    """Row ranges of at most `size` that cover `rows`."""
    return [(lo, min(lo + size, rows)) for lo in range(0, rows, size)]


def found_ranges(names: list[str]) -> list[tuple[int, int]]:
    """Row ranges that these file names hold, in order."""
    return sorted((int(match[1]), int(match[2])) for name in names if (match := _NAME.search(name)))


@dataclass(frozen=True)
class Part:
    """Rows lo..hi-1 of a table, in one file."""

    name: str
    lo: int
    hi: int


@dataclass(frozen=True)
class Parts:
    """A table in parts below one folder. A value: it pickles to workers, which read only what they need."""

    folder: Folder
    parts: tuple[Part, ...]

    @staticmethod
    def of(folder: Folder, files: list[str]) -> Parts:
        """The parts among `files`, in row order.

        Raises:
            ValueError: rows are missing or there twice.
        """
        found = []
        for name in files:
            match = _NAME.search(name)
            if match:
                found.append(Part(name, int(match[1]), int(match[2])))
        # Two runs that cut the rows differently may have written at once: of what overlaps, the first that fits counts.
        found.sort(key=lambda part: (part.lo, -part.hi))
        chosen: list[Part] = []
        for part in found:
            at = chosen[-1].hi if chosen else 0
            if part.lo == at and (part.hi > at or not chosen):
                chosen.append(part)
        if found and (not chosen or chosen[-1].hi < max(part.hi for part in found)):
            raise ValueError(f"{folder}: parts do not follow one another: {[(p.lo, p.hi) for p in found]}")
        return Parts(folder, tuple(chosen))

    @property
    def rows(self) -> int:
        return self.parts[-1].hi if self.parts else 0

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.array([part.lo for part in self.parts], dtype=np.int64)

    def read(self, part: Part, columns: list[str] | None = None) -> pa.Table:
        """One part; Arrow files are memory-mapped."""
        if part.name.endswith(".arrow"):
            return self.folder.map_arrow(part.name)
        return self.folder.read_table(part.name, columns)

    def slice(self, lo: int, hi: int, columns: list[str] | None = None) -> pa.Table:
        """Rows lo..hi-1, reading only the parts that hold them."""
        tables = [
            self.read(part, columns).slice(max(0, lo - part.lo), min(hi, part.hi) - max(lo, part.lo))
            for part in self.parts
            if part.lo < hi and part.hi > lo
        ]
        if not tables and lo == hi and self.parts:
            return self.read(self.parts[0], columns).slice(0, 0)
        if not tables:
            raise ValueError(f"{self.folder}: rows {lo}..{hi} are outside the {self.rows} there are")
        return pa.concat_tables(tables)

    def take(self, rows: NDArray[np.int64], columns: list[str] | None = None) -> pa.Table:
        """These rows (ascending), reading only the parts that hold one of them."""
        numbers = self.locate(rows)
        pieces = [self.read(self.parts[n], columns).take(rows[numbers == n] - self.parts[n].lo) for n in np.unique(numbers)]
        return pa.concat_tables(pieces) if pieces else self.slice(0, 0, columns)

    def each(self, columns: list[str] | None = None) -> Iterator[tuple[Part, pa.Table]]:
        for part in self.parts:
            yield part, self.read(part, columns)

    def locate(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each row, the number of the part that holds it.

        Raises:
            IndexError: a row outside the table.
        """
        if len(rows) and (rows.min() < 0 or rows.max() >= self.rows):
            raise IndexError(f"{self.folder}: row {int(rows.max())} is outside the {self.rows} there are")
        return np.searchsorted(self._starts, rows, side="right") - 1


@dataclass(frozen=True)
class Chain:
    """Several tables as one: the rows of each follow those of the one before. Read like `Parts`."""

    tables: tuple[Parts, ...]

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        return tuple(part for part, _, _ in self._owners)

    @cached_property
    def _owners(self) -> list[tuple[Part, Parts, Part]]:
        found, at = [], 0
        for table in self.tables:
            found += [(Part(p.name, p.lo + at, p.hi + at), table, p) for p in table.parts]
            at += table.rows
        return found

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.array([part.lo for part in self.parts], dtype=np.int64)

    def read(self, part: Part, columns: list[str] | None = None) -> pa.Table:
        owner, own = next((owner, own) for shifted, owner, own in self._owners if shifted == part)
        return owner.read(own, columns)

    def locate(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each row, the number of the part that holds it.

        Raises:
            IndexError: a row outside the tables.
        """
        if len(rows) and (rows.min() < 0 or rows.max() >= self.rows):
            raise IndexError(f"row {int(rows.max())} is outside the {self.rows} there are")
        return np.searchsorted(self._starts, rows, side="right") - 1


class TokenReader:
    """Token ids by row, straight from memory-mapped parts; nothing is copied until a text is asked for."""

    def __init__(self, parts: Parts | Chain) -> None:
        self.parts = parts
        self._open: dict[int, tuple[NDArray[np.int32], NDArray[np.int32]]] = {}

    def _arrays(self, number: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        if number not in self._open:
            column = self.parts.read(self.parts.parts[number])["ids"]
            lists = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
            # Views of the file: a copy of the offsets would be heap that grows with the corpus.
            self._open[number] = (lists.offsets.to_numpy(), lists.values.to_numpy())
        return self._open[number]

    def lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each text, without special ones."""
        result = np.empty(len(rows), dtype=np.int64)
        numbers = self.parts.locate(rows)
        for number in np.unique(numbers):
            offsets, _ = self._arrays(int(number))
            here = numbers == number
            local = rows[here] - self.parts.parts[number].lo
            result[here] = offsets[local + 1] - offsets[local]
        return result

    def take(self, rows: NDArray[np.int64]) -> list[NDArray[np.int32]]:
        """Views of the ids of these rows, in their order."""
        numbers = self.parts.locate(rows)
        result = []
        for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
            offsets, values = self._arrays(number)
            local = row - self.parts.parts[number].lo
            result.append(values[offsets[local] : offsets[local + 1]])
        return result


def matrix(table: pa.Table) -> NDArray[np.floating]:
    """The vectors of a table as [rows, D] in the type they were stored in; a view of the file where it is one batch."""
    column = table["vector"]
    # combine_chunks copies, also a single chunk.
    whole = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
    values: NDArray[np.floating] = whole.flatten().to_numpy()
    return values.reshape(len(whole), -1)


class VectorReader:
    """Vectors by row, from memory-mapped parts; float32 [rows, D] out, whatever they were stored in."""

    def __init__(self, parts: Parts | Chain) -> None:
        self.parts = parts
        self._open: dict[int, NDArray[np.floating]] = {}

    def part(self, number: int) -> NDArray[np.floating]:
        """The stored matrix of one part, a view of the file."""
        if number not in self._open:
            self._open[number] = matrix(self.parts.read(self.parts.parts[number]))
        return self._open[number]

    def slice(self, lo: int, hi: int) -> NDArray[np.float32]:
        blocks = [
            self.part(n)[max(0, lo - p.lo) : hi - p.lo] for n, p in enumerate(self.parts.parts) if p.lo < hi and p.hi > lo
        ]
        return np.concatenate(blocks).astype(np.float32)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        numbers = self.parts.locate(rows)
        result: NDArray[np.float32] | None = None
        for number in np.unique(numbers):
            here = numbers == number
            block = self.part(int(number))[rows[here] - self.parts.parts[number].lo]
            if result is None:
                result = np.empty((len(rows), block.shape[1]), dtype=np.float32)
            result[here] = block
        return result if result is not None else np.empty((0, 0), dtype=np.float32)
