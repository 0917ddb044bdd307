"""A folder is a folder, on this disk or in an object store: whole files or none."""

from __future__ import annotations

import os
import pickle
import signal
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
from raydrd.errors import InputError
from raydrd.spine.cluster import Cluster
from raydrd.spine.nodecache import cache_home
from raydrd.spine.remote import filesystem
from raydrd.spine.storage import Folder
from raydrd.spine.store import MANIFEST, Store, Work, stage


@pytest.fixture(scope="module")
def object_store() -> Iterator[str]:
    """The address of a real S3 server on this machine's loopback, with credentials in the environment."""
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    values = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    yield "s3://bucket/some/prefix?allow_delayed_open=true&allow_bucket_creation=true"
    server.stop()
    filesystem.cache_clear()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return Folder.of(tmp_path / "folder")
    remote = Folder.of(request.getfixturevalue("object_store"))
    base = remote / request.node.name.replace("[", "-").strip("]")
    # A bucket comes into being by a first write to it.
    fs, path = base._at("")
    fs.create_dir(path.split("/")[0])
    return base


def test_names_and_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Folder.of("x/").uri == str(tmp_path / "x") and Folder.of("x").is_local
    assert Folder.of(f"file://{tmp_path}") == Folder.of(tmp_path) == Folder.of(Folder.of(tmp_path))
    remote = Folder.of("s3://bucket/a/?region=eu")
    assert not remote.is_local
    assert Folder.of("s3://bucket/a/") == Folder.of("s3://bucket/a")
    assert (Folder.of("s3://bucket/a?region=eu") / "b/c").uri == "s3://bucket/a/b/c?region=eu"
    assert pickle.loads(pickle.dumps(remote)) == remote


def test_what_is_written_is_read(folder: Folder, tmp_path: Path) -> None:
    assert folder.files() == {} and not folder.exists("a.bin")
    folder.write_bytes("a.bin", b"\x00\xffdata")
    folder.write_bytes("deep/er/b.bin", b"")
    folder.write_json("c.json", {"text": "naïve\u2028line", "n": [1, 2.5, None]})
    assert folder.read_bytes("a.bin") == b"\x00\xffdata" and folder.read_bytes("deep/er/b.bin") == b""
    assert folder.read_json("c.json") == {"text": "naïve\u2028line", "n": [1, 2.5, None]}
    assert folder.exists("a.bin") and not folder.exists("deep")
    assert list(folder.files()) == ["a.bin", "c.json", "deep/er/b.bin"] and folder.files()["a.bin"] == 6
    assert folder.files("deep") == {"deep/er/b.bin": 0}
    with pytest.raises(FileNotFoundError):
        folder.read_bytes("nothing")
    folder.write_bytes("a.bin", b"again")
    assert folder.read_bytes("a.bin") == b"again"
    with folder.reading("c.json") as stream:
        stream.seek(1)
        assert stream.read(3) == b"\n  "
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "f.txt").write_text("copied")
    folder.upload(source)
    assert folder.read_bytes("sub/f.txt") == b"copied"
    (folder / "deep").delete()
    assert list(folder.files()) == ["a.bin", "c.json", "sub/f.txt"]
    (folder / "deep").delete()  # not there: nothing happens
    assert pickle.loads(pickle.dumps(folder)).read_bytes("sub/f.txt") == b"copied"


def test_tables_go_round_and_arrow_files_are_mapped(folder: Folder) -> None:
    table = pa.table({"ids": pa.array([[1, 2], [], [3]], pa.list_(pa.int32())), "x": pa.array([1.5, None, 2.0])})
    folder.write_table("t.parquet", table)
    folder.write_arrow("t.arrow", pa.concat_tables([table, table]))
    assert folder.read_table("t.parquet") == table
    assert folder.read_table("t.parquet", ["x"]).column_names == ["x"]
    mapped = folder.map_arrow("t.arrow")
    assert mapped == pa.concat_tables([table, table])
    assert mapped["ids"].num_chunks == 1  # one record batch: offsets count through the whole file
    assert folder.local("t.arrow").is_file()


def test_create_is_for_the_first_alone(folder: Folder) -> None:
    assert folder.create("m.json", b"first") is True
    assert folder.create("m.json", b"second") is False
    assert folder.read_bytes("m.json") == b"first" and list(folder.files()) == ["m.json"]


def test_of_many_creators_exactly_one_wins(tmp_path: Path) -> None:
    folder, won, barrier = Folder.of(tmp_path), [], threading.Barrier(16)

    def race(number: int) -> None:
        barrier.wait()
        if folder.create("m.json", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=race, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and folder.read_bytes("m.json") == str(won[0]).encode()
    assert os.listdir(tmp_path) == ["m.json"]  # no drafts left


def test_a_writer_that_fails_leaves_what_was_there(folder: Folder) -> None:
    folder.write_bytes("kept", b"old")
    for name in ("kept", "new"):
        with pytest.raises(RuntimeError, match="disk"), folder.writing(name) as stream:
            stream.write(b"half")
            assert set(folder.files()) == {"kept"}  # not visible while it is being written
            raise RuntimeError("disk")
    assert folder.read_bytes("kept") == b"old"
    assert set(folder.files()) == {"kept"}
    if folder.is_local:
        assert os.listdir(folder.uri) == ["kept"]


@pytest.mark.parametrize("address", ["s3://KEY:SECRET@bucket/x", "s3://bucket/x?access_key=K&secret_key=S"])
def test_an_address_with_credentials_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="put them into the environment") as caught:
        Folder.of(address)
    assert "SECRET" not in str(caught.value) and "secret_key=S" not in str(caught.value)


WRITER = """
import sys, time
from raydrd.spine.storage import Folder
folder = Folder.of(sys.argv[1])
folder.write_bytes("whole", b"1")
with folder.writing("half") as stream:
    stream.write(b"x" * 100_000)
    print("writing", flush=True)
    time.sleep(100)
"""


def test_a_writer_killed_in_the_middle_leaves_nothing_to_read(folder: Folder) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, folder.uri], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    assert list(folder.files()) == ["whole"]
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    time.sleep(0.1)
    assert list(folder.files()) == ["whole"] and not folder.exists("half")
    with pytest.raises(FileNotFoundError):
        folder.read_bytes("half")
    folder.write_bytes("half", b"whole now")
    assert folder.read_bytes("half") == b"whole now"


def test_a_remote_file_is_fetched_once_to_this_node(object_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDRD_CACHE", str(tmp_path / "node"))
    assert cache_home() == tmp_path / "node"
    remote = Folder.of(object_store) / "fetched"
    fs, path = remote._at("")
    fs.create_dir(path.split("/")[0])
    with pytest.raises(FileNotFoundError):
        remote.local_folder()
    for name in ("config.json", "1_Pooling/config.json"):
        remote.write_bytes(name, name.encode())
    home = remote.local_folder()
    assert home.is_relative_to(tmp_path / "node")
    assert {p.relative_to(home).as_posix() for p in home.rglob("*") if p.is_file()} == set(remote.files())
    remote.delete()  # what is here is not fetched again
    assert remote.local_folder() == home
    remote.write_bytes("1_Pooling/config.json", b"1_Pooling/config.json")
    assert (remote / "1_Pooling").local_folder().joinpath("config.json").read_text() == "1_Pooling/config.json"


@stage(version=1)
def squares(work: Work, *, count: int) -> dict[str, Any]:
    work.shards.write_table("part-000000000000-000000000003.parquet", pa.table({"x": [n * n for n in range(count)]}))
    (work.shards / "attempts").write_bytes("mark", b"")
    work.folder.write_json("about.json", count)
    return {"rows": count}


def test_a_store_in_an_object_store(object_store: str) -> None:
    root = Folder.of(object_store) / "store"
    fs, path = root._at("")
    fs.create_dir(path.split("/")[0])
    first = Store(root, Cluster(Resources(ray="off")))
    made = first.run(squares, count=3)
    assert set(made.home.files()) == {MANIFEST, *made.manifest["files"]}  # the marks of attempts are gone
    assert set(made.manifest["files"]) == {
        f"{made.manifest['attempt']}/about.json",
        "shards/part-000000000000-000000000003.parquet",
    }
    second = Store(root, Cluster(Resources(ray="off")))
    assert second.run(squares, count=3) == made and second.journal[0].reused
    assert second.run(squares, count=2).manifest["because"] == ["count: 3 -> 2"]
    assert made.shards.read_table("part-000000000000-000000000003.parquet")["x"].to_pylist() == [0, 1, 4]
