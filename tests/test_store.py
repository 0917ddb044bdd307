"""The store remembers what was made, by what it was made from and by nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from raydrd.config import Frozen, Resources
from raydrd.errors import StageError
from raydrd.spine.cluster import Cluster
from raydrd.spine.storage import Folder
from raydrd.spine.store import MANIFEST, Artifact, Located, Store, Work, canonical, identify, stage
from raydrd.stages.shards import parts_of, pending


class Rule(Frozen):
    size: int = 3
    name: str = "a"


class NewRule(Frozen):
    version: ClassVar[int] = 2
    size: int = 3
    name: str = "a"


NewRule.__name__ = "Rule"  # the same component, its meaning changed


@stage(version=1)
def write(work: Work, *, value: Any = 0, source: Any = None, rule: Any = None) -> dict[str, Any]:
    work.folder.write_json("value.json", str(value))
    return {"rows": 1, "unit": "values"}


@stage(version=2)
def write_again(work: Work, *, value: Any = 0, source: Any = None, rule: Any = None) -> dict[str, Any]:
    work.folder.write_json("value.json", str(value))
    return {"rows": 1, "unit": "values"}


write_again.__name__ = "write"  # the same stage, its meaning changed


def _id(function: Any = write, **inputs: Any) -> str:
    return identify(function, inputs)[0]


def test_only_what_decides_the_content_enters_the_identity(store: Store) -> None:
    base = _id(value=1, rule=Rule())
    assert base == _id(rule=Rule(size=3), value=1)
    upstream, other = store.run(write, value="up"), store.run(write, value="other")
    assert _id(source=upstream) != _id(source=other)
    assert _id(source=upstream) != _id(source={"artifact": upstream.id})  # a name is not a result
    changes = [
        _id(value=2, rule=Rule()),
        _id(value="1", rule=Rule()),
        _id(value=True, rule=Rule()),
        _id(value=1, rule=Rule(size=4)),
        _id(value=1, rule=Rule(name="b")),
        _id(value=1, rule=NewRule()),
        _id(value=1, rule=Rule().model_dump()),
        _id(value=1, rule=Rule(), source=upstream),
        _id(write_again, value=1, rule=Rule()),
    ]
    assert len({base, *changes}) == len(changes) + 1


def test_resources_paths_and_cores_do_not_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, cores = set(), os.sched_getaffinity(0)
    for number, resources in enumerate([Resources(ray="off"), Resources(ray="off", num_workers=7, tokens_per_batch=64)]):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=number: set(list(cores)[: n + 1]))
        store = Store(Folder.of(tmp_path / str(number)), Cluster(resources))
        first = store.run(write, value=Located(identity="digest", where=tmp_path / str(number)))
        ids.add((first.id, store.run(write, source=first).id))
    assert len(ids) == 1


def test_a_located_thing_is_its_identity_whatever_the_place() -> None:
    here, there = Located("abc", Path("/here")), Located("abc", object())
    assert canonical(here) == canonical(there) == "abc"
    assert _id(source=here) != _id(source=Located("abd", Path("/here")))
    with pytest.raises(TypeError, match="no stable identity"):
        canonical(Located(Path("/here"), "abc"))


@pytest.mark.parametrize(
    "value",
    [lambda: 0, torch.zeros(1), {1, 2}, Path("/x"), float("nan"), float("inf"), object(), b"bytes", open],
    ids=["lambda", "tensor", "set", "path", "nan", "inf", "object", "bytes", "function"],
)
def test_what_has_no_stable_identity_is_refused_with_advice(store: Store, value: Any) -> None:
    for nested in (value, [value], {"deep": {"er": value}}):
        with pytest.raises(TypeError, match=r"no stable identity; pass a plain value, a Frozen component or an Artifact"):
            store.run(write, value=nested)
    assert store.root.files() == {}  # nothing was begun


def test_a_result_is_made_once_and_found_by_every_later_store(tmp_path: Path) -> None:
    root = Folder.of(tmp_path)
    calls = []

    @stage(version=1)
    def count(work: Work, *, value: int) -> dict[str, Any]:
        calls.append(value)
        work.folder.write_json("x.json", value)
        return {"rows": 5, "unit": "things"}

    first = Store(root, Cluster(Resources(ray="off")))
    assert first.run(count, value=1) == first.run(count, value=1)
    assert [r.reused for r in first.journal] == [False]  # one line a result, however often it is asked for
    second = Store(root, Cluster(Resources(ray="off", num_workers=3)))
    again = second.run(count, "labelled", value=1)
    assert calls == [1]
    record = second.journal[0]
    assert (record.reused, record.label, record.rows, record.unit, record.seconds) == (True, "labelled", 5, "things", 0.0)
    assert again.folder.read_json("x.json") == 1
    assert second.find("count", again.id) == again
    with pytest.raises(FileNotFoundError):
        second.find("count", "0" * 16)


def test_the_manifest_says_what_how_and_with_what(store: Store) -> None:
    made = store.run(write, value=7)
    manifest = json.loads((Path(made.home.uri) / MANIFEST).read_text())
    assert manifest["stage"] == "write" and manifest["version"] == 1 and manifest["inputs"] == {"value": 7}
    assert manifest["metrics"] == {"rows": 1, "unit": "values"}
    assert list(manifest["files"]) == [f"{manifest['attempt']}/value.json"]
    assert manifest["seconds"] >= 0
    assert {"torch", "ray", "python"} <= set(manifest["provenance"]["versions"])
    assert "git" in manifest["provenance"]


def test_a_crash_leaves_no_manifest_and_the_next_attempt_is_whole(store: Store) -> None:
    broken = [True]

    @stage(version=1)
    def fragile(work: Work) -> dict[str, Any]:
        work.folder.write_json("half.json", 1)
        if broken:
            raise RuntimeError("power cut")
        return {"rows": 1}

    with pytest.raises(RuntimeError, match="power cut"):
        store.run(fragile)
    assert not [name for name in store.root.files() if name.endswith(MANIFEST)]
    assert store.journal == []
    broken.clear()
    made = store.run(fragile)
    assert made.folder.read_json("half.json") == 1
    assert list(made.manifest["files"]) == [f"{made.manifest['attempt']}/half.json"]  # only its own attempt counts


def test_a_stage_that_writes_nothing_is_a_failure(store: Store) -> None:
    @stage(version=1)
    def silent(work: Work) -> dict[str, Any]:
        (work.shards / "attempts").write_bytes("mark", b"")
        return {"rows": 1}

    with pytest.raises(StageError, match="silent: ended without writing anything"):
        store.run(silent)
    assert not [name for name in store.root.files() if name.endswith(MANIFEST)]


def test_two_writers_give_one_artifact_and_the_second_is_dropped(tmp_path: Path) -> None:
    root = Folder.of(tmp_path)
    inner: list[Artifact] = []

    @stage(version=1)
    def slow(work: Work, *, value: int) -> dict[str, Any]:
        work.folder.write_json("who.json", "second" if not inner else "first")
        if not inner:  # while this one is at work, another process begins and ends the same stage
            inner.append(None)  # type: ignore[arg-type]
            inner[0] = Store(root, Cluster(Resources(ray="off"))).run(slow, value=value)
        return {"rows": 1}

    outer = Store(root, Cluster(Resources(ray="off"))).run(slow, value=1)
    assert outer == inner[0]
    assert outer.folder == inner[0].folder
    assert outer.folder.read_json("who.json") == "first"
    attempts = {name.split("/")[0] for name in outer.home.files() if name.startswith("out-")}
    assert attempts == {outer.manifest["attempt"]}, "the loser's files stay behind"


def test_a_killed_stage_keeps_its_finished_shards(store: Store) -> None:
    import numpy as np
    import pyarrow as pa

    made, limit = [], [4]

    @stage(version=1)
    def shards(work: Work, *, rows: int) -> dict[str, Any]:
        for shard in pending(work, rows, work.cluster.resources.rows_per_shard or 1):
            if len(made) == limit[0]:
                raise KeyboardInterrupt
            work.shards.write_arrow(shard["name"], pa.table({"x": np.arange(shard["lo"], shard["hi"])}))
            made.append((shard["lo"], shard["hi"]))
        return {"rows": rows}

    store.cluster = Cluster(Resources(ray="off", rows_per_shard=10))
    with pytest.raises(KeyboardInterrupt):
        store.run(shards, rows=95)
    assert made == [(0, 10), (10, 20), (20, 30), (30, 40)]
    limit[0] = 99
    store.cluster = Cluster(Resources(ray="off", rows_per_shard=30))  # cut otherwise: only the gap is planned
    artifact = store.run(shards, rows=95)
    assert made[4:] == [(40, 70), (70, 95)]
    found = parts_of(artifact)
    assert found.slice(0, 95)["x"].to_pylist() == list(range(95))


def test_shards_with_a_gap_in_the_middle_are_filled(store: Store) -> None:
    import pyarrow as pa

    work = Work(
        folder=store.root / "out", shards=store.root / "shards", cluster=store.cluster, label="", id="", root=store.root
    )
    for lo, hi in [(10, 20), (40, 45)]:
        work.shards.write_arrow(f"part-{lo:012d}-{hi:012d}.arrow", pa.table({"x": list(range(lo, hi))}))
    planned = pending(work, 50, 8)
    assert [(s["lo"], s["hi"]) for s in planned] == [(0, 8), (8, 10), (20, 28), (28, 36), (36, 40), (45, 50)]
    assert [s["rows"] for s in planned] == [8, 2, 8, 8, 4, 5]


def test_because_names_what_differs_from_the_nearest_result(store: Store) -> None:
    store.run(write, value=1, rule=Rule(size=3))
    store.run(write, value=1, rule=Rule(size=4, name="b"))
    near = store.run(write, value=1, rule=Rule(size=4, name="c"))
    assert store.journal[0].because == ["nothing of this stage was made before"]
    assert store.journal[2].because == ["rule.name: b -> c"]
    assert near.manifest["because"] == ["rule.name: b -> c"]
    store.run(write_again, value=1, rule=Rule(size=4, name="c"))
    assert store.journal[3].because == ["version: 1 -> 2"]
    store.run(write, value=1, rule=NewRule(size=4, name="c"))
    assert store.journal[4].because == ["rule.version: 1 -> 2"]
    upstream = store.run(write, value="up")
    store.run(write, value=1, source=upstream)
    assert f"source.artifact: absent -> write/{upstream.id}" in store.journal[-1].because


def test_where_another_run_finished_first_its_result_counts(store: Store) -> None:
    """It tidies up what both were using, so this one's work ends in an error that is none."""
    other = Store(store.root, store.cluster)

    @stage(version=1)
    def both(work: Work) -> dict[str, Any]:
        if not inside:
            inside.append(True)
            other.run(both)
            work.shards.read_bytes("scratch/gone")
        work.folder.write_json("value.json", "theirs")
        return {"rows": 1, "unit": "values"}

    inside: list[bool] = []
    made = store.run(both)
    assert made.folder.read_json("value.json") == "theirs" and made.manifest == other.run(both).manifest
    inside.clear()
    alone = Store(store.root / "alone", store.cluster)

    @stage(version=1)
    def fails(work: Work) -> dict[str, Any]:
        return dict(work.shards.read_json("gone"))

    with pytest.raises(FileNotFoundError):
        alone.run(fails)
