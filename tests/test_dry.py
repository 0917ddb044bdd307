"""A dry run: the plan is what a run then does, stage by stage, and a wrong config is refused in the same words."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from raydrd.cli import main
from raydrd.dry import Plan, plan, render
from raydrd.errors import InputError
from raydrd.flow.lab import open_lab
from raydrd.session import dry_run, read_config
from raydrd.spine.store import Store
from tests.conftest import write_config


def planned(tmp_path: Path, values: dict[str, Any], *assignments: str) -> Plan:
    return plan(read_config(write_config(tmp_path / "config.yaml", values), list(assignments)))


def without_repeats(stages: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Stages less tokenizing that was there before: a plan cannot know that two models share a tokenizer."""
    found: list[tuple[str, str]] = []
    for one in stages:
        if one[0] != "tokenize" or one not in found:
            found.append(one)
    return found


@pytest.fixture
def nowhere(toy_config: dict[str, Any]) -> dict[str, Any]:
    """The toy config with a collection and models that do not exist."""
    values = copy.deepcopy(toy_config)
    values["data"]["path"] = "no/such/folder"
    values["student"]["model"] = values["teacher"]["model"] = "nobody/nothing"
    return values


def test_the_plan_is_the_journal_of_the_run(toy_run: dict[str, Any]) -> None:
    made = plan(read_config(toy_run["config"], []))
    real = [(stage["name"], stage["label"]) for stage in toy_run["stages"]]
    assert without_repeats([(one.stage, one.label) for one in made.stages]) == without_repeats(real)


def test_the_numbers_of_each_stage(tmp_path: Path, nowhere: dict[str, Any]) -> None:
    details = {one.label: one.detail for one in planned(tmp_path, nowhere).stages}
    assert details["load"] == "beir no/such/folder, splits train, dev, test"
    assert details["student before"] == "nobody/nothing"
    assert details["search train (student)"] == "the best 60 a query"
    assert details["score train (nothing)"] == "up to 60 passages a query, 64 tokens a pair"
    assert details["lists of step 1: 5/5/10"].startswith("graded 5, hard 5, rest 10, hard_until 20")
    assert details["train step 1: 5/5/10"] == "20 updates of 8, rate 0.003, warm-up 10%; 1 ordered"


def test_terms_warm_up_and_epochs_are_told(tmp_path: Path, nowhere: dict[str, Any]) -> None:
    del nowhere["curriculum"]
    long = {"learning_rate": 1.0e-5, "train_batch_size": 32, "train_group_size": 4, "num_train_epochs": 1, "warmup_steps": 1000}
    nowhere |= {"recipe": "prod", "progress": [{"lists": {"negatives": 15, "pool": 40}, "train": long}]}
    details = {one.label: one.detail for one in planned(tmp_path, nowhere).stages}
    assert details["train teacher 1"] == (
        "1 epoch of 32 x 4 passages, rate 1e-05, warm-up 1,000; 0.1 contrastive + 0.9 distil (T 4) + 1 anchor (T 4)"
    )


def test_dark_examples_are_counted(tmp_path: Path, nowhere: dict[str, Any]) -> None:
    del nowhere["curriculum"]
    train = {"learning_rate": 1.0e-5, "train_batch_size": 32, "max_steps": 10}
    nowhere |= {"recipe": "adam", "train": train, "dark": {"built": 6, "reinforced": 2, "noisy": 3}}
    details = {one.label: one.detail for one in planned(tmp_path, nowhere).stages}
    assert details["write dark examples (dark examples)"] == "up to 6 reinforced and 6 noisy built"
    assert details["score train, dark, dark examples (nothing)"] == "up to 12 passages a query, 64 tokens a pair"
    assert details["train dark examples"].endswith("1 distil + 0.1 contrastive, self-paced 0.3 to 0.9")


def test_looks_at_dev_and_the_preflight_are_one_line_each(tmp_path: Path, nowhere: dict[str, Any]) -> None:
    made = planned(tmp_path, nowhere)
    lines = render(made, "config.yaml").split("\n")
    numbered = [line for line in lines if line[:7].strip()[:1].isdigit()]
    looks = [line.split()[1] for line in numbered if "-" in line.split()[0]]
    assert looks == ["preflight", "dev", "dev", "dev", "dev"]  # before, and after each of three steps
    first, last = numbered[0].split()[0], numbered[-1].split()[0]
    assert (first, last) == ("1", str(len(made.stages)))


@pytest.mark.parametrize(
    ("assignment", "label", "there"),
    [
        ("preflight=off", "re-rank preflight", False),
        ("data.dev_split=null", "sample preflight", True),  # looked for, found empty: no teacher is tried on it
        ("data.dev_split=null", "re-rank preflight", False),
        ("queries.labelled=10", "sample train queries", True),
        ("queries.count=10", "make queries", True),
        ("candidates.sources=[student, bm25]", "join candidates", True),
        ("candidates.scored=20", "cut candidates", True),
    ],
)
def test_the_plan_follows_the_config(tmp_path: Path, nowhere: dict[str, Any], assignment: str, label: str, there: bool) -> None:
    labels = [one.label for one in planned(tmp_path, nowhere, assignment).stages]
    assert (label in labels) == there


def test_only_what_is_kept_of_the_candidates_is_scored(tmp_path: Path, nowhere: dict[str, Any]) -> None:
    details = {one.label: one.detail for one in planned(tmp_path, nowhere, "candidates.scored=20").stages}
    assert details["search train (student)"] == "the best 60 a query"
    assert details["cut candidates"] == "the first 20 of them"
    assert details["score train (nothing)"].startswith("up to 20 passages a query")


def test_a_fitted_scale_needs_dev_queries(tmp_path: Path, nowhere: dict[str, Any]) -> None:
    del nowhere["curriculum"]
    nowhere |= {"recipe": "margin_mse", "train": {"learning_rate": 1.0e-5, "train_batch_size": 32, "max_steps": 10}}
    assert planned(tmp_path, nowhere, "teacher.scale=fitted").stages
    with pytest.raises(InputError, match=r"teacher\.scale: fitted needs dev queries"):
        planned(tmp_path, nowhere, "teacher.scale=fitted", "data.dev_split=null")


@pytest.mark.parametrize(
    "assignment",
    ["candidates.sources=[run]", "candidates.sources=[teacher]", "data.scores=scores.parquet", "data.train_split=null"],
)
def test_a_wrong_config_is_refused_as_in_a_run(
    tmp_path: Path, toy_config: dict[str, Any], store: Store, assignment: str
) -> None:
    path = write_config(tmp_path / "config.yaml", toy_config)
    with pytest.raises(InputError) as real:
        open_lab(read_config(path, [assignment]), store)
    with pytest.raises(InputError) as dry:
        dry_run(path, [assignment])
    assert str(dry.value) == str(real.value)


def test_no_test_queries_are_refused(tmp_path: Path, nowhere: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"data\.test_split: there are no test queries"):
        planned(tmp_path, nowhere, "data.test_split=null")


def test_what_was_not_checked_is_said(tmp_path: Path, nowhere: dict[str, Any]) -> None:
    told = "\n".join(planned(tmp_path, nowhere, "keep=best").unchecked)
    for piece in ("no/such/folder", "nobody/nothing", "has a ranking head", "preflight: stop", "keep: best"):
        assert piece in told
    assert "words:" not in told


def test_the_command_prints_the_plan_and_writes_nothing(
    tmp_path: Path, nowhere: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path / "config.yaml", nowhere)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    assert main(["run", config, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "trainings of the student 3, searches for train queries 1, scorings of what they found 1" in out
    assert "not checked:" in out
    assert list(empty.iterdir()) == []


def test_the_command_refuses_a_wrong_config(
    tmp_path: Path, nowhere: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "config.yaml", nowhere)
    assert main(["run", config, "student.layer=2", "--dry-run"]) == 2
    assert "student.layer: unknown field" in capsys.readouterr().err
