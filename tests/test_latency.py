"""How long a query takes: both kinds of student, asked as `raydrd search` asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raydrd.benchmark.latency import main


def test_runs_are_timed_side_by_side(toy_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(toy_run["folder"])
    assert main([run, "--queries", "4", "--rounds", "2", "-k", "3", "--out", str(tmp_path / "found.json")]) == 0
    (row,) = json.loads((tmp_path / "found.json").read_text())
    assert row["queries"] == 4 and row["kind"] == "single_vector" and row["encoding_ms"] > 0 < row["finding_ms"]
    assert row["bytes_a_passage"] > 0 and f"| {run} |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["nowhere"], "nowhere: no index here"), (["a", "a"], "named twice"), (["a", "--rounds", "0"], "write 1 or more")],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1
