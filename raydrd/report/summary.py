"""What the report says, as rows and sentences: shared by the terminal table and the page.

The text uses typographic signs (minus, dash, apostrophe, fixed spaces); the terminal replaces them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MISSING = "–"
SYSTEMS = {
    "bm25": "BM25",
    "student_before": "student before",
    "teacher": "teacher",
    "student": "student after",
}
_METRICS = ("nDCG@10", "RR@10", "R@100")
_NOT_METRICS = {"passages_per_s", "size_mb", "description", "intervals"}


@dataclass(frozen=True)
class Row:
    """One system of the final table, formatted; `cells` and `intervals` go by metric."""

    key: str
    label: str
    cells: dict[str, str]
    intervals: dict[str, str]
    speed: str
    size: str
    description: str


def number(value: Any) -> float | None:
    """A finite number, or None: a report holds null (Python's JSON also NaN) for what was not measured."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def decimal(value: Any, digits: int = 3) -> str:
    found = number(value)
    return MISSING if found is None else f"{found:.{digits}f}".replace("-", "−")


def signed(value: Any, digits: int = 3) -> str:
    found = number(value)
    return MISSING if found is None else f"{found:+.{digits}f}".replace("-", "−")


def quantity(value: Any) -> str:
    """Three figures for small amounts, whole ones with thousands separated by a comma for large."""
    found = number(value)
    if found is None:
        return MISSING
    return f"{found:,.0f}" if found >= 100 else f"{found:.1f}"


def duration(seconds: Any) -> str:
    """`4.2 s`, `3 min 10 s`, `2 h 05 min`."""
    found = number(seconds)
    if found is None:
        return MISSING
    if found < 59.95:
        return f"{found:.1f} s"
    minutes, rest = divmod(round(found), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def p_value(p: Any) -> str:
    """`p < 0.001`, `p = 0.034`; empty when there is none."""
    found = number(p)
    if found is None:
        return ""
    return "p\u00a0<\u00a00.001" if found < 0.001 else f"p\u00a0=\u00a0{found:.3f}"


def metrics(report: Mapping[str, Any]) -> list[str]:
    """Names of the metrics, in the order the systems list them; the first one is the main one."""
    names: dict[str, None] = {}
    for system in (report.get("systems") or {}).values():
        names.update(dict.fromkeys(name for name in system or {} if name not in _NOT_METRICS))
    return list(names) or list(_METRICS)


def rows(report: Mapping[str, Any]) -> list[Row]:
    """The systems that were measured, from the weakest expected to the result."""
    names, found = metrics(report), []
    for key, label in SYSTEMS.items():
        system = (report.get("systems") or {}).get(key)
        if not system:
            continue
        intervals = system.get("intervals") or {}
        found.append(
            Row(
                key=key,
                label=label,
                cells={name: decimal(system.get(name)) for name in names},
                intervals={name: span(*intervals[name]) for name in names if intervals.get(name)},
                speed=quantity(system.get("passages_per_s")),
                size=quantity(system.get("size_mb")),
                description=system.get("description") or "",
            )
        )
    return found


def span(low: Any, high: Any, form: Callable[[Any], str] = decimal) -> str:
    return f"[{form(low)},\u00a0{form(high)}]"


def comparison(report: Mapping[str, Any], a: str, b: str, metric: str) -> Mapping[str, Any] | None:
    """The comparison of a with b, if it was made."""
    for found in report.get("comparisons") or []:
        if (found["a"], found["b"], found["metric"]) == (a, b, metric):
            return dict(found)
    return None


def _change(found: Mapping[str, Any]) -> str:
    return f"{signed(found.get('difference'))} {span(found.get('low'), found.get('high'), signed)}"


def difference(found: Mapping[str, Any]) -> str:
    """`+0.410 [+0.370, +0.450], p < 0.001`."""
    return ", ".join(filter(None, [_change(found), p_value(found.get("p"))]))


def counts(found: Mapping[str, Any]) -> str:
    """Queries better, equal, worse as `210 / 60 / 30`; empty when not counted."""
    if any(found.get(name) is None for name in ("wins", "ties", "losses")):
        return ""
    return f"{found['wins']:,} / {found['ties']:,} / {found['losses']:,}"


def is_clear(found: Mapping[str, Any]) -> bool:
    """Whether the interval of the difference lies on one side of 0."""
    low, high = number(found.get("low")), number(found.get("high"))
    return low is not None and high is not None and (low > 0 or high < 0)


def against(found: Mapping[str, Any]) -> str:
    """`student after vs teacher`; a name that is none of the four systems stays as it is."""
    return f"{SYSTEMS.get(found['a'], found['a'])} vs {SYSTEMS.get(found['b'], found['b'])}"


def _value(report: Mapping[str, Any], key: str, metric: str) -> float | None:
    return number(((report.get("systems") or {}).get(key) or {}).get(metric))


def regained(report: Mapping[str, Any]) -> float | None:
    """Student's share of the teacher's main metric (1.0 is all of it); None without both."""
    name = metrics(report)[0]
    student, teacher = _value(report, "student", name), _value(report, "teacher", name)
    return student / teacher if student is not None and teacher else None


def gap_closed(report: Mapping[str, Any]) -> float | None:
    """(after - before) / (teacher - before) on the main metric; None unless the teacher is above the start.

    A share of the teacher flatters a student that began close to it; this share does not.
    """
    name = metrics(report)[0]
    before, after, teacher = (_value(report, key, name) for key in ("student_before", "student", "teacher"))
    if before is None or after is None or teacher is None or teacher <= before:
        return None
    return (after - before) / (teacher - before)


def percent(share: float) -> str:
    """A share as `96 %`; rounded down below 100 so that nothing short of it reads as all."""
    rounded = round(100 * share)
    if share < 1 <= rounded / 100:
        rounded = 99
    return f"{rounded}\u00a0%".replace("-", "−")


def share_sentence(report: Mapping[str, Any]) -> str:
    """`student regains 96 % of the teacher's nDCG@10; the gap ... is 94 % closed`; else empty."""
    share, gap, name = regained(report), gap_closed(report), metrics(report)[0]
    if share is None:
        return ""
    if gap is None:
        before, teacher = _value(report, "student_before", name), _value(report, "teacher", name)
        weak = ", which is not above the start" if before is not None and teacher is not None else ""
        return f"student reaches {percent(share)} of the teacher’s {name}{weak}"
    if gap < 0:
        return f"student keeps {percent(share)} of the teacher’s {name} and is further from it than at the start"
    return (
        f"student regains {percent(share)} of the teacher’s {name}; the gap between start and teacher is {percent(gap)} closed"
    )


def verdict(report: Mapping[str, Any]) -> str:
    """One sentence: what the student reached, against its teacher and its start, and how sure that is."""
    name = metrics(report)[0]
    after = _value(report, "student", name)
    if after is None:
        return "The student was not evaluated."
    teacher, share = _value(report, "teacher", name), regained(report)
    found = comparison(report, "student", "student_before", name)
    parts = [f"The student reaches {name} {decimal(after)}"]
    if share is not None:
        gained = found is None or (is_clear(found) and (number(found.get("difference")) or 0) > 0)
        verb = "reaches" if share >= 1 else ("regains" if gained else "has")
        values = f"({decimal(after)} of {decimal(teacher)})"
        parts = [f"The student {verb} {percent(share)} of its teacher’s {name} {values}"]
    if found is not None and is_clear(found):
        side = "over" if (number(found.get("difference")) or 0) > 0 else "below"
        parts += [f"{_change(found)} {side} the start", p_value(found.get("p"))]
    elif found is not None:
        parts.append(f"with no clear difference from the start ({difference(found)})")
    if report.get("queries"):
        parts.append(f"on {report['queries']:,} test queries")
    return ", ".join(filter(None, parts)) + "."


def facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Sizes of the data as (name, amount), what is there only."""
    data = report.get("data") or {}
    names = {
        "passages": "passages",
        "train": "training queries",
        "dev": "dev queries",
        "test": "test queries",
        "unlabelled": "unlabelled queries",
    }
    return [
        (label, f"{data[key]:,}")
        for key, label in names.items()
        if data.get(key) is not None and (data[key] or key != "unlabelled")
    ]
