"""What a sweep came to, as a value that JSON holds. `report/sweep.py` says it to people."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml
from scipy.special import stdtrit

from raydrd.flow.lab import Lab
from raydrd.flow.serve import encoding_speed
from raydrd.spine.provenance import provenance
from raydrd.spine.storage import Folder
from raydrd.sweeping.importance import importance
from raydrd.sweeping.pareto import pareto
from raydrd.sweeping.plan import Plan, Trial
from raydrd.sweeping.spec import base_path
from raydrd.sweeping.words import about

SIZED = ("student", "vectors", "index")  # fields of a config that change what a student takes where it is used
BEST = "best.yaml"

_SHOWN = (
    "number", "point_number", "label", "seed", "point", "overrides", "status", "reason", "reports", "dev", "updates",
    "steps", "seconds", "student", "key", "size",
)  # fmt: skip


def missing(trial: Trial) -> dict[str, Any]:
    """The record of a trial that left none."""
    return {
        "number": trial.number, "point_number": trial.point_number, "label": trial.label, "seed": trial.seed,
        "key": trial.key, "point": trial.point, "overrides": list(trial.overrides), "status": "running", "reason": "",
        "reports": [], "dev": {}, "updates": 0, "steps": 0, "seconds": 0.0, "waited": 0.0, "journal": [], "student": None,
        "size": None, "config": trial.cfg.model_dump(mode="json"), "history": [], "flat": trial.flat,
    }  # fmt: skip


def line(trial: Trial, record: dict[str, Any], metric: str) -> str:
    """`trial 7  nDCG@10 0.6432   60 updates    35 s  finished  score_scale=40`."""
    value = record.get("dev", {}).get(metric)
    told = f"{metric} {value:.4f}" if value is not None else f"{metric}      -"
    name = f"{trial.prefix}{trial.seed}" if trial.prefix else f"trial {trial.number}"
    why = f": {record['reason']}" if record["reason"] else ""
    return (
        f"{name:<10} {told}  {record.get('updates', 0):>5} updates {record.get('seconds', 0):7.1f} s  "
        f"{record['status']:<8}  {record['label']}{why}"
    )


def table(plan: Plan) -> str:
    """The trials that a sweep would run, or where a searcher would draw them."""
    sweep = plan.sweep
    told = [f"{plan.path}: {plan.total} trials of {plan.cfg.recipe}, {sweep.search} search, scheduler {sweep.scheduler.kind}"]
    told += [f"  {one.number:>4}  {_length(one):>8}  {one.label}" for one in plan.trials]
    if sweep.search == "optuna":
        told += [f"  drawn as it goes: {one['name']}: {_domain(one)}" for one in about(sweep.space)]
    if sweep.confirm is not None:
        told.append(f"then the best and the default with {sweep.confirm.seeds} fresh seeds each, on test queries")
    return "\n".join([*told, *(f"note: {one}" for one in plan.notes)])


def _length(trial: Trial) -> str:
    """Updates of the method, where the config says so itself."""
    steps = [one.max_steps for one in trial.cfg.trainings()]
    return "" if None in steps else f"{sum(steps):,} up."


def _domain(field: dict[str, Any]) -> str:
    if field["values"]:
        return " | ".join(field["values"])
    if field["kind"] == "shares":
        return f"{' + '.join(field['parts'])} = {field['total']:g}"
    return f"{field['kind']} {field['low']:g} to {field['high']:g}"


def best_point(plan: Plan, records: Sequence[dict[str, Any]]) -> int | None:
    """The point of which every seed finished with the highest mean on dev; of equal ones the earlier."""
    means = {point["number"]: point["dev"][plan.metric]["mean"] for point in points(records) if point["full"]}
    return max(means, key=lambda number: (means[number], -number)) if means else None


def points(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trials of one point together, and dev over those of its seeds that finished.

    dev, by metric: mean, min, max; std (of a sample) and low, high (95 % t-interval of the mean), which a single seed lacks.
    """
    found: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        found.setdefault(record["point_number"], []).append(record)
    made = []
    for number, group in found.items():
        finished = [one for one in group if one["status"] == "finished"]
        names = list(finished[0]["dev"]) if finished else []
        made.append(
            {
                "number": number,
                "label": group[0]["label"].partition(", seed ")[0],
                "point": group[0]["point"],
                "trials": [one["number"] for one in group],
                "full": len(finished) == len(group),
                "dev": {name: _spread([one["dev"][name] for one in finished]) for name in names},
            }
        )
    return made


def _spread(values: list[float]) -> dict[str, float | None]:
    mean = float(np.mean(values))
    found: dict[str, float | None] = {"mean": mean, "min": min(values), "max": max(values)}
    if len(values) < 2:
        return {**found, "std": None, "low": None, "high": None}
    std = float(np.std(values, ddof=1))
    wide = float(stdtrit(len(values) - 1, 0.975)) * std / len(values) ** 0.5  # a bootstrap of so few is [min, max]
    return {**found, "std": std, "low": mean - wide, "high": mean + wide}


def write_best(plan: Plan, records: Sequence[dict[str, Any]], best: int, folder: Folder) -> str:
    """The best point's whole config as a file that `raydrd run` takes; its text without the header."""
    record = next(one for one in records if one["point_number"] == best)
    point = next(one for one in points(records) if one["number"] == best)
    values = {**record["config"], "name": f"{plan.name}-best", "resources": plan.cfg.resources.model_dump(mode="json")}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    value = point["dev"][plan.metric]["mean"]
    head = [
        f"The best of sweep {plan.name} ({plan.path}): trial {record['number']}, {record['label']}.",
        f"Dev {plan.metric} {value:.4f}. Dev chose it among {len(records)} trials, so this number is too good; see the sweep's",
        "page for test queries and fresh seeds.",
        f"  raydrd run {folder.uri}/{BEST}",
    ]
    folder.write_bytes(BEST, "".join(f"# {' '.join(one.splitlines())}\n" for one in head).encode() + text.encode())
    return text


def _timed(lab: Lab, plan: Plan, records: Sequence[dict[str, Any]]) -> dict[int, float]:
    """Passages a second of each finished trial's student, where the space changes the student: one of each kind is timed."""
    paths = [path for entry in about(plan.sweep.space) for path in entry["paths"]]
    if not any(path.partition(".")[0] in SIZED for path in paths):
        return {}
    finished = [one for one in records if one["status"] == "finished" and one["student"]]
    kinds: dict[str, dict[str, Any]] = {}
    for one in finished:
        kinds.setdefault(_network(one), one)
    if not kinds:
        return {}
    students = [lab.store.find(*one["student"].split("/")) for one in kinds.values()]
    speeds = dict(zip(kinds, encoding_speed(lab, students), strict=True))
    return {one["number"]: speeds[_network(one)] for one in finished}


def _network(record: dict[str, Any]) -> str:
    """What of a student its encoding speed depends on."""
    student = record["config"]["student"]
    return repr([student.get("model"), student.get("layers"), student.get("passage_max_len"), record["size"]["layers"]])


def collect(
    plan: Plan,
    records: Sequence[dict[str, Any]],
    best: int | None,
    confirmed: tuple[dict[str, Any] | None, str | None, int],
    *,
    lab: Lab,
    folder: Folder,
    began: float,
    store: str,
) -> dict[str, Any]:
    """The result. Writes best.yaml.

    confirmed: the confirmation, or why there is none, and the pairs that teachers scored for it.
    """
    speeds = _timed(lab, plan, records)
    trials = [_trial(one, speeds) for one in records]
    chosen = next((one["number"] for one in records if one["point_number"] == best), None) if best is not None else None
    config = write_best(plan, records, best, folder) if best is not None else None
    sweep = plan.sweep
    found: dict[str, Any] = {
        "name": plan.name,
        "recipe": plan.cfg.recipe,
        "base": base_path(sweep, plan.path),
        "command": ["raydrd", *sys.argv[1:]],
        "created": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "seconds": round(time.monotonic() - began, 1),
        "metric": plan.metric,
        "metrics": list(plan.cfg.evaluation.metrics),
        "search": sweep.search,
        "scheduler": sweep.scheduler.model_dump(mode="json"),
        "samples": sweep.samples if sweep.search == "optuna" else max(one.point_number for one in plan.trials),
        "seeds": sweep.seeds,
        "fields": about(sweep.space),
        "trials": trials,
        "points": points(records),
        "default": trials[0],
        "best": chosen,
        "best_point": best,
        "best_file": f"{folder.uri}/{BEST}" if config else None,
        "importance": [],
        "pareto": [],
        "confirmation": confirmed[0],
        "confirmation_skipped": confirmed[1],
        "work": {**work(records), "teacher_pairs_confirm": confirmed[2]},
        "warnings": _warnings(plan, records),
        "notes": [*plan.notes, *lab.notes],
        "provenance": {**provenance(), "data_digest": lab.data.id, "precision": lab.precision},
        "store": store,
        "config": config,
    }
    found["importance"] = importance(found)
    found["pareto"] = pareto(found)
    return found


def _trial(record: dict[str, Any], speeds: dict[int, float]) -> dict[str, Any]:
    empty = {"reports": [], "dev": {}, "updates": 0, "steps": 0, "seconds": 0.0, "student": None, "size": None}
    shown = {name: record.get(name, empty.get(name)) for name in _SHOWN}
    if shown["size"] is not None:
        shown["size"] = {**shown["size"], "passages_per_second": speeds.get(record["number"])}
    journal = record.get("journal", [])
    shown["made"] = dict(Counter(one["name"] for one in journal if not one["reused"]))
    shown["reused"] = dict(Counter(one["name"] for one in journal if one["reused"]))
    return shown


def work(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What was made, by the default alone and by all trials: nothing is counted twice that was found in the store."""
    journals = [[one for one in record.get("journal", []) if not one["reused"]] for record in records]

    def total(name: str, of: Sequence[list[dict[str, Any]]]) -> int:
        return sum(int(one[name]) for journal in of for one in journal)

    trained = [
        int(one["rows"])
        for journal in journals
        for one in journal
        if one["name"] in ("train", "imitate") and not one["label"].startswith("train teacher")
    ]
    return {
        "teacher_pairs_default": total("pairs", journals[:1]),
        "teacher_pairs_all": total("pairs", journals),
        "teacher_texts_default": total("texts", journals[:1]),
        "teacher_texts_all": total("texts", journals),
        "shared_seconds": float(records[0].get("seconds", 0.0)),
        "trials_seconds": round(sum(float(one.get("seconds", 0.0)) for one in records[1:]), 3),
        "updates": sum(trained),
        "updates_unshared": sum(int(one.get("steps", 0)) for one in records),
        "waited_seconds": round(sum(float(one.get("waited", 0.0)) for one in records), 3),
    }


def _warnings(plan: Plan, records: Sequence[dict[str, Any]]) -> list[str]:
    found = []
    ended = {int(one["updates"]) for one in records if one["status"] == "finished"}
    if len(ended) > 1:
        found.append(
            f"finished trials have {min(ended):,} to {max(ended):,} updates: a longer training is part of what they compare"
        )
    if plan.sweep.seeds == 1 and len(records) > 2:
        found.append("one seed a point: differences between points hold the luck of one training each")
    return found
