"""Exact search of a large corpus: cut into ranges, merged, and the same to the last bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import raydrd.stages.search as module
from raydrd.errors import StageError
from raydrd.spine.parts import Part, part_name
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Store, Work, stage
from raydrd.spine.tables import vectors
from raydrd.stages import spread as spreading
from raydrd.stages.search import Best, Searcher, search, top_k
from raydrd.stages.shards import parts_of
from raydrd.stages.spread import cut, plan_spread

WIDTH = 24


def put(store: Store, name: str, matrix: np.ndarray, *, rows: int) -> Artifact:
    """Vectors as `embed` would store them: float16, in parts of so many rows."""

    @stage(version=1)
    def embedded(work: Work, name: str) -> dict[str, Any]:
        for lo in range(0, len(matrix), rows):
            block = matrix[lo : lo + rows].astype(np.float16)
            column = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), WIDTH)
            table = pa.table([column], schema=vectors(WIDTH, "float16"))
            work.shards.write_arrow(part_name(lo, lo + len(block), "arrow"), table)
        return {"rows": len(matrix), "unit": "texts", "width": WIDTH}

    return store.run(embedded, name=name)


def world(store: Store, *, queries: int = 130, passages: int = 1500) -> tuple[Artifact, Artifact]:
    """Real vectors, and many that come several times: ties within a range and across them."""
    rng = np.random.default_rng(0)
    p = rng.standard_normal((passages, WIDTH))
    p[rng.integers(0, passages, 500)] = p[rng.integers(0, 40, 500)]
    return put(store, "q", rng.standard_normal((queries, WIDTH)), rows=50), put(store, "p", p, rows=64)


def content(found: Artifact) -> pa.Table:
    return pa.concat_tables(part for _, part in parts_of(found).each())


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 queries: several to a span."""
    monkeypatch.setattr(module, "QUERY_BLOCK", 16)


@pytest.fixture
def many_ranges(small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,500 passages in 8 ranges, spans of 4 blocks of queries."""
    monkeypatch.setattr(spreading, "RANGE_BYTES", 11_000)
    monkeypatch.setattr(spreading, "SHARD_PRODUCTS", 200 * WIDTH * 16 * 4)


def reference(tmp_path: Path, store: Store, k: int) -> pa.Table:
    """What one range gives, in a store of its own."""
    other = Store(Folder.of(tmp_path / "whole"), store.cluster)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spreading, "RANGE_BYTES", 1 << 40)
        patch.setattr(spreading, "SHARD_PRODUCTS", 10**15)
        q, p = world(other)
        found = other.run(search, queries=q, passages=p, k=k)
    return content(found)


@pytest.mark.parametrize("k", [1, 10, 400, 2000])
def test_ranges_merged_are_one_search_to_the_last_bit(store: Store, tmp_path: Path, many_ranges: None, k: int) -> None:
    q, p = world(store)
    ranged = store.run(search, queries=q, passages=p, k=k)
    assert content(ranged).equals(reference(tmp_path, store, k))
    assert len(parts_of(ranged).parts) == 9 and not [name for name in ranged.manifest["files"] if "scratch" in name]


def test_what_beats_no_kth_passage_is_left_out_and_nothing_else(small_blocks: None) -> None:
    rng = np.random.default_rng(1)
    # Small whole numbers: hundreds of equal scores, sums exact in any order.
    q = torch.from_numpy(rng.integers(-3, 4, (20, WIDTH)).astype(np.float32))
    p = torch.from_numpy(rng.integers(-3, 4, (3000, WIDTH)).astype(np.float32))
    for k in (1, 7, 100, 3000, 5000):
        best = Best(q, k)
        for lo in range(0, 3000, 37):
            best.add(q @ p[lo : lo + 37].T, lo)
        values, rows = best.settle()
        expected, expected_rows = top_k(q @ p.T, k)
        assert torch.equal(values, expected) and torch.equal(rows, expected_rows)


def test_a_killed_search_computes_only_the_ranges_that_are_missing(
    store: Store, tmp_path: Path, many_ranges: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, p = world(store)
    made: list[str] = []
    write = module.write_partial

    def dying(out: Folder, name: str, found: Any) -> None:
        if len(made) == 10:
            raise OSError("the disk is gone")
        write(out, name, found)
        made.append(name)

    monkeypatch.setattr(module, "write_partial", dying)
    with pytest.raises(StageError, match="the disk is gone"):
        store.run(search, queries=q, passages=p, k=10)
    assert len(made) == 10

    def counting(out: Folder, name: str, found: Any) -> None:
        write(out, name, found)
        made.append(name)

    monkeypatch.setattr(module, "write_partial", counting)
    # The machine that goes on would have cut otherwise: the plan that was begun counts.
    monkeypatch.setattr(spreading, "RANGE_BYTES", 30_000)
    found = store.run(search, queries=q, passages=p, k=10)
    assert len(made) == len(set(made)) == 8 * 3
    assert content(found).equals(reference(tmp_path, store, 10))


def test_queries_merged_by_a_killed_attempt_are_not_searched_again(
    store: Store, tmp_path: Path, many_ranges: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, p = world(store)
    merged: list[tuple[int, int]] = []
    merger = module.Merger.__call__

    def dying(self: Any, shard: dict[str, Any]) -> dict[str, Any]:
        if len(merged) == 4:
            raise OSError("the disk is gone")
        merged.append((shard["lo"], shard["hi"]))
        return merger(self, shard)

    monkeypatch.setattr(module.Merger, "__call__", dying)
    with pytest.raises(StageError, match="the disk is gone"):
        store.run(search, queries=q, passages=p, k=10)
    monkeypatch.setattr(module.Merger, "__call__", merger)
    # Partial results of queries that were merged may go: nothing asks for them again.
    scratch = next(Path(store.root.uri).rglob("scratch"))
    gone = list(scratch.glob("*-queries-000000000000-*"))
    assert len(gone) == 8
    for path in gone:
        path.unlink()
    found = store.run(search, queries=q, passages=p, k=10)
    assert content(found).equals(reference(tmp_path, store, 10))


@pytest.mark.ray
@pytest.mark.timeout(400)  # an actor dies and starts again, which takes long where much else runs
def test_actors_killed_between_ranges_leave_the_same_candidates(
    ray_store: Store, tmp_path: Path, many_ranges: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, p = world(ray_store)
    from tests.test_search_spread import Mortal as Importable  # by a name that actors know

    monkeypatch.setattr(module, "Searcher", Importable)
    found = ray_store.run(search, queries=q, passages=p, k=10)
    assert (Path(parts_of(p).folder.uri) / "died").exists()
    assert content(found).equals(reference(tmp_path, ray_store, 10))


class Mortal(Searcher):
    """Kills its own process in the middle of the third range, once."""

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        mark = Path(self.passages.folder.uri) / "died"
        if shard.get("first", 0) > 400 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(shard)


def test_a_range_that_stays_on_a_device_is_read_once(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    q, p = (parts_of(one) for one in world(store))
    worker = Searcher(queries=q, passages=p, out=Folder.of(tmp_path / "out"), k=5)
    read: list[int] = []
    open_part = type(p).read

    def counting(self: Any, part: Part, columns: list[str] | None = None) -> pa.Table:
        read.append(part.lo)
        return open_part(self, part, columns)

    monkeypatch.setattr(type(p), "read", counting)

    def reads(**shard: int) -> int:
        read.clear()
        worker({"name": "x", "block": 16, **shard})
        return len(read) - 1 - (shard["lo"] // 50 != (shard["hi"] - 1) // 50)  # less the parts of the queries

    assert [reads(lo=0, hi=16, first=0, last=640), reads(lo=16, hi=32, first=0, last=640)] == [10, 10]
    worker.room = 6 * 64 * WIDTH * 4  # as a GPU has: room for six parts in float32
    assert [reads(lo=n * 16, hi=n * 16 + 16, first=0, last=640) for n in range(3)] == [10, 4, 4]
    assert reads(lo=48, hi=64, first=640, last=1280) == 10 and set(worker.kept) == set(range(640, 1024, 64))


# -- the plan ----------------------------------------------------------------------------------------------


def parts_like(rows: int, size: int) -> tuple[Part, ...]:
    return tuple(Part(f"part {lo}", lo, min(lo + size, rows)) for lo in range(0, rows, size))


@pytest.mark.parametrize(
    ("passages", "queries", "k", "gpu", "ranges_", "span"),
    [
        (5_183, 1_109, 200, False, 1, 30 * 1024),  # scifact: what is held for 30,720 queries is 256 MiB
        (250_000, 100_000, 50, False, 1, 20 * 1024),
        (8_800_000, 6_980, 100, False, 26, 14 * 1024),  # MS MARCO dev: parallel over ranges
        (8_800_000, 502_939, 200, False, 7, 4 * 1024),  # its training queries: partial results set the ranges
        (8_800_000, 502_939, 1000, False, 2, 1024),
        (8_800_000, 502_939, 200, True, 7, 30 * 1024),
        (10**9, 502_939, 100, False, 21, 1024),  # 10,000 shards, longer ones
    ],
)
def test_sizes_decide_the_plan(passages: int, queries: int, k: int, gpu: bool, ranges_: int, span: int) -> None:
    made = plan_spread(
        parts_like(passages, 16_384), stored=passages * 768, queries=queries, width=384, k=k, block=1024, gpu=gpu
    )
    assert len(made.ranges) == ranges_ and made.span == pytest.approx(span, rel=0.05)
    assert made.ranges[0][0] == 0 and made.ranges[-1][1] == passages
    assert all(a[1] == b[0] for a, b in zip(made.ranges, made.ranges[1:], strict=False))
    files = ranges_ * -(-queries // made.span)
    assert ranges_ == 1 or files <= 1.2 * spreading.MOST_SHARDS


def test_ranges_are_whole_parts_of_about_the_same_size() -> None:
    parts = parts_like(1000, 64)
    made = cut(parts, 5)
    assert len(made) == 5 and made[0][0] == 0 and made[-1][1] == 1000
    assert {hi for _, hi in made} <= {part.hi for part in parts}
    assert max(hi - lo for lo, hi in made) < 1.5 * min(hi - lo for lo, hi in made)
    assert cut(parts_like(100, 100), 8) == ((0, 100),)
