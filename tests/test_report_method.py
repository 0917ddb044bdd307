"""What the method did, in facts and on the page; dropped stages, teachers that were tried."""

from __future__ import annotations

from typing import Any

import pytest

from raydrd.report import curve, method
from raydrd.report.table import final_table
from tests.reports import a_report, plain, points, read, told_report


@pytest.fixture
def report() -> dict[str, Any]:
    return a_report()


@pytest.fixture
def told() -> dict[str, Any]:
    return told_report()


def test_facts_of_a_stage_are_merged_and_stand_in_their_order(told: dict[str, Any]) -> None:
    labels, rows = method.counted(told)
    assert labels == ["easy lists", "hard lists"]
    assert rows == [
        ("lists", ["12,345", "24"]),
        ("pairs", ["", "0"]),  # only the second stage has it: behind its neighbour there
        ("kept", ["46", "1"]),
        ("share", ["0.708", ""]),
        ("rule", ["top", ""]),
    ]
    twice = [{"label": "a", "values": {"n": 1}}, {"label": "a", "values": {"n": 2}}, {"label": "a", "values": {"n": 1}}]
    assert method.counted({"facts": twice}) == (["a"], [("n", ["1, 2"])])
    assert method.counted({}) == ([], []) == method.counted({"facts": [{"label": "a", "values": {}}]})


def test_amounts_of_facts() -> None:
    values = (1234567, -5, 0.25, 1.0, 1234.5, 0.0, 0.0001, -0.25, "names as given", None, float("nan"))
    assert [plain(method.amount(v)) for v in values] == [
        "1,234,567", "-5", "0.250", "1.000", "1,234.500", "0.000", "< 0.001", "-0.250", "names as given", "–", "–",
    ]  # fmt: skip


def test_the_page_shows_how_teachers_were_tried(told: dict[str, Any]) -> None:
    page = read(told)
    for expected in (
        "Before paying the teacher",
        "1 good/teacher",
        "Tried on 1,200 dev queries",
        "first 30 passages",
        "0.930[0.880,\u00a00.980]",
        "Teacher good/teacher: surely better.",
        "Fitted temperature: 0.0537",
        "entropy of their softmax 0.550",
        "Warning. Teacher weak: not better.",
        "Scale. All scores like cosines.",
        "as high as was looked",
    ):
        assert expected in page.text, expected
    assert page.text.count("Scale.") == 1  # the good teacher's scale is fine
    unfitted = {**told, "preflight": [{**told["preflight"][0], "temperature": None}]}
    assert "No temperature was fitted" in read(unfitted).text
    assert "1 good/teacher" not in read(unfitted).text  # one teacher needs no number
    for key in told["preflight"][0]:
        less = {k: v for k, v in told["preflight"][0].items() if k != key}
        assert "Before paying the teacher" in read({**told, "preflight": [less]}).text and final_table({"preflight": [less]})


def test_the_page_shows_what_the_method_did(report: dict[str, Any], told: dict[str, Any]) -> None:
    page = read(told)
    assert "What the method did" in page.text and "12,345" in page.text and "PAPER (2024): its idea" in page.text
    old = read(report)
    for absent in ("What the method did", "Before paying the teacher", "ropped", "curriculum"):
        assert absent not in old.text, absent


def test_dropped_stages_are_marked(told: dict[str, Any]) -> None:
    assert method.dropped_sentence(told) == (
        "1 of 2 training stages was dropped because dev nDCG@10 fell: hard lists; the student went on without it."
    )
    page = read(told)
    assert method.dropped_sentence(told) in page.text
    assert page.text.count("dropped: dev nDCG@10 fell") == 1 and "0.500 → 0.400" in page.text
    drawn = curve.chart(told["curve"], width=800, names=["nDCG@10"])
    assert drawn is not None and [band.label for band in drawn.bands] == ["1 easy lists", "2 hard lists (dropped)"]
    assert [band.dropped for band in drawn.bands] == [False, True]
    before, lost, back = points(drawn.lines[0].points)[1:]
    assert lost[0] == back[0] and back[1] == before[1] < lost[1]  # the line goes back up to what was kept
    assert len(drawn.lines[0].dots) == 3  # a dot is a measurement

    told["curve"]["segments"][0]["dropped"] = True
    assert method.dropped_sentence(told).endswith("easy lists, hard lists; no stage was kept, so the student is as it began.")
