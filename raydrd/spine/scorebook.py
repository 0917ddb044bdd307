"""The score book: what a teacher once said of a pair of texts, kept by content and shared by all runs of a store.

    ROOT/scores/TEACHER/about.json      the teacher in words
    ROOT/scores/TEACHER/NAME.parquet    query, left, right (digests of 16 bytes; right is null for a single passage), score

TEACHER is a digest of all that decides a score: weights, tokenizer, prompt, lengths, precision. A text is named by the
digest of its token ids, which is what the teacher reads. Files are only ever added (names are unique, a retry writes the
same file again), each sorted by key with one row group a bucket, so that 1/64 of a book is read without the rest. Two
runs may write at once; a pair that both asked for stands there twice, and the file whose name comes first counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raydrd.spine.storage import Folder

BUCKETS = 64  # by the first six bits of the query's digest
PAIRS_PER_FILE = 4_000_000  # of a compacted book: some 150 MB
DIGEST = pa.binary(16)
KEY = ["query", "left", "right"]
ENTRIES = pa.schema([("query", DIGEST), ("left", DIGEST), ("right", DIGEST), ("score", pa.float32())])
NO_PASSAGE = bytes(16)


def text_digest(ids: NDArray[np.int32]) -> bytes:
    """16 bytes that name a text as a tokenizer reads it."""
    return hashlib.blake2b(np.ascontiguousarray(ids, dtype="<i4").tobytes(), digest_size=16).digest()


def digests(texts: Iterable[NDArray[np.int32]]) -> pa.Array:
    """Digests of token ids, in their order."""
    joined = b"".join(text_digest(ids) for ids in texts)
    return pa.FixedSizeBinaryArray.from_buffers(DIGEST, len(joined) // 16, [None, pa.py_buffer(joined)])


def teacher_name(about: dict[str, Any]) -> str:
    """The digest of what decides a teacher's scores."""
    return hashlib.sha256(json.dumps(about, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def buckets_of(queries: pa.Array) -> NDArray[np.int64]:
    """The bucket of each query digest."""
    queries = queries.combine_chunks() if isinstance(queries, pa.ChunkedArray) else queries
    raw = np.frombuffer(queries.buffers()[1], dtype=np.uint8).reshape(-1, 16)
    return (raw[queries.offset : queries.offset + len(queries), 0] >> 2).astype(np.int64)


def keys_of(found: pa.Table) -> NDArray[np.uint64]:
    """The keys of entries as numbers, [N, 6]: two for each of query, left and right."""
    return np.concatenate([_numbers(found[name]) for name in KEY], axis=1)


def _numbers(column: pa.ChunkedArray) -> NDArray[np.uint64]:
    array = column.combine_chunks()
    raw = np.frombuffer(array.buffers()[1], dtype="<u8").reshape(-1, 2) if len(array) else np.zeros((0, 2), "<u8")
    return raw[array.offset : array.offset + len(array)]


def entries(query: pa.Array, left: pa.Array, right: pa.Array | None, score: NDArray[np.float32]) -> pa.Table:
    """Scores under their keys, as a book keeps them."""
    if right is None:
        right = pa.FixedSizeBinaryArray.from_buffers(DIGEST, len(left), [None, pa.py_buffer(NO_PASSAGE * len(left))])
    return pa.table([query, left, right, pa.array(score, pa.float32())], schema=ENTRIES)


@dataclass(frozen=True)
class Book:
    """One teacher's scores. A value: it pickles to workers."""

    folder: Folder

    @staticmethod
    def of(root: Folder, about: dict[str, Any]) -> Book:
        """The book of the teacher that `about` describes, in the store at `root`; begun if there is none."""
        book = Book(root / "scores" / teacher_name(about))
        book.folder.create("about.json", (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())
        return book

    @property
    def name(self) -> str:
        return self.folder.uri.partition("?")[0].rpartition("/")[2]

    def about(self) -> dict[str, Any]:
        return dict(self.folder.read_json("about.json"))

    def files(self) -> dict[str, int]:
        """Names of the files that hold scores, with their bytes."""
        return {name: size for name, size in self.folder.files().items() if name.endswith(".parquet")}

    def add(self, name: str, found: pa.Table) -> None:
        """Write `found` (like `ENTRIES`) as the file `name`, whole or not at all."""
        if len(found):
            with (
                self.folder.writing(f"{name}.parquet") as stream,
                pq.ParquetWriter(stream, ENTRIES, compression="zstd") as file,
            ):
                for bucket in _by_bucket(found):
                    file.write_table(bucket, row_group_size=max(1, len(bucket)))

    def each(self, lo: int = 0, hi: int = BUCKETS) -> Iterator[pa.Table]:
        """Entries of the buckets lo..hi-1, a table a file, in the order of names.

        What a compaction takes away meanwhile is in its new files: these are read in the end, so a pair may come twice.
        """
        seen: set[str] = set()
        while names := [name for name in self.files() if name not in seen]:
            for name in names:
                seen.add(name)
                with suppress(FileNotFoundError):
                    yield from self._groups(name, lo, hi)

    def read(self, lo: int = 0, hi: int = BUCKETS) -> pa.Table:
        """Entries of the buckets lo..hi-1 as one table."""
        return pa.concat_tables([ENTRIES.empty_table(), *self.each(lo, hi)])

    def together(self, lo: int, hi: int, rows: int) -> Iterator[pa.Table]:
        """As `each`, with small files together until there are so many rows."""
        held: list[pa.Table] = []
        for one in self.each(lo, hi):
            held.append(one)
            if sum(map(len, held)) >= rows:
                yield pa.concat_tables(held)
                held = []
        if held:
            yield pa.concat_tables(held)

    def _groups(self, name: str, lo: int, hi: int) -> Iterator[pa.Table]:
        with self.folder.reading(name) as stream:
            file = pq.ParquetFile(stream)
            wanted = []
            for number in range(file.num_row_groups):
                statistics = file.metadata.row_group(number).column(0).statistics
                first, last = (int(end[0]) >> 2 for end in (statistics.min, statistics.max))
                if last >= lo and first < hi:
                    wanted.append(number)
            if wanted:
                yield file.read_row_groups(wanted)

    def rows(self) -> int:
        """Entries in all files, from their footers."""
        total = 0
        for name in self.files():
            with self.folder.reading(name) as stream:
                total += int(pq.read_metadata(stream).num_rows)
        return total

    def compact(self) -> tuple[int, int]:
        """Many files as few, pairs that stand there twice once; how many files there were and are.

        New files are complete before old ones go; what is added meanwhile stays as it is.
        """
        old = self.files()
        if len(old) < 2:
            return len(old), len(old)
        steps = min(BUCKETS, max(1, -(-self.rows() // PAIRS_PER_FILE)))
        cuts = [BUCKETS * n // steps for n in range(steps + 1)]
        # Before any other name, so that what was there first still counts first.
        made = [f"000-{uuid4().hex[:12]}-{n:02d}" for n in range(steps)]
        for name, lo, hi in zip(made, cuts, cuts[1:], strict=False):
            tables = [table for file in old for table in self._groups(file, lo, hi)]
            self.add(name, once(pa.concat_tables(tables)) if tables else ENTRIES.empty_table())
        for name in old:
            self.folder.delete_file(name)
        return len(old), len(self.files())


def once(found: pa.Table) -> pa.Table:
    """Entries without repeated keys: the first of each stays."""
    numbered = found.select(KEY).append_column("place", pa.array(np.arange(len(found))))
    first = numbered.group_by(KEY, use_threads=False).aggregate([("place", "min")])["place_min"]
    return found.take(pa.array(np.sort(first.to_numpy())))


def _by_bucket(found: pa.Table) -> Iterator[pa.Table]:
    """Sorted by key, a table for each bucket that has entries."""
    ordered = found.combine_chunks().sort_by([(name, "ascending") for name in KEY])
    buckets = buckets_of(ordered["query"])
    cuts = [0, *(np.flatnonzero(np.diff(buckets)) + 1).tolist(), len(ordered)]
    for lo, hi in zip(cuts, cuts[1:], strict=False):
        yield ordered.slice(lo, hi - lo)
