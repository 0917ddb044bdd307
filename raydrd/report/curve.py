"""Geometry of the learning curve: dev metrics above, training loss below, stages of training as bands.

Loss has an axis of its own in every band: losses of different stages measure different things.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from raydrd.report.summary import MISSING, decimal, number

Point = tuple[float, float]

_TOP, _DEV, _BETWEEN, _LOSS, _BOTTOM = 30, 170, 40, 130, 42
_LEFT, _RIGHT = 40, 22
_LETTER = 6.4  # px of a letter at the chart's 12 px


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Band:
    x: float
    width: float
    label: str
    title: str
    line: str  # loss, as the points of a polyline
    ticks: list[Tick]  # loss
    dropped: bool  # by the dev gate: the student of before it went on


@dataclass(frozen=True)
class Line:
    name: str
    points: str
    dots: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    width: int
    height: int
    left: int
    right: float
    dev_top: int
    dev_bottom: int
    loss_top: int
    loss_bottom: int
    bands: list[Band]
    lines: list[Line]
    dev_ticks: list[Tick]
    step_ticks: list[Tick]
    binned: int  # training steps behind one drawn point, at most
    bad: int  # losses that are not finite


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2, 5 times a power of ten) within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    unit = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / unit - 1e-9), math.floor(high / unit + 1e-9)
    return [i * unit for i in range(first, last + 1)]


def _text(value: float, unit: float) -> str:
    digits = max(0, -math.floor(math.log10(unit) + 1e-9)) if unit > 0 else 3
    return f"{value:,.{digits}f}".replace("-", "−")


def _ticks(values: list[float]) -> list[tuple[float, str]]:
    unit = values[1] - values[0] if len(values) > 1 else abs(values[0]) / 100
    return [(value, _text(value, unit)) for value in values]


def _scale(value: float, low: float, high: float, start: float, end: float) -> float:
    share = (value - low) / (high - low) if high > low else 0.5
    return round(start + share * (end - start), 1)


def _bins(points: list[Point], most: int) -> tuple[list[Point], int]:
    """At most `most` points, each the mean of equally many neighbours, and how many those are."""
    size = max(1, math.ceil(len(points) / max(2, most)))
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups], size


def _polyline(points: list[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _dev_lines(curve: Mapping[str, Any], names: list[str]) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for step, values in curve.get("dev") or []:
        for name in [*(n for n in names if n in values), *(n for n in values if n not in names)]:
            value = number(values[name])
            if value is not None:
                found.setdefault(name, []).append((float(step), value))
    return found


def segments(curve: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages of training; one without a name over the whole curve when none are given."""
    given = [dict(s) for s in curve.get("segments") or []]
    steps = [p[0] for p in [*(curve.get("loss") or []), *(curve.get("dev") or [])]]
    return given or ([{"label": "", "start": min(steps), "end": max(steps)}] if steps else [])


def _losses(curve: Mapping[str, Any]) -> list[tuple[float, float | None, int]]:
    named = bool(curve.get("segments"))
    return [(float(step), number(value), int(at) if named else 0) for step, value, at in curve.get("loss") or []]


def _dev_value(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else value


def _returns(parts: list[dict[str, Any]], name: str, main: str) -> dict[float, float]:
    """Where the dev line goes back: the value of before a dropped stage, by the step it ended at."""
    found = {}
    for part in parts:
        before = part.get("dev_before")
        kept = number(_dev_value(before, name) if isinstance(before, Mapping) or name == main else None)
        if part.get("dropped") and kept is not None:
            found[float(part["end"])] = kept
    return found


def segment_rows(curve: Mapping[str, Any] | None, name: str) -> list[dict[str, str]]:
    """The table under the chart: label, steps, loss at start and end (means of a tenth), dev, whether dropped."""
    found = []
    for index, segment in enumerate(segments(curve or {})):
        losses = [y for _, y, at in _losses(curve or {}) if at == index and y is not None]
        before, after = (decimal(_dev_value(segment.get(key), name)) for key in ("dev_before", "dev_after"))
        tenth = max(1, len(losses) // 10)
        ends = [sum(part) / tenth for part in (losses[:tenth], losses[-tenth:])] if losses else []
        found.append(
            {
                "number": str(index + 1),
                "label": segment["label"],
                "steps": f"{segment['start']:,}–{segment['end']:,}",
                "loss": " → ".join(f"{end:#.3g}" for end in ends) or MISSING,
                "dev": f"{before} → {after}",
                "dropped": f"dropped: dev {name} fell" if segment.get("dropped") else "",
            }
        )
    return found


def chart(curve: Mapping[str, Any] | None, *, width: int, names: list[str]) -> Chart | None:
    """The chart `width` px wide, or None when there is nothing to draw.

    Args:
        curve: `loss` [[step, value, segment]], `dev` [[step, {metric: value}]], `segments`; after a dropped one the dev
            line goes back to what it was before.
        names: metrics in the order of the report, which is the order of the lines.

    Raises:
        ValueError: segments are out of order; steps count over the whole run.
    """
    parts = segments(curve or {})
    if not curve or not parts:
        return None
    losses = _losses(curve)
    dev = _dev_lines(curve, names)
    steps = [p[0] for p in losses] + [x for line in dev.values() for x, _ in line]
    first = min([float(parts[0]["start"]), *steps])
    last = max([float(parts[-1]["end"]), *steps])
    right = width - _RIGHT
    dev_bottom = _TOP + (_DEV if dev else 0)
    loss_top = dev_bottom + (_BETWEEN if dev else 0)
    loss_bottom = loss_top + (_LOSS if losses else 0)
    if not losses:
        loss_top = loss_bottom = dev_bottom

    def x_of(step: float) -> float:
        return _scale(step, first, last, _LEFT, right)

    bands, most = [], 1
    edges = [float(part["start"]) for part in parts] + [last]
    if edges != sorted(edges):
        raise ValueError(f"curve: segments start at {edges[:-1]}; steps count over the whole run, in its order")
    for index, (part, (start, end)) in enumerate(zip(parts, pairwise(edges), strict=True)):
        x, wide = x_of(start), round(x_of(end) - x_of(start), 1)
        points = [(step, value) for step, value, segment in losses if segment == index and value is not None]
        points, size = _bins(points, int(wide / 2))
        most = max(most, size)
        ys = [y for _, y in points]
        low, high = (min(ys), max(ys)) if ys else (0.0, 0.0)
        margin = 0.06 * (high - low) or 0.5 * abs(high) or 0.5
        low, high = low - margin, high + margin
        placed = [(x_of(step), _scale(y, low, high, loss_bottom, loss_top)) for step, y in points]
        ticks = [
            Tick(_scale(value, low, high, loss_bottom, loss_top), text)
            for value, text in (_ticks(nice_ticks(low, high, 3)) if ys and wide >= 60 else [])
        ]
        label = f"{index + 1} {part['label']}" if part["label"] and len(parts) > 1 else str(part["label"])
        label = f"{label} (dropped)".lstrip() if part.get("dropped") else label
        room = int((wide - 8) / _LETTER)
        shown = label if len(label) <= room else (f"{label[: room - 1].rstrip()}…" if room >= 8 else str(index + 1))
        bands.append(Band(x, wide, shown, label, _polyline(placed), ticks, bool(part.get("dropped"))))

    values = [y for line in dev.values() for _, y in line]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 0.05
    # From 0 unless that would flatten the curve; a fitted axis is said so under the chart by its ticks.
    low, high = (0.0 if 0 <= low < 0.6 * high else low - margin), high + margin
    lines = []
    for name, line in dev.items():
        placed = [(x_of(step), _scale(y, low, high, dev_bottom, _TOP)) for step, y in line]
        dots = [(px, py, f"{name} {y:.3f} after step {step:,.0f}") for (px, py), (step, y) in zip(placed, line, strict=True)]
        back = _returns(parts, name, names[0] if names else name)
        turned = [
            point
            for (px, py), (step, _) in zip(placed, line, strict=True)
            for point in [(px, py), *([(px, _scale(back[step], low, high, dev_bottom, _TOP))] if step in back else [])]
        ]
        lines.append(Line(name, _polyline(turned), dots))
    return Chart(
        width=width,
        height=loss_bottom + _BOTTOM,
        left=_LEFT,
        right=right,
        dev_top=_TOP,
        dev_bottom=dev_bottom,
        loss_top=loss_top,
        loss_bottom=loss_bottom,
        bands=bands,
        lines=lines,
        dev_ticks=[
            Tick(_scale(v, low, high, dev_bottom, _TOP), text)
            for v, text in (_ticks(nice_ticks(low, high, 5)) if values else [])
        ],
        step_ticks=[Tick(x_of(v), text) for v, text in _ticks(nice_ticks(first, last, max(2, width // 110)))],
        binned=most,
        bad=sum(value is None for _, value, _ in losses),
    )
