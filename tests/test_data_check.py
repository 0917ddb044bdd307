"""Every kind of bad input is found, with its file, its line and what to write instead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

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
