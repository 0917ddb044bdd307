"""This node's copies of remote files: fetched once by whoever asks first, whole, few enough, and none under a reader."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from raydrd.errors import InputError, StageError
from raydrd.spine import nodecache
from raydrd.spine.nodecache import LIMIT_GB, copied, held, limit
from raydrd.spine.storage import Folder
from tests.s3server import Server, serving

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as found:
        Folder.of("s3://bucket?allow_bucket_creation=true").check()
        yield found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache; what this process holds of it is let go in the end."""
    monkeypatch.setenv("RAYDRD_CACHE", str(tmp_path / "node"))
    yield tmp_path / "node"
    for copy in [copy for copy in nodecache._held if copy.is_relative_to(tmp_path)]:
        os.close(nodecache._held.pop(copy))
    nodecache._unwatched.pop(tmp_path / "node", None)


def _use(key: str, size: int = 1000) -> None:
    with copied(key, size=lambda: size, fetch=lambda home: (home / "f").write_bytes(b"x" * size) and None) as found:
        assert (found / "f").stat().st_size == size


def _copies(home: Path) -> set[str]:
    return {path.name for path in home.iterdir() if path.is_dir()}


READER = """
import sys
from raydrd.spine.storage import Folder
folder = Folder.of(sys.argv[1])
path = folder.local_folder()
assert sorted(p.name for p in path.rglob("*") if p.is_file()) == ["config.json", "model.safetensors"]
assert set((path / "model.safetensors").read_bytes()) == {7}
print("ready", flush=True)
sys.stdin.readline()
assert set((path / "model.safetensors").read_bytes()) == {7} and (path / "config.json").read_text() == "{}"
"""


def test_of_many_processes_and_threads_one_fetches(server: Server, home: Path) -> None:
    folder = Folder.of("s3://bucket/once")
    folder.write_bytes("model.safetensors", b"\x07" * 3_000_000)
    folder.write_bytes("config.json", b"{}")
    server.faults("slow", seconds=0.5, methods=["GET"])
    processes = [
        subprocess.Popen([sys.executable, "-c", READER, folder.uri], stdin=subprocess.PIPE, text=True, cwd=ROOT) for _ in "ab"
    ]
    threads = [threading.Thread(target=folder.local_folder) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        process.communicate("go on\n")
        assert process.returncode == 0
    gets = {path: number for path, number in server.faults()["gets"].items() if path.endswith(("json", "safetensors"))}
    server.faults("none")
    assert gets == {"/bucket/once/model.safetensors": 1, "/bucket/once/config.json": 1}
    assert len(_copies(home)) == 1 and not list(home.glob("*.draft"))


def test_a_copy_made_and_held_between_two_looks_blocks_nobody(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another reader fetches the copy, and holds it until it ends, after this one saw none and before it has the lock."""
    take, fetched = nodecache._lock, []

    def fetch(draft: Path) -> None:
        fetched.append((draft / "f").write_bytes(b"x"))

    def lock(home: Path, key: str, how: int) -> int:
        if how & fcntl.LOCK_EX and not fetched:
            monkeypatch.setattr(nodecache, "_lock", take)
            held("k", size=lambda: 1, fetch=fetch)
            monkeypatch.setattr(nodecache, "_held", {})  # as if another process held it
        return take(home, key, how)

    mine = nodecache._held
    monkeypatch.setattr(nodecache, "_lock", lock)
    reader = threading.Thread(target=lambda: held("k", size=lambda: 1, fetch=fetch), daemon=True)
    reader.start()
    reader.join(timeout=20)
    assert not reader.is_alive() and len(fetched) == 1
    os.close(mine.pop(home / "k"))


FETCHER = """
import sys
from raydrd.spine.storage import Folder
Folder.of(sys.argv[1]).local_folder()
"""


def test_a_killed_fetch_leaves_no_torn_copy_and_blocks_nobody(server: Server, home: Path) -> None:
    folder = Folder.of("s3://bucket/torn")
    for name in ("a", "b", "c"):
        folder.write_bytes(name, name.encode() * 1000)
    server.faults("slow", seconds=30, methods=["GET"], contains="torn/b")
    process = subprocess.Popen([sys.executable, "-c", FETCHER, folder.uri], cwd=ROOT)
    end = time.monotonic() + 60
    while not list(home.glob("*.draft/a")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not _copies(home) - {path.name for path in home.glob("*.draft")}
    server.faults("none")
    found = folder.local_folder()
    assert {path.name: path.read_bytes() for path in found.iterdir()} == {n: n.encode() * 1000 for n in ("a", "b", "c")}
    assert not list(home.glob("*.draft"))


def test_a_failed_fetch_leaves_nothing(home: Path) -> None:
    def broken(draft: Path) -> None:
        (draft / "half").write_bytes(b"x")
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"), copied("k", size=lambda: 1, fetch=broken):
        pass
    assert list(home.iterdir()) == []
    _use("k")


def test_what_was_not_used_for_longest_leaves_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDRD_CACHE_GB", "3.5e-6")  # 3,500 bytes
    for key in ("a", "b", "c", "a", "d"):  # `a` again: now `b` is the oldest
        _use(key)
        time.sleep(0.01)
    assert _copies(home) == {"a", "c", "d"}
    assert {path.name for path in home.glob("*.lock")} == {"a.lock", "c.lock", "d.lock"}
    _use("e", 3000)
    assert _copies(home) == {"e"}


def test_what_is_in_use_stays_and_leaves_afterwards(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDRD_CACHE_GB", "2.5e-6")
    folder = Folder.of("s3://bucket/used")
    folder.write_bytes("model.safetensors", b"\x07" * 2000)
    folder.write_bytes("config.json", b"{}")
    process = subprocess.Popen(
        [sys.executable, "-c", READER, folder.uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    (used,) = _copies(home)
    for key in ("x", "y"):  # each is too much beside what is used, which stays nevertheless
        _use(key)
    assert used in _copies(home) and "x" not in _copies(home)
    process.communicate("\n")  # it reads its model again, and ends
    assert process.returncode == 0
    _use("z")
    assert _copies(home) == {"y", "z"}
    held("mine", size=lambda: 2400, fetch=lambda home: (home / "f").write_bytes(b"1") and None)
    _use("other", 2400)
    assert _copies(home) == {"mine", "other"}  # held by this process until it ends


def test_a_mapped_table_outlives_its_copy(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDRD_CACHE_GB", "0")
    folder, table = Folder.of("s3://bucket/mapped"), pa.table({"x": list(range(100_000))})
    for name in ("a.arrow", "b.arrow"):
        folder.write_arrow(name, table)
    first = folder.map_arrow("a.arrow")
    folder.map_arrow("b.arrow")
    assert len(_copies(home)) == 1  # the limit of nothing holds what is being fetched alone
    assert first == table


def test_the_limit_is_a_share_of_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYDRD_CACHE_GB", raising=False)
    assert limit(free=10**15, used=0) == LIMIT_GB * 1e9
    assert limit(free=10**9, used=10**9) == 10**9
    monkeypatch.setenv("RAYDRD_CACHE_GB", "0.5")
    assert limit(free=10**15, used=0) == 5 * 10**8
    monkeypatch.setenv("RAYDRD_CACHE_GB", "much")
    with pytest.raises(InputError, match="RAYDRD_CACHE_GB=much: not a number of gigabytes"):
        limit(free=1, used=1)


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(home: Path) -> None:
    with (
        pytest.raises(StageError, match=r"needed, .* free; make room there, or set RAYDRD_CACHE") as caught,
        copied("k", size=lambda: 10**18, fetch=lambda _: pytest.fail("fetched")),
    ):
        pass
    assert str(home) in str(caught.value) and list(home.iterdir()) == []
