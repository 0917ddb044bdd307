"""Collections of every format become the same tables."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydrd.data import collect as stage
from raydrd.data.collect import SCORES, collect, digest
from raydrd.data.guess import guess
from raydrd.data.ids import Ids, fingerprint
from raydrd.data.spec import Data
from raydrd.errors import InputError
from raydrd.spine.parts import part_name
from raydrd.spine.storage import Folder
from raydrd.spine.tables import CANDIDATES, CORPUS, QUERIES, check

HEADER = "query-id\tcorpus-id\tscore\n"
LINE_ENDS = "one\u2028two\u0085three\x0cfour\rfive"  # everything str.splitlines would cut at, but no "\n"


def beir(root: Path, *, queries: int = 3, dev: bool = True, zipped: bool = False) -> Data:
    """Passages d0 (odd line ends), d1, d2; even queries are in train, odd ones in test, the last in dev."""
    passages = [
        {"_id": "d0", "title": "A title", "text": LINE_ENDS},
        {"_id": "d1", "title": "", "text": "no title", "metadata": {"url": "x"}},
        {"_id": "d2", "text": "no title field"},
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in passages]
    asked = [json.dumps({"_id": f"q{i}", "text": f"question {i}"}) for i in range(queries)]
    (root / "qrels").mkdir(parents=True)
    write(root / "corpus.jsonl", "\r\n".join(lines) + "\r\n", zipped)
    write(root / "queries.jsonl", "\n".join(asked), zipped)
    labelled = range(queries - 1) if dev else range(queries)
    train = "".join(f"q{i}\td0\t2\nq{i}\td2\t0\n" for i in labelled if i % 2 == 0)
    test = "".join(f"q{i}\td1\t1\n" for i in labelled if i % 2)
    write(root / "qrels/train.tsv", HEADER + train, zipped)
    write(root / "qrels/test.tsv", HEADER + test, zipped)
    if dev:
        write(root / "qrels/dev.tsv", HEADER + f"q{queries - 1}\td2\t1\n", zipped)
    return Data(path=str(root))


def write(path: Path, text: str, zipped: bool) -> None:
    if zipped:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    else:
        path.write_bytes(text.encode())


def table(out: Path, folder: str, schema: pa.Schema) -> list[dict[str, Any]]:
    """Rows of a written table, parts in order; its schema must be exactly the contract's."""
    parts = sorted((out / folder).iterdir())
    tables = [pq.ParquetFile(part).read() for part in parts]
    ends = np.cumsum([0, *(part.num_rows for part in tables)]).tolist()
    assert [part.name for part in parts] == [part_name(lo, hi, "parquet") for lo, hi in pairwise(ends)]
    assert all(part.schema.equals(schema) for part in tables)
    rows: list[dict[str, Any]] = pa.concat_tables(check(part, schema, folder) for part in tables).to_pylist()
    return rows


@pytest.mark.parametrize("zipped", [False, True])
def test_a_beir_folder_becomes_tables(tmp_path: Path, zipped: bool) -> None:
    metrics = collect(beir(tmp_path / "in", queries=4, zipped=zipped), out=Folder.of(tmp_path / "out"))
    assert table(tmp_path / "out", "corpus", CORPUS) == [
        {"doc_id": "d0", "text": f"A title {LINE_ENDS}"},
        {"doc_id": "d1", "text": "no title"},
        {"doc_id": "d2", "text": "no title field"},
    ]
    assert table(tmp_path / "out", "queries/train", QUERIES) == [
        {"query_id": "q0", "text": "question 0", "doc_rows": [0, 2], "grades": [2, 0]},
        {"query_id": "q2", "text": "question 2", "doc_rows": [0, 2], "grades": [2, 0]},
    ]
    assert [row["query_id"] for row in table(tmp_path / "out", "queries/dev", QUERIES)] == ["q3"]
    assert [row["query_id"] for row in table(tmp_path / "out", "queries/test", QUERIES)] == ["q1"]
    assert table(tmp_path / "out", "queries/unlabelled", QUERIES) == []
    names = ("passages", "train", "dev", "test", "unlabelled", "rows", "dev_carved")
    assert {name: metrics[name] for name in names} == {
        "passages": 3, "train": 2, "dev": 1, "test": 1, "unlabelled": 0, "rows": 7, "dev_carved": False,
    }  # fmt: skip
    assert metrics["judgements"] == {"train": 4, "dev": 1, "test": 1}
    # "A title" 2, five words at white space of any kind, 2, 3.
    assert metrics["words_per_passage"] == 4.0
    assert not list((tmp_path / "out").glob("candidates")) and not list((tmp_path / "out").glob("scores"))


def test_titles_can_be_left_out(tmp_path: Path) -> None:
    data = beir(tmp_path / "in").model_copy(update={"titles": False})
    collect(data, out=Folder.of(tmp_path / "out"))
    assert table(tmp_path / "out", "corpus", CORPUS)[0]["text"] == LINE_ENDS


def test_judgements_stand_in_the_order_of_the_queries_file(tmp_path: Path) -> None:
    data = beir(tmp_path / "in", queries=6)
    train = tmp_path / "in/qrels/train.tsv"
    train.write_text(HEADER + "q4\td2\t1\nq0\td1\t1\nq4\td0\t3\nq2\td0\t1\n")
    collect(data, out=Folder.of(tmp_path / "out"))
    rows = table(tmp_path / "out", "queries/train", QUERIES)
    assert [(row["query_id"], row["doc_rows"], row["grades"]) for row in rows] == [
        ("q0", [1], [1]),
        ("q2", [0], [1]),
        ("q4", [2, 0], [1, 3]),
    ]


def test_unjudged_queries_become_unlabelled(tmp_path: Path) -> None:
    data = beir(tmp_path / "in")
    with (tmp_path / "in/queries.jsonl").open("a") as stream:
        stream.write('\n{"_id": "extra", "text": "who knows"}\n')
    assert collect(data, out=Folder.of(tmp_path / "out"))["unlabelled"] == 1
    assert table(tmp_path / "out", "queries/unlabelled", QUERIES) == [
        {"query_id": "extra", "text": "who knows", "doc_rows": [], "grades": []}
    ]


def test_a_missing_dev_split_is_carved_from_train_the_same_way_every_time(tmp_path: Path) -> None:
    data = beir(tmp_path / "in", queries=400, dev=False)
    metrics = collect(data, out=Folder.of(tmp_path / "one"))
    collect(data, out=Folder.of(tmp_path / "two"))
    train, dev, again = (
        {row["query_id"] for row in table(tmp_path / where, f"queries/{split}", QUERIES)}
        for where, split in (("one", "train"), ("one", "dev"), ("two", "dev"))
    )
    assert metrics["dev_carved"] and dev == again and not train & dev and len(train | dev) == 200
    # Binomial(200, 0.1): mean 20, standard deviation 4.2; by the hash of the id, so this never changes.
    assert 8 <= len(dev) <= 32
    assert metrics["notes"] == [
        f"qrels/train.tsv: no dev split 'dev': {len(dev)} of 200 train queries become dev, chosen by a hash of their id"
    ]


def test_a_carved_dev_query_stays_in_dev_when_other_queries_come(tmp_path: Path) -> None:
    kept = []
    for queries in (400, 600):
        out = tmp_path / f"out{queries}"
        collect(beir(tmp_path / f"in{queries}", queries=queries, dev=False), out=Folder.of(out))
        kept.append({row["query_id"] for row in table(out, "queries/dev", QUERIES)})
    assert kept[0] and kept[0] == {name for name in kept[1] if int(name[1:]) < 400}


def test_a_train_split_too_small_to_carve_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"qrels/train\.tsv: dev split 'dev' is missing .* data\.dev_fraction"):
        collect(beir(tmp_path, queries=2, dev=False), out=Folder.of(tmp_path / "out"))


def test_splits_that_do_not_exist_can_be_null(tmp_path: Path) -> None:
    data = beir(tmp_path / "in").model_copy(update={"train_split": None, "dev_split": None})
    metrics = collect(data, out=Folder.of(tmp_path / "out"))
    assert (metrics["train"], metrics["dev"], metrics["test"], metrics["unlabelled"]) == (0, 0, 1, 2)
    assert table(tmp_path / "out", "queries/train", QUERIES) == []


def test_the_corpus_is_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "PART_ROWS", 2)
    collect(beir(tmp_path / "in"), out=Folder.of(tmp_path / "out"))
    assert [row["doc_id"] for row in table(tmp_path / "out", "corpus", CORPUS)] == ["d0", "d1", "d2"]
    assert len(list((tmp_path / "out/corpus").iterdir())) == 2


# -- the other formats ----------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [2, 3])
def test_ms_marco_with_and_without_titles(tmp_path: Path, columns: int) -> None:
    title = "Title\t" if columns == 3 else ""
    (tmp_path / "collection.tsv").write_text(f"7\t{title}one\u2028two\n8\t{title}three\n")
    (tmp_path / "queries.train.tsv").write_text("1\ta b\n")
    (tmp_path / "queries.dev.small.tsv").write_text("2\tc d\n")
    (tmp_path / "qrels.train.tsv").write_text("1\t0\t8\t1\n")
    (tmp_path / "qrels.dev.small.tsv").write_text("2 0 7 1\n")
    data = Data(source="msmarco", path=str(tmp_path), dev_split=None, test_split="dev.small")
    collect(data, out=Folder.of(tmp_path / "out"))
    start = "Title " if columns == 3 else ""
    texts = [row["text"] for row in table(tmp_path / "out", "corpus", CORPUS)]
    assert texts == [f"{start}one\u2028two", f"{start}three"]
    assert table(tmp_path / "out", "queries/test", QUERIES) == [
        {"query_id": "2", "text": "c d", "doc_rows": [0], "grades": [1]}
    ]


def test_ms_marco_files_can_be_named_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/all.tsv").write_text("7\tone\n")
    (tmp_path / "asked.tsv").write_text("1\ta\n2\tb\n")
    (tmp_path / "in/dl19.txt").write_text("1 0 7 3\n")
    (tmp_path / "in/judged.txt").write_text("2 0 7 1\n")
    data = Data(
        source="msmarco",
        path=str(tmp_path / "in"),
        dev_split=None,
        corpus="all.tsv",
        queries=str(tmp_path / "asked.tsv"),
        qrels={"test": "dl19.txt", "train": "judged.txt"},
    )
    collect(data, out=Folder.of(tmp_path / "out"))
    assert table(tmp_path / "out", "queries/test", QUERIES)[0]["grades"] == [3]
    with pytest.raises(InputError, match=r"asked\.tsv: no such file .*correct data\.queries"):
        (tmp_path / "asked.tsv").unlink()
        digest(data)


def test_parquet_files_and_folders_of_parts(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "qrels").mkdir()
    for part, ids in enumerate((["d0", "d1"], ["d2"])):
        columns = {"_id": ids, "title": ["T"] * len(ids), "text": [f"text {i}" for i in ids]}
        pq.write_table(pa.table(columns), tmp_path / f"corpus/part-{part}.parquet")
    queries = pa.table({"_id": pa.array(["q0", "q1"]).dictionary_encode(), "text": ["a", "b"]})
    pq.write_table(queries, tmp_path / "queries.parquet")
    for split, query in (("train-00000-of-00001", "q0"), ("test", "q1")):
        rows = pa.table({"query-id": [query], "corpus-id": ["d2"], "score": [1.0]})
        pq.write_table(rows, tmp_path / f"qrels/{split}.parquet")
    assert guess(str(tmp_path)) == Data(source="parquet", path=str(tmp_path))
    collect(Data(source="parquet", path=str(tmp_path), dev_split=None), out=Folder.of(tmp_path / "out"))
    assert [row["text"] for row in table(tmp_path / "out", "corpus", CORPUS)] == [
        "T text d0",
        "T text d1",
        "T text d2",
    ]
    (test,) = table(tmp_path / "out", "queries/test", QUERIES)
    assert test == {"query_id": "q1", "text": "b", "doc_rows": [2], "grades": [1]}


def test_a_duplicate_id_in_another_part_is_named_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for part in range(2):
        pq.write_table(pa.table({"_id": ["d0"], "text": [f"{part}"]}), tmp_path / f"corpus/{part}.parquet")
    pq.write_table(pa.table({"_id": ["q0"], "text": ["a"]}), tmp_path / "queries.parquet")
    (tmp_path / "qrels").mkdir()
    rows = pa.table({"query-id": ["q0"], "corpus-id": ["d0"], "score": [1]})
    pq.write_table(rows, tmp_path / "qrels/test.parquet")
    lines = stage.check(guess(str(tmp_path))).lines("error", relative=True)
    assert len(lines) == 1
    assert lines[0].startswith("corpus/1.parquet:1: the same passage id as corpus/0.parquet:1; give every row")


# -- ready-made candidates and scores -------------------------------------------------------------


def test_a_trec_run_becomes_candidates_by_score_then_row(tmp_path: Path) -> None:
    data = beir(tmp_path / "in", queries=8).model_copy(update={"run": "bm25.trec"})
    # q1 is in test: left out. q2 (row 1 of train) has a tie; q0 is not in the run.
    run = "q1 Q0 d0 1 9 x\nq2 Q0 d2 1 1.5 x\nq2\tQ0\td1\t2\t1.5\tx\nq2 Q0 d0 3 7 x\n"
    (tmp_path / "in/bm25.trec").write_text(run)
    metrics = collect(data, out=Folder.of(tmp_path / "out"))
    assert table(tmp_path / "out", "candidates/train", CANDIDATES) == [
        {"query_row": 1, "doc_rows": [0, 1, 2], "scores": [7.0, 1.5, 1.5]}
    ]
    assert metrics["candidates"] == 1
    assert metrics["warnings"] == [
        "bm25.trec: 3 of 4 train queries have no candidates in it; add them, or leave data.run out to search for all"
    ]
    assert "bm25.trec: 1 rows of queries that are not in train, left out" in metrics["notes"]


def test_a_rank_run_keeps_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "PART_ROWS", 1)
    data = beir(tmp_path / "in", queries=6).model_copy(update={"run": str(tmp_path / "run.tsv")})
    (tmp_path / "run.tsv").write_text("q4\td1\t1\nq0\td0\t2\nq0\td2\t1\nq2\td1\t1\n")
    collect(data, out=Folder.of(tmp_path / "out"))
    assert table(tmp_path / "out", "candidates/train", CANDIDATES) == [
        {"query_row": 0, "doc_rows": [2, 0], "scores": [-1.0, -2.0]},
        {"query_row": 1, "doc_rows": [1], "scores": [-1.0]},
        {"query_row": 2, "doc_rows": [1], "scores": [-1.0]},
    ]


@pytest.mark.parametrize("name", ["teacher.parquet", "teacher/part-0.parquet"])
def test_teacher_scores_become_rows(tmp_path: Path, name: str) -> None:
    data = beir(tmp_path / "in", queries=6).model_copy(update={"scores": name.partition("/")[0]})
    (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
    scores = {"query_id": ["q2", "q0", "q0"], "doc_id": ["d1", "d2", "d0"], "score": [0.5, -1.0, 2.0]}
    pq.write_table(pa.table({**scores, "teacher_id": ["t"] * 3}), tmp_path / "in" / name)
    assert collect(data, out=Folder.of(tmp_path / "out"))["scores"] == 3
    rows = [tuple(row.values()) for row in table(tmp_path / "out", "scores/train", SCORES)]
    assert rows == [(0, 0, 2.0), (0, 2, -1.0), (1, 1, 0.5)]


def test_a_score_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    data = beir(tmp_path / "in").model_copy(update={"scores": "t.parquet"})
    rows = pa.table({"query_id": ["q0"], "doc_id": ["d0"], "score": [float("nan")]})
    pq.write_table(rows, tmp_path / "in/t.parquet")
    (message,) = stage.check(data).lines("error", relative=True)
    assert message.startswith('t.parquet:1: the score "nan" is not a finite number; write a number')


# -- identity, guessing, ids ----------------------------------------------------------------------


def test_the_digest_depends_on_contents_not_on_the_place(tmp_path: Path) -> None:
    one, two = beir(tmp_path / "one"), beir(tmp_path / "two")
    before = digest(one)
    assert before == digest(two) and len(before) == 64
    (tmp_path / "two/README.md").write_text("not read")
    assert digest(two) == before
    with (tmp_path / "two/qrels/test.tsv").open("a") as stream:
        stream.write("q1\td2\t0\n")
    assert digest(two) != before


def test_the_digest_covers_a_run_outside_the_folder_by_its_contents(tmp_path: Path) -> None:
    data = beir(tmp_path / "in")
    digests = []
    for where, text in (("a", "q0 d0 1"), ("b", "q0 d0 1"), ("c", "q0 d1 1")):
        (tmp_path / where).mkdir()
        (tmp_path / where / "run.tsv").write_text(text)
        digests.append(digest(data.model_copy(update={"run": str(tmp_path / where / "run.tsv")})))
    assert digests[0] == digests[1] and len({*digests, digest(data)}) == 3


def test_a_folder_is_guessed_by_its_names(tmp_path: Path) -> None:
    assert guess(beir(tmp_path / "beir", zipped=True).path or "").source == "beir"
    (tmp_path / "ms").mkdir()
    (tmp_path / "ms/collection.tsv.gz").touch()
    assert guess(str(tmp_path / "ms")).source == "msmarco"
    with pytest.raises(InputError, match=r"no corpus here; looked for corpus\.jsonl .* the folder holds docs\.json"):
        (tmp_path / "other").mkdir()
        (tmp_path / "other/docs.json").touch()
        guess(str(tmp_path / "other"))


def test_a_folder_with_test_only_is_guessed_without_train(tmp_path: Path) -> None:
    data = beir(tmp_path)
    for split in ("train", "dev"):
        (tmp_path / f"qrels/{split}.tsv").unlink()
    assert guess(str(tmp_path)) == data.model_copy(update={"train_split": None, "dev_split": None})


def test_ids_are_found_by_their_hash() -> None:
    names = [f"doc{i}" for i in range(1000)]
    hashes = np.array([fingerprint(name) for name in names], np.uint64)
    order = np.argsort(hashes)
    ids = Ids(hashes[order], order)
    assert ids.find(["doc999", "nobody", "doc0", "doc500"]).tolist() == [999, -1, 0, 500]
    assert Ids(hashes[:0], order[:0]).find(["doc0"]).tolist() == [-1]
