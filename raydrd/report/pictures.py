"""The pictures of a sweep, as geometry: all trials across all fields, and their learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raydrd.report.plots import Line, Plot, Scale, Text, apart, colour, metric_scale, plain, scale, spread, words
from raydrd.report.summary import decimal
from raydrd.report.trials import USED, Column, columns, ends, labels_of, line_of, stopped, value_of

WIDTH = 820
_TOP, _TALL, _APART = 52, 250, 112  # px: above the axes, of an axis, between two at least
_UNSET = 24  # px below an axis: where a trial passes in which the field is not active


@dataclass(frozen=True)
class Axis:
    """One upright axis; `labels` stand right of it."""

    x: float
    title: Text
    labels: list[Text]


@dataclass(frozen=True)
class Parallel:
    plot: Plot
    axes: list[Axis]
    unset: float | None  # height of `not set`, if a trial passes there


def kind_of(result: Mapping[str, Any], point: Mapping[str, Any], low: float, high: float, value: float) -> str:
    """The classes of a line: its colour, and whether it is the best, the default, or was stopped."""
    names = [f"m{colour(value, low, high)}"]
    names += ["best"] if point["number"] == result["best_point"] else []
    names += ["default"] if point["number"] == 0 else []
    names += ["stopped"] if stopped(result, point) else []
    return " ".join(names)


def title_of(result: Mapping[str, Any], point: Mapping[str, Any], value: float | None) -> str:
    """What is said on hovering: number, what differs, metric."""
    metric = f": dev {result['metric']} {decimal(value)}" if value is not None else ""
    return f"{point['number']} {point['label']}{metric}{' (stopped)' if stopped(result, point) else ''}"


def metric_ends(values: Sequence[float]) -> Scale:
    return metric_scale(list(values), 0, 1)


def ordered(result: Mapping[str, Any], shown: Mapping[int, float]) -> list[Mapping[str, Any]]:
    """The points with a value, the worst first, then default and best: what is drawn last lies on top."""
    points = [point for point in result["points"] if point["number"] in shown]
    return sorted(points, key=lambda p: (p["number"] == result["best_point"], p["number"] == 0, shown[p["number"]]))


# -- all fields -------------------------------------------------------------------------------------


def parallel(result: Mapping[str, Any]) -> Parallel | None:
    """Every point as a line over an axis a field, the dev metric at the right; None without two points that have one."""
    shown = ends(result)
    if len(shown) < 2:
        return None
    made, points = columns(result), ordered(result, shown)
    most = max([1, *(len(labels_of(result, column)) for column in made)])
    tall = max(_TALL, 17 * most)
    left, bottom = 14, _TOP + tall
    ranged = metric_scale(list(shown.values()), bottom, _TOP)
    room = max(_APART, (WIDTH - left - 50) / max(1, len(made)))
    heights = {column.name: _heights(result, column, points, bottom) for column in made}
    unset = any(height > bottom for own in heights.values() for height in own.values())
    lines = []
    for point in points:
        key, value = point["number"], shown[point["number"]]
        across = [(left + n * room, heights[column.name][key]) for n, column in enumerate(made)]
        across.append((left + len(made) * room, ranged.at(value)))
        title = title_of(result, point, value)
        lines.append(Line(tuple(across), title, key, kind_of(result, point, ranged.low, ranged.high, value)))
    axes = [_axis(result, column, left + n * room, n, room, points, bottom) for n, column in enumerate(made)]
    end = left + len(made) * room
    axes.append(
        Axis(
            end,
            Text(end + 50, 20, f"dev {result['metric']}", kind="name", anchor="end"),
            [Text(end + 6, tick.at + 4, tick.text, kind="halo") for tick in ranged.ticks(6)],
        )
    )
    width = round(end + 50)
    label = f"Each trial as a line over its fields and its dev {result['metric']}"
    plot = Plot(width, bottom + (_UNSET + 16 if unset else 12), left, end, _TOP, bottom, label, lines=lines)
    return Parallel(plot, axes, bottom + _UNSET if unset else None)


def _range(column: Column, points: Sequence[Mapping[str, Any]], start: float, end: float) -> Scale:
    """The scale of a column of numbers: the searched range, and the default's own value where that lies outside."""
    drawn = [v for point in points if isinstance(v := value_of(column, point["point"]), float)]
    found = [v for v in (column.low, column.high) if v is not None]
    return scale([*found, *drawn], start, end, log=column.log)


def _heights(result: Mapping[str, Any], column: Column, points: Sequence[Mapping[str, Any]], bottom: float) -> dict[int, float]:
    """Where each point crosses the axis; those with one label lie side by side, in the order of the metric."""
    values = {point["number"]: value_of(column, point["point"]) for point in points}
    if not column.labels:
        own = _range(column, points, bottom, _TOP)
        return {key: own.at(v) if isinstance(v, float) else bottom + _UNSET for key, v in values.items()}
    labels = labels_of(result, column)
    found = {key: bottom + _UNSET for key, v in values.items() if v is None}
    for label, height in zip(labels, _rungs(len(labels), bottom), strict=True):
        same = [key for key, v in values.items() if v == label]
        gap = (bottom - _TOP) / max(2, len(labels))
        found |= {key: height - move for key, move in zip(same, spread(len(same), 0.5 * gap, 3), strict=True)}
    return found


def _rungs(count: int, bottom: float) -> list[float]:
    """Heights of labels on an axis, the first at the top."""
    gap = (bottom - _TOP) / count
    return [round(_TOP + gap * (n + 0.5), 1) for n in range(count)]


def _axis(
    result: Mapping[str, Any], column: Column, x: float, n: int, room: float, points: Sequence[Mapping[str, Any]], bottom: float
) -> Axis:
    # Titles stand in two rows in turn, so that each has the room of two axes less a gap.
    at, anchor = (2.0, "start") if n == 0 else (x, "middle")
    shown = words(at, 20 + 18 * (n % 2), column.title, 1.7 * room, kind="name", anchor=anchor, front=True)
    title = replace(shown, whole=column.name + (", log" if column.log else ""))
    if column.labels:
        labels = labels_of(result, column)
        places = zip(labels, _rungs(len(labels), bottom), strict=True)
        return Axis(x, title, [words(x + 6, y + 4, label, room - 14, kind="halo") for label, y in places])
    own = _range(column, points, bottom, _TOP)
    if own.low == own.high:
        return Axis(x, title, [Text(x + 6, own.at(own.low) + 4, plain(own.low), kind="halo")])
    return Axis(x, title, [Text(x + 6, tick.at + 4, tick.text, kind="halo") for tick in own.ticks(6)])


# -- learning curves --------------------------------------------------------------------------------


def common(result: Mapping[str, Any]) -> int:
    """How many reports at the start all trials have in common, such as the untrained student and a recovery."""
    lines = [line for trial in result["trials"] if len(line := line_of(trial, result["metric"])) > 0]
    count = 0
    while lines and all(len(line) > count and line[count] == lines[0][count] for line in lines):
        count += 1
    return count


def curves(result: Mapping[str, Any]) -> tuple[Plot, str] | None:
    """Dev metric over updates of every trial, and a sentence on what all have in common; None where nobody learnt."""
    metric, shown = result["metric"], ends(result)
    drawn = [t for t in result["trials"] if t["status"] in (*USED, "failed") and len(line_of(t, metric)) > 1]
    if not drawn:
        return None
    skip = max(0, common(result) - 1)  # the last common report is where the lines part
    lines = {t["number"]: line_of(t, metric)[skip:] for t in drawn}
    own = [line[1:] for line in lines.values() if len(line) > 1]
    if not own:
        skip, lines = 0, {t["number"]: line_of(t, metric) for t in drawn}
    elif _far_below(min(line[0][1] for line in lines.values()), [y for line in own for _, y in line]) and _most_go_on(own):
        skip, lines = skip + 1, {key: line[1:] for key, line in lines.items() if len(line) > 1}
        drawn = [t for t in drawn if t["number"] in lines]
    left, right, top, bottom = 44, WIDTH - 96, 12, 272
    across = scale([x for line in lines.values() for x, _ in line], left, right)
    up = metric_scale([y for line in lines.values() for _, y in line], bottom, top)
    ranged = metric_ends(list(shown.values()))
    points = {point["number"]: point for point in result["points"]}
    order = [p["number"] for p in ordered(result, shown)]
    drawn.sort(key=lambda t: order.index(t["point_number"]) if t["point_number"] in order else -1)
    found, last = [], {}
    for trial in drawn:
        point, line = points[trial["point_number"]], lines[trial["number"]]
        placed = tuple((across.at(x), up.at(y)) for x, y in line)
        kind = kind_of(result, point, ranged.low, ranged.high, line[-1][1])
        if trial["status"] != "finished" and "stopped" not in kind:
            kind += " stopped"
        title = f"{trial['number']} {trial['label']}: dev {metric} {decimal(line[-1][1])} at {line[-1][0]:,.0f}"
        title += "" if trial["status"] == "finished" else f" ({trial['status']})"
        found.append(Line(placed, title, point["number"], kind))
        last[point["number"]] = placed[-1]
    named = {result["best_point"]: "best", 0: "default"}
    named = {key: text for key, text in named.items() if key in last}
    if result["best_point"] == 0:
        named = {0: "default, best"} if 0 in last else {}
    heights = apart([last[key][1] for key in named], least=15, top=top, bottom=bottom)
    texts = [
        Text(last[key][0] + 9, y + 4, text if key == 0 else f"{key} {text}", kind="name halo")
        for (key, text), y in zip(named.items(), heights, strict=True)
    ]
    texts.append(Text(right, bottom + 36, "student updates", kind="name", anchor="end"))
    label = f"Dev {metric} of every trial by student updates"
    plot = Plot(WIDTH, bottom + 44, left, right, top, bottom, label, across.ticks(7), up.ticks(5), found, [], texts)
    return plot, _shared_start(drawn[0], metric, skip, common(result)) if skip else ""


def _far_below(start: float, later: Sequence[float]) -> bool:
    """Whether a common start would take more than half of the picture."""
    return start < min(later) - (max(later) - min(later))


def _most_go_on(lines: Sequence[Sequence[Any]]) -> bool:
    return 2 * sum(len(line) > 1 for line in lines) > len(lines)


def _shared_start(trial: Mapping[str, Any], metric: str, skip: int, same: int) -> str:
    told = " → ".join(f"{y:.3f} ({x:,.0f})" for x, y in line_of(trial, metric)[: max(skip, same)])
    return f"All trials have in common, at the start: dev {metric} (updates) {told}{', not drawn' if skip >= same else ''}."
