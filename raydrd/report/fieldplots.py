"""The pictures of a sweep's single fields: value against dev metric, steps of named curricula, size against quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from raydrd.report.pictures import kind_of, ordered, title_of
from raydrd.report.plots import LETTER, Dot, Line, Plot, Scale, Text, apart, metric_scale, plain, scale, spread, words
from raydrd.report.summary import number
from raydrd.report.trials import Column, Footing, columns, footing, labels_of, line_of, trials_of, value_of
from raydrd.statistics import bootstrap_interval

WIDTH = 410
_LEFT, _RIGHT, _TOP, _TALL = 42, 12, 10, 178
_FEW = 9  # up to this many values of a number are joined by their medians; more are read in thirds
_INTERVAL = 3  # points from which a mean gets an interval


@dataclass(frozen=True)
class FieldPlot:
    column: Column
    plot: Plot
    unset: int  # points where the field was not active
    curve: str  # what the line through the points is: `value`, `third` or nothing


def field_plots(result: Mapping[str, Any]) -> list[FieldPlot]:
    """One picture a column over the points that can be compared; none where fewer than two can."""
    compared = footing(result)
    if len(compared.values) < 2:
        return []
    made = []
    for column in columns(result):
        points = [p for p in ordered(result, compared.values) if value_of(column, p["point"]) is not None]
        if points:
            draw = _names if column.labels else _numbers
            plot, curve = draw(result, column, points, compared)
            made.append(FieldPlot(column, plot, len(compared.values) - len(points), curve))
    return made


def below(result: Mapping[str, Any]) -> list[tuple[int, float]]:
    """(number, dev metric) of the points far below the rest, which lie at the edge of these pictures."""
    compared = footing(result)
    return [(key, value) for key, value in compared.values.items() if value < compared.held[key]]


def _spans(result: Mapping[str, Any], compared: Footing) -> dict[int, tuple[float, float]]:
    """(low, high) over seeds by point, where the values drawn are those of the end."""
    if result["seeds"] < 2 or compared.updates is not None:
        return {}
    found = {p["number"]: p["dev"].get(result["metric"]) for p in result["points"] if p["number"] in compared.values}
    wide = {key: dev for key, dev in found.items() if dev and dev["low"] is not None}
    return {key: (dev["low"], dev["high"]) for key, dev in wide.items() if dev["high"] > dev["low"]}


def _all(compared: Footing, spans: Mapping[int, tuple[float, float]]) -> list[float]:
    return [*compared.values.values(), *(end for span in spans.values() for end in span)]


def _numbers(
    result: Mapping[str, Any], column: Column, points: Sequence[Mapping[str, Any]], compared: Footing
) -> tuple[Plot, str]:
    values = {p["number"]: v for p in points if isinstance(v := value_of(column, p["point"]), float)}
    ends = [] if column.part is not None else [v for v in (column.low, column.high) if v is not None]
    spans = _spans(result, compared)
    bottom, right = _TOP + _TALL, WIDTH - _RIGHT
    across = scale([*ends, *values.values()], _LEFT, right, log=column.log, margin=0.04)
    up = metric_scale(_all(compared, spans), bottom, _TOP)
    lines = _default(result, compared, lambda y: ((_LEFT, up.at(y)), (right, up.at(y))))
    dots = []
    for point in points:
        key = point["number"]
        x, y = across.at(values[key]), up.at(compared.values[key])
        if key in spans:
            ends_px = ((x, up.at(spans[key][0])), (x, up.at(spans[key][1])))
            lines.append(Line(ends_px, point=key, kind="span"))
        dots.append(_dot(result, point, compared, up, x, y, f"; {plain(values[key])}"))
    steps = column.part is not None or all(value == int(value) for value in values.values())
    joined, curve = _joined([(values[p["number"]], compared.values[p["number"]]) for p in points], steps)
    lines += [Line(tuple((across.at(x), up.at(y)) for x, y in part), kind="medians") for part in joined]
    label = f"Dev {result['metric']} by {column.name}"
    texts = [words(right, bottom + 36, _x_title(column), right - _LEFT, anchor="end", kind="name", front=True)]
    x_ticks = across.ticks(5)
    return Plot(WIDTH, bottom + 44, _LEFT, right, _TOP, bottom, label, x_ticks, up.ticks(5), lines, dots, texts), curve


def _x_title(column: Column) -> str:
    if column.part is None:
        return column.title + (" (log)" if column.log else "")
    return f"share of {column.part} ({plain(column.total)} in all)"


def _joined(pairs: Sequence[tuple[float, float]], steps: bool) -> tuple[list[list[tuple[float, float]]], str]:
    """Medians of the metric by value, joined, where there are a few steps; else the median of each third, as a level."""
    by_value: dict[float, list[float]] = {}
    for x, y in pairs:
        by_value.setdefault(round(x, 9), []).append(y)
    if steps and 1 < len(by_value) <= _FEW:
        return [[(x, median(ys)) for x, ys in sorted(by_value.items())]], "value"
    if len(pairs) < 6:
        return [], ""
    order = sorted(pairs)
    cuts = [round(len(order) * n / 3) for n in range(4)]
    thirds = [order[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    levels = [median(y for _, y in third) for third in thirds]
    return [[(third[0][0], level), (third[-1][0], level)] for third, level in zip(thirds, levels, strict=True)], "third"


def _dot(
    result: Mapping[str, Any], point: Mapping[str, Any], compared: Footing, up: Scale, x: float, y: float, also: str
) -> Dot:
    value = compared.values[point["number"]]
    kind = kind_of(result, point, up.low, up.high, value)
    if value < up.low:
        kind += " below"
    return Dot(x, y, title_of(result, point, value) + also, point["number"], kind)


def _default(result: Mapping[str, Any], compared: Footing, place: Any) -> list[Line]:
    value = compared.values.get(0)
    return [] if value is None else [Line(place(value), "default", 0, "help")]


def _names(
    result: Mapping[str, Any], column: Column, points: Sequence[Mapping[str, Any]], compared: Footing
) -> tuple[Plot, str]:
    """A row a name: long names stay readable."""
    labels = labels_of(result, column)
    spans = _spans(result, compared)
    left = max(_LEFT, min(0.42 * WIDTH, max(len(label) for label in labels) * LETTER + 12))
    tall = 28 if len(labels) < 9 else 22
    bottom, right = _TOP + tall * len(labels), WIDTH - 34
    across = metric_scale(_all(compared, spans), left + 7, right)
    lines = _default(result, compared, lambda y: ((across.at(y), _TOP), (across.at(y), bottom)))
    dots, texts = [], []
    for n, label in enumerate(labels):
        middle = _TOP + tall * (n + 0.5)
        texts.append(words(left - 8, middle + 4, label, left - 10, anchor="end"))
        same = [p for p in points if value_of(column, p["point"]) == label]
        texts.append(Text(WIDTH - 4, middle + 4, f"{len(same)}", kind="count", anchor="end"))
        for point, move in zip(same, spread(len(same), tall - 12, 3), strict=True):
            key = point["number"]
            x, y = across.at(compared.values[key]), middle + move
            if key in spans:
                lines.append(Line(((across.at(spans[key][0]), y), (across.at(spans[key][1]), y)), point=key, kind="span"))
            dots.append(_dot(result, point, compared, across, x, y, ""))
        if same:
            x = across.at(median(compared.values[p["number"]] for p in same))
            lines.append(Line(((x, middle - tall / 2 + 3), (x, middle + tall / 2 - 3)), kind="medians"))
    label = f"Dev {result['metric']} by {column.name}"
    ticks = across.ticks(4)
    return Plot(WIDTH, bottom + 26, left, right, _TOP, bottom, label, ticks, [], lines, dots, texts), "value"


# -- named curricula --------------------------------------------------------------------------------


def strips(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each field of named alternatives, each name's steps and its mean dev metric over the points that have it,
    those far below the rest held at the lowest of the rest.

    Returns:
        A list of {name, full, rows}: a row holds label, `steps` [(segment, share of the longest in %, title)], `points`,
        mean, low, high (95 % bootstrap interval over those points, from 3 on; else None) and `difference` from the default.
    """
    compared = footing(result)
    found = []
    for field, column in ((f, c) for f in result["fields"] for c in columns(result) if c.field == f["name"]):
        if field["kind"] != "named":
            continue
        named = (_named(result, column, label, compared) for label in labels_of(result, column))
        rows = [row for row in named if row is not None]
        longest = max((row["updates"] for row in rows), default=0.0)
        for row in rows:
            row["steps"] = [(text, round(100 * own / longest, 2), title) for text, own, title in row["steps"] if longest]
        if rows:
            found.append({"name": column.title, "full": column.name, "rows": rows})
    return found


def _named(result: Mapping[str, Any], column: Column, label: str, compared: Footing) -> dict[str, Any] | None:
    points = [p for p in result["points"] if value_of(column, p["point"]) == label and p["number"] in compared.values]
    if not points:
        return None
    metric = result["metric"]
    values = [compared.held[p["number"]] for p in points]
    trials = [trial for point in points for trial in trials_of(result, point) if line_of(trial, metric)]
    longest = max(trials, key=lambda t: (t["status"] == "finished", t["updates"], number(t["dev"].get(metric)) or 0.0))
    steps, before = [], 0.0
    for report in longest["reports"]:
        if report["updates"] > before:
            value = number(report["dev"].get(metric))
            told = f"{report['segment']}: updates {before:,.0f} to {report['updates']:,}"
            told += "" if value is None else f", dev {metric} {value:.3f}"
            steps.append((str(report["segment"]), report["updates"] - before, told))
            before = report["updates"]
    mean = sum(values) / len(values)
    low, high = bootstrap_interval(values, seed=0) if len(values) >= _INTERVAL else (None, None)
    base = compared.held.get(0)
    change: dict[str, float] | None = None
    if base is not None and low is not None and high is not None:
        change = {"difference": mean - base, "low": low - base, "high": high - base}
    return {
        "label": label,
        "steps": steps,
        "updates": before,
        "trial": longest["number"],
        "points": len(points),
        "mean": mean,
        "low": low,
        "high": high,
        "change": change,
    }


# -- size against quality ---------------------------------------------------------------------------


def front_plot(result: Mapping[str, Any]) -> Plot | None:
    """Bytes a passage against dev metric; the front joined. None where the sweep leaves sizes alone."""
    rows = result["pareto"]
    if not rows:
        return None
    width, bottom = 820, _TOP + 230
    right = width - 70
    across = scale([row["bytes_per_passage"] for row in rows], _LEFT, right, log=True, margin=0.05)
    up = metric_scale([row["quality"] for row in rows], bottom, _TOP)
    points = {point["number"]: point for point in result["points"]}
    dots, texts = [], []
    for row in rows:
        point = points[row["point"]]
        x, y = across.at(row["bytes_per_passage"]), up.at(row["quality"])
        kind = kind_of(result, point, up.low, up.high, row["quality"]) + (" front" if row["front"] else "")
        dots.append(Dot(x, y, title_of(result, point, row["quality"]), row["point"], kind))
    told = [row for row in rows if row["front"]]
    for x in dict.fromkeys(across.at(row["bytes_per_passage"]) for row in told):
        same = [row for row in told if across.at(row["bytes_per_passage"]) == x]
        heights = apart([up.at(row["quality"]) for row in same], least=13, top=_TOP, bottom=bottom)
        texts += [Text(x + 8, y + 4, f"{row['point']}", kind="halo") for row, y in zip(same, heights, strict=True)]
    best: list[tuple[float, float]] = []
    for row in sorted(told, key=lambda row: (row["bytes_per_passage"], -row["quality"])):
        x, y = across.at(row["bytes_per_passage"]), up.at(row["quality"])
        if not best or y < best[-1][1]:
            best.append((x, y))
    lines = [Line(tuple(best), kind="medians")] if len(best) > 1 else []
    texts.append(Text(right, bottom + 36, "bytes a passage (log)", kind="name", anchor="end"))
    label = f"Dev {result['metric']} by bytes a passage"
    return Plot(width, bottom + 44, _LEFT, right, _TOP, bottom, label, across.ticks(6), up.ticks(5), lines, dots, texts)
