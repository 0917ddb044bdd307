"""Sweeps on real Ray processes: more trials than cores, trials stopped, crashed and killed, and work that is made once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from raydrd.chaos import victims
from raydrd.errors import InputError
from raydrd.spine.scorebook import Book
from raydrd.spine.storage import Folder
from raydrd.sweeping.main import sweep
from raydrd.sweeping.plan import read_plan
from tests.sweeps import EXACT, GRADED, ask_for_slow, impatient_desk, records, step, toy_sweep, trained

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]
ON_RAY = {"resources": {"ray": "local", "num_workers": 1, "cpus_per_worker": 1}}


def where(home: Path) -> dict[str, str]:
    return {"out": str(home / "out"), "store": str(home / "store")}


def scored(store: Path) -> int:
    """Pairs that teachers have computed, by their own books: a pair computed twice stands there twice."""
    books = Folder.of(store) / "scores"
    return sum(Book(books / name).rows() for name in books.folders())


def test_more_trials_than_cores_share_their_work_and_the_worse_are_stopped(
    tmp_path: Path, toy_config: dict[str, Any], local_ray: Any
) -> None:
    """Ten points on two cores: equal first steps are trained once though two trials ask for them at the same time."""
    curricula = {
        f"{first}, then {second}": [step(GRADED, 8, rate), step(EXACT, count, 1e-3)]
        for first, rate in (("fast", 3e-3), ("slow", 1e-5))
        for second, count in (("one", 9), ("two", 10), ("three", 11), ("four", 12), ("five", 13))
    }
    file = toy_sweep(
        tmp_path, toy_config, base=ON_RAY, space={"curriculum": {"named": curricula}}, search="grid",
        scheduler={"kind": "asha", "grace": 8, "reduction": 2},
    )  # fmt: skip
    result = sweep(file, [], **where(tmp_path))
    status = Counter(trial["status"] for trial in result["trials"])
    assert set(status) == {"finished", "stopped"} and sum(status.values()) == 11, result["trials"]
    stopped = [trial for trial in result["trials"] if trial["status"] == "stopped"]
    assert stopped and all([one["updates"] for one in trial["reports"]] == [0, 8] for trial in stopped)
    assert result["trials"][result["best"]]["status"] == "finished" and result["best_file"]

    # The teacher computed what the default asks for, and nothing twice; so did the student's two first steps.
    assert scored(tmp_path / "store") == result["work"]["teacher_pairs_default"] == result["work"]["teacher_pairs_all"] > 0
    first_steps = Counter(
        one["id"]
        for record in records(tmp_path / "out").values()
        for one in record["journal"]
        if one["label"] == "train step 1: 5/5/10" and not one["reused"]
    )
    assert len(first_steps) == 3 and set(first_steps.values()) == {1}, "the default's, the fast one and the slow one"
    made = [one for record in records(tmp_path / "out").values() for one in record["journal"] if not one["reused"]]
    assert len({one["id"] for one in made}) == len(made), "nothing at all was made by two trials"
    assert not (tmp_path / "out" / "tune").exists()
    assert {p.name for p in (tmp_path / "out" / "tensorboard").iterdir()} == {f"{n:03d}" for n in range(11)}


def test_a_trial_whose_process_dies_harms_no_other(tmp_path: Path, toy_config: dict[str, Any], local_ray: Any) -> None:
    space = {"loss.score_scale": {"choice": [5, 10, 40]}}
    curriculum = [step(GRADED, 5), step(EXACT, 400)]
    file = toy_sweep(tmp_path, toy_config, base={**ON_RAY, "curriculum": curriculum}, space=space, search="grid")
    killed: list[int] = []

    def kill() -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end and not killed:
            for path in (tmp_path / "out" / "trials").glob("002-*.json"):
                record = Folder.of(path.parent).read_json(path.name)
                if record["status"] == "running" and len(record["reports"]) >= 2:
                    killed.append(record["process"]["pid"])
                    os.kill(record["process"]["pid"], signal.SIGKILL)
            time.sleep(0.005)

    thread = threading.Thread(target=kill)
    thread.start()
    result = sweep(file, [], **where(tmp_path))
    thread.join()
    assert killed and killed[0] != os.getpid()
    assert [trial["status"] for trial in result["trials"]] == ["finished", "finished", "failed", "finished"]
    assert result["trials"][2]["reason"].startswith("its process died") and len(result["trials"][2]["reports"]) == 2


def _begin(file: str, home: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "raydrd.cli", "sweep", file, "--out", str(home / "out"), "--store", str(home / "store")]
    with (home / "log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def test_kill_9_of_the_sweep_and_the_same_command_again(tmp_path: Path, toy_config: dict[str, Any]) -> None:
    """A sweep with a Ray of its own, killed with all its processes once a trial has finished and another has begun."""
    space = {"loss.score_scale": {"choice": [5, 10, 40, 60]}}
    curriculum = [step(GRADED, 5), step(EXACT, 100)]
    file = toy_sweep(tmp_path, toy_config, base={**ON_RAY, "curriculum": curriculum}, space=space, search="grid")
    process, end = _begin(file, tmp_path), time.monotonic() + 200

    def state() -> list[str]:
        return sorted(record["status"] for record in records(tmp_path / "out").values() if record["number"])

    while not (state().count("finished") >= 1 and "running" in state()):
        assert process.poll() is None, f"it ended first:\n{(tmp_path / 'log').read_text()[-3000:]}"
        assert time.monotonic() < end, f"too slow:\n{(tmp_path / 'log').read_text()[-3000:]}"
        time.sleep(0.005)
    victims.kill(victims.of_session(process.pid))  # trials too: left alone they would end what they are at
    process.wait()
    before, old = trained(tmp_path / "store"), records(tmp_path / "out")
    assert "running" in {record["status"] for record in old.values()}

    again = _begin(file, tmp_path)
    assert again.wait(timeout=300) == 0, (tmp_path / "log").read_text()[-3000:]
    after, found = trained(tmp_path / "store"), records(tmp_path / "out")
    assert {record["status"] for record in found.values()} == {"finished"} and len(found) == 5
    assert {key: after[key] for key in before} == before, "no finished training was made again"
    assert len(after) == 10
    done = {name for name, record in old.items() if record["status"] == "finished"}
    assert len(done) >= 2 and all(found[name] == old[name] for name in done), "finished trials are kept as they were"
    made = [one["id"] for record in found.values() for one in record["journal"] if not one["reused"] and one["name"] == "train"]
    assert len(made) == len(set(made))
    # The kill may fall between a training's end and the journal's next writing: then it is found again.
    assert set(made) <= set(after) and set(after) - set(made) <= set(before)


def test_a_population_goes_on_from_the_best_ones_students(tmp_path: Path, toy_config: dict[str, Any], local_ray: Any) -> None:
    """Rates far too low against good ones: the worst take over what the best have learnt, and finish better than they began."""
    learning = "curriculum.*.train.learning_rate"
    space = {learning: {"loguniform": [1e-6, 3e-3]}}
    curriculum = [step(EXACT, 10, rate) for rate in (1e-3,) * 3]
    file = toy_sweep(
        tmp_path, toy_config, base={**ON_RAY, "curriculum": curriculum}, space=space, samples=4,
        scheduler={"kind": "pbt", "every": 10, "quantile": 0.5},
    )  # fmt: skip
    result = sweep(file, [], **where(tmp_path))
    assert [trial["status"] for trial in result["trials"]] == ["finished"] * 5, result["trials"]
    found = [record for record in records(tmp_path / "out").values() if record["number"]]
    assert all(len(record["history"]) == 3 and record["updates"] == 30 for record in found)
    rates = [[one[learning] for one in record["history"]] for record in found]
    assert any(len(set(own)) > 1 for own in rates), "somebody changed"
    assert all(1e-6 <= rate <= 3e-3 for own in rates for rate in own)
    for record, own in zip(found, rates, strict=True):
        assert [one["train"]["learning_rate"] for one in record["config"]["curriculum"]] == own
    assert "finished" in {trial["status"] for trial in result["trials"]} and result["best"] is not None


def test_trials_of_several_workers_take_turns(tmp_path: Path, toy_config: dict[str, Any], local_ray: Any) -> None:
    """Two workers each on two cores: one trial at a time, whose own process holds nothing that its workers need."""
    file = toy_sweep(
        tmp_path, toy_config, base={**ON_RAY, "curriculum": [step(EXACT, 4)]}, search="grid",
        space={"loss.score_scale": {"choice": [5, 40]}}, trial={"workers": 2, "cpus": 1},
    )  # fmt: skip
    result = sweep(file, [], **where(tmp_path))
    assert [trial["status"] for trial in result["trials"]] == ["finished"] * 3, result["trials"]
    wide = toy_sweep(tmp_path, toy_config, base=ON_RAY, space={"loss.score_scale": {"choice": [5]}}, trial={"workers": 64})
    with pytest.raises(InputError, match=r"trial.workers: 64 workers of 1 CPUs each do not fit"):
        sweep(wide, [], **where(tmp_path))


@pytest.mark.parametrize("killed", [False, True])
def test_what_two_ask_for_is_made_by_one_also_when_the_first_is_killed(killed: bool, tmp_path: Path, local_ray: Any) -> None:
    name, marks = f"desk-{killed}", tmp_path / "marks"
    desk = local_ray.remote(impatient_desk()).options(name=name, num_cpus=0).remote()
    marks.mkdir()
    ask = local_ray.remote(ask_for_slow).options(num_cpus=1, max_retries=0)
    asked = [ask.remote(str(tmp_path / "store"), name, str(marks)) for _ in range(2)]
    while len(list(marks.glob("asked-*"))) < 2 or not list(marks.glob("begun-*")):
        assert not local_ray.wait(asked, timeout=0.01)[0], local_ray.get(asked)
    (first,) = (int(path.name.partition("-")[2]) for path in marks.glob("begun-*"))
    if not killed:
        time.sleep(6.0)  # longer than a lease: a sign of life every two seconds keeps it
        (marks / "go").touch()
        (made, _), (found, waited) = sorted(local_ray.get(asked, timeout=60))
        assert (made, found) == (False, True) and waited > 5.0
        assert len(list(marks.glob("begun-*"))) == 1
    else:
        os.kill(first, signal.SIGKILL)
        ended = [local_ray.wait([one], timeout=60)[0] for one in asked]
        assert all(ended)
        results = []
        for one in asked:
            with contextlib.suppress(local_ray.exceptions.WorkerCrashedError):
                results.append(local_ray.get(one))
        ((reused, waited),) = results
        assert not reused and waited > 1.0 and len(list(marks.glob("begun-*"))) == 2
    local_ray.kill(desk)


def test_what_does_not_fit_is_refused_by_field(tmp_path: Path, toy_config: dict[str, Any]) -> None:
    from raydrd.sweeping.tuner import plan_place

    def place(trial: dict[str, Any], cpus: list[int], gpus: list[int]) -> tuple[int, float]:
        file = toy_sweep(tmp_path, toy_config, space={"loss.score_scale": {"choice": [5]}}, trial=trial)
        found = plan_place(read_plan(file, []), cpus=cpus, gpus=gpus, local=False)
        return found.slots, found.gpus

    assert place({}, [8, 8], [0, 0]) == (16, 0.0)
    assert place({"cpus": 3}, [8, 4], [0, 0]) == (3, 0.0)
    assert place({}, [8, 8], [2, 0]) == (2, 1.0), "where there are GPUs a trial has one"
    assert place({"gpus": 0.25}, [8, 8], [1, 1]) == (8, 0.25)
    assert place({"gpus": 0}, [4], [1]) == (4, 0.0)
    assert place({"concurrent": 3}, [8, 8], [0, 0]) == (3, 0.0)
    assert place({"workers": 3, "cpus": 2}, [8, 8], [0, 0]) == (2, 0.0)
    assert place({"workers": 2}, [8, 8], [2, 1]) == (1, 1.0)
    for trial, told in (
        ({"cpus": 9}, "trial.cpus: 9 asked for, a node has 8"),
        ({"gpus": 1}, "trial.gpus: 1 asked for, a node has 0"),
    ):
        with pytest.raises(InputError, match=told):
            place(trial, [8, 8], [0, 0])
