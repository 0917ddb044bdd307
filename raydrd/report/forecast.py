"""A forecast as the terminal shows it, and beside the truth once the run has been."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from raydrd.report.summary import MISSING, duration, number

FOLDER = "forecasts"  # of the store
_LABEL = 44


def key_of(config: Mapping[str, Any]) -> str:
    """The file of a config's forecast below `FOLDER`: how it is carried out and what it is called do not matter."""
    kept = {name: value for name, value in config.items() if name not in ("resources", "name")}
    text = json.dumps(kept, sort_keys=True, ensure_ascii=False)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def size(count: Any) -> str:
    """Bytes as `640 kB`, `12 MB`, `3.4 GB`, `1.2 TB`; a dash for none."""
    found = number(count)
    if not found:
        return MISSING
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if found >= 0.9995 * scale:
            return f"{found / scale:.1f} {unit}" if found < 99.95 * scale else f"{found / scale:,.0f} {unit}"
    return f"{max(1, round(found / 1e3))} kB"


def _money(amount: Any) -> str:
    found = number(amount)
    return MISSING if found is None else f"{found:,.2f}"


def folded(stages: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Stages that follow one another on the dev sample, or on the preflight's, as one group; any other alone."""
    groups: list[list[dict[str, Any]]] = []
    for one in stages:
        if groups and one["aside"] and groups[-1][-1]["aside"] == one["aside"]:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def table(forecast: Mapping[str, Any]) -> str:
    """The forecast as lines below 100 columns: a stage each, then the sum, the rates, and what was not measured."""
    priced = forecast.get("price") is not None
    lines, at = [], 1
    for group in folded(list(forecast["stages"])):
        end = at + len(group) - 1
        place = str(at) if end == at else f"{at}-{end}"
        lines.append([place, *_cells(group, priced)])
        at = end + 1
    start = sum(forecast["start"].values())
    lines.append(["", "start: models found, libraries, Ray", "", duration(start), "", "", *([""] if priced else [])])
    total = [
        "", "sum", "", duration(forecast["seconds"]), size(forecast["memory"]), size(forecast["disk"]),
        *([_money(forecast["cost"])] if priced else []),
    ]  # fmt: skip
    head = ["", "stage", "rows", "time", "a worker", "disk", *(["cost"] if priced else [])]
    text = _aligned([head, *lines, total])
    rule = "-" * max(len(line) for line in text)
    shown = [text[0], rule, *text[1:-1], rule, text[-1]]
    shown += ["", *_rates(forecast), *(f"not measured: {line}" for line in forecast["unmeasured"]), *forecast["notes"]]
    return "\n".join(shown).replace(MISSING, "-").replace("\u00a0", " ")


def _cells(group: list[dict[str, Any]], priced: bool) -> list[str]:
    last = group[-1]
    label = last["label"].removeprefix("evaluate ") if len(group) > 1 else last["label"]
    rows = f"{last['rows']:,} {last['unit']}" if len(group) == 1 and last["rows"] else ""
    fresh = [one for one in group if not one["reused"]]
    known = [one["seconds"] for one in fresh if one["seconds"] is not None]
    time = "reused" if not fresh else (duration(sum(known)) if len(known) == len(fresh) else "?")
    memory, disk = max((one["memory"] for one in group), default=0), sum(one["disk"] for one in group)
    cost = [_money(sum(one["cost"] or 0 for one in fresh)) if fresh else ""] if priced else []
    cut = label if len(label) <= _LABEL else f"{label[: _LABEL - 3]}..."
    return [cut, rows, time, size(memory) if fresh else "", size(disk) if fresh else "", *cost]


def _rates(forecast: Mapping[str, Any]) -> list[str]:
    """What the probe saw, one line a kind of work and model."""
    found = [f"{line['what']}: {_per_second(line['rate'])} {line['unit']}/s a worker" for line in forecast["rates"]]
    return [f"measured in {duration(forecast['probe_seconds'])}:", *(f"  {line}" for line in found), ""] if found else []


def _per_second(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    made = []
    for line in lines:
        left = [line[0].rjust(widths[0]), line[1].ljust(widths[1])]
        made.append("  ".join([*left, *(c.rjust(w) for c, w in zip(line[2:], widths[2:], strict=True))]).rstrip())
    return made


# -- beside the truth --------------------------------------------------------------------------------


def compared(forecast: Mapping[str, Any], stages: list[dict[str, Any]], seconds: float) -> dict[str, Any] | None:
    """The forecast of what a run really made, beside the time it took; None where it made nothing that was foreseen.

    stages: the run's, as in report.json. A stage is known again by its id, or by its label where the data decided an
    input that the forecast could not know.
    """
    foreseen = [one for one in forecast["stages"] if one["seconds"] is not None]
    by_id = {one["id"]: one for one in foreseen}
    by_label = {(one["name"], one["label"]): one for one in foreseen}
    made = [one for one in stages if not one["reused"]]
    pairs = [(one, by_id.get(one["id"]) or by_label.get((one["name"], one["label"]))) for one in made]
    known = [(one, line) for one, line in pairs if line is not None]
    if not known:
        return None
    start = forecast["start"]
    expected = start["open"] + start["libraries"] + sum(line["seconds"] for _, line in known)
    if any(line["where"] != "here" for _, line in known):
        expected += start["ray"]
    rows = [
        {"label": one["label"], "forecast": round(line["seconds"], 3), "took": round(float(one["seconds"]), 3)}
        for one, line in known
    ]
    return {
        "forecast": round(expected, 1), "took": round(seconds, 1), "off": round(expected / max(seconds, 1e-9) - 1, 4),
        "created": forecast["created"], "unforeseen": [one["label"] for one, line in pairs if line is None], "stages": rows,
    }  # fmt: skip


def sentence(found: Mapping[str, Any] | None) -> str:
    """`forecast 310 s, took 287 s (+8 %)`; empty without a forecast."""
    if not found:
        return ""
    missing = len(found["unforeseen"])
    rest = f"; not foreseen: {missing} stage{'s' if missing != 1 else ''}" if missing else ""
    return f"forecast {found['forecast']:,.0f} s, took {found['took']:,.0f} s ({100 * found['off']:+.0f} %){rest}"
