"""A sweep's result as numbers to draw and to test: one axis a field, and one value a point, on an equal footing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from raydrd.report.summary import number

USED = ("finished", "stopped")  # what the scheduler ended has a value; what failed or was refused has none


@dataclass(frozen=True)
class Column:
    """One axis: a field of the space, or one part of a field whose parts sum to a total.

    Args:
        name: as people read it, unique: `loss.score_scale`, `mixture: dark.noisy`.
        title: the shortest end of the name that no other column has.
        field: the key of a point; `part` the key within its value, where the parts share `total`.
        labels: names or choices in the order of the file; empty for numbers.
        low, high: ends of the range that was searched; None for labels.
    """

    name: str
    title: str
    field: str
    part: str | None = None
    total: float = 1.0
    labels: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False


@dataclass(frozen=True)
class Footing:
    """Values that may be compared: `values` by point number, taken at `updates`, or (None) at each trial's end.

    In `held` what lies far below the rest is as low as the lowest of the rest: how bad diverged trials are must not drown
    what the others say.
    """

    updates: float | None
    values: dict[int, float]

    @property
    def held(self) -> dict[int, float]:
        least = fence(list(self.values.values()))
        return {key: max(value, least) for key, value in self.values.items()}


def fence(values: Sequence[float]) -> float:
    """The lowest value that is not far below the rest.

    Far is more than three times the distance of the quartiles below the lower one (Tukey's outer fence); from 8 values on.
    """
    ordered = sorted(values)
    if len(ordered) < 8:
        return ordered[0] if ordered else 0.0
    low, high = (ordered[round((len(ordered) - 1) * q)] for q in (0.25, 0.75))
    return next(value for value in ordered if value >= low - 3 * (high - low) or high == low)


def columns(result: Mapping[str, Any]) -> list[Column]:
    """The axes of a sweep, in the file's order.

    A field of two shares is one column, that of its first part: the other is what remains.
    """
    found: list[Column] = []
    for field in result["fields"]:
        name = str(field["name"])
        if field["kind"] == "shares":
            parts, total = list(field["parts"]), float(field["total"])
            for part in parts[:1] if len(parts) == 2 else parts:
                shown = f"{name}: {part}"
                found.append(Column(shown, shown, name, part=part, total=total, low=0.0, high=1.0))
        elif field["values"] is not None:
            found.append(Column(name, name, name, labels=tuple(map(str, field["values"]))))
        else:
            low, high = float(field["low"]), float(field["high"])
            found.append(Column(name, name, name, low=low, high=high, log=bool(field["log"])))
    titles = short_names([column.name for column in found])
    return [replace(column, title=title) for column, title in zip(found, titles, strict=True)]


def short_names(names: Sequence[str]) -> list[str]:
    """The shortest end of each dotted name that none of the others has: `learning_rate`, or `loss.scale` where two do."""
    pieces = [[p for p in name.replace(": ", ".").split(".") if p not in ("", "*")] or [name] for name in names]
    found = []
    for own, whole in zip(pieces, names, strict=True):
        ends = [".".join(own[-n:]) for n in range(1, len(own) + 1)]
        alone = (end for n, end in enumerate(ends, 1) if sum(other[-n:] == own[-n:] for other in pieces) == 1)
        found.append(next(alone, whole))
    return found


def value_of(column: Column, point: Mapping[str, Any]) -> float | str | None:
    """What a point has on this axis: a number (of shares: 0 to 1), a label, or None where the field is not active."""
    if column.field not in point:
        return None
    value = point[column.field]
    if column.part is not None:
        share = number(value.get(column.part)) if isinstance(value, Mapping) else None
        return None if share is None else share / column.total
    if column.labels:
        return _label(column.labels, value)
    return number(value)


def _label(labels: Sequence[str], value: Any) -> str:
    """The label of a choice; one that the file does not name (the default's own value) as plain text."""
    if isinstance(value, str):
        return value
    number_like = f"{value:g}" if isinstance(value, float) else str(value)
    texts = [number_like, json.dumps(value, ensure_ascii=False, separators=(",", ":"))]
    return next((text for text in texts if text in labels), texts[-1])


def default_value(result: Mapping[str, Any], column: Column) -> float | str | None:
    return value_of(column, result["default"]["point"]) if result["default"] else None


def labels_of(result: Mapping[str, Any], column: Column) -> list[str]:
    """All labels of a column: those of the file, then others that a point has."""
    seen = [value_of(column, point["point"]) for point in result["points"]]
    return list(dict.fromkeys([*column.labels, *(value for value in seen if isinstance(value, str))]))


def line_of(trial: Mapping[str, Any], metric: str) -> list[tuple[float, float]]:
    """(updates, dev metric) of each report that has the metric, in order."""
    read = ((number(report["updates"]), number(report["dev"].get(metric))) for report in trial["reports"])
    return sorted({x: y for x, y in read if x is not None and y is not None}.items())


def at(line: Sequence[tuple[float, float]], updates: float) -> float:
    """The dev metric at so many updates: a report's, or that on the straight line between the two around it."""
    for (x, y), (later, after) in pairwise(line):
        if x <= updates < later:
            return y + (after - y) * (updates - x) / (later - x)
    return line[0][1] if updates < line[0][0] else line[-1][1]


def footing(result: Mapping[str, Any]) -> Footing:
    """Each point's dev metric where all points can be compared: the mean over its seeds.

    Where every trial went to its end that is the end, be it after more or fewer updates. Where the scheduler stopped some,
    values at the end would favour those that went on: then it is the greatest number of updates that all of them
    reached, and a trial without a report just there has the value on the line between its reports around it.
    Failed and refused trials have no value.
    """
    metric = result["metric"]
    lines = {trial["number"]: line_of(trial, metric) for trial in result["trials"] if trial["status"] in USED}
    lines = {key: line for key, line in lines.items() if line}
    trials = [trial for trial in result["trials"] if trial["number"] in lines]
    updates = None
    if any(trial["status"] == "stopped" for trial in trials):
        updates = min(lines[trial["number"]][-1][0] for trial in trials)
    by_point: dict[int, list[float]] = {}
    for trial in trials:
        line = lines[trial["number"]]
        end = number(trial["dev"].get(metric))
        value = at(line, updates) if updates is not None else (line[-1][1] if end is None else end)
        by_point.setdefault(int(trial["point_number"]), []).append(value)
    return Footing(updates, {key: sum(found) / len(found) for key, found in sorted(by_point.items())})


def ends(result: Mapping[str, Any]) -> dict[int, float]:
    """Each point's dev metric as it ended, be it after few updates: the mean over the seeds that finished, else over all."""
    metric, found = result["metric"], {}
    for point in result["points"]:
        mean = number((point["dev"].get(metric) or {}).get("mean"))
        own = [trial for trial in trials_of(result, point) if trial["status"] in USED]
        last = [value for trial in own if (value := number(trial["dev"].get(metric))) is not None]
        if mean is not None or last:
            found[int(point["number"])] = sum(last) / len(last) if mean is None else mean
    return found


def stopped(result: Mapping[str, Any], point: Mapping[str, Any]) -> bool:
    """Whether no seed of the point went to its end."""
    return not any(trial["status"] == "finished" for trial in trials_of(result, point))


def trials_of(result: Mapping[str, Any], point: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The point's trials, one a seed."""
    return [trial for trial in result["trials"] if trial["number"] in point["trials"]]
