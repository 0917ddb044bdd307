"""What a sweep file says: a base config, a space over its fields, how it is searched. Checked before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from raydrd.config import Frozen, override, read_yaml, validate
from raydrd.errors import InputError

KINDS = ("choice", "named", "uniform", "loguniform", "int", "shares")
UNSWEPT = {  # fields of a config that no trial may change, and why
    "recipe": "recipes have other fields; write a sweep for each",
    "name": "it names a run folder and changes no student",
    "resources": "they are no part of what is made; write them under set, or trial",
    "evaluation": "trials that are measured differently cannot be compared; write it under set",
}


class Entry(Frozen):
    """One entry of the space: what is drawn for a dotted path (or, for shares, for several)."""

    choice: tuple[Any, ...] | None = Field(None, min_length=1, description="any of these values")
    named: dict[str, Any] | None = Field(None, min_length=1, description="whole alternatives, shown by name")
    paths: tuple[str, ...] | None = Field(
        None, min_length=1, description="of named: each alternative has a value for all of these"
    )
    uniform: tuple[float, float] | None = Field(None, description="[low, high], multiples of step above low, if given")
    loguniform: tuple[float, float] | None = Field(None, description="[low, high], evenly over its logarithm")
    int_: tuple[int, int] | None = Field(None, alias="int", description="[low, high], both possible, every step-th")
    shares: tuple[str, ...] | None = Field(None, min_length=2, description="paths of values from 0 that sum to total")
    total: float = Field(1.0, gt=0, description="of shares")
    least: dict[str, float] = Field({}, description="of some shares: what they have at least, 0 if not told")
    step: float | None = Field(None, gt=0, description="of uniform, int and shares")
    when: dict[str, Any] | None = Field(None, description="another entry's value (or a list of them): applied only then")

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, "int_" if kind == "int" else kind) is not None)

    @property
    def range(self) -> tuple[float, float]:
        """Low and high of uniform, loguniform and int."""
        found = self.uniform or self.loguniform or self.int_
        assert found is not None
        return found

    def places(self, name: str) -> tuple[str, ...]:
        """The dotted paths that this entry of a space sets."""
        return self.shares or self.paths or (name,)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, "int_" if kind == "int" else kind) is not None]
        if len(given) != 1:
            raise ValueError(f"write one of {', '.join(KINDS)}, for example {{choice: [10, 20]}}")
        if self.kind in ("uniform", "loguniform", "int"):
            low, high = self.range
            if not low < high:
                raise ValueError(f"[{low:g}, {high:g}]: write the lower end first")
            if self.kind == "loguniform" and low <= 0:
                raise ValueError(f"[{low:g}, {high:g}]: a loguniform range lies above 0")
        if self.step is not None and self.kind not in ("uniform", "int", "shares"):
            raise ValueError(f"step: {self.kind} has none; it belongs to uniform, int and shares")
        if self.kind == "int" and self.step is not None and self.step != int(self.step):
            raise ValueError(f"step: {self.step:g} leaves the whole numbers; write 1 or more")
        if (
            self.kind == "shares"
            and self.step is not None
            and abs(self.total / self.step - round(self.total / self.step)) > 1e-6
        ):
            raise ValueError(f"step: total {self.total:g} is no multiple of {self.step:g}")
        if self.paths is not None and self.kind != "named":
            raise ValueError(f"paths: {self.kind} has none; it belongs to named")
        for name, value in (self.named or {}).items() if self.paths is not None else ():
            if not isinstance(value, dict) or set(value) != set(self.paths or ()):
                raise ValueError(f"named: {name}: write a value for each of {', '.join(self.paths or ())}, and nothing else")
        if self.least and self.kind != "shares":
            raise ValueError(f"least: {self.kind} has none; it belongs to shares")
        if unknown := [path for path in self.least if path not in (self.shares or ())]:
            raise ValueError(f"least: {unknown[0]!r} is none of the shares")
        if self.kind == "shares" and not 0 <= sum(self.least.values()) < self.total:
            raise ValueError(f"least: they sum to {sum(self.least.values()):g}, which leaves nothing of total {self.total:g}")
        if self.step and any(abs(one / self.step - round(one / self.step)) > 1e-6 for one in self.least.values()):
            raise ValueError(f"least: write multiples of step {self.step:g}")
        if self.kind == "shares" and len(set(self.shares or ())) != len(self.shares or ()):
            raise ValueError("shares: a path stands there twice")
        return self


class Fifo(Frozen):
    """Every trial runs to its end."""

    kind: Literal["fifo"] = "fifo"


class Asha(Frozen):
    """Asynchronous successive halving over the method's updates: of every `reduction` trials after as many one goes on."""

    kind: Literal["asha"] = "asha"
    grace: int = Field(20, ge=1, description="updates of the method before a trial may be stopped")
    reduction: float = Field(3.0, gt=1, description="one trial of so many passes a rung; rungs stand at grace * reduction^k")


class Pbt(Frozen):
    """Population-based training: the worst trials go on from the best ones' students, with changed values."""

    kind: Literal["pbt"] = "pbt"
    every: int = Field(20, ge=1, description="updates of the method between two looks at the population")
    quantile: float = Field(0.25, gt=0, le=0.5, description="share of the worst, which copy from as many best")
    resample: float = Field(0.25, ge=0, le=1, description="share of changes that draw anew; others multiply by 0.8 or 1.2")


Scheduler = Annotated[Fifo | Asha | Pbt, Field(discriminator="kind")]


def _scheduler(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


class Trial(Frozen):
    """What one trial may use. Never part of an identity."""

    cpus: int = Field(1, ge=1, description="cores and threads of a trial; of each worker where there are several")
    gpus: float | None = Field(None, ge=0, description="GPUs of a trial, may be a fraction; none: 1 where there are any")
    workers: int = Field(1, ge=1, description="Ray Train workers of a trial; more than 1 only with scheduler: fifo")
    concurrent: int | None = Field(None, ge=1, description="trials at once; none: as many as fit")


class Confirm(Frozen):
    """The best point and the default once more, measured on the test split with seeds that no trial had."""

    seeds: int = Field(3, ge=1)


class Sweep(Frozen):
    """A sweep file."""

    name: str | None = Field(None, description="of the folder; none: the file's own name")
    base: str = Field(description="a config, beside this file")
    set: dict[str, Any] = Field({}, description="dotted paths of the base that all trials have changed")
    space: dict[str, Entry] = Field(
        {}, description="dotted paths, and what is drawn for each; later ones see earlier ones' values"
    )
    samples: int = Field(20, ge=1, description="points drawn beside the default; a grid has its own number")
    seeds: int = Field(1, ge=1, description="trainings of each point, with other seeds")
    search: Literal["random", "grid", "optuna"] = "random"
    scheduler: Annotated[Scheduler, BeforeValidator(_scheduler)] = Fifo()
    metric: str | None = Field(None, description="on dev, chooses and stops; none: the first of evaluation.metrics")
    trial: Trial = Trial()
    confirm: Confirm | None = Confirm()
    tracking: tuple[Literal["mlflow", "wandb"], ...] = Field(
        (), description="beside TensorBoard and JSON, which are always written"
    )
    seed: int = Field(0, description="of the search's draws")


# -- what does not go together ---------------------------------------------------------------------------------


def check_sweep(sweep: Sweep) -> None:
    """What a sweep's fields tell to be impossible.

    Raises:
        InputError: one line: the field, what does not go together, and what to write instead.
    """
    if not sweep.space and sweep.seeds < 2:
        raise InputError("space: nothing differs between trials; name a field, or write seeds: 5 to see the noise")
    population, drawn = sweep.scheduler.kind == "pbt", sweep.search == "optuna"
    if sweep.seeds > 1 and (drawn or population):
        raise InputError(
            f"seeds: {'search: optuna' if drawn else 'scheduler: pbt'} learns from one trial a point; write seeds: 1 (the best "
            "point is confirmed with fresh seeds in any case), or search: random with scheduler: asha"
        )
    if sweep.trial.workers > 1 and sweep.scheduler.kind != "fifo":
        raise InputError(
            f"scheduler: {sweep.scheduler.kind} kills trials, and a killed trial of several workers leaves their places "
            "occupied in Ray 2.60; write scheduler: fifo, or trial.workers: 1"
        )
    if population and sweep.search != "random":
        raise InputError(f"search: {sweep.search}: a population begins with drawn points; write search: random")
    for name, entry in sweep.space.items():
        _check_entry(sweep, name, entry)


def _check_entry(sweep: Sweep, name: str, entry: Entry) -> None:
    for path in entry.places(name):
        if (first := path.partition(".")[0]) in UNSWEPT:
            raise InputError(f"space.{name}: {first} cannot be swept: {UNSWEPT[first]}")
    earlier = {n: sweep.space[n] for n in list(sweep.space)[: list(sweep.space).index(name)]}
    known = {n: one for n, one in earlier.items() if one.kind in ("choice", "named", "int")}
    for other, wanted in (entry.when or {}).items():
        if other not in known:
            raise InputError(
                f"space.{name}.when: {other!r} is no entry above this one with choice, named or int (those are: "
                f"{', '.join(known) or 'none'})"
            )
        if not any(_possible(known[other], one) for one in (wanted if isinstance(wanted, list) else [wanted])):
            raise InputError(f"space.{name}.when: {other} is never {wanted!r}")
    if sweep.search == "grid" and entry.kind in ("uniform", "loguniform", "shares") and entry.step is None:
        more = "give a step, or choices" if entry.kind != "loguniform" else "write choices"
        raise InputError(f"space.{name}: a grid needs a number of values; {more}")
    changes = entry.kind in ("choice", "uniform", "loguniform") and "*" in name and entry.when is None
    if sweep.scheduler.kind == "pbt" and not changes:
        raise InputError(
            f"space.{name}: pbt changes values between steps, so it takes choices and ranges of paths with * over the "
            "steps, such as curriculum.*.train.learning_rate"
        )


def _possible(entry: Entry, value: Any) -> bool:
    if entry.kind == "int":
        low, high = entry.range
        return isinstance(value, int) and low <= value <= high
    return value in (entry.named if entry.named is not None else entry.choice or ())


def read_sweep(path: str, assignments: list[str]) -> Sweep:
    """The sweep in a YAML file; fields of its own are overridden by name, any other path goes to the base config.

    Raises:
        InputError: whatever is wrong with the file itself, one line each.
    """
    own: list[str] = []
    base: list[str] = []
    for assignment in assignments:
        first = assignment.partition("=")[0].partition(".")[0]
        if first == "set" and assignment.startswith("set."):
            base.append(assignment.removeprefix("set."))
        elif first == "space" and assignment.startswith("space."):
            raise InputError(f"override {assignment!r}: entries of the space have dots in their names; edit the file instead")
        else:
            (own if first in Sweep.model_fields else base).append(assignment)
    values = override(read_yaml(path), own)
    for assignment in base:
        where, equals, _ = assignment.partition("=")
        if not equals:
            raise InputError(f"override {assignment!r}: write path.to.field=value, for example data.limit=500")
        fixed = values.setdefault("set", {}) or {}
        values["set"] = {**fixed, where: override({}, [f"x={assignment.partition('=')[2]}"])["x"]}
    sweep = validate(Sweep, values, path)
    try:
        check_sweep(sweep)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return sweep


def base_path(sweep: Sweep, path: str) -> str:
    """The base config's file, which stands in the sweep file relative to it."""
    return str(Path(path).parent / sweep.base)
