"""Which trials a sweep has: every point settled and checked before anything starts; the shipped sweeps among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydrd.cli import main
from raydrd.errors import InputError
from raydrd.sweeping.plan import key_of, read_plan
from tests.sweeps import EXACT, GRADED, step, toy_sweep

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
LEARNING = "curriculum.*.train.learning_rate"


def test_points_are_drawn_once_each_and_the_default_is_trial_0(tmp_path: Path, toy_config: dict[str, Any]) -> None:
    space = {"loss.score_scale": {"choice": [10, 20, 40]}, LEARNING: {"choice": [1e-3, 3e-3]}}
    plan = read_plan(toy_sweep(tmp_path, toy_config, space=space, samples=50), [])
    assert [one.number for one in plan.trials] == list(range(6))
    assert plan.trials[0].label == "default" and plan.trials[0].cfg == plan.cfg and not plan.trials[0].overrides
    assert plan.default == {"loss.score_scale": 20, LEARNING: 3e-3}
    assert len({one.key for one in plan.trials}) == 6
    assert plan.notes == ("the space has no more than 5 points beside the default (samples: 50)",)
    other = next(one for one in plan.trials if one.point == {"loss.score_scale": 40, LEARNING: 3e-3})
    assert other.label == "score_scale=40" and other.cfg.loss.score_scale == 40
    assert read_plan(plan.path, ["samples=50"]).trials == plan.trials
    some, others = (read_plan(plan.path, ["samples=3", f"seed={seed}"]).trials for seed in (0, 1))
    assert [one.point for one in some] != [one.point for one in others] and len(some) == 4


def test_a_named_alternative_is_known_as_the_default(tmp_path: Path, toy_config: dict[str, Any]) -> None:
    alternatives = {"base's": [step(GRADED, 10), step(EXACT, 10)], "exact": [step(EXACT, 20)]}
    plan = read_plan(toy_sweep(tmp_path, toy_config, space={"curriculum": {"named": alternatives}}, search="grid"), [])
    assert plan.default == {"curriculum": "base's"}
    assert [one.label for one in plan.trials] == ["default", "curriculum=exact"]
    assert len(plan.notes) == 1 and "equal to the default" in plan.notes[0]


def test_seeds_are_trials_of_the_same_point(tmp_path: Path, toy_config: dict[str, Any]) -> None:
    space = {"loss.score_scale": {"choice": [10]}}
    plan = read_plan(toy_sweep(tmp_path, toy_config, space=space, seeds=3), [])
    assert [(one.point_number, one.seed) for one in plan.trials] == [(p, s) for p in (0, 1) for s in range(3)]
    base = plan.cfg.curriculum[0].train.seed
    assert [one.cfg.curriculum[0].train.seed - base for one in plan.trials] == [0, 1, 2] * 2
    assert len({one.key for one in plan.trials}) == 6
    alone = read_plan(toy_sweep(tmp_path / "alone", toy_config, space={}, seeds=4), [])
    assert [one.label for one in alone.trials] == [f"default, seed {n}" for n in range(1, 5)]


def test_the_key_is_of_what_is_made(tmp_path: Path, toy_config: dict[str, Any]) -> None:
    cfg = read_plan(toy_sweep(tmp_path, toy_config, space={"loss.score_scale": {"choice": [1]}}), []).cfg
    same = cfg.model_copy(update={"name": "other", "resources": cfg.resources.model_copy(update={"num_workers": 7})})
    assert key_of(same) == key_of(cfg) != key_of(cfg.model_copy(update={"keep": "best"}))


WRONG = {
    "unknown path": ({"loss.skore_scale": {"choice": [1]}}, "loss.skore_scale: unknown field; did you mean 'score_scale'"),
    "impossible value": ({"loss.score_scale": {"choice": [-1]}}, "loss.score_scale: input should be greater than 0"),
    "impossible together": (
        {"curriculum.0.lists.hard_until": {"choice": [3]}},
        r"curriculum.0.lists: value error, hard=5 .* \(with hard_until=3\)",
    ),
    "no such item": ({"curriculum.7.train.learning_rate": {"choice": [1]}}, "'7' is not a number from 0 to 1"),
    "no list": ({"loss.*.score_scale": {"choice": [1]}}, "loss is no list"),
    "setting": ({"index": {"choice": ["HNSW32"]}, "vectors.type": {"choice": ["int8"]}}, "vectors.type: int8"),
}


@pytest.mark.parametrize("search", ["random", "optuna"])
@pytest.mark.parametrize("case", WRONG)
def test_a_point_that_makes_no_config_is_refused_before_anything_starts(
    case: str, search: str, tmp_path: Path, toy_config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    space, expected = WRONG[case]
    if (case, search) == ("setting", "optuna"):
        pytest.skip("each value alone is possible: the point is refused when it is drawn")
    file = toy_sweep(tmp_path, toy_config, space=space, search=search)
    with pytest.raises(InputError, match=expected) as raised:
        read_plan(file, [])
    lines = str(raised.value).splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"{file}: ")
    assert main(["sweep", file, "--out", str(tmp_path / "out"), "--store", str(tmp_path / "store")]) == 2
    assert not (tmp_path / "out").exists() and not (tmp_path / "store").exists()
    assert capsys.readouterr().err.count("raydrd: ") == 1


def test_optuna_is_asked_for_values_only_after_each_was_tried_alone(tmp_path: Path, toy_config: dict[str, Any]) -> None:
    space = {
        "curriculum": {"named": {"one": [step(EXACT, 5)], "two": [step(EXACT, 5)] * 2}},
        "curriculum.1.train.max_steps": {"int": [5, 9], "when": {"curriculum": "two"}},  # there is no second item else
        "loss.score_scale": {"loguniform": [1.0, 40.0]},
    }
    plan = read_plan(toy_sweep(tmp_path, toy_config, space=space, search="optuna", samples=7), [])
    assert len(plan.trials) == 1 and plan.total == 8
    wrong = {**space, "curriculum.1.train.max_steps": {"int": [0, 9], "when": {"curriculum": "two"}}}
    with pytest.raises(InputError, match=r"max_steps: input should be greater .*with curriculum=two, max_steps=0"):
        read_plan(toy_sweep(tmp_path, toy_config, space=wrong, search="optuna"), [])


def test_a_metric_that_is_not_measured_is_refused(tmp_path: Path, toy_config: dict[str, Any]) -> None:
    file = toy_sweep(tmp_path, toy_config, space={"loss.score_scale": {"choice": [1]}}, metric="ndcg@10")
    with pytest.raises(InputError, match=r"metric: did you mean 'nDCG@10'"):
        read_plan(file, [])


def test_trackers_that_are_not_installed_are_refused(tmp_path: Path, toy_config: dict[str, Any], monkeypatch: Any) -> None:
    from raydrd.sweeping import tracking

    monkeypatch.setattr(tracking, "PACKAGES", {"wandb": "no_such_package"})
    with pytest.raises(InputError, match="tracking: wandb is not installed; pip install no_such_package, or leave it out"):
        tracking.check_packages(["wandb"], "sweep.yaml")


def test_without_ray_nothing_can_be_stopped(
    tmp_path: Path, toy_config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    file = toy_sweep(tmp_path, toy_config, space={"loss.score_scale": {"choice": [1]}}, scheduler="asha")
    assert main(["sweep", file, "--out", str(tmp_path / "out")]) == 2
    assert "scheduler: needs Ray" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_entries_that_overwrite_one_another_end_the_command(
    tmp_path: Path, toy_config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    space = {LEARNING: {"choice": [1e-3]}, "curriculum": {"named": {"one": [step(EXACT, 5)]}}}
    file = toy_sweep(tmp_path, toy_config, space=space)
    assert main(["sweep", file, "--out", str(tmp_path / "out")]) == 2
    assert f"{file}: space.curriculum: curriculum sets again what {LEARNING}" in capsys.readouterr().err


def test_asha_says_where_it_can_stop_nothing(tmp_path: Path, toy_config: dict[str, Any]) -> None:
    space = {"loss.score_scale": {"choice": [10, 40]}}
    alone = {"curriculum": [step(EXACT, 40)]}
    for number, (base, search, notes) in enumerate(((alone, "random", 1), (alone, "optuna", 1), ({}, "random", 0))):
        file = toy_sweep(tmp_path / str(number), toy_config, base=base, space=space, search=search, scheduler="asha", samples=2)
        told = read_plan(file, []).notes
        assert len(told) == notes and all("stops a trial between two trainings" in line for line in told)
    assert not read_plan(file, ["scheduler=fifo"]).notes


def test_there_are_shipped_sweeps() -> None:
    assert {"curriculum", "dark", "temperature", "pairs", "filter", "seeds"} <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_sweep_is_ready_and_says_why(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"raydrd sweep configs/sweeps/{path.name}" in line for line in head) and any("Why:" in line for line in head)
    plan = read_plan(str(path), [])
    assert plan.total >= 10
    assert main(["sweep", str(path), "--dry-run"]) == 0
    assert f"{plan.total} trials of {plan.cfg.recipe}" in capsys.readouterr().out


def test_the_shipped_curricula_have_equal_updates() -> None:
    plan = read_plan(str(ROOT / "configs" / "sweeps" / "curriculum.yaml"), [])
    assert {sum(one.max_steps or 0 for one in trial.cfg.trainings()) for trial in plan.trials} == {60}
    assert plan.total == 20 and plan.default["curriculum"] == "three steps"


def test_the_shipped_shares_of_dark_examples_write_the_same_texts() -> None:
    plan = read_plan(str(ROOT / "configs" / "sweeps" / "dark.yaml"), [])
    mixed = [one for one in plan.trials[1:] if one.cfg.dark.reinforced and one.cfg.dark.noisy]
    kinds = {one.point["written"] for one in mixed}
    assert len({one.cfg.dark.writing() for one in mixed}) == len(kinds) < len(mixed)
    assert all(sum(one.point["mixture"].values()) == 8 for one in plan.trials[1:])
