"""The embed stage's actors on Ray against the same worker in a plain loop, over the same shards."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raydrd.benchmark.inputs import Texts
from raydrd.benchmark.sides import embedder
from raydrd.config import Resources
from raydrd.rounds import Rounds
from raydrd.spine.cluster import Cluster, Shard
from raydrd.spine.parts import part_name, ranges
from raydrd.spine.precision import Precision
from raydrd.spine.storage import Folder

PLAIN, ACTORS, START = "plain loop", "actors", "start"
WARM_UP_ROWS = 64


def shards_of(rows: int, size: int) -> tuple[Shard, list[Shard]]:
    """A short first shard that only warms up, then all rows in shards of at most `size`."""

    def shard(name: str, lo: int, hi: int) -> Shard:
        return {"name": name, "lo": lo, "hi": hi, "rows": hi - lo}

    warm = shard("warm-up.arrow", 0, min(WARM_UP_ROWS, rows))
    return warm, [shard(part_name(lo, hi, "arrow"), lo, hi) for lo, hi in ranges(rows, size)]


def on_ray(model: Path, texts: Texts, *, work: Folder, precision: Precision, threads: int, rounds: int, size: int) -> Rounds:
    """Seconds of one worker's shards in a plain loop and in a Ray actor with as many threads, in turn.

    `actors` is the time an actor is busy, `start` all else of the stage: starting Ray (in the first round), the actor,
    its imports and its model, and warming it up.
    """
    cluster = Cluster(Resources(ray="local", num_workers=1, cpus_per_worker=threads))
    warm, shards = shards_of(len(texts.texts), size)
    found = Rounds({PLAIN: [], ACTORS: [], START: []})
    plain = embedder(model, texts, out=work / "plain", precision=precision)
    arguments: dict[str, Any] = {
        "model": Folder.of(model),
        "role": "passage",
        "tokens": texts.tokens,
        "out": work / "actors",
        "precision": precision,
        "storage": "float32",
        "tokens_per_batch": None,
    }
    torch.set_num_threads(threads)
    try:
        for number in range(rounds):
            plain(warm)
            began = time.perf_counter()
            for shard in shards:
                plain(shard)
            found.seconds[PLAIN].append(time.perf_counter() - began)
            began = time.perf_counter()
            results = cluster.map(
                type(plain), arguments, [warm, *shards], label="embed", unit="texts", marks=work / f"attempts-{number}"
            )
            whole = time.perf_counter() - began
            busy = sum(result["busy_seconds"] for result in results if result["shard"] != warm["name"])
            found.seconds[ACTORS].append(busy)
            found.seconds[START].append(whole - busy)
    finally:
        cluster.stop()
    same = [np.array_equal(_stored(work / "plain", shard["name"]), _stored(work / "actors", shard["name"])) for shard in shards]
    found.results["equal"] = all(same)
    return found


def _stored(folder: Folder, name: str) -> Any:
    return folder.map_arrow(name)["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
