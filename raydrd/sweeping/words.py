"""A space and its points in words, for tables, axes and the result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from raydrd.sweeping.space import Point, plain
from raydrd.sweeping.spec import Entry


def at(values: Any, path: str) -> Any:
    """What stands at a dotted path of a config's plain values; with `*`, the items' common value or the list of theirs.

    Raises:
        KeyError: there is no such place.
    """
    head, star, tail = path.partition("*")
    for part in [p for p in head.split(".") if p]:
        if isinstance(values, list):
            values = values[int(part)] if part.isdigit() and int(part) < len(values) else _nowhere(path)
        else:
            values = values[part] if isinstance(values, dict) and part in values else _nowhere(path)
    if not star:
        return values
    if not isinstance(values, list) or not values:
        _nowhere(path)
    found = [at(one, tail.lstrip(".")) if tail else one for one in values]
    return found[0] if all(one == found[0] for one in found) else found


def _nowhere(path: str) -> Any:
    raise KeyError(path)


def words(point: Point, default: Point) -> str:
    """What differs from the default: `score_scale=40, learning_rate=3.1e-05`."""
    parts = []
    for name, value in point.items():
        if name in default and plain(default[name]) == plain(value):
            continue
        told = ":".join(f"{v:g}" for v in value.values()) if isinstance(value, dict) else label(value)
        parts.append(f"{name.rpartition('.')[2]}={told}")
    return ", ".join(parts) or "as the default"


def label(value: Any) -> str:
    """A value as an axis or a table says it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return (
        json.dumps(plain(value), ensure_ascii=False, separators=(",", ":"))
        if isinstance(value, list | tuple | dict)
        else str(value)
    )


def about(space: Mapping[str, Entry]) -> list[dict[str, Any]]:
    """The fields of a space for the result: see `sweep.json`."""
    found = []
    for name, entry in space.items():
        ranged = entry.kind in ("uniform", "loguniform", "int")
        low, high = entry.range if ranged else (None, None)
        labels = [label(one) for one in entry.choice or entry.named or ()]
        field = {
            "name": name,
            "kind": entry.kind,
            "paths": list(entry.places(name)),
            "values": labels or None,
            "low": low,
            "high": high,
            "step": entry.step,
            "log": entry.kind == "loguniform",
            "when": plain(entry.when),
        }
        if entry.kind == "shares":
            field |= {"parts": list(entry.shares or ()), "total": entry.total, "least": dict(entry.least)}
        found.append(field)
    return found
