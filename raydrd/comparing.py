"""Runs against one another on the same queries: what `raydrd compare` finds, as data.

Read are `report.json` and `per_query.parquet` of run folders only: neither the store nor the collection is needed.
Every number comes from `statistics`; `report/versus.py` says it to people.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raydrd.errors import InputError
from raydrd.naming import SYSTEMS, did_you_mean, resolve
from raydrd.slices import TRAITS, bins
from raydrd.spine.storage import Folder
from raydrd.statistics import bootstrap_interval, compare, holm, paired_bootstrap

CHANGED = 10  # queries most improved, and most hurt, of each pair
_SAME = 1e-9  # smaller changes are ties, as in statistics.win_tie_loss
_SAME_DATA = "name runs over the same collection and split"


@dataclass(frozen=True)
class System:
    """One system of one run: its metrics by query. All arrays are [queries], in one order."""

    label: str  # what people read; unlike every other's
    run: str  # as the user wrote it
    system: str
    digest: str | None  # of the data; None where the report does not say
    ids: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]  # by metric, in the run's order
    texts: tuple[str, ...] | None  # None in run folders of older versions, and so are the traits
    traits: dict[str, NDArray[Any]] | None

    def take(self, rows: NDArray[np.int64]) -> System:
        return replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            values={name: found[rows] for name, found in self.values.items()},
            texts=self.texts and tuple(self.texts[row] for row in rows),
            traits=self.traits and {name: found[rows] for name, found in self.traits.items()},
        )


def compare_runs(
    runs: Sequence[str],
    *,
    metric: str | None = None,
    all_pairs: bool = False,
    common: bool = False,
    samples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Every run of `runs` against the first, or against all before it: a value that JSON holds.

    Args:
        runs: at least two of RUN (its final student) or RUN:SYSTEM.
        metric: the main one, by which queries are sliced and listed; none: the first of the first run.
        common: runs over different queries are compared on those that all share.
        samples: of each bootstrap interval and of each randomisation test; equal (seed, samples) give equal numbers.

    Returns:
        `systems` (means and intervals by metric), `comparisons` (of `a` minus `b`; `p_holm` is adjusted for all of
        them), `slices` and `changed` by the main metric, and `notes`. Pairs name systems by their labels.

    Raises:
        InputError: too few runs, no such run, system or metric, or runs over different queries.
    """
    if len(runs) < 2:
        example = f"raydrd compare {runs[0]} {runs[0]}:student_before" if runs else "raydrd compare runs/a runs/b"
        raise InputError(f"compare: {len(runs)} runs; write two or more, for example {example}")
    if samples < 1 or seed < 0:
        raise InputError(f"compare: --samples {samples} --seed {seed}: write at least 1 sample and a seed of 0 or more")
    systems, notes = _same_queries(_load(runs), common=common)
    names = [name for name in systems[0].values if all(name in s.values for s in systems)]
    main = _main_metric(systems, names, metric)
    dropped = [name for name in systems[0].values if name not in names]
    if dropped:
        notes.append(f"not measured in every run and left out: {', '.join(dropped)}")
    names = [main, *(name for name in names if name != main)]

    pairs = [(a, b) for b, a in combinations(systems, 2) if all_pairs or b is systems[0]]
    comparisons: list[dict[str, Any]] = []
    for a, b in pairs:
        for name in names:
            result = compare(a.values[name], b.values[name], seed=seed, samples=samples)
            comparisons.append({"a": a.label, "b": b.label, "metric": name, **asdict(result)})
    for found, p in zip(comparisons, holm([found["p"] for found in comparisons]), strict=True):
        found["p_holm"] = p
    if (least := len(comparisons) / (samples + 1)) >= 0.05:  # p is at least 1 / (samples + 1)
        many = f"{len(comparisons)} comparisons"
        notes.append(f"--samples {samples} cannot give p below {min(1, least):.2f} after the correction for {many}; raise it")
    slices = _slices(systems, main, notes, samples=samples, seed=seed)
    texts = next((s.texts for s in systems if s.texts is not None), None)
    return {
        "metric": main,
        "metrics": names,
        "queries": len(systems[0].ids),
        "samples": samples,
        "seed": seed,
        "systems": [_means(s, names, samples=samples, seed=seed) for s in systems],
        "comparisons": comparisons,
        "slices": slices,
        "changed": [{"a": a.label, "b": b.label, **_changed(a, b, main, texts)} for a, b in pairs],
        "notes": notes,
    }


# -- reading ----------------------------------------------------------------------------------------


def _load(runs: Sequence[str]) -> list[System]:
    found = [(spec, *resolve(spec)) for spec in runs]
    for (left, *a), (right, *b) in combinations(found, 2):
        if a == b:
            raise InputError(f"compare: {left} and {right} are the same system of the same run; write each once")
    homes = [folder.uri for _, folder, _ in found]
    names = [uri.partition("?")[0].rstrip("/").rpartition("/")[2] for uri in homes]
    if len(set(names)) < len(set(homes)):  # runs of one name in several places
        names = homes
    systems = [system for _, _, system in found]
    labels = [name if system == "student" else f"{name}:{system}" for name, system in zip(names, systems, strict=True)]
    if len(set(homes)) == 1:  # the name of the run tells nothing apart
        labels = systems
    return [_system(spec, folder, system, label) for (spec, folder, system), label in zip(found, labels, strict=True)]


def _system(spec: str, folder: Folder, system: str, label: str) -> System:
    try:
        report = folder.read_json("report.json")
        digest = (report.get("provenance") or {}).get("data_digest")
        with folder.reading("per_query.parquet") as stream:
            columns = pq.read_schema(stream).names
    except FileNotFoundError:
        raise InputError(f"{spec}: no per_query.parquet in {folder}; run its command again") from None
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, pa.ArrowInvalid) as error:
        raise InputError(f"{spec}: report.json or per_query.parquet is damaged ({error}); run its command again") from None
    metrics = {name: name.partition(" ")[2] for name in columns if name.partition(" ")[0] == system}
    if not metrics:
        have = [name for name in SYSTEMS if any(column.startswith(f"{name} ") for column in columns)]
        raise InputError(f"{spec}: this run has no {system}; write one of {', '.join(have)}")
    about = ["query", *TRAITS] if {"query", *TRAITS} <= set(columns) else []
    table = folder.read_table("per_query.parquet", ["query_id", *about, *metrics])
    ids = tuple(str(name) for name in table["query_id"].to_pylist())
    if not ids or len(set(ids)) < len(ids):
        raise InputError(f"{spec}: per_query.parquet holds {'a query twice' if ids else 'no query'}; run its command again")
    values = {metric: table[name].to_numpy().astype(np.float64) for name, metric in metrics.items()}
    for metric, numbers in values.items():
        if not np.isfinite(numbers).all():
            raise InputError(f"{spec}: per_query.parquet: {metric} is no finite number for every query; run its command again")
    return System(
        label=label,
        run=spec,
        system=system,
        digest=digest,
        ids=ids,
        values=values,
        texts=tuple(table["query"].to_pylist()) if about else None,
        traits={name: table[name].to_numpy() for name in TRAITS} if about else None,
    )


def _main_metric(systems: list[System], names: list[str], metric: str | None) -> str:
    wanted = metric or next(iter(systems[0].values))
    for system in systems:
        if wanted not in system.values:
            known = names or list(system.values)
            raise InputError(f"{system.run}: metric {wanted!r} was not measured; {did_you_mean(wanted, known)}")
    return wanted


def _same_queries(systems: list[System], *, common: bool) -> tuple[list[System], list[str]]:
    """The systems over the same queries in the order of the first, and what to know about it.

    A query is shared when its id is, and its text where it is known: an id alone may mean another query elsewhere.
    """
    first, notes = systems[0], []
    digest = next((s.digest for s in systems if s.digest is not None), None)  # reports of hand-made runs may lack it
    places = [{name: row for row, name in enumerate(system.ids)} for system in systems]
    for system, place in zip(systems[1:], places[1:], strict=True):
        other_data = system.digest is not None and digest is not None and system.digest != digest
        shared = sum(name in place for name in first.ids)
        if shared == 0:
            raise InputError(f"compare: {first.run} and {system.run} share no query; {_SAME_DATA}")
        if not common and (other_data or not shared == len(first.ids) == len(system.ids)):
            what = f"data (digests {digest} and {system.digest})" if other_data else "queries"
            raise InputError(
                f"compare: {first.run} and {system.run} were measured on different {what}; they share {shared:,} of "
                f"{len(first.ids):,} and {len(system.ids):,} queries; add --common to compare on the shared ones only"
            )
    shared_ids = [name for name in first.ids if all(name in place for place in places)]
    known = [(s.texts, place) for s, place in zip(systems, places, strict=True) if s.texts is not None]
    kept = [name for name in shared_ids if len({texts[place[name]] for texts, place in known}) < 2]
    if not kept:
        raise InputError(f"compare: no query is in all these runs with the same text; {_SAME_DATA}")
    if len(kept) < len(shared_ids):
        if not common:
            raise InputError(
                f"compare: {len(shared_ids) - len(kept):,} queries have the same id but another text; "
                "add --common to leave them out"
            )
        notes.append(f"{len(shared_ids) - len(kept):,} queries have the same id but another text and are left out")
    sizes = ", ".join(f"{len(s.ids):,} in {s.label}" for s in systems)
    if any(len(s.ids) > len(kept) for s in systems):
        notes.append(f"compared on the {len(kept):,} queries that all runs share; there are {sizes}")
    if len({s.digest for s in systems if s.digest}) > 1:
        notes.append("the runs' data differ: another corpus or other judgements change the value of a query too")
    return [s.take(np.array([place[name] for name in kept])) for s, place in zip(systems, places, strict=True)], notes


# -- computing --------------------------------------------------------------------------------------


def _means(system: System, names: list[str], *, samples: int, seed: int) -> dict[str, Any]:
    metrics = {}
    for name in names:
        low, high = bootstrap_interval(system.values[name], seed=seed, samples=samples)
        metrics[name] = {"mean": float(np.mean(system.values[name])), "low": low, "high": high}
    about = {"label": system.label, "run": system.run, "system": system.system, "data_digest": system.digest}
    return {**about, "metrics": metrics}


def _slices(systems: list[System], metric: str, notes: list[str], *, samples: int, seed: int) -> list[dict[str, Any]]:
    """The main metric in bins of each trait, every run beside the first; traits as the first run that has them says."""
    traits = next((s.traits for s in systems if s.traits is not None), None)
    if traits is None:
        notes.append("no slices: these run folders were written before queries' traits were kept; run their commands again")
        return []
    found = []
    for by, title in TRAITS.items():
        cut = bins(traits[by])
        if len(cut) < 2:
            notes.append(f"no slices by {title}: it is {cut[0][0]:g} for every query")
            continue
        rows = [_bin(systems, metric, (traits[by] >= low) & (traits[by] <= high), samples, seed) for low, high in cut]
        ranges = [{"low": low, "high": high} for low, high in cut]
        found.append({"by": by, "title": title, "bins": [{**a, **b} for a, b in zip(ranges, rows, strict=True)]})
    return found


def _bin(systems: list[System], metric: str, chosen: NDArray[np.bool_], samples: int, seed: int) -> dict[str, Any]:
    base = systems[0].values[metric][chosen]
    rows: list[dict[str, Any]] = []
    for system in systems:
        own = system.values[metric][chosen]
        rows.append({"label": system.label, "mean": float(np.mean(own))})
        if system is not systems[0]:
            low, high = paired_bootstrap(own, base, seed=seed, samples=samples)
            rows[-1] |= {"difference": float(np.mean(own - base)), "low": low, "high": high}
    return {"queries": int(chosen.sum()), "systems": rows}


def _changed(a: System, b: System, metric: str, texts: tuple[str, ...] | None) -> dict[str, Any]:
    """The queries that a most improved over b, and most hurt; equal changes in the order of the queries."""
    now, then = a.values[metric], b.values[metric]
    change = now - then
    place = np.arange(change.size)

    def told(row: int) -> dict[str, Any]:
        text = texts[row] if texts else None
        return {"query_id": a.ids[row], "query": text, "a": float(now[row]), "b": float(then[row])}

    up, down = np.lexsort((place, -change))[:CHANGED], np.lexsort((place, change))[:CHANGED]
    return {
        "improved": [told(row) for row in up if change[row] > _SAME],
        "hurt": [told(row) for row in down if change[row] < -_SAME],
    }
