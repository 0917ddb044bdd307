"""Reports of made-up runs: `a_report`, and `told_report` of one whose method said something."""

from __future__ import annotations

from typing import Any

from raydrd.report.page import render
from tests.pages import Page


def _system(ndcg: float, **more: Any) -> dict[str, Any]:
    values = {"nDCG@10": ndcg, "RR@10": ndcg - 0.02, "R@100": 0.9, "passages_per_s": 1834.2, "size_mb": 90.1}
    return {**values, "description": "d", "intervals": {"nDCG@10": [ndcg - 0.04, ndcg + 0.04]}, **more}


def comparison(b: str, difference: float, low: float, high: float, p: float) -> dict[str, Any]:
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


def a_report() -> dict[str, Any]:
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
            comparison("teacher", -0.024, -0.051, 0.002, 0.073),
            comparison("student_before", 0.408, 0.37, 0.45, 0.0001),
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


def told_report() -> dict[str, Any]:
    """The same of a run whose method said something: two teachers tried, facts of two rounds, one of them dropped."""

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

    found = a_report()
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


def read(report: dict[str, Any]) -> Page:
    """The page that is made of a report."""
    return Page(render(report))


def plain(text: str) -> str:
    """A text with the signs that a keyboard has."""
    return text.replace("\u00a0", " ").replace("−", "-").replace("’", "'")


def points(line: str) -> list[tuple[float, float]]:
    """Of a line in a chart."""
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.split())]
