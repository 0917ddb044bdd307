"""A full disk and folders that may not be written: one clear line, a store that stays sound, and the same command goes on."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raydrd.cli import main
from raydrd.config import Resources
from raydrd.errors import InputError, StageError
from raydrd.spine.cluster import Cluster, failure
from raydrd.spine.storage import Folder
from raydrd.spine.store import MANIFEST, Store, Work, stage
from raydrd.spine.trouble import amount, explained
from tests.conftest import write_config

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if not shutil.which("mount") or os.getuid() != 0:
        pytest.skip("mounting a small disk needs root; test_a_file_that_may_not_grow stands for it")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@stage(version=1)
def blocks(work: Work, *, count: int) -> dict[str, Any]:
    """`count` shards of a megabyte; those that are there are not made again."""
    for number in range(count):
        if not work.shards.exists(f"{number}.bin"):
            work.shards.write_bytes(f"{number}.bin", bytes([number]) * 1_000_000)
    return {"rows": count}


def _store(root: Path) -> Store:
    return Store(Folder.of(root), Cluster(Resources(ray="off")))


def _drafts(root: Path) -> list[Path]:
    return [path for path in root.rglob(".*") if path.is_file()]


def test_a_full_disk_leaves_the_store_sound_and_the_run_goes_on(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 1_500_000)
    with pytest.raises(OSError, match=r"No space left on device after .* of this file") as caught:
        _store(small_disk / "store").run(blocks, count=4)
    assert caught.value.errno == errno.ENOSPC
    line = str(explained(caught.value))
    assert isinstance(explained(caught.value), StageError) and "\n" not in line
    assert line.startswith(f"{small_disk}/store/blocks/") and "the disk is full after " in line and "free of 4.2 MB" in line
    assert "make room, or name another folder" in line and "the same command goes on" in line
    (home,) = (small_disk / "store" / "blocks").iterdir()
    there = {path: path.stat().st_mtime_ns for path in (home / "shards").iterdir()}
    assert there and all(path.stat().st_size == 1_000_000 for path in there)
    assert not (home / MANIFEST).exists() and not _drafts(small_disk)
    ballast.unlink()
    made = _store(small_disk / "store").run(blocks, count=4)
    assert len(made.manifest["files"]) == 4 and made.home.uri == str(home)
    assert {path: path.stat().st_mtime_ns for path in there} == there  # not made again


def test_no_room_for_the_manifest_is_not_finished(small_disk: Path) -> None:
    folder = Folder.of(small_disk / "a")
    folder.write_bytes("data", b"1")
    with pytest.raises(OSError, match="No space left") as caught:
        folder.create(MANIFEST, b"x" * 5_000_000)
    assert "the disk is full" in str(explained(caught.value))
    assert list(folder.files()) == ["data"] and not _drafts(small_disk)
    with pytest.raises(OSError, match="No space left"):
        folder.write_table("t.parquet", pa.table({"x": [os.urandom(5_000_000)]}))
    assert list(folder.files()) == ["data"] and not _drafts(small_disk)


def test_the_command_line_says_it_in_one_line(
    small_disk: Path, toy_config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "toy.yaml", toy_config)
    (small_disk / "ballast").write_bytes(b"x" * (4 << 20))
    assert main(["run", config, "--store", str(small_disk / "store"), "--out", str(tmp_path / "run")]) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("raydrd: load: ") and f"{small_disk}/store/" in line
    assert "the disk is full" in line and "(0 bytes free of 4.2 MB); make room" in line


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys; from raydrd.spine.storage import Folder; from raydrd.spine.trouble import explained\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "folder = Folder.of(sys.argv[1])\n"
        "for write in (folder.write_bytes, folder.create):\n"
        "    try: write('f', b'x' * 1_000_000)\n"
        "    except OSError as error: print(explained(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{tmp_path}/f: larger than a file may be here (ulimit -f") and "larger than a file" in second
    assert os.listdir(tmp_path) == []


def test_a_folder_that_may_not_be_written_is_said_as_such() -> None:
    # As root no permission bites: the program becomes nobody once it has been imported.
    program = (
        "import os, sys\n"
        "from raydrd.spine.storage import Folder\n"
        "from raydrd.spine.trouble import explained\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: Folder.of(sys.argv[1]).check()\n"
        "except ValueError as error: print(error)\n"
        "try: (Folder.of(sys.argv[1]) / 'store').write_bytes('f', b'')\n"
        "except OSError as error: print(type(explained(error)).__name__, explained(error))\n"
    )
    with tempfile.TemporaryDirectory() as scratch:  # pytest's own folders are closed to others
        locked = Path(scratch) / "locked"
        locked.mkdir(mode=0o555)
        Path(scratch).chmod(0o755)
        done = subprocess.run([sys.executable, "-c", program, str(locked)], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first == f"{locked}: this user may not write in {locked}; change its permissions, or name another folder"
    assert second.startswith(f"InputError {locked}/store: may not be used by this user (uid ")


def test_a_file_in_the_stores_place_is_refused_before_any_work(
    toy_config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "toy.yaml", toy_config)
    (tmp_path / "file").write_text("mine")
    for places in (
        ["--store", str(tmp_path / "file" / "store"), "--out", str(tmp_path / "run")],
        ["--out", str(tmp_path / "file")],
    ):
        assert main(["run", config, "--store", str(tmp_path / "store"), *places]) == 2
        *_, line = capsys.readouterr().err.splitlines()
        assert line.startswith(f"raydrd: {tmp_path}/file") and f"{tmp_path}/file is a file; name another folder" in line
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "store").exists()


def test_what_is_explained_and_what_keeps_its_trace() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/tmp/f")
    assert set(failure(full)) == {"error"} and failure(full)["error"].startswith("/tmp/f: the disk is full (")
    denied = PermissionError(errno.EACCES, "Permission denied", "/etc/f")
    assert failure(denied)["input"] and isinstance(explained(denied), InputError)
    theirs = RuntimeError(
        "Error in faiss: write error: No space left on device (os error 28)"
    )  # no OSError, the system's words
    assert "the disk is full" in str(explained(theirs))
    for error in (ValueError("x"), FileNotFoundError(errno.ENOENT, "No such file", "/f"), OSError("weights are not there")):
        assert explained(error) is None and "trace" in failure(error)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (42e6, "42 MB"), (1.5e9, "1.5 GB"), (2e12, "2.0 TB")],
)
def test_amounts(size: float, text: str) -> None:
    assert amount(size) == text
