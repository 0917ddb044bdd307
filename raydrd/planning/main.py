"""`raydrd plan`: walk, probe, sizes and costs put together; the forecast is kept in the store for the run to be held to."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import asdict
from typing import Any

from raydrd.errors import InputError
from raydrd.planning.costs import RAY, Costs, Line
from raydrd.planning.machine import Machine, this_machine
from raydrd.planning.probe import Probe
from raydrd.planning.sample import sample
from raydrd.planning.sizes import TRAININGS, Sizes
from raydrd.planning.walk import Walk, walk
from raydrd.report.forecast import FOLDER, key_of, size
from raydrd.setting import Setting
from raydrd.spine.storage import Folder
from raydrd.spine.store import Store
from raydrd.stages.load import table

DISK_LEFT = 0.95  # of the free disk that a run may fill
BUSY = 1.5  # processes a core (the plan's own is about 1)
MEMORY_LEFT = 0.9  # of a node's memory that its workers may hold


def forecast(
    cfg: Setting, store: Store, *, gpus: int | None, price: float | None, seconds: float, began: float
) -> dict[str, Any]:
    """What a run of this config would take, kept in the store as `forecasts/KEY.json`.

    gpus: of the machines that will run it, if not those of this one. price: of a GPU for an hour, or without GPUs of the
    machine. seconds: of probing models, about.

    Raises:
        InputError: config, data or models are wrong, as a run would say it; or a batch does not fit a worker.
    """
    machine = this_machine(store.root, gpus)
    found = walk(cfg, store, began=began)
    probing = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="raydrd-plan-") as scratch:
        probe = _probe(found, cfg, machine, Folder.of(scratch), seconds)
        sizes = Sizes(found.asked, found.lab.data, probe.shadow)
        costs = Costs(cfg, machine, sizes, probe, store.cluster.uses_ray, words=_words(found))
        lines = [costs.line(step) for step in found.asked.values()]
        rates = _rates(probe, found, lines)
        once = sum({kind[0]: rate.once for kind, rate in probe.rates.items()}.values())
    result = _summed(cfg, machine, lines, found.opening, once, price)
    result |= {"rates": rates, "probe_seconds": round(time.monotonic() - probing, 1)}
    store.root.write_json(f"{FOLDER}/{key_of(cfg.model_dump(mode='json'))}", result)
    return result


def _probe(found: Walk, cfg: Setting, machine: Machine, scratch: Folder, seconds: float) -> Probe:
    trainings = [step.inputs for step in found.asked.values() if step.name in TRAININGS and "lists" in step.inputs]
    batch = max((one["config"].train_batch_size for one in trainings), default=16)
    width = max((one["config"].train_group_size or 16 for one in trainings), default=16)
    home = Store(scratch / "sample", found.lab.store.cluster)
    made = sample(found.lab, home, batch=batch, width=width)
    threads = machine.pool(cfg.resources, shards=10**6).cpus
    return Probe(found.asked, made, scratch, cfg.resources, seconds=seconds, threads=threads)


def _words(found: Walk) -> float:
    """Words a passage, by the first thousand."""
    corpus = table(found.lab.data, "corpus")
    texts = corpus.slice(0, min(1000, corpus.rows), ["text"])["text"].to_pylist()
    return sum(len(text.split()) for text in texts) / max(1, len(texts))


def _rates(probe: Probe, found: Walk, lines: list[Line]) -> list[dict[str, Any]]:
    """One row a kind of work whose rate means something to a person."""
    shown: dict[Any, dict[str, Any]] = {}
    for step, line in zip(found.asked.values(), lines, strict=True):
        kind = probe.kind(step)
        if line.rate is not None and kind not in shown:
            shown[kind] = {
                "what": line.label,
                "rate": line.rate,
                "unit": line.rate_unit,
                "bytes_a_row": probe.rates[kind].row_bytes,
            }
    return list(shown.values())


def _summed(
    cfg: Setting, machine: Machine, lines: list[Line], opening: float, once: float, price: float | None
) -> dict[str, Any]:
    fresh = [line for line in lines if line.seconds is not None]
    start = {"open": round(opening, 2), "libraries": round(once if fresh else 0.0, 2), "ray": 0.0}
    start["ray"] = RAY if any(line.where != "here" for line in fresh) else 0.0
    paid = max(1, machine.gpus)
    an_second = None if price is None else price * paid / 3600
    stages = [{**asdict(line), "cost": None if an_second is None else an_second * (line.seconds or 0.0)} for line in lines]
    total = sum(start.values()) + sum(line.seconds or 0.0 for line in fresh)
    notes = [f"on {_told(machine)}; times go with the workers: work / workers, after their start"]
    busy = os.getloadavg()[0] / machine.cores
    if busy > BUSY:
        notes.append(f"others use this machine ({busy:.1f} processes a core): so would the run have to share it")
    return {
        "created": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "name": cfg.name, "recipe": cfg.recipe, "machine": machine.told(), "price": price, "stages": stages, "start": start,
        "seconds": round(total, 2), "memory": max((line.memory for line in fresh), default=0),
        "disk": sum(line.disk for line in fresh), "cost": None if an_second is None else an_second * total,
        "unmeasured": [f"{line.label}: {line.problem}" for line in lines if line.problem], "notes": notes,
    }  # fmt: skip


def _told(machine: Machine) -> str:
    nodes = f"{machine.nodes} nodes of " if machine.nodes > 1 else ""
    gpus = f", {machine.gpus} GPU{'s' if machine.gpus > 1 else ''}" if machine.gpus else ""
    return f"{nodes}{machine.cores} cores, {size(machine.memory)}{gpus}"


# -- what cannot be ----------------------------------------------------------------------------------


def refuse(cfg: Setting, found: dict[str, Any]) -> None:
    """Refuse what does not fit, and name the setting that would make it fit.

    Raises:
        InputError: a worker's memory or the store's disk is too small.
    """
    machine, fresh = found["machine"], [one for one in found["stages"] if one["seconds"] is not None]
    free = machine["disk"]
    if free is not None and found["disk"] > DISK_LEFT * free:
        largest = max(fresh, key=lambda one: float(one["disk"]))
        raise InputError(
            f"disk: the run writes {size(found['disk'])}, {size(free)} are free; most of it is {largest['label']!r} "
            f"({size(largest['disk'])}): {_smaller(cfg, largest)}name a larger place by --store"
        )
    for one in fresh:
        beside = max(1, -(-one["workers"] // machine["nodes"]))
        room = MEMORY_LEFT * machine["memory"] / beside
        if one["memory"] > room:
            others = f" beside {beside - 1} more" if beside > 1 else ""
            raise InputError(
                f"memory: {one['label']!r} needs {size(one['memory'])} a worker, {size(room)} are there{others}; "
                + _fitting(cfg, one, beside)
            )


def _smaller(cfg: Setting, stage: dict[str, Any]) -> str:
    """The setting that shrinks a table, as the beginning of an advice; empty where there is none."""
    depth, scored = cfg.candidates.depth, cfg.candidates.scored
    if stage["name"] in ("search", "bm25_search", "join_candidates"):
        return f"lower candidates.depth (it is {depth}), or "
    if stage["name"] in ("score_pairs", "score_lists", "score_vectors", "blend", "assemble"):
        return f"lower candidates.scored (it is {scored or depth}), or "
    if stage["name"] == "build_index":
        return "set index=IVF4096,PQ48, or "
    return ""


def _fitting(cfg: Setting, stage: dict[str, Any], beside: int) -> str:
    if stage["name"] == "build_index":
        return "set index=IVF4096,PQ48, which keeps 48 bytes a passage"
    if stage["name"] == "bm25_index":
        return "BM25 is built in one worker: take a machine with that much, or fewer passages"
    if beside > 1:
        return f"set resources.num_workers={max(1, beside // 2)}"
    if stage["name"] in TRAININGS:
        size_now = cfg.resources.per_device_train_batch_size or 8
        return f"set resources.per_device_train_batch_size={max(1, size_now // 2)}"
    return f"set resources.tokens_per_batch={max(64, (cfg.resources.tokens_per_batch or 2048) // 2)}"
