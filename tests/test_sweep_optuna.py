"""Sweeps whose points Optuna draws: what it is told, what it draws again, and what a changed file leaves of its draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydrd.spine.storage import Folder
from raydrd.sweeping.main import sweep
from raydrd.sweeping.plan import read_plan, trial_of
from raydrd.sweeping.space import point_of
from raydrd.sweeping.tpe import Asked
from raydrd.sweeping.work import read_record, write_record
from tests.sweeps import EXACT, METRIC, step, toy_sweep, trained

pytest.importorskip("optuna")


def test_optuna_draws_from_what_trials_came_to_and_goes_on_with_the_same_draws(
    tmp_path: Path, toy_config: dict[str, Any]
) -> None:
    space = {"loss.score_scale": {"loguniform": [1.0, 60.0]}, "curriculum.*.train.learning_rate": {"choice": [1e-3, 3e-3]}}
    file = toy_sweep(tmp_path, toy_config, space=space, search="optuna", samples=3, base={"curriculum": [step(EXACT, 4)]})
    where = {"out": str(tmp_path / "out"), "store": str(tmp_path / "store")}
    first = sweep(file, [], **where)
    assert [trial["status"] for trial in first["trials"]] == ["finished"] * 4
    assert all(1 <= trial["point"]["loss.score_scale"] <= 60 for trial in first["trials"][1:])
    before = trained(tmp_path / "store")
    longer = sweep(file, ["samples=4"], **where)
    assert longer["trials"][:4] == first["trials"] and len(longer["trials"]) == 5
    after = trained(tmp_path / "store")
    assert {key: after[key] for key in before} == before and len(after) == len(before) + 1


def test_optuna_points_that_make_no_config_are_refused_and_the_search_goes_on(
    tmp_path: Path, toy_config: dict[str, Any]
) -> None:
    # Each value is possible beside the base's, half of the pairs are not.
    space = {"index": {"choice": ["Flat", "HNSW32"]}, "vectors.type": {"choice": ["float32", "int8"]}}
    file = toy_sweep(tmp_path, toy_config, space=space, search="optuna", samples=8, base={"curriculum": [step(EXACT, 2)]})
    result = sweep(file, [], out=str(tmp_path / "out"), store=str(tmp_path / "store"))
    refused = [trial for trial in result["trials"] if trial["status"] == "refused"]
    assert refused and all(trial["point"] == {"index": "HNSW32", "vectors.type": "int8"} for trial in refused)
    assert all("vectors.type" in trial["reason"] for trial in refused)
    assert {trial["status"] for trial in result["trials"] if trial not in refused} == {"finished"}

    # The choice that was refused is taken out of the file: its draws are none of this space.
    space = {"index": {"choice": ["Flat"]}, "vectors.type": {"choice": ["float32", "int8"]}}
    file = toy_sweep(tmp_path, toy_config, space=space, search="optuna", samples=3, base={"curriculum": [step(EXACT, 2)]})
    again = sweep(file, [], out=str(tmp_path / "out"), store=str(tmp_path / "store"))
    assert [trial["status"] for trial in again["trials"]] == ["finished"] * 4


def test_optuna_is_told_what_is_known_and_draws_again(tmp_path: Path, toy_config: dict[str, Any]) -> None:
    """Four points in all: a draw that was seen before trains nothing, but the study learns its value."""
    space = {"loss.score_scale": {"choice": [20, 30]}, "curriculum.0.train.warmup_ratio": {"choice": [0.1, 0.5]}}
    plan = read_plan(toy_sweep(tmp_path, toy_config, space=space, search="optuna", samples=6), [])
    folder = Folder.of(tmp_path / "trials")
    default = {**read_record(folder, plan.trials[0]), "status": "finished", "dev": {METRIC: 0.25}}
    write_record(folder, plan.trials[0], default)
    asked, values = Asked(plan, folder), {plan.trials[0].key: 0.25}
    keys = []
    while (trial := asked.ask()) is not None:
        keys.append(trial.key)
        values.setdefault(trial.key, 0.5 + 0.1 * len(keys))
        record = {**read_record(folder, trial), "status": "finished", "dev": {METRIC: values[trial.key]}}
        write_record(folder, trial, record)
        asked.tell(record)
    assert len(keys) == 6 and len(set(keys[:3])) == 3 and plan.trials[0].key not in keys[:3]
    told = [one for one in asked.study.trials if one.value is not None]
    assert len(told) > 6, "those that were not run"
    for one in told:
        assert one.value == values[trial_of(plan, 1, point_of(plan.sweep.space, one.params)).key]
    # The same command again draws the same.
    again = Asked(plan, folder)
    drawn = []
    while (trial := again.ask()) is not None:
        drawn.append(trial.key)
        again.tell(read_record(folder, trial))
    assert drawn == keys
