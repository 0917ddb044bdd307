"""Which trials a sweep has: points drawn, settled into configs, and checked by the configs' own validation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from raydrd.config import override, read_yaml, validate
from raydrd.errors import InputError
from raydrd.flow.lab import check_setting
from raydrd.flow.seeds import reseeded
from raydrd.naming import did_you_mean
from raydrd.recipes import RECIPES
from raydrd.session import read_config
from raydrd.sweeping.overlaps import check_overlaps
from raydrd.sweeping.space import Flat, Point, as_yaml, domains, draw, grid, overrides, plain, point_of
from raydrd.sweeping.spec import Entry, Sweep, base_path, read_sweep
from raydrd.sweeping.words import at, words

DRAWS = 50  # for each point that is wanted: a small space is drawn empty long before


@dataclass(frozen=True)
class Trial:
    """One training of one point: its config, and the key that tells it from any other."""

    number: int
    point_number: int
    seed: int
    label: str
    point: Point
    overrides: tuple[str, ...]
    cfg: Any
    flat: Flat | None = None  # the draw that a searcher knows it by
    prefix: str = ""  # of trials outside the sweep's own numbers
    first: str = ""  # key that a population's trial began with

    @property
    def key(self) -> str:
        """Of everything that makes the student; not of how it is carried out."""
        return key_of(self.cfg)

    @property
    def name(self) -> str:
        """Of its record."""
        return f"{self.prefix}{self.number:03d}-{self.first or self.key}"


@dataclass(frozen=True)
class Plan:
    """A sweep, read and checked: its base config as plain values and as a config, and its trials; optuna's come later."""

    path: str
    name: str
    sweep: Sweep
    values: dict[str, Any]
    cfg: Any
    metric: str
    default: Point
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Trials that there will be, the default among them."""
        return self.sweep.samples + 1 if self.sweep.search == "optuna" else len(self.trials)


def key_of(cfg: Any) -> str:
    values = cfg.model_dump(mode="json", exclude={"name", "resources"})
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def read_plan(path: str, assignments: list[str]) -> Plan:
    """The sweep in a file with all its points.

    Raises:
        InputError: the file, its base, or any point is wrong; one line each.
    """
    sweep = read_sweep(path, assignments)
    try:
        check_overlaps(sweep.space)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    fixed = [f"{where}={as_yaml(value)}" for where, value in sweep.set.items()]
    base = base_path(sweep, path)
    cfg = read_config(base, fixed)
    metric = sweep.metric or cfg.evaluation.metrics[0]
    if metric not in cfg.evaluation.metrics:
        raise InputError(f"{path}: metric: {did_you_mean(metric, cfg.evaluation.metrics)} (those of evaluation.metrics)")
    plan = Plan(
        path=path, name=sweep.name or Path(path).stem, sweep=sweep, values=override(read_yaml(base), fixed), cfg=cfg,
        metric=metric, default=_default(sweep, cfg), trials=(),
    )  # fmt: skip
    first = Trial(0, 0, 0, "default", plan.default, (), cfg)
    if sweep.search == "optuna":
        _refuse([check_alone(plan, name, flat) for name, flat in _ends(plan)], path)
        return replace(plan, trials=(first,), notes=tuple(_unstopped(sweep, [first])))
    points, notes = _points(plan)
    notes += _unstopped(sweep, points or [first])
    return replace(plan, trials=tuple(_numbered(plan, [first, *points])), notes=tuple(notes))


def _unstopped(sweep: Sweep, trials: list[Trial]) -> list[str]:
    """What there is to say of a scheduler that can stop none of these trials."""
    if sweep.scheduler.kind != "asha" or any(len(one.cfg.trainings()) > 1 for one in trials):
        return []
    return [
        "scheduler: asha stops a trial between two trainings, and these have one each: all go to their end; cut it into "
        "several steps, or write scheduler: fifo"
    ]


def _default(sweep: Sweep, cfg: Any) -> Point:
    """What the base config has in the places of the space: raw values, and names of alternatives that are equal to it."""
    values = cfg.model_dump(mode="json")
    found: Point = {}
    for name, entry in sweep.space.items():
        try:
            here = {path: at(values, path) for path in entry.places(name)}
        except KeyError:
            continue
        if entry.named is not None:
            named = {n: value if entry.paths else {name: value} for n, value in entry.named.items()}
            found[name] = next((n for n, value in named.items() if _same(cfg, value)), "base")
        else:
            found[name] = here if entry.shares else here[name]
    return found


def _same(cfg: Any, values: dict[str, Any]) -> bool:
    """Whether values at their paths leave the config as it is."""
    try:
        changes = [f"{path}={as_yaml(value)}" for path, value in values.items()]
        changed = validate(type(cfg), override(cfg.model_dump(mode="json"), changes), "")
    except InputError:
        return False  # told with its own line later
    return key_of(changed) == key_of(cfg)


# -- points ------------------------------------------------------------------------------------------------


def settle(plan: Plan, point: Point, *, seed: int = 0, done: list[Point] | None = None) -> tuple[tuple[str, ...], Any]:
    """(overrides, config) of a point; `seed` is added to the seeds of the student's trainings.

    Raises:
        InputError: the config's own line about what is wrong with it.
    """
    made = overrides(plan.sweep.space, point, plan.values, done)
    values = override(plan.values, made)
    cfg = validate(RECIPES[plan.cfg.recipe].Config, values, "")
    check_setting(cfg)
    return tuple(made), reseeded(cfg.model_copy(update={"name": plan.cfg.name}), seed)


def trial_of(plan: Plan, number: int, point: Point, *, flat: Flat | None = None, done: list[Point] | None = None) -> Trial:
    """A point as the trial with this number.

    Raises:
        InputError: see `settle`.
    """
    made, cfg = settle(plan, point, done=done)
    return Trial(number, number, 0, words(point, plan.default), point, made, cfg, flat)


def _points(plan: Plan) -> tuple[list[Trial], list[str]]:
    """Every point of a grid or a random search once, without those that are equal to an earlier one or the default."""
    wanted, candidates = plan.sweep.samples, _candidates(plan)
    found: list[Trial] = []
    problems: dict[str, str] = {}
    seen, dropped = {key_of(plan.cfg)}, 0
    tried: set[str] = set()
    for point, flat in candidates:
        if plan.sweep.search == "random" and len(found) == wanted:
            break
        if (drawn := json.dumps(plain(point))) in tried:
            continue
        tried.add(drawn)
        try:
            trial = trial_of(plan, len(found) + 1, point, flat=flat)
        except InputError as error:
            for line in str(error).splitlines():
                problems.setdefault(line.removeprefix(": "), words(point, plan.default))
            if len(problems) >= 10:
                break
            continue
        if trial.key in seen:
            dropped += 1
            continue
        seen.add(trial.key)
        found.append(trial)
    _refuse([f"{line} (with {point})" for line, point in problems.items()], plan.path)
    if plan.sweep.space and not found:
        raise InputError(f"{plan.path}: space: every point is equal to the base config; add values that differ from it")
    notes = []
    if plan.sweep.search == "random" and len(found) < wanted and plan.sweep.space:
        notes.append(f"the space has no more than {len(found)} points beside the default (samples: {wanted})")
    if plan.sweep.search == "grid" and dropped:
        notes.append(f"left out of the grid, since equal to the default or to an earlier point: {dropped}")
    return found, notes


def _candidates(plan: Plan) -> Iterator[tuple[Point, Flat | None]]:
    space = plan.sweep.space
    if plan.sweep.search == "grid":
        return ((point, None) for point in grid(space))
    rng = np.random.default_rng(plan.sweep.seed)
    draws = (draw(space, rng) for _ in range(DRAWS * plan.sweep.samples if space else 0))
    return ((point_of(space, flat), flat) for flat in draws)


def _numbered(plan: Plan, points: list[Trial]) -> list[Trial]:
    """A trial a point and seed, in this order."""
    found: list[Trial] = []
    for place, one in enumerate(points):
        for seed in range(plan.sweep.seeds):
            cfg = reseeded(one.cfg, seed)
            label = one.label + (f", seed {seed + 1}" if plan.sweep.seeds > 1 else "")
            found.append(replace(one, number=len(found), point_number=place, seed=seed, cfg=cfg, label=label))
    return found


def _refuse(problems: list[str | None], path: str) -> None:
    lines = list(dict.fromkeys(f"{path}: {line}" for line in problems if line))
    if lines:
        raise InputError("\n".join(lines))


# -- each value alone ----------------------------------------------------------------------------------------


def _ends(plan: Plan) -> list[tuple[str, Flat]]:
    """Draws that together have every choice and both ends of every range, each with the first values of the others."""
    every = domains(plan.sweep.space)
    first: Flat = {one.name: 0 if one.size is not None else one.low for one in every}
    found = []
    for one in every:
        values = range(one.size) if one.size is not None and one.size <= 1000 else (one.low, one.high)
        found += [(one.name.partition("/")[0], {**first, one.name: value}) for value in values]
    return found


def check_alone(plan: Plan, name: str, flat: Flat) -> str | None:
    """What is wrong with one entry's value beside the base's own (and what its condition asks for); None: nothing."""
    space = plan.sweep.space
    kept: dict[str, Entry] = {}
    wanted = [name]
    while wanted:
        entry = space[wanted.pop()]
        wanted += [other for other in entry.when or {} if other not in kept]
        kept = {n: e for n, e in space.items() if n in kept or e is entry}
    point = point_of({n: e.model_copy(update={"when": None}) for n, e in kept.items()}, flat)
    for entry in kept.values():
        for other, value in (entry.when or {}).items():
            point[other] = value[0] if isinstance(value, list) else value
    try:
        settle(plan, point)
    except InputError as error:
        return f"{' '.join(str(error).removeprefix(': ').split())} (with {words(point, {})})"
    return None
