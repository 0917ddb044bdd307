"""An object store that stutters, breaks off or goes away, and writers that die: a real S3 server process, told to fail."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raydrd.config import Resources
from raydrd.errors import InputError, StageError
from raydrd.spine import trouble
from raydrd.spine.cluster import Cluster
from raydrd.spine.storage import Folder
from raydrd.spine.store import MANIFEST, Store, Work, stage
from tests.s3server import Server, serving

BIG = 12 << 20  # more than one part of an upload


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as found:
        Folder.of("s3://bucket?allow_bucket_creation=true").check()
        yield found


@pytest.fixture
def folder(server: Server, request: pytest.FixtureRequest) -> Iterator[Folder]:
    yield Folder.of("s3://bucket") / request.node.name.replace("[", "-").strip("]")
    server.faults("none")
    trouble._given_up.clear()


# -- faults that pass ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["503", "500", "reset", "after"])
def test_what_the_store_refuses_now_and_then_is_asked_again(server: Server, folder: Folder, kind: str) -> None:
    table = pa.table({"x": list(range(1000)), "y": ["text"] * 1000})
    server.faults(kind, every=3)
    for number in range(6):
        folder.write_table(f"shards/part-{number}.parquet", table)
    assert folder.create("m.json", b"1") and not folder.create("m.json", b"2")
    assert len(folder.files("shards")) == 6 and folder.folders() == ["shards"]
    assert folder.read_table("shards/part-5.parquet") == table
    assert folder.read_table("shards/part-4.parquet", ["x"]).column_names == ["x"]
    folder.delete_file("shards/part-0.parquet")
    assert not folder.exists("shards/part-0.parquet") and folder.read_bytes("m.json") == b"1"
    assert server.faults()["broken"] >= 8


def test_longer_than_the_sdk_tries_but_not_than_patience_allows(
    server: Server, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYDRD_PATIENCE", "60")
    server.faults("503", methods=["PUT"])
    timer = threading.Timer(2.0, lambda: server.faults("none"))
    timer.start()
    folder.write_bytes("late", b"at last")
    timer.join()
    assert folder.read_bytes("late") == b"at last"


def test_an_answer_slower_than_the_sdk_waits_by_itself(server: Server, folder: Folder) -> None:
    server.faults("slow", seconds=4, methods=["PUT"])
    began = time.monotonic()
    folder.write_bytes("slow", b"data")
    assert server.faults()["requests"] == 1 and time.monotonic() - began > 4  # waited for, not asked again
    assert folder.read_bytes("slow") == b"data"


def test_an_upload_in_parts_that_breaks_off_is_whole_or_not_there(
    server: Server, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(BIG)
    server.faults("reset", contains="partNumber=2", every=2)
    folder.write_bytes("whole", data)
    monkeypatch.setenv("RAYDRD_PATIENCE", "0")
    server.faults("reset", contains="partNumber=2")
    with pytest.raises(StageError, match=r"never: cannot be written: no answer"):
        folder.write_bytes("never", data)
    server.faults("none")
    assert folder.read_bytes("whole") == data and list(folder.files()) == ["whole"]


def test_a_stream_goes_on_where_it_broke_off(server: Server, folder: Folder) -> None:
    lines = b"".join(b"%09d\n" % number for number in range(BIG // 10))
    folder.write_bytes("lines", lines)
    with folder.reading("lines") as stream:
        head = [next(stream) for _ in range(1000)]
        server.faults("reset", methods=["GET"], every=2)
        assert b"".join([*head, *stream]) == lines
    assert server.faults()["broken"] >= 1


def test_a_file_that_changed_while_it_could_not_be_read_is_not_mixed(server: Server, folder: Folder) -> None:
    folder.write_bytes("f", b"a" * BIG)
    with folder.reading("f") as stream:
        stream.read(10)
        folder.write_bytes("f", b"b" * 7_000_000)
        server.faults("503", methods=["GET", "HEAD"])  # longer than the SDK tries: the stream is opened again
        timer = threading.Timer(6.0, lambda: server.faults("none"))
        timer.start()
        with pytest.raises(StageError, match="was changed while it was being read"):
            stream.read()
        timer.join()


# -- faults that stay ---------------------------------------------------------------------------------


def test_a_store_that_is_gone_is_given_up_in_one_line(server: Server, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDRD_PATIENCE", "1")
    server.faults("503")
    with pytest.raises(StageError) as caught:
        folder.exists("x")
    line = str(caught.value)
    assert line.startswith(f"{folder}/x: cannot be looked up: HTTP status 503") and "\n" not in line
    assert "the same command goes on" in line
    monkeypatch.setenv("RAYDRD_PATIENCE", "60")
    began = time.monotonic()
    with pytest.raises(StageError, match="1 try in"):  # one operation has waited: a hundred shards do not wait one by one
        folder.write_bytes("y", b"")
    assert time.monotonic() - began < 20
    server.faults("none")
    folder.write_bytes("y", b"")
    assert not trouble._given_up


def test_what_waiting_will_not_change_is_said_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDRD_PATIENCE", "100")
    began = time.monotonic()
    with pytest.raises(InputError, match=r"s3://nowhere/x/y: cannot be written: no such bucket; create it"):
        Folder.of("s3://nowhere/x").write_bytes("y", b"1")
    with pytest.raises(InputError, match=r"^s3://nowhere/x: no such bucket; create it, or correct the address$"):
        Folder.of("s3://nowhere/x").check()
    with pytest.raises(InputError, match="not an address of a store"):
        Folder.of("s3://bucket/x?no_such_option=1").check()
    with pytest.raises(InputError, match="RAYDRD_PATIENCE=soon: not a number"):
        monkeypatch.setenv("RAYDRD_PATIENCE", "soon")
        Folder.of("s3://bucket").exists("x")
    assert time.monotonic() - began < 30


# -- writers that die ---------------------------------------------------------------------------------


@stage(version=1)
def numbers(work: Work, *, count: int, size: int) -> dict[str, Any]:
    """Shards by name, then a file of the attempt; what is there is not made again."""
    for number in range(count):
        if not work.shards.exists(f"{number}.bin"):
            work.shards.write_bytes(f"{number}.bin", bytes([number]) * size)
            print(f"made {number}", flush=True)
    work.folder.write_json("about.json", {"count": count})
    return {"rows": count}


DIES = """
import sys
from raydrd.config import Resources
from raydrd.spine.cluster import Cluster
from raydrd.spine.storage import Folder
from raydrd.spine.store import Store
from tests.test_object_store import numbers
Store(Folder.of(sys.argv[1]), Cluster(Resources(ray="off"))).run(numbers, count=6, size=int(sys.argv[2]))
"""


def _killed(server: Server, root: Folder, size: int, *, after: int, path: str) -> None:
    """Start the stage in a process, and SIGKILL it while a request for `path` that follows `after` shards is under way."""
    server.faults("slow", seconds=2, contains=path, methods=["PUT"])
    process = subprocess.Popen([sys.executable, "-c", DIES, root.uri, str(size)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for number in range(after):
        assert process.stdout.readline() == f"made {number}\n"
    end = time.monotonic() + 60
    while not server.faults()["broken"]:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.wait()
    time.sleep(2.2)  # what the server had of it, it finishes or forgets
    server.faults("none")


@pytest.mark.parametrize(
    ("path", "after", "size"),
    [
        pytest.param("shards/3.bin", 3, 1000, id="many-files"),
        pytest.param("partNumber=2", 0, BIG, id="parts-of-one"),
        pytest.param("about.json", 6, 1000, id="before-the-manifest"),
    ],
)
def test_a_killed_writer_leaves_nothing_that_is_taken_for_finished(
    server: Server, folder: Folder, path: str, after: int, size: int
) -> None:
    _killed(server, folder, size, after=after, path=path)
    keep = Store(folder, Cluster(Resources(ray="off")))
    homes = [folder / "numbers" / name for name in (folder / "numbers").folders()]
    assert not any(home.exists(MANIFEST) for home in homes)
    left = {name: found for home in homes for name, found in home.files().items() if name.startswith("shards/")}
    assert len(left) in (after, after + 1) and set(left.values()) <= {size}  # whole ones only
    for home in homes:
        with pytest.raises(FileNotFoundError):
            keep.find("numbers", home.uri.rpartition("/")[2])
    server.faults("none")
    made = keep.run(numbers, count=6, size=size)
    puts = {name for name in made.manifest["files"] if name.startswith("shards/")}
    assert puts == {f"shards/{n}.bin" for n in range(6)} and homes in ([], [made.home])
    assert all(made.shards.read_bytes(f"{n}.bin") == bytes([n]) * size for n in range(6))
    assert [name.partition("/")[0] for name in made.manifest["files"]].count(made.manifest["attempt"]) == 1


def test_two_writers_at_once_leave_one_whole_result(server: Server, folder: Folder) -> None:
    """No conditional put: the later manifest may win, but what it names is there, whichever it is."""
    processes = [subprocess.Popen([sys.executable, "-c", DIES, folder.uri, "1000"], stdout=subprocess.DEVNULL) for _ in "ab"]
    assert [process.wait(timeout=100) for process in processes] == [0, 0]
    (name,) = (folder / "numbers").folders()
    made = Store(folder, Cluster(Resources(ray="off"))).find("numbers", name)
    there = made.home.files()
    assert all(there[name] == size for name, size in made.manifest["files"].items())
    assert made.folder.read_json("about.json") == {"count": 6}
    assert Path(made.home.uri).name == made.id
