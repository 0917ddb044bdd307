"""What a sweep found, as rows and sentences: shared by the terminal, the Markdown and the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raydrd.report import summary
from raydrd.report.page import excerpt
from raydrd.report.trials import USED, ends, trials_of
from raydrd.report.versus import ALPHA, p_text

_ORDER = ("finished", "stopped", "running", "failed", "refused")
_LABEL = 400  # characters of the best point's label


@dataclass(frozen=True)
class Row:
    """One point of the table. `cells`: (mean, low, high) by metric; low and high are None of a single seed."""

    number: int
    label: str
    status: str
    cells: dict[str, tuple[float, float | None, float | None]]
    updates: str
    seconds: float
    reason: str
    best: bool

    @property
    def default(self) -> bool:
        return self.number == 0


def metrics(result: Mapping[str, Any]) -> list[str]:
    """The metric that chose, then the others."""
    return [result["metric"], *(name for name in result["metrics"] if name != result["metric"])]


def noun(result: Mapping[str, Any]) -> str:
    """A point of one seed is a trial."""
    return "trial" if result["seeds"] == 1 else "point"


def rows(result: Mapping[str, Any]) -> list[Row]:
    """All points, the best first: those that finished by their metric, then what was stopped, failed or refused."""
    found = [_row(result, point) for point in result["points"]]
    main = result["metric"]

    def key(row: Row) -> tuple[float, float, int]:
        # A point that lost a seed was not to be chosen: its mean is of fewer.
        kind = _ORDER.index(row.status) if row.status in _ORDER else 0.5
        return (kind, -row.cells[main][0] if main in row.cells else 1.0, row.number)

    return sorted(found, key=key)


def _row(result: Mapping[str, Any], point: Mapping[str, Any]) -> Row:
    trials = trials_of(result, point)
    statuses = [str(trial["status"]) for trial in trials]
    status = min(statuses, key=_ORDER.index, default="refused")
    if len(set(statuses)) > 1:
        status = f"{statuses.count(status)} of {len(statuses)} {status}"
    cells: dict[str, tuple[float, float | None, float | None]] = {}
    for name in result["metrics"]:
        dev = point["dev"].get(name)
        last = [v for t in trials if t["status"] in USED and (v := summary.number(t["dev"].get(name))) is not None]
        if dev:
            wide = len(trials) > 1
            cells[name] = (dev["mean"], dev["low"] if wide else None, dev["high"] if wide else None)
        elif last:
            cells[name] = (sum(last) / len(last), None, None)
    return Row(
        number=int(point["number"]),
        label=str(point["label"]),
        status=status,
        cells=cells,
        updates=" / ".join(f"{n:,}" for n in dict.fromkeys(t["updates"] for t in trials)) or "-",
        seconds=sum(summary.number(trial["seconds"]) or 0.0 for trial in trials),
        reason="; ".join(dict.fromkeys(str(t["reason"]) for t in trials if t["reason"])),
        best=point["number"] == result["best_point"],
    )


def tally(result: Mapping[str, Any]) -> str:
    """`20 trials: 8 finished, 11 stopped early, 1 failed`."""
    counts = Counter(str(trial["status"]) for trial in result["trials"])
    words = {"stopped": "stopped early"}
    told = ", ".join(f"{counts[name]:,} {words.get(name, name)}" for name in _ORDER if counts[name])
    total = sum(counts.values())
    return f"{total:,} trial{'' if total == 1 else 's'}: {told}" if total else "no trials"


def troubles(result: Mapping[str, Any]) -> list[str]:
    """`trial 5 failed: why` for each that has a reason."""
    return [f"trial {t['number']} {t['status']}: {t['reason']}" for t in result["trials"] if t["reason"]]


def verdict(result: Mapping[str, Any]) -> str:
    """One sentence: what dev chose, against the default, and whether the test queries agree."""
    main, shown = result["metric"], ends(result)
    if not result["fields"] and (noise := _noise(result)):
        return noise
    if result["best_point"] is None:
        return f"No trial of {result['name']} finished, so nothing is chosen."
    best, default = shown.get(result["best_point"]), shown.get(0)
    if result["best_point"] == 0:
        others = [row for row in rows(result) if not row.default and "finished" in row.status and main in row.cells]
        against = f"; the next, {noun(result)} {others[0].number}, has {others[0].cells[main][0]:.3f}" if others else ""
        return f"Nothing tried beats the default on dev: {main} {summary.decimal(best)}{against}."
    told = f"{main} {summary.decimal(best)}" + (f" (default {summary.decimal(default)})" if default is not None else "")
    return f"{noun(result).title()} {result['best_point']} is the best on dev: {told}; {_confirmed(result)}."


def _noise(result: Mapping[str, Any]) -> str:
    """How noisy the base config is, where nothing but seeds was tried; nothing where fewer than two ended."""
    dev = result["points"][0]["dev"].get(result["metric"]) or {}
    if dev.get("std") is None:
        return ""
    count = sum(trial["status"] == "finished" for trial in result["trials"])
    mean, low, high = (summary.decimal(dev[name]) for name in ("mean", "min", "max"))
    return (
        f"{count} seeds of the same config: dev {result['metric']} is {mean} on average, with a standard deviation of "
        f"{summary.decimal(dev['std'], 4)}, from {low} to {high}."
    )


def chosen(result: Mapping[str, Any]) -> str:
    """`trial 12: score_scale=40`, in what it differs from the default; nothing where the default is the best."""
    if not result["best_point"]:
        return ""
    point = next(p for p in result["points"] if p["number"] == result["best_point"])
    return f"{noun(result).title()} {point['number']}: {excerpt(str(point['label']), _LABEL)}"


def _confirmed(result: Mapping[str, Any]) -> str:
    found = result["confirmation"]
    if not found:
        return "not confirmed on test queries"
    main = found["metric"]
    effect, mean = found["effect"][main], {row["kind"]: row["mean"][main] for row in found["rows"]}
    word = ("better than" if effect["difference"] > 0 else "worse than") if is_clear(effect) else "not clearly different from"
    change = f"{summary.signed(effect['difference'])} {summary.span(effect['low'], effect['high'], summary.signed)}"
    values = f"{summary.decimal(mean['best'])} against {summary.decimal(mean['default'])}"
    return f"on test, trained anew, it is {word} the default: {values}, {change}, {summary.p_value(effect['p'])}"


def is_clear(effect: Mapping[str, Any]) -> bool:
    return float(effect["p"]) < ALPHA


def confirmed_how(result: Mapping[str, Any]) -> str:
    """What the numbers of the confirmation are: seeds, queries, and which of them is to be believed."""
    found = result["confirmation"]
    queries = max(int(row["queries"]) for row in found["rows"])
    seeds = f"{found['seeds']} fresh seed{'' if found['seeds'] == 1 else 's'}"
    return (
        f"{seeds}, {queries:,} {found['split']} queries that chose nothing. "
        "The dev value of the best is optimistic, because dev chose it; the test value is not"
    )


def work_lines(result: Mapping[str, Any]) -> list[str]:
    """What was shared: teacher pairs of one run and of all, updates made, time."""
    work = result["work"]
    lines = []
    for what, unit in (("pairs", "pairs scored by teachers"), ("texts", "texts embedded by teachers")):
        alone, all_of_it = work[f"teacher_{what}_default"], work[f"teacher_{what}_all"]
        if alone or all_of_it:
            lines.append(f"{unit}: {alone:,} for the default alone, {all_of_it:,} for the whole sweep")
    if confirmed := work.get("teacher_pairs_confirm"):
        lines.append(f"pairs scored by teachers for the confirmation: {confirmed:,}")
    made, apart = work["updates"], work["updates_unshared"]
    shared = "" if made == apart else f"; {apart:,} if equal first steps were not shared"
    lines.append(f"student updates made: {made:,}{shared}")
    shared_time, trials_time = summary.duration(work["shared_seconds"]), summary.duration(work["trials_seconds"])
    waited = f", {summary.duration(work['waited_seconds'])} of it waiting for one another" if work["waited_seconds"] else ""
    lines.append(f"time: {shared_time} for the default and all that is common, then {trials_time} of trials{waited}")
    return lines


def searched(result: Mapping[str, Any]) -> str:
    """`random search, asha (grace 20, reduction 3), 19 points`."""
    scheduler = dict(result["scheduler"])
    kind = scheduler.pop("kind")
    plain = {key: f"{value:g}" if isinstance(value, float) else value for key, value in scheduler.items()}
    told = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in plain.items() if isinstance(value, int | str))
    points = f"{result['samples']:,} point{'' if result['samples'] == 1 else 's'} beside the default"
    seeds = f", {result['seeds']} seeds each" if result["seeds"] > 1 else ""
    return f"{result['search']} search, {kind}{f' ({told})' if told else ''}, {points}{seeds}"


def importance_basis(result: Mapping[str, Any]) -> str:
    """On what the fields were judged."""
    updates = next((row["updates"] for row in result["importance"] if row["updates"] is not None), None)
    at = "at the end of training" if updates is None else f"at {updates:,.0f} updates, which all compared trials reached"
    return f"share of the variance of dev {result['metric']} {at}; p by shuffling, Holm's correction over the fields"


def judged(row: Mapping[str, Any]) -> Sequence[str]:
    """(share, p, p with Holm's correction) as texts."""
    if row["share"] is None:
        return ("-", "-", "-")
    return (f"{100 * row['share']:.0f} %", p_text(row["p"]), p_text(row["p_holm"]))
