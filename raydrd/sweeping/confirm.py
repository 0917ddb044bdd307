"""The best point and the default once more: other seeds, other queries. What dev chose is measured where nothing was chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raydrd.config import validate
from raydrd.flow.judge import values
from raydrd.flow.lab import Lab, another
from raydrd.flow.seeds import reseeded
from raydrd.spine.progress import say
from raydrd.statistics import compare
from raydrd.sweeping.plan import Plan, Trial

FRESH = 1000  # added to seeds: beyond those of any sweep
PLACES = 100_000  # numbers of these trials, beyond those of any sweep
KINDS = ("best", "default")

Confirmed = tuple[dict[str, Any] | None, str | None, int]  # the result, or why there is none; pairs that teachers scored


class Board(Protocol):
    """Where the driver finds records."""

    def record(self, number: int) -> dict[str, Any] | None: ...


def confirm(
    plan: Plan,
    records: Sequence[dict[str, Any]],
    best: int | None,
    carry_out: Callable[[list[Trial]], None],
    lab: Lab,
    board: Board,
) -> Confirmed:
    """Means by test query of the best point and of the default, over fresh seeds, and their comparison."""
    asked = plan.sweep.confirm
    if asked is None:
        return None, "the sweep file has confirm: null", 0
    if best is None:
        return None, "no trial finished", 0
    if best == 0:
        return None, "the default itself is the best on dev, so there is nothing to compare", 0
    chosen = next(one for one in records if one["point_number"] == best)
    configs = {"best": validate(type(plan.cfg), chosen["config"], "best"), "default": plan.cfg}
    offset = max(FRESH, plan.sweep.seeds)
    trials = [
        Trial(
            PLACES + len(KINDS) * place + at, PLACES, seed, f"{kind}, fresh seed {seed}", {}, (),
            reseeded(configs[kind], seed), prefix=f"confirm-{kind}-",
        )
        for place, seed in enumerate(range(offset, offset + asked.seeds))
        for at, kind in enumerate(KINDS)
    ]  # fmt: skip
    say(f"confirmation: the best trial and the default with {asked.seeds} fresh seeds each, on the test queries")
    carry_out(trials)
    return _measured(plan, trials, lab, board, offset, asked.seeds)


def _measured(plan: Plan, trials: list[Trial], lab: Lab, board: Board, offset: int, seeds: int) -> Confirmed:
    found: dict[str, list[dict[str, NDArray[np.float64]]]] = {kind: [] for kind in KINDS}
    pairs = 0
    for trial in trials:
        record = board.record(trial.number)
        if record is None or record["status"] != "finished":
            reason = (record or {}).get("reason") or "it did not finish"
            return None, f"{trial.label}: {reason}", pairs
        pairs += sum(int(one["pairs"]) for one in record["journal"] if not one["reused"])
        cfg = trial.cfg.model_copy(update={"resources": lab.cfg.resources, "precision": lab.cfg.precision})
        own = another(lab, cfg, lab.store.branch())
        student = lab.store.find(*record["student"].split("/"))
        found[trial.prefix.split("-")[1]].append(values(own, student, trial.label))
    by_query = {kind: {name: np.stack([one[name] for one in runs]) for name in runs[0]} for kind, runs in found.items()}
    rows = [{"label": kind, "kind": kind, **_numbers(by_query[kind])} for kind in KINDS]
    evaluation = plan.cfg.evaluation
    effect = {
        name: asdict(
            compare(by_query["best"][name].mean(axis=0), whole.mean(axis=0), seed=evaluation.seed, samples=evaluation.samples)
        )
        for name, whole in by_query["default"].items()
    }
    told = {"seeds": seeds, "split": "test", "metric": plan.metric, "fresh": list(range(offset, offset + seeds))}
    return {**told, "rows": rows, "effect": effect}, None, pairs


def _numbers(by_query: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Of float64 [S seeds, Q queries] by metric."""
    seeds = {name: [float(one) for one in found.mean(axis=1)] for name, found in by_query.items()}
    count = len(next(iter(seeds.values())))
    return {
        "mean": {name: float(np.mean(found)) for name, found in seeds.items()},
        "std": {name: float(np.std(found, ddof=1)) if count > 1 else None for name, found in seeds.items()},
        "by_seed": [{name: found[place] for name, found in seeds.items()} for place in range(count)],
        "queries": int(next(iter(by_query.values())).shape[1]),
    }
