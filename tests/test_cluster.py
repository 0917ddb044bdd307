"""Shards run once each, on Ray as in this process, and a bad one ends the stage rather than the machine."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import raydrd.spine.cluster as cluster_module
from raydrd.config import Resources
from raydrd.errors import InputError, StageError
from raydrd.spine.cluster import Cluster, Pool, available_cores, plan_pool
from raydrd.spine.quiet import keep_logs
from raydrd.spine.storage import Folder
from tests.workers import Doubler, Unbuildable


def _shards(count: int, faults: dict[int, str] | None = None) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [{"name": f"s{n}.json", "lo": 10 * n, "hi": 10 * n + 10, "rows": 10} for n in range(count)]
    for number, shard in enumerate(made):  # every row of a Ray table has the same columns
        shard["fault"] = (faults or {}).get(number, "")
    return made


@pytest.fixture(params=["inline", pytest.param("ray", marks=pytest.mark.ray)])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    if request.param == "inline":
        return Cluster(Resources(ray="off"))
    request.getfixturevalue("local_ray")
    return Cluster(Resources(ray="local", num_workers=2, cpus_per_worker=1, shard_attempts=2))


def _map(cluster: Cluster, home: Path, shards: list[dict[str, Any]], **more: Any) -> list[dict[str, Any]]:
    arguments = {"out": Folder.of(home / "out"), "log": str(home / "log"), **more}
    return cluster.map(Doubler, arguments, shards, label="double", unit="rows", marks=Folder.of(home / "marks"), models=False)


def _runs(home: Path) -> Counter[str]:
    return Counter(line.split()[0] for line in (home / "log").read_text().splitlines())


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "shards", "expected"),
    [
        ({}, 3, 0.0, 99, Pool(1, 2, 0.0)),  # two cores and one logical for Ray's own tasks
        ({}, 2, 0.0, 99, Pool(1, 1, 0.0)),
        ({}, 1, 0.0, 99, Pool(1, 1, 0.0)),
        ({}, 33, 0.0, 99, Pool(4, 8, 0.0)),
        ({}, 64, 0.0, 99, Pool(7, 8, 0.0)),
        ({"num_workers": 8, "cpus_per_worker": 8}, 16, 0.0, 99, Pool(1, 8, 0.0)),
        ({"num_workers": 4, "cpus_per_worker": 1}, 4, 0.0, 99, Pool(3, 1, 0.0)),
        ({"cpus_per_worker": 64}, 16, 0.0, 99, Pool(1, 15, 0.0)),
        ({"num_workers": 4, "cpus_per_worker": 1}, 16, 0.0, 2, Pool(2, 1, 0.0)),
        ({}, 17, 4.0, 99, Pool(4, 2, 1.0)),
        ({"gpus_per_worker": 0.5}, 33, 4.0, 99, Pool(8, 2, 0.5)),
        ({"gpus_per_worker": 0}, 9, 4.0, 99, Pool(1, 8, 0.0)),
        ({"gpus_per_worker": 0.1}, 99, 1.0, 99, Pool(10, 2, 0.1)),
        ({}, 5, 8.0, 99, Pool(2, 2, 1.0)),  # cores run out before GPUs do
    ],
)
def test_a_pool_is_shrunk_to_what_fits(resources: dict[str, Any], cpus: int, gpus: float, shards: int, expected: Pool) -> None:
    assert plan_pool(Resources(**resources), cpus=[cpus], gpus=[int(gpus)], shards=shards) == expected


def test_an_actor_lies_on_one_node() -> None:
    # Three nodes of four cores: an actor of eight would wait for ever.
    assert plan_pool(Resources(), cpus=[4, 4, 4], gpus=[0, 0, 0], shards=99) == Pool(2, 4, 0.0)
    assert plan_pool(Resources(cpus_per_worker=3), cpus=[4, 4, 2], gpus=[0, 0, 0], shards=99) == Pool(2, 3, 0.0)
    # Six times 0.6 is less than four GPUs, but no GPU holds two of them.
    assert plan_pool(Resources(gpus_per_worker=0.6), cpus=[64], gpus=[4], shards=99) == Pool(4, 2, 0.6)
    assert plan_pool(Resources(), cpus=[8, 64], gpus=[2, 0], shards=99) == Pool(2, 2, 1.0)
    with pytest.raises(InputError, match="a node has 1"):
        plan_pool(Resources(gpus_per_worker=2), cpus=[8, 8], gpus=[1, 1], shards=9)


def test_a_pool_never_takes_every_core() -> None:
    for cpus in range(2, 20):
        for workers in (None, 1, 3, 50):
            for each in (None, 1, 2, 7, 50):
                pool = plan_pool(Resources(num_workers=workers, cpus_per_worker=each), cpus=[cpus], gpus=[0], shards=100)
                assert 1 <= pool.size * pool.cpus <= cpus - 1


def test_gpus_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="1 asked for, a node has 0; write 0 or less"):
        plan_pool(Resources(gpus_per_worker=1), cpus=[8], gpus=[0], shards=1)


def test_every_shard_runs_once_and_its_result_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    results = _map(cluster, tmp_path, _shards(7))
    assert {r["shard"]: (r["rows"], r["total"]) for r in results} == {
        s["name"]: (10, sum(range(s["lo"], s["hi"]))) for s in _shards(7)
    }
    assert all(r["busy_seconds"] >= 0 for r in results)
    assert set(_runs(tmp_path).values()) == {1} and len(_runs(tmp_path)) == 7
    for shard in _shards(7):
        assert Folder.of(tmp_path / "out").read_json(shard["name"]) == [2 * n for n in range(shard["lo"], shard["hi"])]
    assert _map(cluster, tmp_path, []) == []


def test_a_shard_that_raises_fails_the_stage_but_the_others_finish(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"double: 1 of 6 shards failed; s1.json: ValueError: cannot read row 10") as caught:
        _map(cluster, tmp_path, _shards(6, {1: "raise"}))
    assert "Traceback" in str(caught.value)
    assert list(Folder.of(tmp_path / "out").files()) == ["s0.json", "s2.json", "s3.json", "s4.json", "s5.json"]
    assert _runs(tmp_path)["s1.json"] == 1  # an error that would come again is not tried again


def test_the_users_mistake_found_by_a_worker_stays_the_users_mistake(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        _map(cluster, tmp_path, _shards(3, {1: "input", 2: "raise"}))
    assert str(caught.value) == "corpus.jsonl:10: not JSON; write one object a line"


def test_a_worker_that_cannot_be_built_ends_the_stage(cluster: Cluster, tmp_path: Path) -> None:
    for input_error, kind, message in [(False, StageError, "weights are not there"), (True, InputError, "^teacher: it has 3")]:
        with pytest.raises(kind, match=message):
            cluster.map(
                Unbuildable,
                {"input_error": input_error, "out": Folder.of(tmp_path)},
                _shards(3),
                label="x",
                unit="rows",
                marks=Folder.of(tmp_path / "marks"),
                models=False,
            )


@pytest.mark.ray
def test_a_shard_that_kills_its_worker_is_given_up_after_some_attempts(local_ray: Any, tmp_path: Path) -> None:
    cluster = Cluster(Resources(ray="local", num_workers=1, cpus_per_worker=1, shard_attempts=2))
    with pytest.raises(StageError, match=r"1 of 4 shards failed; s1.json: killed its worker 2 times"):
        _map(cluster, tmp_path, _shards(4, {1: "die"}))
    assert _runs(tmp_path) == {"s0.json": 1, "s1.json": 2, "s2.json": 1, "s3.json": 1}
    assert list(Folder.of(tmp_path / "out").files()) == ["s0.json", "s2.json", "s3.json"]


@pytest.mark.ray
def test_an_actor_killed_from_outside_is_replaced_and_no_row_is_lost_or_doubled(local_ray: Any, tmp_path: Path) -> None:
    import threading

    cluster = Cluster(Resources(ray="local", num_workers=1, cpus_per_worker=1))
    killed: list[int] = []

    def kill_the_first() -> None:
        while not killed:
            if (tmp_path / "log").exists() and (lines := (tmp_path / "log").read_text().splitlines()) and len(lines) >= 3:
                killed.append(int(lines[-1].split()[1]))
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.01)

    thread = threading.Thread(target=kill_the_first, daemon=True)
    thread.start()
    results = _map(cluster, tmp_path, _shards(8), delay=0.15)
    thread.join(timeout=10)
    pids = {int(line.split()[1]) for line in (tmp_path / "log").read_text().splitlines()}
    assert len(killed) == 1 and len(pids) == 2
    assert sorted(r["shard"] for r in results) == [f"s{n}.json" for n in range(8)]
    assert len(Folder.of(tmp_path / "out").files()) == 8
    # Only what was under way when the actor died was begun again.
    assert sum(_runs(tmp_path).values()) <= 10 and set(_runs(tmp_path).values()) <= {1, 2}


@pytest.mark.ray
def test_small_work_stays_in_this_process_and_starts_no_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cluster, "start", lambda self: pytest.fail("Ray was started"))
    arguments = {"out": Folder.of(tmp_path / "out"), "log": str(tmp_path / "log")}
    marks = Folder.of(tmp_path / "marks")
    Cluster(Resources(ray="auto")).map(Doubler, arguments, _shards(2), label="d", unit="r", marks=marks, inline=True)
    assert {line.split()[1] for line in (tmp_path / "log").read_text().splitlines()} == {str(os.getpid())}


def _pretend_ray(monkeypatch: pytest.MonkeyPatch, failure: Exception | None = None) -> list[dict[str, Any]]:
    import ray

    asked: list[dict[str, Any]] = []

    def init(**settings: Any) -> Any:
        asked.append(settings)
        if failure is not None:
            raise failure
        return type("Context", (), {"address_info": {"session_dir": ""}})()

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    return asked


def test_a_running_ray_is_used_only_if_it_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    asked = _pretend_ray(monkeypatch)
    Cluster(Resources(ray="auto")).start()
    assert asked[0]["address"] == "local" and asked[0]["num_cpus"] == available_cores() + 1
    assert Cluster(Resources(ray="auto")).is_local
    Cluster(Resources(ray="ray-head:6379")).start()
    assert asked[1]["address"] == "ray-head:6379" and "num_cpus" not in asked[1]
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # inside `ray job submit`
    named = Cluster(Resources(ray="auto"))
    named.start()
    named.start()
    assert len(asked) == 3 and asked[2]["address"] == "10.0.0.1:6379"
    assert not named.is_local and Cluster(Resources(ray="off")).is_local
    Cluster(Resources(ray="local")).start()
    assert asked[3]["address"] == "local"


def test_an_address_that_does_not_answer_is_the_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_ray(monkeypatch, ConnectionError("refused"))
    with pytest.raises(
        InputError, match=r"ray: 'nowhere:1' does not answer \(refused\); start Ray there, or set resources.ray"
    ):
        Cluster(Resources(ray="nowhere:1")).start()


def test_only_our_own_ray_is_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import ray

    stopped: list[int] = []
    monkeypatch.setattr(ray, "shutdown", lambda: stopped.append(1))
    _pretend_ray(monkeypatch)
    for address, expected in [("ray-head:6379", 0), ("local", 1)]:
        cluster = Cluster(Resources(ray=address), logs=tmp_path / "logs")
        cluster.stop()  # never started
        cluster.start()
        cluster.stop()
        cluster.stop()
        assert len(stopped) == expected
    monkeypatch.setattr(ray, "is_initialized", lambda: True)  # somebody else's, in this process
    theirs = Cluster(Resources(ray="local"))
    theirs.start()
    theirs.stop()
    assert len(stopped) == 1


def test_logs_of_our_ray_are_kept_beside_the_run(tmp_path: Path) -> None:
    logs = tmp_path / "session" / "logs"
    (logs / "sub").mkdir(parents=True)
    (logs / "raylet.out").write_text("it said this")
    (logs / "empty.err").write_text("")
    keep_logs(tmp_path / "session", tmp_path / "run" / "ray")
    assert [p.name for p in (tmp_path / "run" / "ray").iterdir()] == ["raylet.out"]


def test_cores_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module.os, "sched_getaffinity", lambda _: {0, 3, 5})
    assert available_cores() == 3


class Threads:
    """Says how many threads torch would use."""

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        import torch

        return {"threads": torch.get_num_threads()}


def test_work_in_this_process_uses_the_same_threads_whatever_ran_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another number gives other last bits: a resumed run would differ from one that was not killed."""
    import torch

    before, cluster = torch.get_num_threads(), Cluster(Resources(ray="off"))
    try:
        for allowed, expected in (("1", 1), ("2", 2), ("", available_cores())):
            monkeypatch.setenv("OMP_NUM_THREADS", allowed)
            torch.set_num_threads(5)
            shards = [{"name": "a"}]
            found = cluster.map(Threads, {}, shards, label="count", unit="rows", marks=Folder.of(tmp_path))
            assert found[0]["threads"] == expected
    finally:
        torch.set_num_threads(before)
