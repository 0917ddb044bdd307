"""The score book: scores by content, in files that are only added, read bucket by bucket."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raydrd.spine import scorebook
from raydrd.spine.scorebook import BUCKETS, Book, buckets_of, digests, entries, once, teacher_name, text_digest
from raydrd.spine.storage import Folder


def drawn(count: int, *, seed: int, queries: int = 40, passages: int = 500) -> pa.Table:
    """Scores of pairs of invented texts: the same texts for every seed."""
    rng = np.random.default_rng(seed)
    q = digests(np.array([7, n], np.int32) for n in range(queries))
    p = digests(np.array([9, n], np.int32) for n in range(passages))
    ours = rng.permutation(queries * passages)[:count]
    scores = rng.normal(size=count).astype(np.float32)
    return entries(q.take(pa.array(ours // passages)), p.take(pa.array(ours % passages)), None, scores)


def as_dict(found: pa.Table) -> dict[tuple[bytes, bytes, bytes], float]:
    """The first score of each key."""
    result: dict[tuple[bytes, bytes, bytes], float] = {}
    for query, left, right, score in zip(*(column.to_pylist() for column in found.columns), strict=True):
        result.setdefault((query, left, right), score)
    return result


def test_a_text_is_named_by_what_the_teacher_reads() -> None:
    ids = np.array([1, 2, 3], np.int32)
    assert text_digest(ids) == text_digest(ids.astype(np.int64)) and len(text_digest(ids)) == 16
    assert len({text_digest(np.array(x, np.int32)) for x in ([1, 2, 3], [1, 2], [3, 2, 1], [], [0])}) == 5
    assert digests([ids, ids[:2]]).to_pylist() == [text_digest(ids), text_digest(ids[:2])]
    assert len(digests([])) == 0
    assert teacher_name({"weights": "a", "max_length": 64}) == teacher_name({"max_length": 64, "weights": "a"})
    assert teacher_name({"weights": "a", "max_length": 64}) != teacher_name({"weights": "a", "max_length": 65})


def test_what_is_added_is_read_by_bucket_and_whole(tmp_path: Path) -> None:
    book = Book.of(Folder.of(tmp_path), {"weights": "x"})
    assert len(book.read()) == 0 and book.rows() == 0 and book.files() == {}
    first, second = drawn(3000, seed=0), drawn(2000, seed=1)
    book.add("b", first)
    book.add("a", second)
    book.add("none", first.slice(0, 0))
    assert list(book.files()) == ["a.parquet", "b.parquet"] and book.rows() == 5000
    # A pair that stands there twice: the file whose name comes first counts.
    assert as_dict(book.read()) == {**as_dict(first), **as_dict(second)}
    by_bucket = [book.read(n, n + 1) for n in range(BUCKETS)]
    assert sum(map(len, by_bucket)) == 5000 and sum(len(one) > 0 for one in by_bucket) > 15
    for number, one in enumerate(by_bucket):
        assert set(buckets_of(one["query"])) <= {number}
    whole = as_dict(book.read())
    assert as_dict(book.read(10, 30)) == {key: score for key, score in whole.items() if 10 <= key[0][0] >> 2 < 30}
    book.add("b", first)  # a retry writes the same file again
    assert book.rows() == 5000
    assert Book.of(Folder.of(tmp_path), {"weights": "x"}) == book and book.about() == {"weights": "x"}
    assert Book.of(Folder.of(tmp_path), {"weights": "y"}).rows() == 0


def test_one_bucket_is_read_without_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Book.of(Folder.of(tmp_path), {})
    book.add("a", drawn(20_000, seed=0, queries=5000, passages=100))
    read: list[int] = []
    plain = scorebook.pq.ParquetFile.read_row_groups

    def counting(self: object, groups: list[int]) -> pa.Table:
        read.extend(groups)
        return plain(self, groups)

    monkeypatch.setattr(scorebook.pq.ParquetFile, "read_row_groups", counting)
    assert len(book.read(5, 6)) > 100 and len(read) == 1


@pytest.mark.parametrize("pairs_per_file", [10**6, 1000])
def test_compaction_keeps_every_score_and_drops_repetitions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs_per_file: int
) -> None:
    monkeypatch.setattr(scorebook, "PAIRS_PER_FILE", pairs_per_file)
    book = Book.of(Folder.of(tmp_path), {})
    for seed in range(6):
        book.add(f"run{seed}", drawn(1000, seed=seed))
    before = as_dict(book.read())
    was, now = book.compact()
    assert was == 6 and now == len(book.files()) == (1 if pairs_per_file > 6000 else 6)
    assert as_dict(book.read()) == before and book.rows() == len(before) < 6000
    # What was there first still counts first after newer files came and all were compacted again.
    book.add("001", drawn(1000, seed=9))
    book.compact()
    after = as_dict(book.read())
    assert {key: after[key] for key in before} == before and len(after) > len(before)


def test_a_compaction_that_was_killed_half_way_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Book.of(Folder.of(tmp_path), {})
    for seed in range(4):
        book.add(f"run{seed}", drawn(500, seed=seed))
    before, plain, left = as_dict(book.read()), Folder.delete_file, 2

    def dies(self: Folder, name: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        plain(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "delete_file", dies)
        with pytest.raises(KeyboardInterrupt):
            book.compact()
    assert len(book.files()) == 3 and as_dict(book.read()) == before
    book.compact()
    assert len(book.files()) == 1 and as_dict(book.read()) == before


def test_a_reader_survives_a_compaction(tmp_path: Path) -> None:
    book = Book.of(Folder.of(tmp_path), {})
    for seed in range(4):
        book.add(f"run{seed}", drawn(500, seed=seed))
    before = as_dict(book.read())
    reading = book.each()
    found = [next(reading)]
    book.compact()
    found += list(reading)
    assert as_dict(once(pa.concat_tables(found))) == before


def _write(folder: str, number: int) -> None:
    book = Book.of(Folder.of(folder), {"weights": "x"})
    for n in range(5):
        book.add(f"writer{number}-{n}", drawn(300, seed=10 * number + n))


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(str(tmp_path), n)) for n in range(4)]
    for one in writers:
        one.start()
    for one in writers:
        one.join(30)
    assert [one.exitcode for one in writers] == [0] * 4
    book = Book.of(Folder.of(tmp_path), {"weights": "x"})
    assert len(book.files()) == 20 and book.rows() == 6000
    expected = {key for n in range(4) for m in range(5) for key in as_dict(drawn(300, seed=10 * n + m))}
    assert set(as_dict(book.read())) == expected
