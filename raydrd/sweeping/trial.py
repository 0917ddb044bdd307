"""A trial in a process of Ray Tune: its threads, its claims, its reports."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray import tune

from raydrd.config import Resources
from raydrd.flow.lab import Lab
from raydrd.spine.cluster import Cluster, set_threads
from raydrd.spine.precision import Precision
from raydrd.spine.quiet import quiet_ray
from raydrd.spine.storage import Folder
from raydrd.spine.store import Claims, Store
from raydrd.sweeping.claims import RENEW_SECONDS, Leases
from raydrd.sweeping.plan import Plan, Trial, trial_of
from raydrd.sweeping.space import Point, point_of
from raydrd.sweeping.work import read_record, run_trial

DONE = "done.json"  # in a population's checkpoint: the values that each finished step had

_opened: dict[str, Lab] = {}  # data and models that this process has open


@dataclass(frozen=True)
class Job:
    """What every trial's process is given. Trials that a searcher draws, or a population changes, come with their values."""

    plan: Plan
    trials: dict[int, Trial]
    store: Folder
    records: Folder
    resources: Resources
    precision: Precision
    metric: str
    cpus: int
    gpus: float
    workers: int
    desk: str  # name of the actor that knows who makes what


def as_trainable(job: Job) -> Callable[[dict[str, Any]], None]:
    """What Tune calls, in a process of its own."""

    def trial(config: dict[str, Any]) -> None:
        run(config, job)

    return trial


def run(config: dict[str, Any], job: Job) -> None:
    """One trial. Its own errors stand in its record; what Tune hears of is only the end of the process."""
    trial, history, point = _asked(config, job)
    inside = job.workers > 1
    if not inside:
        prepare(job.cpus, job.gpus)
    store = Store(job.store, Cluster(job.resources), claims=AtDesk(job.desk))

    def report(found: dict[str, Any]) -> None:
        metrics = {"metric": found["dev"][job.metric], "updates": found["updates"], "number": trial.number}
        if point is None:
            tune.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            done = read_record(job.records, trial)["history"]
            (Path(folder) / DONE).write_text(json.dumps(done), encoding="utf-8")
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))

    cfg = trial.cfg.model_copy(update={"resources": job.resources, "precision": job.precision})
    try:
        run_trial(
            trial, cfg, folder=job.records, store=store, opened=_opened, report=report, history=history, changing=point,
        )  # fmt: skip
    except Exception:
        if read_record(job.records, trial)["status"] != "failed":
            raise


def _asked(config: dict[str, Any], job: Job) -> tuple[Trial, list[Point] | None, Point | None]:
    """The trial; of a population also the values that lie behind it, and those of the steps to come."""
    if "start" in config:
        return _of_population(config["start"], job)
    number = int(config["number"])
    if number in job.trials:
        return job.trials[number], None, None
    return trial_of(job.plan, number, json.loads(config["point"]), flat=json.loads(config["drawn"])), None, None


def _of_population(config: dict[str, Any], job: Job) -> tuple[Trial, list[Point] | None, Point | None]:
    desk: Any = ray.get_actor(job.desk)
    # A trial that copies another one takes over its whole config: which one it is itself, the desk knows from its start.
    number = int(ray.get(desk.number.remote(tune.get_context().get_trial_id(), config["number"])))
    first = job.trials[number]
    space = job.plan.sweep.space
    point = point_of(space, dict(config["flat"]))
    history: list[Point] | None = None
    if (checkpoint := tune.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            history = json.loads((Path(folder) / DONE).read_text(encoding="utf-8"))
    elif known := read_record(job.records, first)["history"]:
        history = known
    made = trial_of(job.plan, number, point, done=history)
    return replace(made, first=first.key), history, point


def prepare(cpus: int, gpus: float) -> None:
    """Threads and devices of this process: what it was given, before torch is imported, and every time it is used again."""
    quiet_ray()
    os.environ["OMP_NUM_THREADS"] = str(cpus)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    set_threads(cpus)
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(cpus)


# -- claims --------------------------------------------------------------------------------------------------


class Desk:
    """An actor of no CPUs that knows which trial makes what, and which number one of Tune's names is."""

    def __init__(self) -> None:
        self.leases = Leases()
        self.numbers: dict[str, int] = {}

    def number(self, trial_id: str, first: int) -> int:
        return self.numbers.setdefault(trial_id, first)

    def take(self, key: str, owner: str) -> bool:
        return self.leases.take(key, owner, time.monotonic())

    def renew(self, owner: str) -> None:
        self.leases.renew(owner, time.monotonic())

    def release(self, key: str, owner: str) -> None:
        self.leases.release(key, owner)


class AtDesk(Claims):
    """This process' claims: while it holds one, a thread says that it is alive.

    Where the desk is gone every claim is given: two trials may then make the same, which is slower and not wrong.
    """

    def __init__(self, desk: str) -> None:
        self.desk, self.owner = desk, uuid4().hex
        self.held: set[str] = set()
        self.ended = threading.Event()

    def take(self, key: str) -> bool:
        try:
            given = bool(ray.get(ray.get_actor(self.desk).take.remote(key, self.owner)))
        except (ray.exceptions.RayError, ValueError):
            return True
        if given:
            self.held.add(key)
            if len(self.held) == 1:
                self.ended = threading.Event()
                threading.Thread(target=self._renew, args=(self.ended,), daemon=True).start()
        return given

    def _renew(self, ended: threading.Event) -> None:
        while not ended.wait(RENEW_SECONDS):
            try:
                ray.get(ray.get_actor(self.desk).renew.remote(self.owner))
            except (ray.exceptions.RayError, ValueError):
                return

    def release(self, key: str) -> None:
        self.held.discard(key)
        if not self.held:
            self.ended.set()
        try:
            ray.get(ray.get_actor(self.desk).release.remote(key, self.owner))
        except (ray.exceptions.RayError, ValueError):
            return
