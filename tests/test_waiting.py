"""A stage that makes no progress says what it waits for, by Ray's state and the marks of its actors."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import raydrd.spine.waiting as waiting_module
from raydrd.config import Resources
from raydrd.spine.cluster import Cluster
from raydrd.spine.progress import note
from raydrd.spine.storage import Folder
from raydrd.spine.waiting import Waiting, pool_line
from tests.workers import Doubler

ROOM = "cluster has 4 CPUs, 1 free"


def test_a_pool_waits_for_actors_then_for_models_then_for_shards(tmp_path: Path) -> None:
    marks = Folder.of(tmp_path)

    def line(*done: str) -> str:
        return pool_line(marks, set(done), 3, "2 CPUs", ROOM)

    assert line() == f"waiting for 3 actors of 2 CPUs each, 0 of 3 started ({ROOM})"
    assert pool_line(marks, set(), 1, "1 CPU and 0.5 GPU", ROOM).startswith(
        "waiting for 1 actor of 1 CPU and 0.5 GPU each, 0 of 1"
    )
    for name in ("a", "b"):
        marks.write_bytes(f"seats/{name}.begun", b"")
    assert line() == f"2 of 3 actors started, none has loaded its model yet ({ROOM})"
    marks.write_bytes("seats/a.ready", b"")
    assert line() == f"1 of 3 actors ready, no shard has reached them ({ROOM})"
    for shard in ("part-1.arrow.1", "part-2.arrow.1", "part-2.arrow.2", "part-3.arrow.1"):
        marks.write_bytes(shard, b"")
    assert line("part-1.arrow") == f"1 of 3 actors ready, at work on part-2.arrow, part-3.arrow ({ROOM})"
    for shard in ("part-4.arrow.1", "part-5.arrow.1"):
        marks.write_bytes(shard, b"")
    assert "at work on part-1.arrow, part-2.arrow, part-3.arrow and 2 more" in line()


def test_lines_come_when_nothing_moves_and_then_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(waiting_module, "remark", said.append)
    waiting = Waiting("score train", 60, lambda: "waiting for luck")
    heard, begin = {}, waiting.last
    for second in range(0, 1200, 10):
        waiting.look(begin + second)
        if said:
            heard[second] = said.pop()
    assert list(heard) == [60, 360, 660, 960]
    assert heard[60] == "  score train: nothing finished for 60 s; waiting for luck"
    assert heard[660] == "  score train: nothing finished for 660 s; waiting for luck"
    waiting.moved()
    waiting.look(waiting.last + 59)
    assert not said
    waiting.look(waiting.last + 61)
    assert said == ["  score train: nothing finished for 61 s; waiting for luck"]


def test_the_line_comes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = threading.Event()
    monkeypatch.setattr(waiting_module, "remark", lambda line: heard.set())
    with Waiting("x", 0.2, lambda: "nothing"):
        assert heard.wait(30)


def test_what_cannot_be_found_out_is_said_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(waiting_module, "remark", said.append)

    def broken() -> str:
        raise ConnectionError("GCS is gone")

    waiting = Waiting("x", 60, broken)
    waiting.look(waiting.last + 61)
    assert said[0].endswith("what it waits for cannot be found out (ConnectionError: GCS is gone)")


@pytest.mark.ray
def test_a_pool_without_room_says_so_and_so_does_a_slow_shard(
    local_ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @local_ray.remote(num_cpus=3)  # all there are
    class Squatter:
        def there(self) -> bool:
            return True

    squatter, said = Squatter.remote(), []
    assert local_ray.get(squatter.there.remote())

    def hear(line: str) -> None:
        said.append(line)
        if len(said) == 1:
            local_ray.kill(squatter)

    monkeypatch.setattr(waiting_module, "remark", hear)
    monkeypatch.setattr(waiting_module, "LATER", 1)
    cluster = Cluster(Resources(ray="local", num_workers=2, cpus_per_worker=1, stall_seconds=1.0))
    shards = [{"name": f"s{n}.json", "lo": n, "hi": n + 1, "rows": 1, "fault": ""} for n in range(2)]
    arguments = {"out": Folder.of(tmp_path / "out"), "log": str(tmp_path / "log"), "delay": 3.0}
    marks = Folder.of(tmp_path / "marks")
    results = cluster.map(Doubler, arguments, shards, label="double", unit="rows", marks=marks, models=False)
    assert len(results) == 2
    assert said[0].startswith("  double: nothing finished for ")
    assert said[0].endswith("waiting for 2 actors of 1 CPU each, 0 of 2 started (cluster has 3 CPUs, 0 free)"), said
    assert any("actors ready, at work on s0.json" in line or "at work on s1.json" in line for line in said), said


class Talker:
    """Notes the same thing for each of its shards, and one thing once."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        self.number += 1
        note("a batch did not fit")
        if self.number == 2:
            note("and something else")
        return {}


def test_what_workers_note_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = [{"name": f"s{n}", "rows": 1} for n in range(3)]
    note("of something else")
    results = Cluster(Resources(ray="off")).map(Talker, {}, shards, label="talk", unit="x", marks=Folder.of(tmp_path))
    said = capsys.readouterr().err.splitlines()
    assert sorted(said) == ["  talk: a batch did not fit", "  talk: and something else"]
    assert all("notes" not in result for result in results)
