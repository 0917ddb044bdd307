"""The verdict and the terminal's table say what was measured, and no more."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from raydrd.report import summary
from raydrd.report.table import final_table
from tests.reports import a_report, comparison, plain, told_report


@pytest.fixture
def report() -> dict[str, Any]:
    return a_report()


@pytest.fixture
def told() -> dict[str, Any]:
    return told_report()


# -- the sentence -------------------------------------------------------------------------------------


def test_the_verdict_says_share_difference_and_certainty(report: dict[str, Any]) -> None:
    assert plain(summary.verdict(report)) == (
        "The student regains 96 % of its teacher's nDCG@10 (0.619 of 0.643), "
        "+0.408 [+0.370, +0.450] over the start, p < 0.001, on 300 test queries."
    )


def test_the_verdict_does_not_claim_what_is_not_clear(report: dict[str, Any]) -> None:
    report["comparisons"] = [comparison("student_before", 0.004, -0.01, 0.02, 0.41)]
    said = plain(summary.verdict(report))
    assert "no clear difference from the start (+0.004 [-0.010, +0.020], p = 0.410)" in said
    assert "regains" not in said

    report["comparisons"] = [comparison("student_before", -0.05, -0.08, -0.02, 0.001)]
    said = plain(summary.verdict(report))
    assert said.startswith("The student has 96 %")
    assert "-0.050 [-0.080, -0.020] below the start, p = 0.001" in said


def test_the_verdict_without_teacher_or_student(report: dict[str, Any]) -> None:
    del report["systems"]["teacher"]
    assert summary.verdict(report).startswith("The student reaches nDCG@10 0.619, +0.408")
    assert summary.share_sentence(report) == ""
    report["systems"]["student"]["nDCG@10"] = None
    assert summary.verdict(report) == "The student was not evaluated."


def test_shares(report: dict[str, Any]) -> None:
    assert summary.regained(report) == pytest.approx(0.619 / 0.643)
    assert summary.gap_closed(report) == pytest.approx((0.619 - 0.211) / (0.643 - 0.211))
    assert [plain(summary.percent(s)) for s in (0.9649, 0.9999, 1.0, 1.034, -0.2)] == [
        "96 %",
        "99 %",
        "100 %",
        "103 %",
        "-20 %",
    ]
    report["systems"]["teacher"]["nDCG@10"] = 0.2
    assert summary.gap_closed(report) is None
    assert "which is not above the start" in summary.share_sentence(report)


def test_amounts() -> None:
    assert [summary.duration(s) for s in (4.21, 59.97, 190, 7500, None)] == [
        "4.2 s",
        "1 min 00 s",
        "3 min 10 s",
        "2 h 05 min",
        "–",
    ]
    assert [summary.quantity(v) for v in (1834.2, 41.27, None, float("nan"))] == ["1,834", "41.3", "–", "–"]
    assert [summary.signed(v) for v in (0.5, -0.5, None)] == ["+0.500", "−0.500", "–"]


# -- the terminal -------------------------------------------------------------------------------------


def test_the_terminal_table(report: dict[str, Any]) -> None:
    assert final_table(report) == "\n".join(
        [
            "                nDCG@10  RR@10  R@100  passages/s     MB",
            "--------------------------------------------------------",
            "BM25              0.512  0.492  0.900           -      -",
            "student before    0.211  0.191  0.900       1,834   90.1",
            "teacher           0.643  0.623  0.900        41.3  1,340",
            "student after     0.619  0.599  0.900       1,834   90.1",
            "--------------------------------------------------------",
            "nDCG@10, difference [95 % interval], paired randomisation test, 300 test queries:",
            "  student after vs student before  +0.408 [+0.370, +0.450], p < 0.001",
            "  student after vs teacher         -0.024 [-0.051, +0.002], p = 0.073",
            "student regains 96 % of the teacher's nDCG@10; the gap between start and teacher is 94 % closed",
        ]
    )


def test_the_terminal_table_is_ascii_and_narrow_whatever_is_missing(report: dict[str, Any]) -> None:
    for key in ("teacher", "bm25", "student_before", "student"):
        less = copy.deepcopy(report)
        del less["systems"][key]
        text = final_table(less)
        assert text.isascii() and max(map(len, text.splitlines())) <= 100
        assert summary.SYSTEMS[key] not in text.split("\nnDCG@10")[0]
    assert "nDCG@10" in final_table({})


def test_the_terminal_says_what_warned(report: dict[str, Any], told: dict[str, Any]) -> None:
    lines = final_table(told).splitlines()
    assert lines[: len(final_table(report).splitlines())] == final_table(report).splitlines()
    assert lines[-3:] == [
        "preflight: weak: nDCG@10 0.185, not above the student's 0.369",
        "preflight: weak: the scale of its scores looks wrong, see the report",
        "dropped 1 of 2 stages, dev nDCG@10 fell: hard lists",
    ]
    told["preflight"][1]["teacher"] = "a/very/long/path/" * 10 + "größe"
    told["curve"]["segments"][1]["label"] = "é" * 200
    text = final_table(told)
    assert text.isascii() and max(map(len, text.splitlines())) <= 100
    assert re.search(r"preflight: \.\.\..*path/gr\?\?e: the scale", text)
