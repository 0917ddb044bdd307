"""What a run did besides measuring: how its teachers were tried, what its method counted, which stages were dropped.

Reports of older runs hold none of it; every function then returns an empty result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raydrd.report import summary

_COLUMNS = 100  # of a terminal
_NAME = 36  # columns of a teacher's name in a terminal line
_LOWEST, _HIGHEST = 0.0011, 990.0  # a fitted temperature outside of these is an end of its range (raydrd.methods.diagnosis)


def preflights(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each trial of a teacher, formatted: `rows` of (label, name, value, interval), and sentences, empty if not said."""
    return [
        {
            "teacher": str(found.get("teacher") or "teacher"),
            "ok": bool(found.get("ok", True)),
            "metric": found.get("metric") or "",
            "rows": [_row(row, found) for row in found.get("rows") or []],
            "verdict": _sentence(found.get("verdict")),
            "scale": _sentence(found.get("scale")),
            "spread": _spread(found.get("spread") or {}),
            "temperature": _temperature(found["temperature"]) if "temperature" in found else "",
            "tried": _tried(found),
        }
        for found in report.get("preflight") or []
    ]


def _row(row: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, str]:
    system = str(row.get("system") or "")
    is_teacher = system == found.get("teacher")
    return {
        "label": "teacher" if is_teacher else system,
        "name": system if is_teacher else "",
        "value": summary.decimal(row.get("value")),
        "interval": summary.span(row.get("low"), row.get("high")),
    }


def _sentence(text: Any) -> str:
    line = str(text or "")
    return f"{line[:1].upper()}{line[1:]}{'' if line.endswith('.') else '.'}" if line else ""


def _tried(found: Mapping[str, Any]) -> str:
    queries, depth = found.get("queries"), found.get("depth")
    if queries is None or depth is None:
        return ""
    return f"Tried on {queries:,} dev queries: it re-ranks the first {depth:,} passages of BM25 and of the student before."


def _spread(spread: Mapping[str, Any]) -> str:
    if not spread:
        return ""
    std, width, entropy, tied = (summary.decimal(spread.get(key)) for key in ("std", "range", "entropy", "tied_top"))
    return (
        f"Its scores within a query: standard deviation {std}, highest less lowest {width}, entropy of their softmax "
        f"{entropy} (0: all on one passage, 1: no preference), share of queries with a tie at the top {tied}."
    )


def _temperature(value: Any) -> str:
    """What was fitted, and what an end of the range means."""
    found = summary.number(value)
    if found is None:
        return "No temperature was fitted: no dev query has both a relevant and another passage."
    if found <= _LOWEST:
        return "Fitted temperature: as low as was looked, since its scores set all relevant passages apart."
    if found >= _HIGHEST:
        return "Fitted temperature: as high as was looked, since its scores say no more of the labels than none would."
    return f"Fitted temperature: {found:.3g} (its scores divided by it make the dev labels likeliest)."


def counted(report: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """What the method did: the labels of its stages, and a row a fact with one cell a stage, empty where there is none.

    Facts stand in the order they were told; one that only a later stage has stands behind its neighbour there.
    """
    stages: dict[str, dict[str, list[str]]] = {}
    names: list[str] = []
    for entry in report.get("facts") or []:
        facts = stages.setdefault(str(entry.get("label") or ""), {})
        for name, value in (entry.get("values") or {}).items():
            if name not in names:
                names.insert(names.index(list(facts)[-1]) + 1 if facts else len(names), name)
            told = facts.setdefault(name, [])
            if (text := amount(value)) not in told:  # the same part of a method may tell twice
                told.append(text)
    labels = [label for label, facts in stages.items() if facts]
    return labels, [(name, [", ".join(stages[label].get(name, [])) for label in labels]) for name in names]


def amount(value: Any) -> str:
    """Counts with their thousands separated, shares with three digits, text as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    found = summary.number(value)
    if found is None:
        return summary.MISSING
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if 0 < abs(found) < 0.0005:
        return "<\u00a00.001" if found > 0 else ">\u00a0−0.001"
    return f"{found:,.3f}".replace("-", "−")


def _dropped(report: Mapping[str, Any]) -> tuple[list[str], int]:
    segments = (report.get("curve") or {}).get("segments") or []
    return [str(s["label"]) for s in segments if s.get("dropped")], len(segments)


def dropped_sentence(report: Mapping[str, Any]) -> str:
    """Which stages the dev gate took back and what that means; empty when it took back none."""
    labels, stages = _dropped(report)
    if not labels:
        return ""
    what = f"{len(labels)} of {stages} training stages {'was' if len(labels) == 1 else 'were'} dropped"
    rest = (
        "no stage was kept, so the student is as it began"
        if len(labels) == stages
        else f"the student went on without {'it' if len(labels) == 1 else 'them'}"
    )
    return f"{what} because dev {summary.metrics(report)[0]} fell: {', '.join(labels)}; {rest}."


def terminal_lines(report: Mapping[str, Any]) -> list[str]:
    """A line for each trial that warned and one for dropped stages, none longer than the terminal's table."""
    lines = []
    for found in report.get("preflight") or []:
        name, metric = str(found.get("teacher") or "teacher"), found.get("metric") or ""
        name = name if len(name) <= _NAME else f"...{name[3 - _NAME :]}"
        rows = {row.get("system"): summary.decimal(row.get("value")) for row in found.get("rows") or []}
        teacher, student = (rows.get(key, summary.MISSING) for key in (found.get("teacher"), "student before"))
        if not found.get("ok", True):
            lines.append(f"preflight: {name}: {metric} {teacher}, not above the student’s {student}")
        if found.get("scale"):
            lines.append(f"preflight: {name}: the scale of its scores looks wrong, see the report")
    labels, stages = _dropped(report)
    if labels:
        lines.append(f"dropped {len(labels)} of {stages} stages, dev {summary.metrics(report)[0]} fell: {', '.join(labels)}")
    return [line if len(line) <= _COLUMNS else f"{line[: _COLUMNS - 3]}..." for line in lines]
