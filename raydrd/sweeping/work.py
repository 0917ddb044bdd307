"""One trial: its recipe over the shared store, with a record that is rewritten after each look at dev. No Ray."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from raydrd.errors import InputError
from raydrd.flow.lab import Lab, another, open_lab, same_world
from raydrd.flow.learn import prepares
from raydrd.flow.serve import learns_from, size_of
from raydrd.flow.teachers import SCORING
from raydrd.recipes import RECIPES
from raydrd.spine.storage import Folder
from raydrd.spine.store import MANIFEST, Artifact, Record, Store
from raydrd.stages.load import table
from raydrd.sweeping.plan import Trial
from raydrd.sweeping.space import Point

Report = dict[str, Any]
ENDED = ("finished", "stopped")  # and not to be tried again


# -- records -------------------------------------------------------------------------------------------------


def read_record(folder: Folder, trial: Trial) -> dict[str, Any]:
    """The trial's record, or a new one."""
    name = f"{trial.name}.json"
    if folder.exists(name):
        found: dict[str, Any] = folder.read_json(name)
        return found
    return _new(trial)


def _new(trial: Trial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "point_number": trial.point_number,
        "label": trial.label,
        "seed": trial.seed,
        "key": trial.key,
        "point": trial.point,
        "flat": trial.flat,
        "overrides": list(trial.overrides),
        "status": "running",
        "reason": "",
        "reports": [],
        "history": [],  # of a population: the values that each finished step had
        "dev": {},
        "updates": 0,
        "steps": 0,
        "seconds": 0.0,
        "waited": 0.0,
        "journal": [],
        "data": None,  # id of the collection that the reports are of
        "judged_by": None,  # of a stopped trial: the scheduler and the metric that stopped it
        "student": None,
        "size": None,
        "config": trial.cfg.model_dump(mode="json"),
    }


def write_record(folder: Folder, trial: Trial, record: dict[str, Any]) -> None:
    folder.write_json(f"{trial.name}.json", record)


def take_up(folder: Folder, trial: Trial, *, store: Store, data: Callable[[], str], judge: dict[str, Any]) -> None:
    """What an earlier call left of a trial, as far as it still holds, under the names that the sweep file has now.

    Numbers of another collection, or of a student that this store does not have, are dropped: the trial begins anew, and
    finds in the store what is there. One that another scheduler, or this one by another metric, stopped goes on.

    Args:
        data: the id of the collection that the trial's config names; asked only where there is a record.
        judge: scheduler and metric of this call.
    """
    if not folder.exists(f"{trial.name}.json"):
        return
    before = read_record(folder, trial)
    record = dict(before)
    there = record["student"] is None or (store.root / record["student"]).exists(MANIFEST)
    if record.get("data") != data() or not there:
        record = _new(trial)
    elif record["status"] == "stopped" and record.get("judged_by") != judge:
        record |= {"status": "running", "judged_by": None}
    record |= {"number": trial.number, "point_number": trial.point_number, "seed": trial.seed}
    if not record["history"]:  # a population's trial has changed its values since
        record |= {"point": trial.point, "label": trial.label, "overrides": list(trial.overrides), "flat": trial.flat}
    if record != before:
        write_record(folder, trial, record)


# -- the run ---------------------------------------------------------------------------------------------------


def run_trial(
    trial: Trial,
    cfg: Any,
    *,
    folder: Folder,
    store: Store,
    opened: dict[str, Lab],
    report: Callable[[Report], None],
    history: list[Point] | None = None,
    changing: Point | None = None,
) -> dict[str, Any]:
    """The trial's record, from where it is to its end: finished, or failed with its error.

    Args:
        cfg: the trial's config as it is carried out here: other resources.
        folder: of the records. What was reported before is reported again, so that a searcher and a scheduler know it.
        store: where this process makes things; its journal is not used.
        opened: this process' opened data and models, kept from trial to trial.
        report: told of each look at dev; what it raises beside an `Exception` ends the trial as it stands.
        history: a population's trial goes on from these values of finished steps, whose looks at dev are known.
        changing: a population's values of the steps to come.

    Raises:
        Exception: the trial failed; its record says so.
    """
    record = read_record(folder, trial)
    if history is None:
        for known in record["reports"]:
            report(known)
    if record["status"] in ENDED:
        return record
    record |= {"status": "running", "reason": "", "process": {"node": platform.node(), "pid": os.getpid()}}
    run = _Run(trial, record, folder, report, history=history, changing=changing)
    try:
        lab = _lab(cfg, store, opened)
        run.began(lab)
        student = RECIPES[cfg.recipe].run(cfg, lab)
        run.finished(student)
    except Exception as error:
        run.failed(error)
        raise
    return record


def _lab(cfg: Any, store: Store, opened: dict[str, Lab]) -> Lab:
    """A lab of its own for this trial, over what this process has open."""
    base = opened.get(store.root.uri)
    if base is None or not same_world(base, cfg):
        base = opened[store.root.uri] = open_lab(cfg, Store(store.root, store.cluster, store.claims))
    if not table(base.dev_data, "queries/dev").rows:
        raise InputError("data.dev_split: a sweep chooses by dev queries, and there are none; name a split that has judgements")
    passages, needed = table(base.dev_data, "corpus").rows, 0 if cfg.student.tokens else learns_from(base, base.start)
    if passages < needed:
        raise InputError(
            f"index: {cfg.factory!r} learns from at least {needed:,} vectors, and the dev sample has {passages:,} passages, so "
            "dev could not tell it from Flat; set evaluation.dev_passages to that or more, or write fewer lists"
        )
    seen = replace(base.store.branch(), cluster=store.cluster, claims=store.claims)
    return another(base, cfg, seen)


class _Run:
    """What a trial has come to: between the lab, which tells of each look at dev, and the record."""

    def __init__(
        self,
        trial: Trial,
        record: dict[str, Any],
        folder: Folder,
        report: Callable[[Report], None],
        *,
        history: list[Point] | None,
        changing: Point | None,
    ) -> None:
        self.trial, self.record, self.folder, self.report = trial, record, folder, report
        self.changing = changing
        self.start, self.earlier = time.monotonic(), float(record["seconds"])
        self.before = {one["id"]: one for one in record["journal"]}
        self.waited = float(record["waited"])
        self.looks = self.updates = self.steps = self.learnt = 0
        self.known = len(record["reports"])
        self.held: Report | None = None
        self.lab: Lab | None = None
        self.entries: list[dict[str, Any]] = []
        self.copied = history is not None
        if history is not None:  # what the copied trial had seen takes the place of this one's own looks
            self.record["history"], self.record["reports"], self.known = list(history), [], 0
            self.record |= {"point": trial.point, "label": trial.label, "overrides": list(trial.overrides)}
            self.record["config"] = trial.cfg.model_dump(mode="json")
        self.skipped = len(self.record["history"])

    def began(self, lab: Lab) -> None:
        self.lab = lab
        self.record["data"] = lab.data.id
        lab.on_segment = self.segment

    def segment(self, event: dict[str, Any]) -> None:
        """One look at dev. The last one is told to the searcher only when the trial has ended: nothing is left to stop."""
        own = event["label"] != "before" and not prepares(event["label"])
        self.looks += 1
        self.steps += int(event["steps"])
        if own:
            self.learnt += 1
            self.updates += int(event["steps"])
        if self.looks <= self.known:
            return
        found: Report = {
            "updates": self.updates,
            "segment": event["label"],
            "dev": dict(event["dev"] or {}),
            "seconds": round(self.earlier + time.monotonic() - self.start, 3),
            "dropped": bool(event["dropped"]),
        }
        record = self.record
        record["reports"].append(found)
        record["dev"], record["updates"], record["steps"] = found["dev"], self.updates, self.steps
        if own and self.changing is not None and self.learnt > self.skipped:
            record["history"].append(self.changing)
        self.write()
        if own and self.learnt == len(self.trial.cfg.trainings()):
            self.held = found
        elif self.learnt > self.skipped or not self.copied:
            self.report(found)

    def finished(self, student: Artifact) -> None:
        assert self.lab is not None
        size = {**size_of(self.lab, student), "passages_per_second": None}  # timed later, beside the others
        self.record |= {"status": "finished", "student": f"{student.stage}/{student.id}", "size": size}
        self.write()
        if self.held is not None:
            self.report(self.held)

    def failed(self, error: Exception) -> None:
        lines = str(error).strip().splitlines()
        self.record["status"] = "failed"
        self.record["reason"] = lines[0] if isinstance(error, InputError) and lines else _one_line(error)
        self.write()

    def write(self) -> None:
        record = self.record
        record["seconds"] = round(self.earlier + time.monotonic() - self.start, 3)
        if self.lab is not None:
            record["waited"] = round(self.waited + self.lab.store.waited, 3)
            for one in self.lab.store.journal[len(self.entries) :]:
                # What an earlier call of the command made is this trial's work, though it is found in the store now.
                made = self.before.get(one.id, {"reused": True})
                self.entries.append(_entry(self.lab, one) if made["reused"] else made)
            asked = {one["id"] for one in self.entries}
            left = [one for id_, one in self.before.items() if not one["reused"] and id_ not in asked]
            record["journal"] = [*self.entries, *left]
        write_record(self.folder, self.trial, record)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _entry(lab: Lab, record: Record) -> dict[str, Any]:
    """A stage as the record keeps it, with what teachers read in it: pairs scored, texts embedded."""
    made = lab.store.find(record.name, record.id)
    pairs = int(made.metrics["pairs"]) if record.name in SCORING else 0
    of = made.manifest["inputs"].get("model") if record.name == "embed" else None
    models = {m.model.id for one in lab.teachers.values() for m in (one, *one.members) if m.model is not None}
    by_teacher = isinstance(of, dict) and str(of.get("artifact", "")).rpartition("/")[2] in models
    return {
        "name": record.name,
        "label": record.label,
        "id": record.id,
        "rows": record.rows,
        "seconds": round(record.seconds, 3),
        "reused": record.reused,
        "pairs": pairs,
        "texts": record.rows if by_teacher else 0,
    }
