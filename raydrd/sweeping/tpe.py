"""Points that Optuna's TPE draws, one after another, from what earlier ones came to."""

from __future__ import annotations

from typing import Any

from raydrd.errors import InputError
from raydrd.spine.progress import say
from raydrd.spine.storage import Folder
from raydrd.sweeping.plan import Plan, Trial, trial_of
from raydrd.sweeping.space import Flat, domains, point_of, within
from raydrd.sweeping.words import words


def check_optuna() -> None:
    """Raises InputError where Optuna is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise InputError("search: optuna is not installed; pip install 'raydrd[optuna]', or write search: random") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)


REDRAWS = 10  # of a point that was drawn before


class Asked:
    """The searcher's state: its study, and what it was told. A sweep that goes on asks for its recorded draws first."""

    def __init__(self, plan: Plan, records: Folder) -> None:
        import optuna

        self.plan, self.records, self.optuna = plan, records, optuna
        self.study = optuna.create_study(direction="maximize")
        self.known = _recorded(plan, records)
        self.under_way: dict[int, Any] = {}
        default = plan.trials[0]
        name = f"{default.name}.json"
        self.came: dict[str, float | None] = {}  # by key: what a finished trial came to
        self.came[default.key] = self._value(records.read_json(name)) if records.exists(name) else None
        self.number = 0

    def ask(self) -> Trial | None:
        """The next trial; None when all have been drawn. Draws that make no config are recorded as refused."""
        while self.number < self.plan.sweep.samples:
            self.number += 1
            if (trial := self._drawn(self.number)) is not None:
                return trial
        return None

    def _drawn(self, number: int) -> Trial | None:
        """A point that was not drawn before, as far as `REDRAWS` find one: of others the study is told what is known."""
        if number in self.known:
            self.study.enqueue_trial(self.known[number])
        for attempt in range(REDRAWS + 1):
            # Each draw has a seed of its own: a search that goes on would else draw its first points again.
            seed = (self.plan.sweep.seed * 1_000_003 + number + attempt * 500_009) % 2**32
            self.study.sampler = self.optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            asked = self.study.ask(_distributions(self.plan, self.optuna))
            flat: Flat = dict(asked.params)
            point = point_of(self.plan.sweep.space, flat)
            try:
                trial = trial_of(self.plan, number, point, flat=flat)
            except InputError as error:
                self.study.tell(asked, state=self.optuna.trial.TrialState.FAIL)
                self._refused(number, point, flat, " ".join(str(error).removeprefix(": ").split()))
                return None
            if number in self.known or trial.key not in self.came or attempt == REDRAWS:
                break
            if (value := self.came[trial.key]) is not None:
                self.study.tell(asked, value)
            else:
                self.study.tell(asked, state=self.optuna.trial.TrialState.FAIL)
        self.under_way[number] = asked
        self.came.setdefault(trial.key, None)
        return trial

    def _value(self, record: dict[str, Any]) -> float | None:
        return float(record["dev"][self.plan.metric]) if record["status"] == "finished" else None

    def tell(self, record: dict[str, Any]) -> None:
        """What a trial came to: its last look at dev, the looks of a stopped one, or nothing."""
        asked = self.under_way.pop(int(record["number"]), None)
        states = self.optuna.trial.TrialState
        if asked is None:
            return
        if (value := self._value(record)) is not None:
            self.came[record["key"]] = value
            self.study.tell(asked, value)
            return
        if record["status"] == "stopped":
            for one in record["reports"]:
                asked.report(one["dev"][self.plan.metric], one["updates"])
        self.study.tell(asked, state=states.PRUNED if record["status"] == "stopped" else states.FAIL)

    def _refused(self, number: int, point: dict[str, Any], flat: Flat, reason: str) -> None:
        record = {
            "number": number, "point_number": number, "seed": 0, "key": "refused", "point": point, "flat": flat,
            "label": words(point, self.plan.default), "overrides": [], "status": "refused", "reason": reason,
        }  # fmt: skip
        self.records.write_json(f"{number:03d}-refused.json", record)
        say(f"trial {number}: refused: {reason}")


def _recorded(plan: Plan, records: Folder) -> dict[int, Flat]:
    """Draws of an earlier call of this sweep, by number, as far as they follow one another; those of another one are left."""
    found: dict[int, Flat] = {}
    names = {one.name for one in domains(plan.sweep.space)}
    for file in (name for name in records.files() if name.endswith(".json")):
        record = records.read_json(file)
        flat = record.get("flat")
        if not isinstance(flat, dict) or set(flat) != names or within(plan.sweep.space, flat) != flat:
            continue
        try:
            key = trial_of(plan, record["number"], point_of(plan.sweep.space, flat), flat=flat).key
        except InputError:
            key = "refused"
        if key == record["key"]:
            found[int(record["number"])] = flat
    gap = next((number for number in range(1, plan.sweep.samples + 1) if number not in found), plan.sweep.samples + 1)
    return {number: found[number] for number in range(1, gap)}


def _distributions(plan: Plan, optuna: Any) -> dict[str, Any]:
    made, kinds = {}, optuna.distributions
    for one in domains(plan.sweep.space):
        if one.size is None:
            made[one.name] = kinds.FloatDistribution(one.low, one.high, log=one.log)
        elif plan.sweep.space[one.name].kind in ("choice", "named"):
            made[one.name] = kinds.CategoricalDistribution(list(range(one.size)))
        else:
            made[one.name] = kinds.IntDistribution(0, one.size - 1)
    return made
