"""Which students of a sweep no other beats at once in quality, encoding speed and size of a vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raydrd.report.summary import number

_SIZE = ("layers", "dim", "index", "bytes_per_passage", "passages_per_second")


def front(rows: Sequence[Sequence[float]]) -> list[bool]:
    """Whether each row is on the front, where more is better in every column: no other is as good in all and better in one.

    Equal rows are on it together.
    """
    return [not any(_dominates(other, row) for other in rows) for row in rows]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True)) and any(a > b for a, b in zip(one, other, strict=True))


def pareto(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The points that finished, by bytes a passage: quality (dev, mean over seeds), passages/s, and whether on the front.

    Where one has no timing, speed is left out for all.

    Returns:
        A list of {point, trial, label, quality, passages_per_second, bytes_per_passage, layers, dim, index, front}; empty
        where all students have the same size and speed, because then quality alone decides.
    """
    metric = result["metric"]
    trials = {int(trial["number"]): trial for trial in result["trials"]}
    rows: list[dict[str, Any]] = []
    for point in result["points"]:
        sized = [trials[key] for key in point["trials"] if trials[key]["size"] is not None]
        quality = number((point["dev"].get(metric) or {}).get("mean"))
        if not sized or quality is None or number(sized[0]["size"]["bytes_per_passage"]) is None:
            continue
        size = sized[0]["size"]
        row = {"point": point["number"], "trial": sized[0]["number"], "label": point["label"], "quality": quality}
        row |= {name: size[name] for name in ("layers", "dim", "index", "bytes_per_passage")}
        rows.append({**row, "passages_per_second": number(size.get("passages_per_second"))})
    if len({tuple(row[name] for name in _SIZE) for row in rows}) < 2:
        return []
    timed = all(row["passages_per_second"] is not None for row in rows)
    goods = [(row["quality"], -row["bytes_per_passage"], row["passages_per_second"] if timed else 0.0) for row in rows]
    rows = [{**row, "front": on} for row, on in zip(rows, front(goods), strict=True)]
    return sorted(rows, key=lambda row: (row["bytes_per_passage"], -row["quality"]))
