"""Trials on Ray Tune: who runs where and when, who is stopped, and what a person sees meanwhile."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

import ray
from ray import tune
from ray.tune import Callback
from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from raydrd.config import Resources
from raydrd.errors import InputError, StageError
from raydrd.spine.cluster import available_cores, on_gpus
from raydrd.spine.progress import Shown, bar
from raydrd.spine.storage import Folder
from raydrd.sweeping.plan import Plan, Trial
from raydrd.sweeping.rungs import Rungs
from raydrd.sweeping.space import Domain, domains, within
from raydrd.sweeping.spec import Asha, Pbt
from raydrd.sweeping.trial import Desk, Job, as_trainable

DRIVER_MEMORY = 256 << 20  # of a trial that only waits for its workers: Tune wants it to ask for something


@dataclass(frozen=True)
class Place:
    """What a trial may use, and how many run at once."""

    cpus: int
    gpus: float
    workers: int
    slots: int


def plan_place(plan: Plan, *, cpus: list[int], gpus: list[int], local: bool) -> Place:
    """Room for trials on nodes with these `cpus` and `gpus`.

    A trial of several workers asks for nothing itself, and one core of all stays free for what feeds them, so that as many
    whole groups fit as there are slots: no group ever waits for a part of another one.

    Raises:
        InputError: not even one trial fits; says the field.
    """
    asked = plan.sweep.trial
    per_gpu = asked.gpus if asked.gpus is not None else (1.0 if max(gpus) else 0.0)
    if local:
        cpus = [available_cores()]  # a Ray of our own has a logical one more, for its own tasks
    if asked.cpus > max(cpus):
        raise InputError(f"{plan.path}: trial.cpus: {asked.cpus} asked for, a node has {max(cpus)}; write {max(cpus)} or less")
    if per_gpu > max(gpus):
        raise InputError(f"{plan.path}: trial.gpus: {per_gpu:g} asked for, a node has {max(gpus)}; write {max(gpus)} or less")
    fitting = [min(n // asked.cpus, on_gpus(per_gpu, g)) for n, g in zip(cpus, gpus, strict=True)]
    slots = sum(fitting)
    if asked.workers > 1:
        slots = min(sum(cpus) // asked.cpus, sum(fitting)) // asked.workers
        if not slots:
            raise InputError(
                f"{plan.path}: trial.workers: {asked.workers} workers of {asked.cpus} CPUs"
                + (f" and {per_gpu:g} GPU" if per_gpu else "")
                + f" each do not fit, there is room for {sum(fitting)}; write fewer workers"
            )
    return Place(asked.cpus, per_gpu, asked.workers, max(1, min(slots, asked.concurrent or slots)))


def here(plan: Plan, local: bool) -> Place:
    """Room on the Ray that is connected."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = ([int(node.get(kind, 0)) for node in nodes] for kind in ("CPU", "GPU"))
    return plan_place(plan, cpus=cpus, gpus=gpus, local=local)


def resources_of(base: Resources, place: Place) -> Resources:
    """How a trial's own stages run: in its process, or on its workers."""
    if place.workers == 1:
        return base.model_copy(update={"ray": "off", "train_workers": 0})
    return base.model_copy(
        update={"ray": "auto", "train_workers": place.workers, "num_workers": 1, "cpus_per_worker": place.cpus}
    )


# -- one search --------------------------------------------------------------------------------------------


def run_trials(
    plan: Plan,
    trials: Iterable[Trial],
    *,
    total: int,
    job: Callable[[str], Job],
    place: Place,
    scratch: Folder,
    searched: bool,
    known: Callable[[int], dict[str, Any] | None],
    reported: Callable[[int, dict[str, Any]], None],
    ended: Callable[[int, str], None],
) -> None:
    """Every trial to its end, or to where the scheduler stops it.

    Args:
        trials: in the order in which they start; drawn one at a time where each depends on what earlier ones came to.
        total: how many there will be, for the bar.
        job: what trials are given, once the name of their desk is known.
        scratch: for Tune's own files, which are no part of the result.
        searched: scheduler and search of the sweep; false: each trial runs to its end (a confirmation).
        known: a trial's record by number.
        reported: told of a number and its record after each look at dev.
        ended: told of a number and how Tune saw its end: complete or error.

    Raises:
        StageError: Tune itself gave up.
    """
    name = f"raydrd-desk-{uuid4().hex[:8]}"
    desk: Any = ray.remote(Desk).options(name=name, num_cpus=0, max_restarts=-1).remote()
    given = job(name)
    population = plan.sweep.scheduler if searched and isinstance(plan.sweep.scheduler, Pbt) else None
    with bar("trials", total, "trials") as shown, _tune_files(scratch, population is not None) as files, _quiet_tune():
        # Tune takes no searcher beside a population, which is whole from the start.
        start = [{"number": one.number, "flat": dict(one.flat or {})} for one in trials] if population else []
        tuner = tune.Tuner(
            tune.with_resources(as_trainable(given), _request(place, population is not None)),
            param_space={"start": tune.grid_search(start)} if population else {},
            tune_config=tune.TuneConfig(
                metric="metric", mode="max", num_samples=1 if population else total,
                search_alg=None if population else Queue(iter(trials)),
                scheduler=_scheduler(plan) if searched else FIFOScheduler(),
                max_concurrent_trials=None if population else place.slots,
                reuse_actors=place.workers == 1,
            ),
            run_config=tune.RunConfig(
                name="tune", verbose=0, log_to_file=False,
                callbacks=[Listener(shown, known, reported, ended)],
                failure_config=tune.FailureConfig(max_failures=0), **files,
            ),
        )  # fmt: skip
        try:
            tuner.fit()
        except tune.TuneError as error:
            raise StageError(f"the sweep's trials could not be run: {' '.join(str(error).split())}") from error
        finally:
            with suppress(Exception):
                ray.kill(desk)


def _request(place: Place, population: bool) -> dict[str, float]:
    """What Tune reserves for a trial."""
    if place.workers > 1:
        return {"cpu": 0, "memory": DRIVER_MEMORY}
    cpus: float = place.cpus
    if population:  # its trials take turns, so Tune may not limit their number: what each holds does
        cpus = max(cpus, ray.cluster_resources().get("CPU", 1) / place.slots)
    return {"cpu": cpus, **({"gpu": place.gpus} if place.gpus else {})}


def _scheduler(plan: Plan) -> TrialScheduler:
    asked = plan.sweep.scheduler
    if asked.kind == "asha":
        return Halving(asked)
    if asked.kind == "pbt":
        return PopulationBasedTraining(
            time_attr="updates",
            perturbation_interval=asked.every,
            quantile_fraction=asked.quantile,
            resample_probability=asked.resample,
            hyperparam_mutations={"start": {"flat": {one.name: _mutation(one) for one in domains(plan.sweep.space)}}},
            custom_explore_fn=partial(_inside, plan),
            log_config=False,
        )
    return FIFOScheduler()


def _mutation(one: Domain) -> Any:
    if one.size is not None:
        return list(range(one.size))
    return tune.loguniform(one.low, one.high) if one.log else tune.uniform(one.low, one.high)


def _inside(plan: Plan, config: dict[str, Any]) -> dict[str, Any]:
    """A changed config whose values lie in their ranges: a change multiplies."""
    start = config["start"]
    return {**config, "start": {**start, "flat": within(plan.sweep.space, start["flat"])}}


class Halving(FIFOScheduler):
    """Asks the rungs after each report whether its trial goes on."""

    def __init__(self, asked: Asha) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rungs = Rungs(asked.grace, asked.reduction)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        told = "updates" in result and "metric" in result
        behind = told and self.rungs.stops(trial.trial_id, int(result["updates"]), float(result["metric"]))
        return str(TrialScheduler.STOP if behind else TrialScheduler.CONTINUE)


class Queue(Searcher):
    """Hands Tune one trial after another. What a search knows is in the records: Tune's copy of this is empty."""

    def __init__(self, trials: Iterator[Trial]) -> None:
        super().__init__(metric="metric", mode="max")
        self.trials = trials

    def suggest(self, trial_id: str) -> Any:
        trial = next(self.trials, None)
        if trial is None:
            return Searcher.FINISHED
        if trial.flat is not None:
            return {"number": trial.number, "point": json.dumps(trial.point), "drawn": json.dumps(trial.flat)}
        return {"number": trial.number}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        pass

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Listener(Callback):
    """Keeps the bar, the records of what Tune ended, and whoever follows the trials."""

    def __init__(self, shown: Shown, known: Any, reported: Any, ended: Any) -> None:
        self.shown, self.known, self.reported, self.ended = shown, known, reported, ended
        self.numbers: dict[str, int] = {}  # by Tune's name: a population's trial takes over another one's whole config
        self.gone: set[int] = set()

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._number(trial)

    def _number(self, trial: Any) -> int:
        config = trial.config.get("start", trial.config)
        return self.numbers.setdefault(trial.trial_id, int(config["number"]))

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        number = self._number(trial)
        if (record := self.known(number)) is not None:
            self.reported(number, record)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._ended(trial, "complete")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._ended(trial, "error")

    def _ended(self, trial: Any, how: str) -> None:
        number = self._number(trial)
        if number not in self.gone:
            self.gone.add(number)
            self.ended(number, how)
            self.shown.update(1)

    def __getstate__(self) -> dict[str, Any]:
        return {}


@contextmanager
def _tune_files(scratch: Folder, checkpoints: bool) -> Iterator[dict[str, Any]]:
    """Where Tune writes its own state: beside the records if nodes must find checkpoints there; gone in the end."""
    if not scratch.is_local and not checkpoints:
        with tempfile.TemporaryDirectory() as folder:
            yield {"storage_path": folder}
        return
    scratch.delete()
    try:
        if scratch.is_local:
            yield {"storage_path": scratch.uri}
        else:
            from raydrd.spine.remote import filesystem

            fs, path = filesystem(scratch.uri)
            yield {"storage_path": path, "storage_filesystem": fs}
    finally:
        scratch.delete()


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Tune's tables, its advice and its own result files are not for people; what fails stands in the records."""
    wanted = {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command, and the same command goes on
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths in configs are relative to where the command was given
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray.air")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
