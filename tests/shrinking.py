"""A program for tests: training on a Ray cluster of its own, of which something is taken away or sticks in the middle.

    python -m tests.shrinking HOME node|stuck

Prints one line of JSON. A process of its own, because the suite's Ray is another one.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from raydrd.config import Resources
from raydrd.errors import StageError
from raydrd.spine.cluster import Cluster
from raydrd.spine.quiet import quiet_ray
from raydrd.training import notes
from raydrd.training.job import Job
from raydrd.training.watch import Watch
from tests.sticky import stuck
from tests.training_jobs import make_job

PATIENCE = 300.0


def shrinking_job(home: Path, *, steps: int = 150, **more: Any) -> Job:
    """Seven examples a step, which two workers cannot share evenly; a checkpoint after each step."""
    made = make_job(home, save_seconds=0.0, **more)
    return replace(made, config=made.config.model_copy(update={"max_steps": steps, "train_batch_size": 7}))


class Bar:
    n = 0.0

    def update(self, n: float = 1) -> None:
        self.n += n

    def set_postfix(self, **values: Any) -> None: ...


def take_away(cluster: Any, node: Any, job: Job, worlds: list[int]) -> None:
    """Remove the node in the middle of a training by two workers; note how many there were, before and after."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = notes.read(job.scratch)
        if found and (world := next(iter(found.values()))["world"]) not in worlds[-1:]:
            worlds.append(world)
        if node is not None and worlds == [2] and any(note["step"] > 5 for note in found.values()):
            cluster.remove_node(node, allow_graceful=False)
            node = None
        time.sleep(0.05)


def main(home: Path, what: str) -> dict[str, Any]:
    quiet_ray()
    os.environ |= {"RAY_raylet_start_wait_time_s": "300"}  # of a busy machine
    import ray
    from ray.cluster_utils import Cluster as Nodes

    from raydrd.stages.train import on_ray, plan_group

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": int(what == "stuck"), "include_dashboard": False})
    added = [nodes.add_node(num_cpus=1, object_store_memory=80 << 20) for _ in range(2)]
    nodes.wait_for_nodes()
    ray.init(address=nodes.address, logging_level=logging.ERROR, log_to_driver=False)
    cluster = Cluster(
        Resources(
            ray=nodes.address,
            train_workers=(1, 2) if what == "node" else (2, 2),
            cpus_per_worker=1,
            collective_timeout_s=60 if what == "node" else 15,
            stall_seconds=2,
        )
    )
    cluster.start()
    worlds: list[int] = []
    error = ""
    job = shrinking_job(home)
    if what == "stuck":
        job = stuck(shrinking_job(home, steps=40), home / "stuck", rank=1, world=2, step=9)
    group = plan_group(cluster, 7)
    try:
        threading.Thread(target=take_away, args=(nodes, added[1] if what == "node" else None, job, worlds), daemon=True).start()
        with Watch("train", job.scratch, Bar(), seconds=2, workers=group.in_words(), room=lambda: "room"):
            on_ray(cluster, job, group)
    except StageError as failed:
        error = str(failed)
    finally:
        ray.shutdown()
        nodes.shutdown()
    return {"worlds": worlds, "error": error}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2])), flush=True)
