"""Bad Parquet tables, MS MARCO and TREC files are found with file, row and advice."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydrd.data.collect import check
from raydrd.data.spec import Data

# -- Parquet ------------------------------------------------------------------------------------------


def parquet_folder(root: Path, **replaced: pa.Table) -> Data:
    """A sound Parquet collection, with some tables replaced; `qrels` are those of test."""
    qrels = {"query-id": ["q0"], "corpus-id": ["d0"], "score": [1]}
    tables = {
        "corpus": pa.table({"_id": ["d0", "d1"], "title": ["t", None], "text": ["x", "y"]}),
        "queries": pa.table({"_id": ["q0"], "text": ["what"]}),
        "qrels/test": pa.table(qrels),
        **{name.replace("qrels", "qrels/test"): table for name, table in replaced.items()},
    }
    (root / "qrels").mkdir()
    for name, table in tables.items():
        pq.write_table(table, root / f"{name}.parquet")
    return Data(source="parquet", path=str(root), train_split=None, dev_split=None)


BROKEN = pa.Array.from_buffers(pa.string(), 2, [None, pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"x\xff")])
BAD_TABLES = {
    "integer ids": (
        "corpus",
        {"_id": [1, 2], "text": ["x", "y"]},
        "corpus.parquet: column '_id' is int64 where strings belong; cast",
    ),
    "lists of text": ("corpus", {"_id": ["d0"], "text": [["x"]]}, "corpus.parquet: column 'text' is list<"),
    "no text": (
        "corpus",
        {"_id": ["d0"], "body": ["x"]},
        "corpus.parquet: no column 'text'; rename or add it",
    ),
    "a string for a list": (
        "queries",
        {"_id": ["q0"], "text": ["x"], "pos": ["d0"]},
        "queries.parquet: column 'pos' holds strings where lists belong; write one list a row",
    ),
    "null text": ("corpus", {"_id": ["d0", "d1"], "text": ["x", None]}, "corpus.parquet:2: 'text' is null"),
    "bad UTF-8": ("corpus", {"_id": ["d0", "d1"], "text": BROKEN}, "corpus.parquet:2: not UTF-8: byte 0xff"),
    "grade in words": (
        "qrels",
        {"query-id": ["q0"], "corpus-id": ["d0"], "score": ["high"]},
        'qrels/test.parquet:1: the grade "high" is not a whole number; write 0',
    ),
    "unknown passage": (
        "qrels",
        {"query-id": ["q0", "q0"], "corpus-id": ["d0", "d7"], "score": [1, 1]},
        "qrels/test.parquet:2: passage id 'd7' is not in the corpus; add the passage",
    ),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_parquet_table_is_an_error_with_file_and_row(tmp_path: Path, case: str) -> None:
    name, columns, expected = BAD_TABLES[case]
    findings = check(parquet_folder(tmp_path, **{name: pa.table(columns)}))
    assert findings.lines("error", relative=True)[0].startswith(expected)


def test_a_file_that_is_not_parquet_is_named(tmp_path: Path) -> None:
    data = parquet_folder(tmp_path)
    assert check(data).lines("error") == []
    (tmp_path / "corpus.parquet").write_text("_id,text\n")
    assert check(data).lines("error", relative=True)[0].startswith("corpus.parquet: not a Parquet file")


# -- MS MARCO, TREC and ready-made runs ---------------------------------------------------------------


def msmarco(root: Path) -> Data:
    (root / "collection.tsv").write_text("1\tpassage one\n2\tpassage two\n")
    (root / "queries.tsv").write_text("q1\tquestion one\nq2\tquestion two\n")
    (root / "qrels.train.tsv").write_text("q1\t0\t1\t1\n")
    (root / "qrels.test.tsv").write_text("q2 0  2\t1\n")
    (root / "bm25.trec").write_text("q1 Q0 1 1 9.5 bm25\n")
    return Data(source="msmarco", path=str(root), dev_split=None, run="bm25.trec")


BAD_TSV = {
    "passage columns": (
        "collection.tsv",
        "3\ta\tb\n",
        ["collection.tsv:3: 3 columns", "2 belong (pid, text", "replace tabs"],
    ),
    "query columns": ("queries.tsv", "q3 no tab\n", ["queries.tsv:3: 1 column", "qid, text", "one tab"]),
    "qrels columns": (
        "qrels.test.tsv",
        "q1 1 1\n",
        ["qrels.test.tsv:2: 3 columns where 4", "query 0 passage grade"],
    ),
    "qrels grade": ("qrels.test.tsv", "q2 0 1 yes\n", ["qrels.test.tsv:2: the grade", '"yes"', "write 0"]),
    "run columns": (
        "bm25.trec",
        "q1 1 2\n",
        ["bm25.trec:2: 3 columns where 6 belong", "query Q0 passage rank score tag"],
    ),
    "run score": ("bm25.trec", "q1 Q0 2 2 nan bm25\n", ["bm25.trec:2: the score", "nan", "write a number"]),
    "run passage": ("bm25.trec", "q1 Q0 7 2 1 bm25\n", ["bm25.trec:2: passage id '7'", "add the passage"]),
    "run query": ("bm25.trec", "q7 Q0 2 2 1 bm25\n", ["bm25.trec:2: query id 'q7'", "add the query"]),
    "run pair twice": (
        "bm25.trec",
        "q1 Q0 1 2 1 bm25\n",
        ["bm25.trec:2: the same query and passage as line 1", "keep one"],
    ),
    "empty passage": ("collection.tsv", "3\t\n", ["collection.tsv:3: the passage '3' has no text", "remove"]),
}


@pytest.mark.parametrize("case", BAD_TSV)
def test_a_bad_tsv_or_trec_line_is_one_error(tmp_path: Path, case: str) -> None:
    file, line, expected = BAD_TSV[case]
    data = msmarco(tmp_path)
    assert check(data).lines("error") == []
    with (tmp_path / file).open("a") as stream:
        stream.write(line)
    (message,) = check(data).lines("error", relative=True)
    for part in expected:
        assert part in message
    assert message.startswith(expected[0])


def test_a_rank_that_is_a_score_is_an_error(tmp_path: Path) -> None:
    data = msmarco(tmp_path)
    (tmp_path / "bm25.trec").write_text("q1\t1\t1\nq1\t2\t0.5\n")
    (message,) = check(data).lines("error", relative=True)
    assert message.startswith('bm25.trec:2: the rank "0.5" is not a whole number; write 1, 2, 3')


def test_a_missing_run_says_what_was_looked_for(tmp_path: Path) -> None:
    data = msmarco(tmp_path)
    (tmp_path / "bm25.trec").unlink()
    (message,) = check(data).lines("error", relative=True)
    assert message.startswith("bm25.trec: no such file") and f"{tmp_path}/bm25.trec" in message
    assert "data.run" in message
