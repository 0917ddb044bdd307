"""Toy sweeps, and what their tests ask of them; in a module that other processes can import."""

from __future__ import annotations

import copy
import json
import os
import time
from pathlib import Path
from typing import Any

import yaml

from raydrd.config import Resources
from raydrd.spine.cluster import Cluster
from raydrd.spine.storage import Folder
from raydrd.spine.store import Store, Work, stage
from tests.conftest import write_config

GRADED = {"graded": 5, "hard": 5, "hard_until": 20, "rest": 10}
EXACT = {"graded": 20, "hard": 0, "rest": 0}
METRIC = "nDCG@10"


def step(lists: dict[str, Any], count: int, rate: float = 3.0e-3) -> dict[str, Any]:
    return {"lists": lists, "train": {"learning_rate": rate, "train_batch_size": 8, "max_steps": count}}


def toy_sweep(home: Path, toy_config: dict[str, Any], *, base: dict[str, Any] | None = None, **fields: Any) -> str:
    """A sweep file beside its base: two short steps, and whatever the test adds."""
    home.mkdir(parents=True, exist_ok=True)
    values = copy.deepcopy(toy_config) | {"curriculum": [step(GRADED, 10), step(EXACT, 10)]} | copy.deepcopy(base or {})
    write_config(home / "base.yaml", values)
    sweep = {"base": "base.yaml", "confirm": None, **fields}
    (home / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False), encoding="utf-8")
    return str(home / "sweep.yaml")


def records(out: Path) -> dict[str, dict[str, Any]]:
    """Records by file name."""
    return {path.name: json.loads(path.read_text()) for path in sorted((out / "trials").glob("*.json"))}


def trained(store: Path) -> dict[str, tuple[int, int]]:
    """Every finished training of the student in a store, and which writing of it this is."""
    manifests = [*store.glob("train/*/manifest.json"), *store.glob("imitate/*/manifest.json")]
    return {path.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in manifests}


@stage(version=1)
def slow(work: Work, *, marks: str) -> dict[str, Any]:
    """Says which process has begun it; the first one goes on only when it is told to."""
    begun = list(Path(marks).glob("begun-*"))
    (Path(marks) / f"begun-{os.getpid()}").write_text("")
    work.folder.write_bytes("done", b"x")
    while not begun and not (Path(marks) / "go").exists():
        time.sleep(0.02)
    return {"rows": 1}


def ask_for_slow(store: str, desk: str, marks: str) -> tuple[bool, float]:
    """Whether the stage was found, and how many seconds another one's work on it was waited for."""
    from raydrd.sweeping.trial import AtDesk

    kept = Store(Folder.of(store), Cluster(Resources(ray="off")), claims=AtDesk(desk))
    (Path(marks) / f"asked-{os.getpid()}").write_text("")
    kept.run(slow, marks=marks)
    return kept.journal[0].reused, kept.waited


def impatient_desk() -> type:
    """A desk that waits 4 seconds for a sign of life, not 15."""
    from raydrd.sweeping.trial import Desk

    class Impatient(Desk):
        def __init__(self) -> None:
            super().__init__()
            self.leases.seconds = 4.0

    return Impatient
