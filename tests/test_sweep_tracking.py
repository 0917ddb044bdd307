"""What MLflow and W&B are sent, at their boundary: modules of the same names that take everything down."""

from __future__ import annotations

import sys
import types
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raydrd.spine.storage import Folder
from raydrd.sweeping.tracking import Tracking

RECORD: dict[str, Any] = {
    "number": 3, "key": "abc", "seed": 0, "label": "score_scale=40", "status": "finished", "student": "train/1",
    "point": {"loss.score_scale": 40, "curriculum.*.train.learning_rate": 0.1, "mix": {"a": 1, "b": 2}},
    "reports": [
        {"updates": 0, "segment": "before", "dev": {"nDCG@10": 0.25}, "seconds": 1.0, "dropped": False},
        {"updates": 20, "segment": "step 1", "dev": {"nDCG@10": 0.5}, "seconds": 2.0, "dropped": False},
    ],
}  # fmt: skip
PARAMETERS = {"seed": 0, "loss.score_scale": 40, "curriculum.all.train.learning_rate": 0.1, "a": 1, "b": 2}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    told: list[tuple[str, Any]] = []
    mlflow, wandb = types.ModuleType("mlflow"), types.ModuleType("wandb")

    @contextmanager
    def start_run(run_name: str) -> Any:
        told.append(("run", run_name))
        yield

    mlflow.start_run = start_run  # type: ignore[attr-defined]
    mlflow.set_experiment = lambda name: told.append(("experiment", name))  # type: ignore[attr-defined]
    mlflow.log_params = lambda values: told.append(("params", values))  # type: ignore[attr-defined]
    mlflow.set_tags = lambda values: told.append(("tags", values))  # type: ignore[attr-defined]
    mlflow.log_metrics = lambda values, step: told.append(("metrics", (step, values)))  # type: ignore[attr-defined]

    class Run:
        def log(self, values: dict[str, Any]) -> None:
            told.append(("log", values))

        def finish(self) -> None:
            told.append(("finish", None))

    def init(**values: Any) -> Run:
        told.append(("init", values))
        return Run()

    wandb.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return told


def test_mlflow_gets_each_trial_once_with_names_that_it_takes(sent: list[tuple[str, Any]], tmp_path: Path) -> None:
    for _ in range(2):  # the sweep, and the same command again
        follow = Tracking(["mlflow"], Folder.of(tmp_path), "toy")
        follow.ended(3, RECORD)
        follow.close()
    assert sent == [
        ("experiment", "toy"), ("run", "003 score_scale=40"), ("params", PARAMETERS),
        ("tags", {"status": "finished", "student": "train/1"}),
        ("metrics", (0, {"dev/nDCG_at_10": 0.25})), ("metrics", (20, {"dev/nDCG_at_10": 0.5})),
    ]  # fmt: skip


def test_wandb_gets_the_curve_over_updates(sent: list[tuple[str, Any]], tmp_path: Path) -> None:
    follow = Tracking(["wandb"], Folder.of(tmp_path), "toy")
    follow.ended(3, {**RECORD, "status": "stopped"})
    follow.close()
    kinds = [kind for kind, _ in sent]
    assert kinds == ["init", "log", "log", "finish"]
    assert (sent[0][1]["project"], sent[0][1]["config"]["status"]) == ("toy", "stopped")
    assert sent[2][1] == {"updates": 20, "dev/nDCG@10": 0.5}


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(
    sent: list[tuple[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:

        def init(**values: Any) -> Any:
            sent.append(("tried", None))
            raise RuntimeError("api_key not configured\n(no-tty)")

        patch.setattr(sys.modules["wandb"], "init", init)
        follow = Tracking(["wandb", "mlflow"], Folder.of(tmp_path), "toy")
        for number in (3, 4):
            follow.ended(number, {**RECORD, "number": number})
        follow.close()
    kinds = [kind for kind, _ in sent]
    assert kinds.count("tried") == 1 and kinds.count("run") == 2, "asked once, while MLflow has both trials"
    (note,) = follow.notes
    assert note.startswith("tracking: wandb failed and is left out (api_key not configured (no-tty))")
    assert note in capsys.readouterr().err
    sent.clear()
    again = Tracking(["wandb", "mlflow"], Folder.of(tmp_path), "toy")
    for number in (3, 4):
        again.ended(number, {**RECORD, "number": number})
    again.close()
    kinds = [kind for kind, _ in sent]
    assert kinds.count("init") == 2 and "run" not in kinds and not again.notes


def test_nobody_is_sent_anything_unasked(sent: list[tuple[str, Any]], tmp_path: Path) -> None:
    follow = Tracking([], Folder.of(tmp_path), "toy")
    follow.ended(3, RECORD)
    follow.ended(4, {"number": 4, "status": "refused"})
    follow.close()
    assert sent == [] and [path.name for path in (tmp_path / "tensorboard").iterdir()] == ["003"]
