"""Results of sweeps that never ran: the value `sweep.json` holds, from points and their curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

METRICS = ("RR@10", "nDCG@10", "R@100")  # the one that chooses is not the first
MAIN = "nDCG@10"
RECOVERED = ((0, 0.2), (60, 0.5))  # what all trials of a sweep begin with: (updates, dev metric)


def field(name: str, kind: str, values: Sequence[str] | None = None, **also: Any) -> dict[str, Any]:
    """One of the result's `fields`: choice and named have values, ranges have low and high, shares have parts and total."""
    empty = {"low": None, "high": None, "step": None, "when": None}
    return {
        "name": name, "kind": kind, "paths": list(also.get("parts", [name])), "values": list(values) if values else None,
        **empty, "log": kind == "loguniform", **also,
    }  # fmt: skip


def trial(
    number: int, point: Mapping[str, Any], curve: Sequence[tuple[int, float]], status: str = "finished", **also: Any
) -> dict[str, Any]:
    """One trial with a report at each (updates, dev metric); other keys as given."""
    label = "default" if number == 0 else ", ".join(f"{name}={value}" for name, value in point.items())
    reports = [
        {"updates": x, "segment": f"step {n}", "dev": _dev(y), "seconds": 2.0 * n, "dropped": False}
        for n, (x, y) in enumerate(curve)
    ]
    found = {
        "number": number, "point_number": number, "label": label, "seed": 0, "point": dict(point), "overrides": [],
        "status": status, "reason": "", "reports": reports, "dev": reports[-1]["dev"] if reports else {},
        "updates": reports[-1]["updates"] if reports else 0, "steps": 60, "seconds": 12.0, "made": {}, "reused": {},
        "student": None, "key": f"{number:08x}", "size": None,
    }  # fmt: skip
    return {**found, **also}


def _dev(value: float) -> dict[str, float]:
    return {name: value + 0.1 * n for n, name in enumerate((MAIN, "RR@10", "R@100"))}


def ended(values: Sequence[float], points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Trials of one seed that all went to their end, at 120 updates."""
    return [trial(n, point, [*RECOVERED, (120, value)]) for n, (value, point) in enumerate(zip(values, points, strict=True))]


def result(fields: Sequence[Mapping[str, Any]], trials: Sequence[Mapping[str, Any]], **also: Any) -> dict[str, Any]:
    """The result of these trials; best and points are worked out as a sweep does, unless given."""
    points = []
    for number in dict.fromkeys(one["point_number"] for one in trials):
        own = [one for one in trials if one["point_number"] == number]
        devs = [one["dev"] for one in own if one["status"] == "finished"]
        spread = {name: [dev[name] for dev in devs] for name in METRICS} if devs else {}
        dev = {name: {"mean": sum(v) / len(v), "low": min(v), "high": max(v)} for name, v in spread.items()}
        points.append(
            {"number": number, "label": own[0]["label"], "point": own[0]["point"], "trials": [one["number"] for one in own],
             "full": len(devs) == len(own), "dev": dev}
        )  # fmt: skip
    full = [point for point in points if point["full"]]
    best = max(full, key=lambda point: point["dev"][MAIN]["mean"])["number"] if full else None
    found = {
        "name": "toy", "recipe": "cldrd", "base": "toy.yaml", "command": ["raydrd", "sweep", "toy.yaml"],
        "created": "2026-01-02T03:04:05+00:00", "seconds": 61.0, "metric": MAIN, "metrics": list(METRICS),
        "search": "random", "scheduler": {"kind": "fifo"}, "samples": len(points) - 1, "seeds": 1, "fields": list(fields),
        "trials": list(trials), "points": points, "default": trials[0],
        "best": None if best is None else next(one["number"] for one in trials if one["point_number"] == best),
        "best_point": best, "best_file": None if best is None else "runs/toy-sweep/best.yaml", "importance": [], "pareto": [],
        "confirmation": None, "confirmation_skipped": "the sweep file has confirm: null",
        "work": {
            "teacher_pairs_default": 1440, "teacher_pairs_all": 1440, "teacher_texts_default": 0, "teacher_texts_all": 0,
            "shared_seconds": 30.0, "trials_seconds": 90.0, "updates": 300, "updates_unshared": 480, "waited_seconds": 0.0,
        },
        "warnings": [], "notes": [], "provenance": {"raydrd": "0"}, "store": ".raydrd", "config": "recipe: cldrd\n",
    }  # fmt: skip
    return {**found, **also}


def confirmation(best: float, default: float, p: float) -> dict[str, Any]:
    """Three fresh seeds over 300 test queries."""
    means = {"best": best, "default": default}
    rows = [
        {"label": kind, "kind": kind, "mean": _dev(mean), "std": dict.fromkeys(METRICS, 0.004), "by_seed": [], "queries": 300}
        for kind, mean in means.items()
    ]
    change = best - default
    effect = {"difference": change, "low": change - 0.01, "high": change + 0.01, "p": p, "wins": 9, "ties": 1, "losses": 5}
    return {
        "seeds": 3, "split": "test", "metric": MAIN, "fresh": [1000, 1001, 1002], "rows": rows,
        "effect": dict.fromkeys(METRICS, effect),
    }  # fmt: skip
