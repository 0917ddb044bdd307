"""One run from an empty store to its report: started, killed as planned, and started again until it is done."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from raydrd.chaos import victims
from raydrd.chaos.moments import Kill
from raydrd.chaos.notes import Notes
from raydrd.chaos.tally import FOLDER, HOOK, SPREAD

MOST_FAILURES = 3  # times that a run may end with an error of its own after a kill and be started again
HEAD = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 128 << 20}
NODE = {"num_cpus": 1, "object_store_memory": 128 << 20}
NODES = 2  # beside the head
REJOINS = 5.0  # seconds after which a node comes in the place of one that was removed
ORPHANS = 30.0  # seconds that the processes of a killed driver get to end by themselves

Told = Callable[[dict[str, Any]], None]
OpenCluster = Callable[..., Any]  # gives a `ray.cluster_utils.Cluster` whose head has these arguments


@dataclass
class Place:
    """Where one run lives: `store`, `run`, `notes` and `log.txt` below one folder, and the command that makes it."""

    home: Path
    arguments: list[str]  # config and overrides
    spread: bool  # tiny inputs go to actors too

    @property
    def store(self) -> Path:
        return self.home / "store"

    @property
    def run(self) -> Path:
        return self.home / "run"

    @property
    def log(self) -> Path:
        return self.home / "log.txt"

    def environment(self) -> dict[str, str]:
        """What every process of the run has in its environment, Ray's too."""
        root = str(Path(__file__).resolve().parents[2])
        path = [str(self.home / "hook"), root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        return {
            "PYTHONPATH": os.pathsep.join(path),
            FOLDER: str(self.home / "notes"),
            **({SPREAD: "1"} if self.spread else {}),
        }

    def prepare(self) -> None:
        for name in ("notes", "hook"):
            (self.home / name).mkdir(parents=True, exist_ok=True)
        (self.home / "hook" / "sitecustomize.py").write_text(HOOK)

    def start(self, address: str | None) -> subprocess.Popen[bytes]:
        """The run's command, always the same, in a session of its own."""
        command = [sys.executable, "-m", "raydrd.cli", "run", *self.arguments]
        command += [f"resources.ray={address}"] if address else []
        command += ["--store", str(self.store), "--out", str(self.run)]
        with self.log.open("ab") as log:
            environment = {**os.environ, **self.environment()}
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def said(self) -> str:
        """The end of what the run wrote."""
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""


@dataclass
class Ended:
    """How a run ended. `error`: empty when it is complete; `unspent`: kills that found no victim before the end."""

    seconds: float
    starts: int
    kills: list[dict[str, Any]] = field(default_factory=list)
    unspent: list[Kill] = field(default_factory=list)
    error: str = ""


def insisted(start: Callable[[], Any], times: int = 4) -> Any:
    """A node started, tried again: a raylet gives its agent 15 s to come up, which a busy machine does not always do."""
    for left in reversed(range(times)):
        try:
            return start()
        except (Exception, SystemExit):  # what Ray raises here: a bare one, or its own way out
            if not left:
                raise
            time.sleep(5.0)


@contextmanager
def several_nodes(place: Place, open_cluster: OpenCluster | None) -> Iterator[Any]:
    """A cluster of several raylets whose processes take notes; nothing when none is asked for."""
    if open_cluster is None:
        yield None
        return
    with patch.dict(os.environ, place.environment()):
        cluster = insisted(lambda: open_cluster(**HEAD))
        for _ in range(NODES):
            insisted(lambda: cluster.add_node(**NODE))
    try:
        yield cluster
    finally:
        cluster.shutdown()


def carry_out(
    place: Place, kills: list[Kill], *, seed: int, patience: float, told: Told, open_cluster: OpenCluster | None = None
) -> Ended:
    """Run to the end through these kills. `patience`: seconds without a kill after which a run counts as hung."""
    place.prepare()
    sessions: list[int] = []
    with several_nodes(place, open_cluster) as cluster:
        try:
            ended = _carry_out(place, list(kills), random.Random(seed), patience, told, cluster, sessions)
        except BaseException:  # whoever stops us leaves nothing running
            victims.kill([pid for session in sessions for pid in victims.of_session(session)])
            raise
    for session in sessions:
        victims.clear(session, ORPHANS)
    return ended


def _carry_out(
    place: Place, kills: list[Kill], draw: random.Random, patience: float, told: Told, cluster: Any, sessions: list[int]
) -> Ended:
    began = since = last = time.monotonic()
    notes, ended = Notes(place.home / "notes"), Ended(0.0, 1)
    joins: float | None = None  # when a new node comes
    failures, again = 0, False
    process = place.start(cluster and cluster.address)
    sessions.append(process.pid)
    while True:
        time.sleep(0.01)
        now = time.monotonic()
        if joins is not None and now >= joins:
            joins = None
            with patch.dict(os.environ, place.environment()):
                insisted(lambda: cluster.add_node(**NODE))
        code = process.poll()
        if code is None and now - last > patience:
            victims.kill(victims.of_session(process.pid))
            ended.error = f"hung: nothing ended it for {patience:.0f} s; it was in {notes.look().stage(process.pid)}"
            break
        if code == 0:
            break
        if code is not None:  # not by us: it gave up, and may go on when started again
            failures += 1
            if failures > MOST_FAILURES or not ended.kills:
                ended.error = f"ended with exit code {code}: {place.said()}"
                break
            ended.kills[-1]["outcome"] = f"gave up (exit code {code}), started again"
            told(ended.kills[-1])
            process, since, last, again = _again(place, cluster, sessions, ended)
            continue
        if not kills:
            continue
        kill = kills[0]
        if again and not kill.starting:
            # The clock stands still until a run that was started again has something to make.
            if not notes.look().began(process.pid):
                since = now
                continue
            again = False
        if now - since < kill.wait:
            continue
        there = notes.look().stage(process.pid).startswith(kill.during)
        struck = _strike(kill, process.pid, notes, draw, cluster) if there else ""
        if not struck:
            continue
        kills.pop(0)
        line = {"kind": struck, "second": round(now - began, 1), "stage": notes.stage(process.pid), "outcome": "went on"}
        ended.kills.append(line)
        since = last = time.monotonic()
        if kill.kind == "node":
            joins = since + REJOINS
        if kill.kind == "driver":
            process.wait()
            line["outcome"] = "started again"
            process, since, last, again = _again(place, cluster, sessions, ended)
        told(line)
    ended.seconds, ended.unspent = time.monotonic() - began, kills
    return ended


def _again(place: Place, cluster: Any, sessions: list[int], ended: Ended) -> tuple[subprocess.Popen[bytes], float, float, bool]:
    process = place.start(cluster and cluster.address)
    sessions.append(process.pid)
    ended.starts += 1
    now = time.monotonic()
    return process, now, now, True


def _strike(kill: Kill, driver: int, notes: Notes, draw: random.Random, cluster: Any) -> str:
    """Kill the victim and say what it was; nothing when there is none at this moment."""
    if kill.kind == "driver":
        everything = victims.of_session(driver)
        if kill.alone and len(everything) > 1:
            victims.kill([driver])
            return "driver alone"
        victims.kill([driver, *everything])
        return "driver"
    ours = victims.of_cluster(cluster) if cluster else victims.of_session(driver)
    busy = notes.busy(kill.kind, ours)
    if not busy:
        return ""
    pid = draw.choice(busy)
    if kill.kind != "node":
        victims.kill([pid])
        return kill.kind
    node = victims.node_of(cluster, pid)
    if node is None:
        return ""  # on the head, which stays
    cluster.remove_node(node, allow_graceful=False)
    return "node"
