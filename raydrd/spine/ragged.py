"""Token vectors in parts: one row a text, as many vectors as it has tokens; values and offsets, straight from mapped files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.spine.parts import Chain, Part, Parts

COLUMN = "tokens"


def ragged_schema(width: int, dtype: str) -> pa.Schema:
    """One row a text: a list of vectors of `width` float16 or float32 numbers."""
    value = {"float16": pa.float16(), "float32": pa.float32()}[dtype]
    return pa.schema([(COLUMN, pa.list_(pa.field("item", pa.list_(value, width), nullable=False)))])


def ragged_table(values_TD: NDArray[np.floating], lengths: NDArray[np.int64]) -> pa.Table:
    """Texts of so many tokens each; their vectors follow one another."""
    schema = ragged_schema(values_TD.shape[1], values_TD.dtype.name)
    kind = schema.field(0).type
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values_TD).ravel()), type=kind.value_type)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.table([pa.ListArray.from_arrays(offsets, vectors, type=kind)], schema=schema)


def arrays(table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
    """Offsets [texts + 1] and vectors [tokens, D] of a table; the vectors are a view of the file where it is one batch."""
    column = table[COLUMN]
    lists = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
    offsets = lists.offsets.to_numpy().astype(np.int64)
    vectors = lists.values
    values: NDArray[np.floating] = vectors.flatten().to_numpy().reshape(-1, vectors.type.list_size)
    # `flatten` of a slice begins at its first list, offsets do not.
    return offsets - offsets[0], values if len(values) == offsets[-1] - offsets[0] else values[offsets[0] : offsets[-1]]


class RaggedReader:
    """Token vectors by row, from memory-mapped parts; nothing is copied until a text is asked for."""

    def __init__(self, parts: Parts | Chain) -> None:
        self.parts = parts
        self._open: dict[int, tuple[NDArray[np.int64], NDArray[np.floating]]] = {}
        self.width = int(self.part(0)[1].shape[1])

    def part(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
        """Offsets and vectors of one part."""
        if number not in self._open:
            self._open[number] = arrays(self.parts.read(self.parts.parts[number]))
        return self._open[number]

    def lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Vectors of each text."""
        result = np.empty(len(rows), dtype=np.int64)
        numbers = self.parts.locate(rows)
        for number in np.unique(numbers):
            offsets, _ = self.part(int(number))
            here = numbers == number
            local = rows[here] - self.parts.parts[number].lo
            result[here] = offsets[local + 1] - offsets[local]
        return result

    def take(self, rows: NDArray[np.int64]) -> list[NDArray[np.floating]]:
        """Views [tokens, D] of these rows, in their order, in the type they were stored in."""
        numbers = self.parts.locate(rows)
        result = []
        for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
            offsets, values = self.part(number)
            local = row - self.parts.parts[number].lo
            result.append(values[offsets[local] : offsets[local + 1]])
        return result

    def padded(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32 [rows, longest, D]: zeros at the end of short texts."""
        return rectangle(self.take(rows), self.width)


@dataclass(frozen=True)
class FlatTokens:
    """Token vectors of a table as rows of their own, one after the other: read like `Parts` with a vector a row."""

    texts: Parts
    parts: tuple[Part, ...]

    @staticmethod
    def of(texts: Parts, counts: list[int]) -> FlatTokens:
        """counts: tokens of each part."""
        ends = np.cumsum(counts).tolist()
        return FlatTokens(texts, tuple(Part(p.name, hi - n, hi) for p, n, hi in zip(texts.parts, counts, ends, strict=True)))

    @property
    def rows(self) -> int:
        return self.parts[-1].hi if self.parts else 0

    def read(self, part: Part) -> pa.Table:
        """The vectors of one part, as the column that `matrix` reads."""
        column = self.texts.read(next(one for one in self.texts.parts if one.name == part.name))[COLUMN]
        lists = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
        return pa.table([lists.values], names=["vector"])


def rectangle(texts: list[NDArray[np.floating]], width: int) -> NDArray[np.float32]:
    """Texts [tokens, width] as float32 [texts, longest, width]: zeros at the end of short ones."""
    result = np.zeros((len(texts), max(map(len, texts), default=0), width), dtype=np.float32)
    for row, one in zip(result, texts, strict=True):
        row[: len(one)] = one
    return result
