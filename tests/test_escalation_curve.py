"""The curve of shares: what a share of the expensive teacher's calls buys, measured on a world where the answer is known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from raydrd.benchmark.escalation import curve, main, markdown, shares_of
from raydrd.errors import InputError
from raydrd.stages.scorers import CrossEncoderScorer
from tests.conftest import write_config
from tests.recipes import LISTS, SCALE, settings, steps

HOME = Path(__file__).resolve().parents[1]
SHARES = (0.0, 0.3, 0.5, 1.0)


def config(toy: Path, home: Path, **more: Any) -> str:
    cheap = {"kind": "cross_encoder", "model": str(toy / "reranker"), "max_length": 64}
    teacher = {"kind": "escalate", "cheap": cheap, "expensive": {**cheap, "model": str(toy / "teacher")}, "by": "top"}
    step = {"lists": {"graded": 5, "hard": 5, "hard_until": 20, "rest": 10}, "train": steps(10)}
    values = settings(toy, "cldrd", teacher=teacher, curriculum=[step], loss=SCALE)
    values["evaluation"]["teacher_depth"] = 40
    return write_config(home / "curve.yaml", values | more)


def test_more_calls_buy_a_better_ranking(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    plain = CrossEncoderScorer.scores

    def counting(self: CrossEncoderScorer, query_rows: Any, *doc_rows: Any) -> Any:
        asked.append(len(query_rows))
        return plain(self, query_rows, *doc_rows)

    monkeypatch.setattr(CrossEncoderScorer, "scores", counting)
    path = config(toy, tmp_path)
    found = curve(path, [], shares=SHARES, store=str(tmp_path / "store"))
    rows = found["rows"]
    assert [row["share"] for row in rows] == list(SHARES) and found["queries"] == 12 and found["metric"] == "nDCG@10"
    assert [row["spent"]["train"] for row in rows] == [{"pairs": n, "of": 24 * 60} for n in (0, 24 * 18, 24 * 30, 24 * 60)]
    assert [row["spent"]["test"]["pairs"] for row in rows] == [0, 12 * 12, 12 * 20, 12 * 40]
    means = [row["teacher"]["mean"] for row in rows]
    assert means[0] + 0.1 < means[1] < means[2] < means[3] and means[3] > 0.9  # the oracle, over what was found
    assert rows[3]["teacher"]["against_all"]["difference"] == 0.0 == rows[3]["student"]["against_all"]["difference"]
    assert rows[0]["teacher"]["against_all"]["high"] < 0
    assert rows[3]["student"]["mean"] > rows[0]["student"]["mean"]
    assert rows[1]["student"]["against_all"]["high"] >= 0  # at 30 % within the interval of full scoring
    # Train, test and dev: each pair of each teacher was read once for all three shares.
    dev = 12 * 30
    assert sum(asked) == 2 * (24 * 60 + 12 * 40 + dev)
    again = curve(path, [], shares=SHARES, store=str(tmp_path / "store"))
    assert again == found and sum(asked) == 2 * (24 * 60 + 12 * 40 + dev)
    alone = curve(path, [], shares=(0.5, 1.0), seeds=0, store=str(tmp_path / "store"))
    assert alone["rows"][0]["teacher"] == rows[2]["teacher"] and "student" not in alone["rows"][0]
    table = markdown(found).split("\n")
    assert (
        table[0] == "| share | test pairs read | teacher's nDCG@10 | less that of share 1 "
        "| train pairs read | student's nDCG@10 | less that of share 1 |"
    )
    assert table[4].startswith("| 0.5 | 240 of 480 | ") and "| 720 of 1,440 | " in table[4] and table[5].count("|  |") == 2
    assert table[-1].endswith("chosen by top; 12 test queries")


def test_what_several_rounds_and_seeds_ask_about_is_counted_once_for_one_student(toy: Path, tmp_path: Path) -> None:
    """The second round finds other passages, and some again: the book pays those once, and so does the table."""
    teacher = yaml.safe_load(Path(config(toy, tmp_path)).read_text())["teacher"]
    values = settings(toy, "adam", teacher=teacher, rounds=2, dark=None, pacing=None, lists=LISTS, train=steps(10), loss=SCALE)
    values["candidates"]["depth"] = values["evaluation"]["teacher_depth"] = 40
    path = write_config(tmp_path / "rounds.yaml", values)
    found = curve(path, [], shares=(1.0,), seeds=2, store=str(tmp_path / "store"))
    spent = found["rows"][0]["spent"]
    assert spent["test"] == {"pairs": 12 * 40, "of": 12 * 40}  # not twice for two seeds
    assert 24 * 40 < spent["train"]["pairs"] == spent["train"]["of"] < 24 * 60  # of 60 passages


def test_shares_are_numbers_from_0_to_1() -> None:
    assert shares_of("0.3,0,0.1") == (0.0, 0.1, 0.3, 1.0)
    for wrong in ("0,2", "a", "", "-0.1"):
        with pytest.raises(InputError, match=f"--shares {wrong}: write numbers from 0 to 1 with commas"):
            shares_of(wrong)


def test_the_command(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    single = {"kind": "cross_encoder", "model": str(toy / "teacher"), "max_length": 64}
    path = config(toy, tmp_path, teacher=single)
    assert main([path, "--store", str(tmp_path / "store")]) == 2
    assert "teacher.kind: cross_encoder; a curve of shares needs kind: escalate" in capsys.readouterr().err
    command = [sys.executable, HOME / "jobs" / "escalation.py", path, "--shares", "two"]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 2 and told.stderr.startswith("escalation: --shares two: write numbers")
