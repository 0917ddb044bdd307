"""A sweep from its file to its result: what `raydrd sweep` and `jobs/sweep.py` call.

The default runs first, over the whole cluster, and makes what all trials share. Then the trials, each in a process of its
own; what several of them need and nobody has made is made by the first. A trial's record is all that is kept of it, so
the same command goes on where a killed one was.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from raydrd.config import Resources
from raydrd.data.spec import Data
from raydrd.errors import InputError, StageError
from raydrd.flow.lab import Lab, located_data, open_lab
from raydrd.session import lasting, opened
from raydrd.spine.cluster import shared_or_refuse
from raydrd.spine.progress import say
from raydrd.spine.storage import Folder
from raydrd.spine.store import Store, identify
from raydrd.stages.load import load
from raydrd.sweeping import confirm, result, tpe
from raydrd.sweeping.plan import Plan, Trial, read_plan
from raydrd.sweeping.spec import Asha
from raydrd.sweeping.tracking import Tracking, check_packages
from raydrd.sweeping.work import run_trial, take_up, write_record

RECORDS = "trials"
LOST = "its process died (out of memory, or a crash below Python)"


def sweep(path: str, assignments: list[str], *, out: str | None = None, store: str | None = None) -> dict[str, Any]:
    """Run a sweep: a value that JSON holds, see `result.collect`; `best.yaml` and the trials' records lie in the folder.

    Raises:
        InputError: the sweep file, its base config, any point, data or models are wrong; before any trial.
        StageError: a stage of the default gave up, or every trial failed.
    """
    began = time.monotonic()
    plan = read_plan(path, assignments)
    check_packages(plan.sweep.tracking, path)
    if plan.sweep.search == "optuna":
        tpe.check_optuna()
    alone = plan.cfg.resources.ray == "off"
    if alone:
        _refuse_alone(plan)
    folder = lasting("--out", out or f"runs/{plan.name}-sweep")
    with opened(plan.cfg, out=folder, store=store) as kept:
        return _run(plan, kept, folder, alone, began)


def _refuse_alone(plan: Plan) -> None:
    """Without Ray trials run one after another in this process: nobody can stop them."""
    sweep = plan.sweep
    if sweep.scheduler.kind != "fifo" or sweep.trial.workers > 1:
        field = "scheduler" if sweep.scheduler.kind != "fifo" else "trial.workers"
        raise InputError(f"{plan.path}: {field}: needs Ray; set resources.ray=auto, or leave it out")


@dataclass(frozen=True)
class _Sweep:
    """A sweep under way. `opened` holds what the driver has open, `place` is None without Ray."""

    plan: Plan
    store: Store
    folder: Folder
    place: Any
    board: _Board
    opened: dict[str, Lab]

    @property
    def records(self) -> Folder:
        return self.folder / RECORDS


def _run(plan: Plan, store: Store, folder: Folder, alone: bool, began: float) -> dict[str, Any]:
    place = None if alone else _place(plan, store, folder)
    store.cluster.resources = _driver_resources(plan.cfg.resources, store.cluster.is_local)
    follow = Tracking(plan.sweep.tracking, folder, plan.name)
    one = _Sweep(plan, store, folder, place, _Board(plan, folder / RECORDS, follow, store), {})
    try:
        say(_told(plan, place))
        for note in plan.notes:
            say(f"note: {note}")
        lab = _first(one)
        _carry_out(one, lab, plan.trials[1:], searched=True)
        ran = one.board.records(range(plan.total))
        best = result.best_point(plan, ran)
        confirmed = confirm.confirm(plan, ran, best, lambda fresh: _carry_out(one, lab, fresh, searched=False), lab, one.board)
        found = result.collect(plan, ran, best, confirmed, lab=lab, folder=folder, began=began, store=store.root.uri)
        found["notes"] += follow.notes
    finally:
        follow.close()
    if plan.total > 1 and all(trial["status"] == "failed" for trial in found["trials"][1:]):
        raise StageError(f"every trial failed; the first one: {found['trials'][1]['reason']}")
    return found


def _place(plan: Plan, store: Store, folder: Folder) -> Any:
    """Room for trials on the cluster, which all see the store and the records."""
    store.cluster.start()
    for one in (folder / RECORDS, store.root):
        shared_or_refuse(one)
    from raydrd.sweeping.tuner import here

    return here(plan, store.cluster.is_local)


def _told(plan: Plan, place: Any) -> str:
    head = f"sweep {plan.name}: {plan.total} trials"
    if place is None:
        return f"{head}, one after another"
    each = f"{place.cpus} CPU{'s' if place.cpus > 1 else ''}" + (f" and {place.gpus:g} GPU" if place.gpus else "")
    workers = f"{place.workers} workers of {each}" if place.workers > 1 else each
    return f"{head}, {place.slots} at once, {workers} each"


def _driver_resources(resources: Resources, local: bool) -> Resources:
    """On one machine the driver trains in its own process: Ray Train would only start another one."""
    return resources.model_copy(update={"train_workers": 0}) if local and resources.train_workers == 1 else resources


def _first(one: _Sweep) -> Lab:
    """The default, over the whole cluster: what all trials share is there afterwards. The driver's data and models."""
    say("trial 0: the default, which makes what all trials share")
    default = one.plan.trials[0]
    one.board.of(default)
    cfg = default.cfg.model_copy(update={"resources": one.store.cluster.resources})
    run_trial(default, cfg, folder=one.records, store=one.store, opened=one.opened, report=lambda _: None)
    one.board.ended(0, "complete")
    if one.store.root.uri not in one.opened:  # its record was finished
        one.opened[one.store.root.uri] = open_lab(cfg, one.store)
    return one.opened[one.store.root.uri]


def _carry_out(one: _Sweep, lab: Lab, trials: Sequence[Trial], *, searched: bool) -> None:
    """Trials to their ends, on Ray or one after another here. searched: by the sweep's scheduler and searcher."""
    plan, board = one.plan, one.board
    board.asked = tpe.Asked(plan, one.records) if searched and plan.sweep.search == "optuna" else None
    # The default is told to a scheduler that compares trials: its record is reported again.
    told = searched and isinstance(plan.sweep.scheduler, Asha) and one.place is not None
    given = [plan.trials[0], *trials] if told else list(trials)
    count = len(given) + (plan.sweep.samples if board.asked else 0)
    if not trials and not board.asked:
        return
    if one.place is None:
        for trial in _queue(board, given):
            _here(one, trial)
        return
    from raydrd.sweeping.trial import Job
    from raydrd.sweeping.tuner import resources_of, run_trials

    place = one.place
    run_trials(
        plan,
        _queue(board, given),
        total=count,
        job=lambda desk: Job(
            plan=plan, trials={trial.number: trial for trial in given}, store=one.store.root, records=one.records,
            resources=resources_of(plan.cfg.resources, place), precision=lab.precision, metric=plan.metric,
            cpus=place.cpus, gpus=place.gpus, workers=place.workers, desk=desk,
        ),
        place=place,
        scratch=one.folder / "tune",
        searched=searched,
        known=board.record,
        reported=board.reported,
        ended=board.ended,
    )  # fmt: skip


def _queue(board: _Board, given: Sequence[Trial]) -> Iterator[Trial]:
    """The trials in the order in which they start; what a searcher draws follows, one at a time."""
    for trial in given:
        board.of(trial)
        yield trial
    while board.asked is not None and (drawn := board.asked.ask()) is not None:
        board.of(drawn)
        yield drawn


def _here(one: _Sweep, trial: Trial) -> None:
    """One trial in this process; its failure is its own."""
    cfg = trial.cfg.model_copy(update={"resources": one.store.cluster.resources})
    try:
        run_trial(trial, cfg, folder=one.records, store=one.store, opened=one.opened, report=lambda _: None)
    except Exception as error:
        if (one.board.record(trial.number) or {}).get("status") != "failed":
            raise StageError(f"trial {trial.number}: its record cannot be written: {error}") from error
    one.board.ended(trial.number, "complete")


class _Board:
    """What the driver knows of the trials: their records, and who is told of them."""

    def __init__(self, plan: Plan, folder: Folder, follow: Tracking, store: Store) -> None:
        self.plan, self.folder, self.follow, self.store = plan, folder, follow, store
        self.judge = {"scheduler": plan.sweep.scheduler.model_dump(mode="json"), "metric": plan.metric}
        self.data: dict[str, str] = {}  # ids of collections, by how a config names them
        self.trials: dict[int, Trial] = {}
        self.over: set[int] = set()
        self.asked: tpe.Asked | None = None

    def of(self, trial: Trial) -> None:
        """A trial that is about to start, or to be found in its record."""
        if trial.number not in self.trials:
            asked = trial.cfg.data
            take_up(self.folder, trial, store=self.store, data=lambda: self._data(asked), judge=self.judge)
        self.trials[trial.number] = trial

    def _data(self, asked: Data) -> str:
        name = asked.model_dump_json()
        if name not in self.data:
            self.data[name] = identify(load, {"data": located_data(asked)})[0]
        return self.data[name]

    def record(self, number: int) -> dict[str, Any] | None:
        name = f"{self.trials[number].name}.json"
        return self.folder.read_json(name) if self.folder.exists(name) else None

    def records(self, numbers: Iterable[int]) -> list[dict[str, Any]]:
        """Records by number; a trial that left none, or was refused, has a short one."""
        return [self._any(number) for number in numbers]

    def _any(self, number: int) -> dict[str, Any]:
        if number in self.trials:
            return self.record(number) or result.missing(self.trials[number])
        refused: dict[str, Any] = self.folder.read_json(f"{number:03d}-refused.json")
        return refused

    def reported(self, number: int, record: dict[str, Any]) -> None:
        if not self.trials[number].prefix and number not in self.over:
            self.follow.reported(number, record)

    def ended(self, number: int, how: str) -> None:
        """A trial's last word: what its record says, or what Tune saw where the trial could not write it."""
        if number in self.over:
            return
        self.over.add(number)
        trial = self.trials[number]
        record = self.record(number) or result.missing(trial)
        if record["status"] == "running":
            record["status"] = "stopped" if how == "complete" and record["reports"] else "failed"
            record["reason"] = "" if record["status"] == "stopped" else LOST
            record["judged_by"] = self.judge if record["status"] == "stopped" else None
            write_record(self.folder, trial, record)
        say(result.line(trial, record, self.plan.metric))
        if self.asked is not None and number:
            self.asked.tell(record)
        if not trial.prefix:
            self.follow.ended(number, record)
