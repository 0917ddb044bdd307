"""The HTML page of a run: one file, nothing fetched, everything escaped (Jinja2 autoescape)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from raydrd.report import curve, forecast, method, sizes, summary
from raydrd.report.index import index_sentence
from raydrd.report.template import template
from raydrd.spine.storage import Folder

_TEXT = 300  # characters of a passage that are shown
_WIDE, _NARROW = 820, 350  # px of the chart on a screen and on a phone


def excerpt(text: str, most: int = _TEXT) -> str:
    """The text on one line, cut after a word before `most` characters."""
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    cut = line[: most + 1]
    head = cut.rsplit(" ", 1)[0] if " " in cut[most // 2 :] else line[:most]
    return f"{head.rstrip()} …"


def _stages(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    stages = report.get("stages") or []
    longest = max((summary.number(s.get("seconds")) or 0.0 for s in stages), default=0.0)
    for stage in stages:
        seconds = summary.number(stage.get("seconds"))
        rows = stage.get("rows")
        found.append(
            {
                "label": stage.get("label") or stage.get("name") or "",
                "share": round(100 * (seconds or 0) / longest, 2) if longest else 0,
                "time": summary.duration(seconds),
                "rows": f"{rows:,} {stage.get('unit') or 'rows'}" if rows is not None else "",
                "reused": bool(stage.get("reused")),
            }
        )
    return found


def _rank(rank: int | None) -> str:
    return "none" if rank is None else f"{rank:,}"


def _move(before: int | None, after: int | None) -> str:
    """up, down or same: where the passage went in the ranking; None is below every rank."""
    first, then = (float("inf") if rank is None else rank for rank in (before, after))
    return "same" if first == then else ("up" if then < first else "down")


def _examples(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    groups = []
    for key, title in (("improved", "Most improved"), ("hurt", "Most hurt")):
        queries = [
            {
                "query_id": example.get("query_id", ""),
                "query": excerpt(str(example.get("query", ""))),
                "before": summary.decimal(example.get("metric_before")),
                "after": summary.decimal(example.get("metric_after")),
                "passages": [
                    {
                        "doc_id": passage.get("doc_id", ""),
                        "text": excerpt(str(passage.get("text", ""))),
                        "relevant": bool(passage.get("relevant")),
                        "before": _rank(passage.get("rank_before")),
                        "after": _rank(passage.get("rank_after")),
                        "move": _move(passage.get("rank_before"), passage.get("rank_after")),
                    }
                    for passage in example.get("passages") or []
                ],
            }
            for example in (report.get("examples") or {}).get(key) or []
        ]
        if queries:
            groups.append({"key": key, "title": title, "queries": queries})
    return groups


def _comparisons(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "pair": summary.against(found),
            "metric": found["metric"],
            "difference": summary.signed(found.get("difference")),
            "interval": summary.span(found.get("low"), found.get("high"), summary.signed),
            "p": summary.p_value(found.get("p")) or summary.MISSING,
            "counts": summary.counts(found) or summary.MISSING,
            "clear": summary.is_clear(found),
        }
        for found in report.get("comparisons") or []
    ]


def _provenance(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    for key, value in {"command": report.get("command"), **(report.get("provenance") or {})}.items():
        if value is None or value in ({}, []):
            continue
        text = _yaml(value) if isinstance(value, dict | list) else str(value)
        found.append((key.replace("_", " "), text))
    return found


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)).rstrip()


def render(report: Mapping[str, Any]) -> str:
    """The page as text. Parts the report lacks are left out; numbers that are null show as a dash."""
    names = summary.metrics(report)
    learning = report.get("curve") or {}
    stages_told, told = method.counted(report)
    return template("page.html").render(
        name=report.get("name") or "run",
        recipe=report.get("recipe"),
        method=report.get("method"),
        created=report.get("created"),
        seconds=summary.duration(report["seconds"]) if report.get("seconds") is not None else None,
        queries=f"{report['queries']:,}" if report.get("queries") is not None else None,
        verdict=summary.verdict(report),
        share=summary.share_sentence(report),
        sizes=summary.facts(report),
        dropped=method.dropped_sentence(report),
        preflights=method.preflights(report),
        stages_told=stages_told,
        told=told,
        warnings=(report.get("data") or {}).get("warnings") or [],
        notes=(report.get("data") or {}).get("notes") or [],
        metrics=names,
        rows=summary.rows(report),
        index=index_sentence(report.get("index")),
        comparisons=_comparisons(report),
        sized=sizes.table(report.get("sizes")),
        size_metrics=sizes.columns(report.get("sizes")),
        size_note=sizes.note(report.get("sizes")),
        size_plots=[
            (kind, plot)
            for kind, width in (("wide", _WIDE), ("narrow", _NARROW))
            if (plot := sizes.plot(report.get("sizes"), width=width))
        ],
        charts=[
            (kind, drawn)
            for kind, width in (("wide", _WIDE), ("narrow", _NARROW))
            if (drawn := curve.chart(learning, width=width, names=names))
        ],
        segments=curve.segment_rows(learning, names[0]) if learning.get("segments") else [],
        stages=_stages(report),
        forecast=forecast.sentence(report.get("forecast")),
        examples=_examples(report),
        config=_yaml(report["config"]) if report.get("config") else "",
        provenance=_provenance(report),
    )


def write_page(report: Mapping[str, Any], *, out: Folder, name: str = "report.html") -> None:
    """Write the page of a report (the content of report.json) as one self-contained file.

    A lone surrogate, which UTF-8 cannot hold, appears as its escape (`\\ud800`).
    """
    out.write_bytes(name, render(report).encode("utf-8", errors="backslashreplace"))
