"""The report says what was measured, escapes everything, and copes with missing parts."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from raydrd.card import model_card
from raydrd.cli import EPILOG, main
from raydrd.models.layout import Layout
from raydrd.recipes import RECIPES
from raydrd.report import curve, method, summary
from raydrd.report.page import excerpt, render, write_page
from raydrd.report.table import final_table
from raydrd.spine.storage import Folder

EVIL = "</script><img src=x onerror=alert(1)>\"'&lt;"


def _system(ndcg: float, **more: Any) -> dict[str, Any]:
    values = {"nDCG@10": ndcg, "RR@10": ndcg - 0.02, "R@100": 0.9, "passages_per_s": 1834.2, "size_mb": 90.1}
    return {**values, "description": "d", "intervals": {"nDCG@10": [ndcg - 0.04, ndcg + 0.04]}, **more}


def _comparison(b: str, difference: float, low: float, high: float, p: float) -> dict[str, Any]:
    numbers = {
        "difference": difference,
        "low": low,
        "high": high,
        "p": p,
        "wins": 200,
        "ties": 60,
        "losses": 40,
    }
    return {"a": "student", "b": b, "metric": "nDCG@10", **numbers}


def _example(text: str) -> dict[str, Any]:
    passages = [
        {"doc_id": "d7", "text": text, "relevant": True, "rank_before": None, "rank_after": 1},
        {"doc_id": "d8", "text": "another", "relevant": False, "rank_before": 1, "rank_after": 1203},
    ]
    return {
        "query_id": "q1",
        "query": f"who {text}",
        "metric_before": 0.0,
        "metric_after": 1.0,
        "passages": passages,
    }


@pytest.fixture
def report() -> dict[str, Any]:
    return {
        "name": "quickstart",
        "recipe": "cldrd",
        "created": "2026-01-02 03:04 UTC",
        "command": "raydrd run configs/quickstart.yaml",
        "seconds": 190.0,
        "config": {"student": {"pooling": "mean"}, "seed": 7},
        "data": {
            "passages": 52312,
            "train": 40,
            "test": 300,
            "unlabelled": 0,
            "warnings": ["leak"],
            "notes": ["cut"],
        },
        "systems": {
            "bm25": _system(0.512, passages_per_s=None, size_mb=None),
            "student_before": _system(0.211),
            "teacher": _system(0.643, passages_per_s=41.3, size_mb=1340.0),
            "student": _system(0.619),
        },
        "comparisons": [
            _comparison("teacher", -0.024, -0.051, 0.002, 0.073),
            _comparison("student_before", 0.408, 0.37, 0.45, 0.0001),
        ],
        "queries": 300,
        "stages": [
            {
                "name": "score",
                "label": "score",
                "seconds": 120.0,
                "rows": 4000,
                "unit": "pairs",
                "reused": False,
            },
            {
                "name": "load",
                "label": "load",
                "seconds": 30.0,
                "rows": 52312,
                "unit": "passages",
                "reused": True,
            },
        ],
        "curve": {
            "loss": [[step, 2.0 - step / 100, int(step >= 50)] for step in range(100)],
            "dev": [[0, {"nDCG@10": 0.2}], [50, {"nDCG@10": 0.5}], [100, {"nDCG@10": 0.6}]],
            "segments": [
                {"label": "easy lists", "start": 0, "end": 50, "dev_before": 0.2, "dev_after": 0.5},
                {"label": "hard lists", "start": 50, "end": 100, "dev_before": 0.5, "dev_after": 0.6},
            ],
        },
        "examples": {"improved": [_example("improved one")], "hurt": [_example("hurt one")]},
        "provenance": {"versions": {"raydrd": "0.1"}, "git": "abc1234", "host": None, "seed": 7},
    }


@pytest.fixture
def told(report: dict[str, Any]) -> dict[str, Any]:
    """The report of a run whose method said something: two teachers tried, facts of two rounds, one of them dropped."""

    def tried(teacher: str, value: float, **more: Any) -> dict[str, Any]:
        rows = [("BM25", 0.851), ("student before", 0.369), (teacher, value)]
        return {
            "teacher": teacher,
            "queries": 1200,
            "depth": 30,
            "metric": "nDCG@10",
            "rows": [{"system": name, "value": v, "low": v - 0.05, "high": v + 0.05} for name, v in rows],
            "spread": {"std": 1.48, "range": 4.61, "entropy": 0.55, "tied_top": 0.833, "queries": 1200},
            "scale": None,
            "temperature": 0.0537,
            "verdict": f"teacher {teacher}: surely better",
            "ok": True,
            **more,
        }

    found = copy.deepcopy(report)
    weak = {"ok": False, "verdict": "teacher weak: not better", "scale": "all scores like cosines", "temperature": 999.9}
    found["method"] = "PAPER (2024): its idea"
    found["preflight"] = [tried("good/teacher", 0.93), tried("weak", 0.185, **weak)]
    found["facts"] = [
        {"label": "easy lists", "values": {"lists": 12345, "kept": 46}},
        {"label": "easy lists", "values": {"share": 0.70833, "rule": "top"}},
        {"label": "hard lists", "values": {"lists": 24, "pairs": 0, "kept": 1}},
    ]
    found["curve"]["segments"][1] |= {"dev_before": {"nDCG@10": 0.5}, "dev_after": {"nDCG@10": 0.4}, "dropped": True}
    found["curve"]["dev"][2][1]["nDCG@10"] = 0.4
    return found


class _Page(HTMLParser):
    """Tags, attributes and visible text of a page; fails on a tag closed out of order."""

    void = frozenset({"meta", "rect", "line", "polyline"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def _read(report: dict[str, Any]) -> _Page:
    return _Page(render(report))


# -- the sentence ---------------------------------------------------------------------------------


def _plain(text: str) -> str:
    return text.replace("\u00a0", " ").replace("−", "-").replace("’", "'")


def test_the_verdict_says_share_difference_and_certainty(report: dict[str, Any]) -> None:
    assert _plain(summary.verdict(report)) == (
        "The student regains 96 % of its teacher's nDCG@10 (0.619 of 0.643), "
        "+0.408 [+0.370, +0.450] over the start, p < 0.001, on 300 test queries."
    )


def test_the_verdict_does_not_claim_what_is_not_clear(report: dict[str, Any]) -> None:
    report["comparisons"] = [_comparison("student_before", 0.004, -0.01, 0.02, 0.41)]
    said = _plain(summary.verdict(report))
    assert "no clear difference from the start (+0.004 [-0.010, +0.020], p = 0.410)" in said
    assert "regains" not in said

    report["comparisons"] = [_comparison("student_before", -0.05, -0.08, -0.02, 0.001)]
    said = _plain(summary.verdict(report))
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
    assert [_plain(summary.percent(s)) for s in (0.9649, 0.9999, 1.0, 1.034, -0.2)] == [
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


# -- the terminal ---------------------------------------------------------------------------------


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


# -- what the method did --------------------------------------------------------------------------


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
    assert [_plain(method.amount(v)) for v in values] == [
        "1,234,567", "-5", "0.250", "1.000", "1,234.500", "0.000", "< 0.001", "-0.250", "names as given", "–", "–",
    ]  # fmt: skip


def test_the_page_shows_how_teachers_were_tried(told: dict[str, Any]) -> None:
    page = _read(told)
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
    assert "No temperature was fitted" in _read(unfitted).text
    assert "1 good/teacher" not in _read(unfitted).text  # one teacher needs no number
    for key in told["preflight"][0]:
        less = {k: v for k, v in told["preflight"][0].items() if k != key}
        assert "Before paying the teacher" in _read({**told, "preflight": [less]}).text and final_table({"preflight": [less]})


def test_the_page_shows_what_the_method_did(report: dict[str, Any], told: dict[str, Any]) -> None:
    page = _read(told)
    assert "What the method did" in page.text and "12,345" in page.text and "PAPER (2024): its idea" in page.text
    old = _read(report)
    for absent in ("What the method did", "Before paying the teacher", "ropped", "curriculum"):
        assert absent not in old.text, absent


def test_dropped_stages_are_marked(told: dict[str, Any]) -> None:
    assert method.dropped_sentence(told) == (
        "1 of 2 training stages was dropped because dev nDCG@10 fell: hard lists; the student went on without it."
    )
    page = _read(told)
    assert method.dropped_sentence(told) in page.text
    assert page.text.count("dropped: dev nDCG@10 fell") == 1 and "0.500 → 0.400" in page.text
    drawn = curve.chart(told["curve"], width=800, names=["nDCG@10"])
    assert drawn is not None and [band.label for band in drawn.bands] == ["1 easy lists", "2 hard lists (dropped)"]
    assert [band.dropped for band in drawn.bands] == [False, True]
    before, lost, back = _points(drawn.lines[0].points)[1:]
    assert lost[0] == back[0] and back[1] == before[1] < lost[1]  # the line goes back up to what was kept
    assert len(drawn.lines[0].dots) == 3  # a dot is a measurement

    told["curve"]["segments"][0]["dropped"] = True
    assert method.dropped_sentence(told).endswith("easy lists, hard lists; no stage was kept, so the student is as it began.")


# -- the model card and the recipes ---------------------------------------------------------------


def _carded(report: dict[str, Any]) -> dict[str, Any]:
    report["config"] = {
        "student": {"model": "small", "layers": 2},
        "teacher": {"kind": "cross_encoder", "model": "big"},
        "data": {"source": "beir", "path": "scifact"},
    }
    report["provenance"] |= {"hardware": "2 cores", "export_difference": 1e-6, "data_digest": "d1"}
    return report


def test_the_card_names_method_and_teachers(report: dict[str, Any]) -> None:
    layout = Layout(query_max_len=32, passage_max_len=64)
    report = _carded(report)
    old = model_card(report, layout)
    assert "(cldrd) from `big` into\n`small`, cut to 2 layers" in old and "Method" not in old
    abstract = {name for name, module in RECIPES.items() if "abstract" in str(module.__doc__)}
    assert abstract == {"adam", "md2pr"}
    for name, module in RECIPES.items():
        card = model_card({**report, "recipe": name, "method": module.SUMMARY}, layout)
        said = " ".join(card.split())
        assert f"Method: {module.SUMMARY.removesuffix('; from the abstract')}." in said and f"raydrd ({name})" in said
        assert ("It is implemented from the abstract" in said) == (name in abstract)
    report["config"]["teacher"] = {"kind": "ensemble", "members": [{"model": "one"}, {"model": "two"}]}
    assert "from `one` + `two` into" in model_card(report, layout)
    report["config"]["teacher"] = {"kind": "scores"}
    assert "from ready-made scores into" in model_card(report, layout)


def test_recipes_are_listed_with_the_configs_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "configs/mine").mkdir(parents=True)
    (tmp_path / "configs/mine/base.yaml").write_text("recipe: adam\n")
    (tmp_path / "configs/mine/other.yaml").write_text("extends: base.yaml\nname: other\n")
    (tmp_path / "configs/broken.yaml").write_text("[1, 2]\n")
    monkeypatch.chdir(tmp_path)
    assert main(["recipes"]) == 0
    said = capsys.readouterr()
    assert "left out: configs/broken.yaml" in said.err
    lines = said.out.splitlines()
    for name, module in RECIPES.items():
        at = lines.index(f"{name:<12} {module.SUMMARY}")
        wanted = "configs/mine/base.yaml  configs/mine/other.yaml" if name == "adam" else f"write one with recipe: {name}"
        assert lines[at + 1].endswith(wanted)
        assert f"  {name:<12} {module.SUMMARY}\n" in EPILOG


# -- the page -------------------------------------------------------------------------------------


def test_the_page_holds_every_part(report: dict[str, Any], tmp_path: Path) -> None:
    write_page(report, out=Folder.of(tmp_path))
    page = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
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
    page = _read(report)
    assert page.tags.count("svg") > 2 and page.tags.count("polyline") >= 6
    assert not {"script", "img", "link", "iframe", "object", "image", "use"} & set(page.tags)
    assert not {"src", "href", "xlink:href", "srcset"} & {name for name, _ in page.attributes}
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
    clean = _read(told)
    poisoned = _poison(told)
    poisoned["facts"][0]["values"][f"fact{EVIL}"] = 1
    for found in poisoned["comparisons"]:  # an unknown metric is still printed, known names reach every branch
        found["a"] = "student"
    poisoned["systems"]["student"][f"metric{EVIL}"] = 0.5
    poisoned["curve"]["dev"][0][1][f"metric{EVIL}"] = 0.3
    poisoned["config"][f"key{EVIL}"] = EVIL
    poisoned["provenance"][f"key{EVIL}"] = EVIL
    page = _read(poisoned)
    assert "img" not in page.tags and "script" not in page.tags
    assert "onerror" not in {name for name, _ in page.attributes}
    assert set(page.tags) == set(clean.tags)
    assert f"improved one{EVIL}" in page.text and f"pooling: mean{EVIL}" in page.text.replace("''", "'")
    assert page.text.count(EVIL) > 25
    for said in ("good/teacher", "weak", "hard lists", "its idea", "fact", "top", "not better", "like cosines", "BM25"):
        assert f"{said}{EVIL}" in page.text, said


def test_nothing_breaks_when_parts_are_missing_or_null(told: dict[str, Any]) -> None:
    report = told
    assert "The student was not evaluated." in _read({}).text
    for key in report:
        for value in (None, "absent"):
            less = {**report, key: None} if value is None else {k: v for k, v in report.items() if k != key}
            page = _read(less)
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

    page = _read(
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


# -- the chart ------------------------------------------------------------------------------------


def _points(line: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.split())]


def test_the_chart_puts_points_where_the_axes_say(report: dict[str, Any]) -> None:
    drawn = curve.chart(report["curve"], width=800, names=["nDCG@10"])
    assert drawn is not None
    first, second = drawn.bands
    assert (first.label, second.label) == ("1 easy lists", "2 hard lists")
    assert second.x == pytest.approx((drawn.left + drawn.right) / 2, abs=0.2)
    line = _points(drawn.lines[0].points)
    assert [x for x, _ in line] == pytest.approx([drawn.left, second.x, drawn.right], abs=0.2)

    at = {float(tick.text): tick.at for tick in drawn.dev_ticks}
    assert 0.0 in at and len(at) >= 3
    unit = (at[0.0] - at[max(at)]) / max(at)
    assert [(at[0.0] - y) / unit for _, y in line] == pytest.approx([0.2, 0.5, 0.6], abs=0.005)

    for band, start in ((first, 0), (second, 50)):
        loss = _points(band.line)
        assert len(loss) == 50
        scale = {float(tick.text): tick.at for tick in band.ticks}
        (v0, y0), *_, (v1, y1) = scale.items()
        values = [v0 + (y - y0) * (v1 - v0) / (y1 - y0) for _, y in loss]
        assert values == pytest.approx([2.0 - step / 100 for step in range(start, start + 50)], abs=0.01)
    assert drawn.binned == 1 and drawn.bad == 0


def test_a_long_curve_is_binned_and_bad_losses_are_counted() -> None:
    loss = [[step, float("nan") if step == 3 else 1.0 + step % 2, 0] for step in range(10_000)]
    drawn = curve.chart({"loss": loss}, width=400, names=[])
    assert drawn is not None
    assert drawn.bad == 1 and drawn.binned > 50 and len(_points(drawn.bands[0].line)) <= 200
    assert "1 recorded losses were not finite" in _read({"curve": {"loss": loss}}).text


def test_charts_of_almost_nothing() -> None:
    assert curve.chart({}, width=400, names=[]) is None and curve.chart(None, width=400, names=[]) is None
    assert curve.chart({"loss": [], "dev": [], "segments": []}, width=400, names=[]) is None
    for part in (
        {"loss": [[0, 1.0, 0]]},
        {"dev": [[5, {"nDCG@10": 0.5}]]},
        {"dev": [[5, {"nDCG@10": None}]]},
    ):
        assert curve.chart(part, width=400, names=["nDCG@10"]) is not None
        assert not re.search(r"\bnan\b", render({"curve": part}))
    segments = [{"label": "a", "start": 0, "end": 5}, {"label": "b", "start": 0, "end": 5}]
    narrow = [{"label": "a long label", "start": i, "end": i + 1} for i in range(40)]
    drawn = curve.chart({"segments": narrow, "loss": [[i, 1.0, i] for i in range(40)]}, width=350, names=[])
    assert drawn is not None and [band.label for band in drawn.bands][:2] == ["1", "2"]
    backwards = [{**segments[0], "start": 5}, segments[1]]
    with pytest.raises(ValueError, match="count over the whole run"):
        curve.chart({"segments": backwards, "loss": [[0, 1.0, 0]]}, width=350, names=[])


def test_ticks_are_round_and_inside() -> None:
    assert curve.nice_ticks(0, 1500, 7) == [0, 500, 1000, 1500]
    assert curve.nice_ticks(0.13, 0.68, 5) == pytest.approx([0.2, 0.4, 0.6])
    assert curve.nice_ticks(0.5, 0.5, 5) == [0.5]
    assert curve.nice_ticks(-0.03, 0.03, 3) == pytest.approx([-0.02, 0.0, 0.02])
