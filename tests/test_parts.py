"""Rows are found by their number, however a table was cut into files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raydrd.spine.parts import Chain, Parts, TokenReader, VectorReader, found_ranges, part_name, ranges
from raydrd.spine.storage import Folder
from raydrd.spine.tables import CORPUS, TOKENS, check, vectors

CUTS = [(0, 4), (4, 5), (5, 12)]


def _write(folder: Folder, cuts: list[tuple[int, int]], table: pa.Table, ending: str) -> Parts:
    for lo, hi in cuts:
        name = part_name(lo, hi, ending)
        piece = table.slice(lo, hi - lo)
        folder.write_arrow(name, piece) if ending == "arrow" else folder.write_table(name, piece)
    return Parts.of(folder, list(folder.files()))


def test_names_hold_the_rows() -> None:
    assert part_name(0, 8192, "arrow") == "part-000000000000-000000008192.arrow"
    names = [part_name(10**12 - 1, 10**12, "parquet"), part_name(0, 3, "arrow"), "shards/" + part_name(3, 9, "parquet")]
    assert found_ranges([*names, "part-1.parquet", "attempts/x", "part-0-3.csv"]) == [(0, 3), (3, 9), (10**12 - 1, 10**12)]
    assert ranges(10, 4) == [(0, 4), (4, 8), (8, 10)] and ranges(0, 4) == [] and ranges(4, 4) == [(0, 4)]


def test_rows_that_are_missing_are_refused(tmp_path: Path) -> None:
    folder = Folder.of(tmp_path)
    for cuts in ([(0, 3), (4, 5)], [(0, 3), (2, 5)], [(1, 3)]):
        with pytest.raises(ValueError, match="do not follow one another"):
            Parts.of(folder, [f"{n}/{part_name(lo, hi, 'arrow')}" for n, (lo, hi) in enumerate(cuts)])
    assert Parts.of(folder, []).rows == 0


def test_rows_that_two_runs_wrote_count_once(tmp_path: Path) -> None:
    cuts = [(0, 4), (4, 8), (0, 8), (8, 9), (8, 9)]
    parts = Parts.of(Folder.of(tmp_path), [f"{n}/{part_name(lo, hi, 'arrow')}" for n, (lo, hi) in enumerate(cuts)])
    assert [(part.lo, part.hi) for part in parts.parts] == [(0, 8), (8, 9)] and parts.rows == 9


def test_taken_rows_open_only_the_parts_that_hold_them(tmp_path: Path) -> None:
    table = pa.table({"doc_id": [f"d{n}" for n in range(12)], "text": [str(n) for n in range(12)]}, schema=CORPUS)
    parts = _write(Folder.of(tmp_path), CUTS, table, "parquet")
    (tmp_path / parts.parts[1].name).unlink()  # rows 4..4
    assert parts.take(np.array([0, 3, 5, 11]))["text"].to_pylist() == ["0", "3", "5", "11"]
    assert parts.take(np.array([], dtype=np.int64), ["text"]).num_rows == 0 and parts.slice(3, 3).num_rows == 0
    with pytest.raises(FileNotFoundError):
        parts.take(np.array([4]))


@pytest.mark.parametrize("ending", ["arrow", "parquet"])
def test_slices_and_places(tmp_path: Path, ending: str) -> None:
    table = pa.table({"doc_id": [f"d{n}" for n in range(12)], "text": [str(n) for n in range(12)]}, schema=CORPUS)
    parts = _write(Folder.of(tmp_path), CUTS, table, ending)
    assert parts.rows == 12
    for lo in range(12):
        for hi in range(lo + 1, 13):
            assert parts.slice(lo, hi)["text"].to_pylist() == [str(n) for n in range(lo, hi)]
    with pytest.raises(ValueError, match="outside the 12"):
        parts.slice(12, 20)
    assert parts.locate(np.array([0, 3, 4, 5, 11])).tolist() == [0, 0, 1, 2, 2]
    for row in (-1, 12):
        with pytest.raises(IndexError, match="outside the 12"):
            parts.locate(np.array([0, row]))
    assert [t.num_rows for _, t in parts.each()] == [4, 1, 7]


def test_token_ids_by_row(tmp_path: Path) -> None:
    texts = [list(range(n, n + n % 4)) for n in range(12)]  # some are empty
    table = pa.table({"ids": pa.array(texts, TOKENS.field("ids").type)}, schema=TOKENS)
    reader = TokenReader(_write(Folder.of(tmp_path), CUTS, table, "arrow"))
    rows = np.array([11, 0, 4, 4, 5, 3])
    assert [found.tolist() for found in reader.take(rows)] == [texts[r] for r in rows]
    assert reader.lengths(rows).tolist() == [len(texts[r]) for r in rows]
    assert reader.take(rows)[0].dtype == np.int32
    with pytest.raises(IndexError):
        reader.take(np.array([12]))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_vectors_by_row(tmp_path: Path, dtype: str) -> None:
    matrix = np.random.default_rng(0).standard_normal((12, 3)).astype(dtype)
    column = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), 3)
    reader = VectorReader(_write(Folder.of(tmp_path), CUTS, pa.table([column], schema=vectors(3, dtype)), "arrow"))
    rows = np.array([11, 0, 4, 4, 5])
    assert reader.take(rows).dtype == np.float32
    np.testing.assert_array_equal(reader.take(rows), matrix[rows].astype(np.float32))
    np.testing.assert_array_equal(reader.slice(3, 6), matrix[3:6].astype(np.float32))
    assert reader.part(2).shape == (7, 3) and reader.part(2).dtype == dtype
    assert not reader.part(2).flags.writeable  # a view of the file


def test_a_table_is_checked_at_the_door() -> None:
    good = pa.table({"text": ["t"], "doc_id": ["d"], "more": [1]})
    assert check(good, CORPUS, "here").schema == CORPUS
    with pytest.raises(ValueError, match=r"here: column 'text' is missing"):
        check(good.drop_columns("text"), CORPUS, "here")
    with pytest.raises(ValueError, match="here: "):
        check(pa.table({"ids": [["x"]]}), TOKENS, "here")


def chained(home: Path) -> tuple[Chain, list[list[int]]]:
    """A corpus of 12 texts in three files and 5 written passages in two, whose files may bear the same names."""
    texts = [list(range(n, n + n % 4)) for n in range(17)]
    tables = []
    for name, lo, cuts in (("corpus", 0, CUTS), ("written", 12, [(0, 4), (4, 5)])):
        ids = pa.array(texts[lo : lo + cuts[-1][1]], TOKENS.field("ids").type)
        tables.append(_write(Folder.of(home / name), cuts, pa.table({"ids": ids}, schema=TOKENS), "arrow"))
    return Chain(tuple(tables)), texts


def test_a_chain_reads_several_tables_as_one(tmp_path: Path) -> None:
    chain, texts = chained(tmp_path)
    assert chain.rows == 17
    assert [(part.lo, part.hi) for part in chain.parts] == [(0, 4), (4, 5), (5, 12), (12, 16), (16, 17)]
    assert chain.parts[0].name == chain.parts[3].name  # told apart by their rows, not by their names
    assert chain.locate(np.array([0, 4, 11, 12, 15, 16])).tolist() == [0, 1, 2, 3, 3, 4]
    rows = np.array([16, 0, 12, 11, 4, 4, 15])
    reader = TokenReader(chain)
    assert [found.tolist() for found in reader.take(rows)] == [texts[r] for r in rows]
    assert reader.lengths(rows).tolist() == [len(texts[r]) for r in rows]
    for row in (-1, 17):
        with pytest.raises(IndexError, match="outside the 17"):
            chain.locate(np.array([0, row]))


def test_vectors_of_a_chain(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).standard_normal((17, 3)).astype(np.float32)
    tables = []
    for name, lo, cuts in (("corpus", 0, CUTS), ("none", 12, []), ("written", 12, [(0, 4), (4, 5)])):
        hi = lo + cuts[-1][1] if cuts else lo
        column = pa.FixedSizeListArray.from_arrays(pa.array(matrix[lo:hi].ravel()), 3)
        tables.append(_write(Folder.of(tmp_path / name), cuts, pa.table([column], schema=vectors(3, "float32")), "arrow"))
    reader = VectorReader(Chain(tuple(tables)))  # a collection in the middle may be empty
    rows = np.array([16, 0, 12, 11, 4, 15])
    np.testing.assert_array_equal(reader.take(rows), matrix[rows])
    np.testing.assert_array_equal(reader.slice(10, 17), matrix[10:17])
    np.testing.assert_array_equal(reader.part(3), matrix[12:16])
