"""What the vectors cost and what they give: a curve of bytes a passage against the main metric, and the same as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raydrd.report.plots import Dot, Line, Plot, scale
from raydrd.report.summary import MISSING, decimal, number, signed, span

TYPES = ("float32", "int8", "binary")  # in the order of their colours
_HEIGHT, _TOP, _BOTTOM, _LEFT, _RIGHT = 300, 14, 42, 44, 16


def main_metric(sizes: Mapping[str, Any] | None) -> str:
    """The first metric; empty where a report has no sizes."""
    return str((sizes.get("metrics") or [""])[0]) if sizes and sizes.get("rows") else ""


def plot(sizes: Mapping[str, Any] | None, *, width: int) -> Plot | None:
    """The curve `width` px wide: a line for each number type (its kind c0, c1, c2), a dot a width; None without numbers."""
    metric = main_metric(sizes)
    rows = [one for one in (sizes or {}).get("rows") or [] if number((one.get("means") or {}).get(metric)) is not None]
    if not rows:
        return None
    right, bottom = float(width - _RIGHT), float(_HEIGHT - _BOTTOM)
    x = scale([float(one["bytes"]) for one in rows], _LEFT, right, log=True, margin=0.04)
    y = scale([float(one["means"][metric]) for one in rows], bottom, _TOP, margin=0.06)
    lines, dots = [], []
    for colour, type_ in enumerate(TYPES):
        own = sorted((one for one in rows if one["type"] == type_), key=lambda one: int(one["bytes"]))
        placed = [(x.at(float(one["bytes"])), y.at(float(one["means"][metric]))) for one in own]
        if len(placed) > 1:
            lines.append(Line(tuple(placed), title=type_, kind=f"c{colour}"))
        for (px, py), one in zip(placed, own, strict=True):
            title = f"{label(one)}: {one['bytes']:,} bytes a passage, {metric} {decimal(one['means'][metric])}"
            ships = ", ships" if one.get("ships") else ""
            dots.append(Dot(px, py, title + ships, kind=f"c{colour}" + (" ships" if ships else "")))
    return Plot(
        width=width,
        height=_HEIGHT,
        left=_LEFT,
        right=right,
        top=_TOP,
        bottom=bottom,
        label=f"{metric} by bytes a passage, on a logarithmic axis",
        x_ticks=x.ticks(max(3, width // 70)),
        y_ticks=y.ticks(5),
        lines=lines,
        dots=dots,
    )


def label(row: Mapping[str, Any]) -> str:
    return f"{row['dim']} {row['type']}"


def table(sizes: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """A row a size, formatted: label, bytes, value, change and interval of the main metric, the same of recall, ms a query."""
    metric, found = main_metric(sizes), []
    recall = next((name for name in (sizes or {}).get("metrics") or [] if name.startswith("R@") and name != metric), "")
    for number_, one in enumerate((sizes or {}).get("rows") or []):
        cells = [_cell(one, name, base=number_ == 0) for name in (metric, recall) if name]
        found.append(
            {
                "label": label(one),
                "bytes": f"{one['bytes']:,}",
                "cells": cells,
                "ms": _ms(one.get("ms")),
                "ships": bool(one.get("ships")),
            }
        )
    return found


def columns(sizes: Mapping[str, Any] | None) -> list[str]:
    """The metrics of `table`'s cells."""
    names = (sizes or {}).get("metrics") or []
    return [*names[:1], *[name for name in names[1:] if name.startswith("R@")][:1]]


def _cell(row: Mapping[str, Any], name: str, *, base: bool) -> dict[str, str]:
    """base: it is what the others are compared with."""
    value, change = decimal((row.get("means") or {}).get(name)), (row.get("change") or {}).get(name)
    if change is None or base:
        return {"value": value, "change": "", "interval": ""}
    return {"value": value, "change": signed(change[0]), "interval": span(change[1], change[2], signed)}


def _ms(value: Any) -> str:
    found = number(value)
    return MISSING if found is None else f"{found:.3g}" if found < 100 else f"{found:,.0f}"


def note(sizes: Mapping[str, Any] | None) -> str:
    """What the numbers are, in two sentences; empty without them."""
    if not main_metric(sizes):
        return ""
    assert sizes is not None
    trained = sizes.get("trained") or []
    widths = f"trained at {', '.join(map(str, trained))} dimensions" if len(trained) > 1 else "trained whole, cut afterwards"
    return (
        f"{sizes['queries']:,} test queries, {sizes['passages']:,} passages; {widths}. Changes are against the whole float32 "
        "vectors, with 95 % intervals; ms: of a query on one thread, the index in memory; bytes: of a vector, ids apart."
    )


def terminal(sizes: Mapping[str, Any] | None) -> list[list[str]]:
    """Lines of the terminal's table, the first its head; empty without sizes. A `*` marks what ships."""
    rows = table(sizes)
    if not rows:
        return []
    metric, *others = columns(sizes)
    head = ["vectors", "bytes", metric, "change [95 % interval]", *others, "ms/query"]
    body = []
    for one in rows:
        main, *rest = one["cells"]
        change = f"{main['change']} {main['interval']}".strip()
        name = one["label"] + (" *" if one["ships"] else "")
        body.append([name, one["bytes"], main["value"], change, *(cell["value"] for cell in rest), one["ms"]])
    return [head, *body]
