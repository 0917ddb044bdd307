"""`raydrd scores`: a user looks at what is kept, carries it elsewhere and tidies it up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydrd.cli import main
from raydrd.session import run
from raydrd.spine.scorebook import Book
from raydrd.spine.storage import Folder
from tests.conftest import write_config
from tests.test_known_scores import calls  # noqa: F401
from tests.test_scorebook import as_dict, drawn

ABOUT = {"kind": "cross_encoder", "max_length": 64, "precision": "fp32", "prompt": None, "weights": "0" * 64}


@pytest.fixture
def kept(tmp_path: Path) -> Book:
    book = Book.of(Folder.of(tmp_path / "store"), ABOUT)
    for seed in range(3):
        book.add(f"run{seed}", drawn(500, seed=seed))
    other = Book.of(Folder.of(tmp_path / "store"), {**ABOUT, "max_length": 128, "compares": "pairs"})
    other.add("one", drawn(10, seed=0))
    return book


def scores(*arguments: str) -> int:
    return main(["scores", *arguments])


def test_stats_name_every_teacher(kept: Book, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scores("stats", "--store", str(tmp_path / "store")) == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 3 and [line for line in told if kept.name in line and "1,500" in line and "64 tokens" in line]
    assert scores("stats", "--json", "--store", str(tmp_path / "store")) == 0
    found = {one["teacher"]: one for one in json.loads(capsys.readouterr().out)}
    assert found[kept.name]["files"] == 3 and found[kept.name]["about"] == ABOUT and len(found) == 2


def test_scores_are_carried_to_another_store(kept: Book, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, there = str(tmp_path / "out.parquet"), str(tmp_path / "elsewhere")
    assert scores("export", file, "--teacher", kept.name[:6], "--store", str(tmp_path / "store")) == 0
    assert pq.read_metadata(file).num_rows == len(as_dict(kept.read())) < 1500
    for _ in range(2):  # a second time adds nothing
        assert scores("import", file, "--store", there) == 0
        found = Book(Folder.of(there) / "scores" / kept.name)
        assert as_dict(found.read()) == as_dict(kept.read()) and found.about() == ABOUT
    assert found.rows() == len(as_dict(kept.read()))
    assert "scores added" in capsys.readouterr().out
    assert scores("export", file, "--store", str(tmp_path / "store")) == 0  # all teachers
    assert pq.read_metadata(file).num_rows == len(as_dict(kept.read())) + 10


def test_compact(kept: Book, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = as_dict(kept.read())
    assert scores("compact", "--store", str(tmp_path / "store")) == 0
    assert f"{kept.name}: 3 files -> 1" in capsys.readouterr().out
    assert as_dict(kept.read()) == before


def test_what_is_wrong_is_said_in_one_line(kept: Book, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(tmp_path / "store")
    (tmp_path / "text.parquet").write_text("no")
    pq.write_table(pa.table({"query": ["a"], "score": [1.0]}), tmp_path / "other.parquet")
    changed = tmp_path / "changed.parquet"
    scores("export", str(changed), "--store", store)
    table = pq.read_table(changed)
    told = {
        name: {**about, "weights": "other"} for name, about in json.loads(table.schema.metadata[b"raydrd.teachers"]).items()
    }
    pq.write_table(table.replace_schema_metadata({b"raydrd.teachers": json.dumps(told)}), changed)
    wrong: list[tuple[list[str], str]] = [
        (["stats", "--store", str(tmp_path / "empty")], "no teacher scores are kept here"),
        (["compact", "--teacher", "zz", "--store", store], "0 teachers' names begin so"),
        (["import", str(tmp_path / "none.parquet"), "--store", store], "no such file"),
        (["import", str(tmp_path / "text.parquet"), "--store", store], "not a Parquet file"),
        (["import", str(tmp_path / "other.parquet"), "--store", store], "did not write this file"),
        (["import", str(changed), "--store", store], "is not what its description says"),
        (["export", str(tmp_path / "text.parquet" / "x"), "--store", store], "cannot be written"),
    ]
    for arguments, line in wrong:
        capsys.readouterr()
        assert scores(*arguments) == 2
        error = capsys.readouterr().err
        assert line in error and error.count("\n") == 1 and "Traceback" not in error


def test_a_run_with_deeper_candidates_pays_for_the_new_ones_alone(
    toy_config: dict[str, Any],
    tmp_path: Path,
    calls: list[Any],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second run of a recipe whose depth was doubled; counted by the teacher itself."""
    short = [
        {**step, "train": {**step["train"], "max_steps": 2}, "lists": {"graded": 3, "hard": 3, "hard_until": 8, "rest": 4}}
        for step in toy_config["curriculum"]
    ]
    config = write_config(tmp_path / "c.yaml", {**toy_config, "curriculum": short, "preflight": "off"})
    store = str(tmp_path / "store")

    def train_pairs(depth: int) -> tuple[int, int]:
        calls.clear()
        report = run(config, [f"candidates.depth={depth}"], out=str(tmp_path / f"run{depth}"), store=store)
        stage = next(s for s in report["stages"] if s["label"].startswith("score train"))
        manifest = json.loads((tmp_path / "store" / "score_pairs" / stage["id"] / "manifest.json").read_text())
        return len(calls), manifest["metrics"]["pairs"]

    first, counted = train_pairs(10)
    queries = counted // 10
    assert counted == queries * 10 <= first
    second, again = train_pairs(20)
    # Of the ten passages more, those that the first run re-ranked for test queries are other pairs.
    assert second == again == queries * 10
    assert scores("stats", "--store", store) == 0
    assert f"{first + second:,}" in capsys.readouterr().out
