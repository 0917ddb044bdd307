"""The page holds every part, escapes everything, fetches nothing, and copes with missing parts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from raydrd.report.page import excerpt, render, write_page
from raydrd.spine.storage import Folder
from tests.pages import Page
from tests.reports import a_report, read, told_report

EVIL = "</script><img src=x onerror=alert(1)>\"'&lt;"


@pytest.fixture
def report() -> dict[str, Any]:
    return a_report()


@pytest.fixture
def told() -> dict[str, Any]:
    return told_report()


def test_the_page_holds_every_part(report: dict[str, Any], tmp_path: Path) -> None:
    write_page(report, out=Folder.of(tmp_path))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    parts = [
        "Results",
        "Differences",
        "Learning curve",
        "Time by stage",
        "Most improved",
        "Most hurt",
        "Provenance",
    ]
    texts = [
        "1 easy lists",
        "2 hard lists",
        "made",
        "reused",
        "who improved one",
        "who hurt one",
        "pooling: mean",
    ]
    numbers = [
        "0.619",
        "[0.579,\u00a00.659]",
        "1,340",
        "2 min 00 s",
        "4,000 pairs",
        "rank: none → 1",
        "1 → 1,203",
    ]
    for expected in [*parts, *texts, *numbers, "abc1234", "not comparable", "Warning. leak", "200 / 60 / 40"]:
        assert expected in page.text, expected
    assert page.text.count("relevant") > 2
    assert "unlabelled queries" not in page.text


def test_the_page_fetches_nothing(report: dict[str, Any]) -> None:
    page = read(report)
    assert page.tags.count("svg") > 2 and page.tags.count("polyline") >= 6
    assert not {"script", "img", "link", "iframe", "object", "image", "use"} & set(page.tags)
    assert not {"src", "href", "xlink:href", "srcset"} & page.attributes
    html = render(report)
    assert "url(" not in html and "@import" not in html and "//" not in html.replace("</", "")
    assert "prefers-color-scheme: dark" in html and "viewport" in html


def _poison(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _poison(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_poison(item) for item in value]
    return value + EVIL if isinstance(value, str) else value


def test_everything_is_escaped(told: dict[str, Any]) -> None:
    clean = read(told)
    poisoned = _poison(told)
    poisoned["facts"][0]["values"][f"fact{EVIL}"] = 1
    for found in poisoned["comparisons"]:  # an unknown metric is still printed, known names reach every branch
        found["a"] = "student"
    poisoned["systems"]["student"][f"metric{EVIL}"] = 0.5
    poisoned["curve"]["dev"][0][1][f"metric{EVIL}"] = 0.3
    poisoned["config"][f"key{EVIL}"] = EVIL
    poisoned["provenance"][f"key{EVIL}"] = EVIL
    page = read(poisoned)
    assert "img" not in page.tags and "script" not in page.tags
    assert "onerror" not in page.attributes
    assert set(page.tags) == set(clean.tags)
    assert f"improved one{EVIL}" in page.text and f"pooling: mean{EVIL}" in page.text.replace("''", "'")
    assert page.text.count(EVIL) > 25
    for said in ("good/teacher", "weak", "hard lists", "its idea", "fact", "top", "not better", "like cosines", "BM25"):
        assert f"{said}{EVIL}" in page.text, said


def test_nothing_breaks_when_parts_are_missing_or_null(told: dict[str, Any]) -> None:
    report = told
    assert "The student was not evaluated." in read({}).text
    for key in report:
        for value in (None, "absent"):
            less = {**report, key: None} if value is None else {k: v for k, v in report.items() if k != key}
            page = read(less)
            assert "Notes on the numbers" in page.text
            assert ("Learning curve" in page.text) == (key != "curve")
            assert ("Most improved" in page.text) == (key != "examples")
            assert ("Time by stage" in page.text) == (key != "stages")
            assert ("Before paying the teacher" in page.text) == (key != "preflight")
            assert ("What the method did" in page.text) == (key != "facts")
            assert ("Dropped." in page.text) == (key != "curve")

    def nulled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: nulled(item) if key not in ("start", "end") else item for key, item in value.items()}
        if isinstance(value, list):
            return [nulled(item) for item in value]
        return None if isinstance(value, float) else value

    page = read(
        {
            **report,
            "systems": nulled(report["systems"]),
            "comparisons": [nulled(c) for c in report["comparisons"]],
        }
    )
    assert "–" in page.text and not re.search(r"\b(None|nan)\b", page.text)


def test_the_report_survives_json(report: dict[str, Any]) -> None:
    assert render(json.loads(json.dumps(report))) == render(report)


def test_excerpts_end_after_a_word() -> None:
    assert excerpt("a  b\nc") == "a b c"
    cut = excerpt("word " * 200)
    assert cut.endswith("word …") and 280 < len(cut) <= 302
    assert excerpt("x" * 400) == "x" * 300 + " …"
    assert excerpt("x" * 300) == "x" * 300
