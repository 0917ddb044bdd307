"""Every kind of bad input is found, with its file, its line and what to write instead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydrd.data.collect import check, collect
from raydrd.data.findings import SHOWN, Findings
from raydrd.data.spec import Data
from raydrd.errors import InputError
from raydrd.spine.storage import Folder

HEADER = "query-id\tcorpus-id\tscore\n"


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def good(root: Path) -> Path:
    """A sound BEIR folder: three passages, four queries, all three splits."""
    (root / "qrels").mkdir()
    passages = [{"_id": f"d{i}", "title": "", "text": f"passage number {i}"} for i in range(3)]
    queries = [{"_id": f"q{i}", "text": f"question number {i}", "metadata": {"any": "thing"}} for i in range(4)]
    (root / "corpus.jsonl").write_text(jsonl(*passages))
    (root / "queries.jsonl").write_text(jsonl(*queries))
    (root / "qrels/train.tsv").write_text(HEADER + "q0\td0\t1\nq1\td1\t1\n")
    (root / "qrels/dev.tsv").write_text(HEADER + "q2\td2\t1\n")
    (root / "qrels/test.tsv").write_text(HEADER + "q3\td0\t1\n")
    return root


def add(root: Path, file: str, line: str | bytes) -> None:
    with (root / file).open("ab") as stream:
        stream.write(line if isinstance(line, bytes) else line.encode())


def errors(root: Path) -> list[str]:
    return check(Data(path=str(root))).lines("error", relative=True)


def test_a_sound_folder_has_no_findings(tmp_path: Path) -> None:
    findings = check(Data(path=str(good(tmp_path))))
    assert [findings.lines(s) for s in ("error", "warning", "note")] == [[], [], []]


# file, the line added at its end, and what the one error must say.
BAD_LINES: dict[str, tuple[str, str | bytes, list[str]]] = {
    "id is a number": (
        "corpus.jsonl",
        '{"_id": 9, "text": "x"}\n',
        ["corpus.jsonl:4:", "number 9", 'quote it: "_id": "9"'],
    ),
    "no id": ("corpus.jsonl", '{"id": "d9", "text": "x"}\n', ["corpus.jsonl:4:", "rename 'id' to '_id'"]),
    "empty id": (
        "corpus.jsonl",
        '{"_id": "", "text": "x"}\n',
        ["corpus.jsonl:4:", "empty", "an id of its own"],
    ),
    "text is a list": (
        "corpus.jsonl",
        '{"_id": "d9", "text": ["x"]}\n',
        ["corpus.jsonl:4:", "'text' is a list where a string belongs", "join its items"],
    ),
    "text is null": (
        "corpus.jsonl",
        '{"_id": "d9", "text": null}\n',
        ["corpus.jsonl:4:", "null", "write one string"],
    ),
    "title is an object": (
        "corpus.jsonl",
        '{"_id": "d9", "title": {}, "text": "x"}\n',
        ["corpus.jsonl:4:", "'title' is an object", "write one string"],
    ),
    "a string for a list": (
        "queries.jsonl",
        '{"_id": "q9", "text": "x", "pos": "d1"}\n',
        ["queries.jsonl:5:", "'pos' is a string where a list belongs", '"pos": ["d1"]'],
    ),
    "empty passage": (
        "corpus.jsonl",
        '{"_id": "d9", "text": " "}\n',
        ["corpus.jsonl:4:", "'d9' has no text", "remove"],
    ),
    "empty query": (
        "queries.jsonl",
        '{"_id": "q9", "text": ""}\n',
        ["queries.jsonl:5:", "'q9' has no text", "remove"],
    ),
    "bad UTF-8": (
        "corpus.jsonl",
        b'{"_id": "d9", "text": "caf\xe9"}\n',
        ["corpus.jsonl:4:", "byte 0xe9 at position 27", "iconv"],
    ),
    "half a surrogate pair": (
        "corpus.jsonl",
        '{"_id": "d9", "text": "\\ud83d"}\n',
        ["corpus.jsonl:4:", "surrogate"],
    ),
    "bad JSON": ("queries.jsonl", '{"_id": "q9", \n', ["queries.jsonl:5:", "not JSON", "one object a line"]),
    "not an object": (
        "queries.jsonl",
        '["q9"]\n',
        ["queries.jsonl:5:", "a list where an object", "one object a line"],
    ),
    "duplicate passage id": (
        "corpus.jsonl",
        '{"_id": "d1", "text": "x"}\n',
        ["corpus.jsonl:4:", "as line 2", "remove"],
    ),
    "duplicate query id": (
        "queries.jsonl",
        '{"_id": "q0", "text": "x"}\n',
        ["queries.jsonl:5:", "as line 1", "remove"],
    ),
    "unknown passage": (
        "qrels/test.tsv",
        "q3\tnowhere\t1\n",
        ["qrels/test.tsv:3:", "'nowhere'", "add the passage"],
    ),
    "unknown query": ("qrels/test.tsv", "who\td1\t1\n", ["qrels/test.tsv:3:", "'who'", "add the query"]),
    "spaces for tabs": (
        "qrels/test.tsv",
        "q3 d1 1\n",
        ["qrels/test.tsv:3:", "1 column", "separate them by tabs"],
    ),
    "TREC columns": ("qrels/test.tsv", "q3\t0\td1\t1\n", ["qrels/test.tsv:3:", "4 columns", "TREC"]),
    "grade in words": ("qrels/test.tsv", "q3\td1\thigh\n", ["qrels/test.tsv:3:", '"high"', "1 or more"]),
    "grade in parts": ("qrels/test.tsv", "q3\td1\t0.5\n", ["qrels/test.tsv:3:", '"0.5"', "1 or more"]),
    "two grades": (
        "qrels/test.tsv",
        "q3\td0\t2\n",
        ["qrels/test.tsv:3:", "grade 2", "grade 1 in line 2", "keep one"],
    ),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_one_error_with_file_line_and_advice(tmp_path: Path, case: str) -> None:
    file, line, expected = BAD_LINES[case]
    add(good(tmp_path), file, line)
    (message,) = errors(tmp_path)
    for part in expected:
        assert part in message
    assert message.startswith(expected[0])


def replace_file(name: str, text: str) -> Callable[[Path], None]:
    def replace(root: Path) -> None:
        (root / name).write_text(text)

    return replace


BAD_FILES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no header": (
        replace_file("qrels/test.tsv", "q3\td0\t1\n"),
        ["qrels/test.tsv:1:", "header is missing", "looks like data", "query-id\\tcorpus-id\\tscore"],
    ),
    "another header": (
        replace_file("qrels/test.tsv", "qid\tdid\trel\nq3\td0\t1\n"),
        ["qrels/test.tsv:1:", "the header is", "write query-id\\tcorpus-id\\tscore"],
    ),
    "empty split": (
        replace_file("qrels/test.tsv", HEADER),
        ["qrels/test.tsv:", "no judgements", "test_split=null"],
    ),
    "empty corpus": (replace_file("corpus.jsonl", ""), ["corpus.jsonl:", "no rows", "at least one"]),
    "missing corpus": (
        lambda root: (root / "corpus.jsonl").unlink(),
        ["corpus.jsonl:", "looked for corpus.jsonl, corpus.jsonl.gz", "folder holds qrels, queries.jsonl"],
    ),
    "missing test split": (
        lambda root: (root / "qrels/test.tsv").unlink(),
        ["qrels/test.tsv:", "available splits: dev, train", "data.test_split"],
    ),
    "not gzip": (
        lambda root: (root / "corpus.jsonl").rename(root / "corpus.jsonl.gz"),
        ["corpus.jsonl.gz:1:", "not a whole gzip file", "compress it again"],
    ),
    "both plain and gzip": (
        replace_file("corpus.jsonl.gz", ""),
        ["corpus.jsonl:", "both corpus.jsonl and corpus.jsonl.gz", "remove one"],
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_named_with_advice(tmp_path: Path, case: str) -> None:
    spoil, expected = BAD_FILES[case]
    spoil(good(tmp_path))
    message = errors(tmp_path)[0]
    for part in expected:
        assert part in message
    assert message.startswith(expected[0])


def test_a_byte_order_mark_is_reported_and_the_line_still_read(tmp_path: Path) -> None:
    corpus = good(tmp_path) / "corpus.jsonl"
    corpus.write_bytes(b"\xef\xbb\xbf" + corpus.read_bytes())
    (message,) = errors(tmp_path)
    assert message == "corpus.jsonl:1: starts with a byte order mark; save as UTF-8 without BOM"


# file -> lines added to it, the expected start of the one warning, and words of it.
WARNINGS = {
    "train and test share a query": (
        {"qrels/test.tsv": "q1\td1\t1\n"},
        "queries.jsonl:2: this query is judged in both train and test; remove its judgements from train",
    ),
    "train and dev share a query": (
        {"qrels/dev.tsv": "q0\td1\t1\n"},
        "queries.jsonl:1: this query is judged in both train and dev; remove its judgements from train",
    ),
    "a test query has the text of a train query": (
        {"queries.jsonl": '{"_id": "q9", "text": "question number 1"}\n', "qrels/test.tsv": "q9\td1\t1\n"},
        "queries.jsonl:5: a test query with the text of a train query (queries.jsonl:2); remove the one in train",
    ),
    "copied passage": (
        {"corpus.jsonl": '{"_id": "d9", "text": "passage number 0"}\n'},
        "corpus.jsonl:4: the same text as line 1; a copy of a relevant passage counts as wrong; keep one",
    ),
    "judged twice alike": (
        {"qrels/test.tsv": "q3\td0\t1\n"},
        "qrels/test.tsv:3: the same judgement as line 2; remove one",
    ),
    "nothing relevant": (
        {"queries.jsonl": '{"_id": "q9", "text": "x"}\n', "qrels/test.tsv": "q9\td1\t0\n"},
        "qrels/test.tsv:3: this query has no passage with a grade above 0; add a relevant passage, or leave it out",
    ),
    "id with a space": (
        {"corpus.jsonl": '{"_id": "d 9", "text": "x"}\n'},
        'corpus.jsonl:4: white space in the id "d 9"; TREC files cannot hold it; use _',
    ),
    "blank line": ({"corpus.jsonl": "\n"}, "corpus.jsonl:4: blank line, skipped; remove it"),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_what_can_be_used_is_a_warning(tmp_path: Path, case: str) -> None:
    changes, expected = WARNINGS[case]
    good(tmp_path)
    for file, line in changes.items():
        add(tmp_path, file, line)
    findings = check(Data(path=str(tmp_path)))
    assert findings.lines("warning", relative=True) == [expected]
    assert findings.count("error") == 0


def test_a_title_is_text_only_if_titles_are_used(tmp_path: Path) -> None:
    add(good(tmp_path), "corpus.jsonl", '{"_id": "d9", "title": "a title", "text": ""}\n')
    assert errors(tmp_path) == []
    (message,) = check(Data(path=str(tmp_path), titles=False)).lines("error", relative=True)
    assert message == "corpus.jsonl:4: the passage 'd9' has no text; it has a title: set data.titles=true"


def test_queries_without_judgement_are_counted(tmp_path: Path) -> None:
    add(good(tmp_path), "queries.jsonl", '{"_id": "q8", "text": "a"}\n{"_id": "q9", "text": "b"}\n')
    (note,) = check(Data(path=str(tmp_path))).lines("note", relative=True)
    assert note.startswith("queries.jsonl:5: first of 2 queries that no split judges")


def test_collect_raises_every_error_and_writes_nothing(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    add(good(root), "corpus.jsonl", '{"_id": 9, "text": "x"}\n')
    add(root, "qrels/test.tsv", "who\td1\t1\n")
    with pytest.raises(InputError) as caught:
        collect(Data(path=str(root)), out=Folder.of(out))
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{root}/corpus.jsonl:4: ") and second.startswith(f"{root}/qrels/test.tsv:3: ")
    assert not out.exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder; write the folder"):
        check(Data(path=str(tmp_path / "nowhere")))


def test_more_of_a_kind_are_counted() -> None:
    findings = Findings("/data")
    for line in range(SHOWN + 37):
        findings.error("bad JSON", "corpus.jsonl", line + 1, "not JSON", "write JSON")
    lines = findings.lines("error")
    assert len(lines) == SHOWN + 1 and findings.count("error", "bad JSON") == SHOWN + 37
    assert lines[0] == "/data/corpus.jsonl:1: not JSON; write JSON"
    assert lines[-1] == "/data/corpus.jsonl: ... and 37 more like this (bad JSON)"


# -- Parquet --------------------------------------------------------------------------------------


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


# -- MS MARCO, TREC and ready-made runs -----------------------------------------------------------


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
    add(tmp_path, file, line)
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


# -- the config value -----------------------------------------------------------------------------

BAD_SPECS = {
    "no path": ({"source": "beir"}, "needs path"),
    "path for pydocs": ({"source": "pydocs", "path": "x"}, "remove path"),
    "limit for beir": ({"path": "x", "limit": 100}, "limit belongs to source pydocs"),
    "qrels for beir": ({"path": "x", "qrels": {"train": "a.tsv"}}, "qrels belongs to source msmarco"),
    "one package as a word": ({"source": "pydocs", "packages": "numpy"}, "a list of import names"),
    "dev is test": ({"path": "x", "dev_split": "test"}, "two splits have the same name"),
    "no splits": ({"path": "x", "train_split": None, "dev_split": None, "test_split": None}, "at least one"),
    "pydocs split": ({"source": "pydocs", "test_split": "final"}, "remove test_split"),
}


@pytest.mark.parametrize("case", BAD_SPECS)
def test_fields_that_do_not_go_together_are_refused(case: str) -> None:
    fields, expected = BAD_SPECS[case]
    with pytest.raises(ValueError, match=expected):
        Data.model_validate(fields)


def test_a_data_value_hashes_and_compares_by_its_fields() -> None:
    one, two = (Data(source="msmarco", path="x", qrels={"train": "a"}) for _ in range(2))
    assert one == two and hash(one) == hash(two) and one != Data(source="msmarco", path="x")
