"""This node's copies of remote files and folders: fetched once, whole, and no more of them than the limit allows.

    HOME/KEY/          a copy; it appears by a rename, so it is whole
    HOME/KEY.lock      held alone while fetching or removing, shared while somebody reads; its time is that of the last use
    HOME/KEY.draft/    being fetched

Locks are the kernel's (`flock`): they end with their process, however it ends, so a killed fetch blocks nobody.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from raydrd.errors import InputError, StageError
from raydrd.spine.trouble import AGAIN, amount

LIMIT_GB = 100.0

# Copies that this process uses until it ends: the lock's descriptor by the copy's path.
_held: dict[Path, int] = {}
# Bytes that this process may still fetch before it looks again how full the cache is.
_unwatched: dict[Path, int] = {}


def cache_home() -> Path:
    """Where copies of remote files live on this node: $RAYDRD_CACHE or ~/.cache/raydrd."""
    return Path(os.environ.get("RAYDRD_CACHE") or Path.home() / ".cache" / "raydrd")


def limit(free: int, used: int) -> int:
    """Bytes that copies may take: $RAYDRD_CACHE_GB (100), and never more than half of what the disk has for them.

    Raises:
        InputError: the variable is no number.
    """
    text = os.environ.get("RAYDRD_CACHE_GB", "")
    try:
        wanted = float(text) if text else LIMIT_GB
    except ValueError:
        raise InputError(f"RAYDRD_CACHE_GB={text}: not a number of gigabytes; write for example 100") from None
    return int(min(max(0.0, wanted) * 1e9, (free + used) / 2))


@contextmanager
def copied(key: str, *, size: Callable[[], int], fetch: Callable[[Path], None]) -> Iterator[Path]:
    """The folder with the copy, fetched if it is not here; it is not removed inside the block.

    `fetch` fills an empty folder with the `size()` bytes it said. Of several that ask at once, one fetches and the others
    wait; a failed fetch leaves nothing, and the next one tries.

    Raises:
        StageError: the disk has no room for it, even with all other copies gone that nobody uses.
    """
    home = cache_home()
    if _holds(home / key):
        yield home / key
        return
    lock = _ready(home, key, size, fetch)
    try:
        yield home / key
    finally:
        os.close(lock)


def held(key: str, *, size: Callable[[], int], fetch: Callable[[Path], None]) -> Path:
    """As `copied`, for the rest of this process: for models and indexes, whose files are opened at any time."""
    home = cache_home()
    if not _holds(home / key):
        lock = _ready(home, key, size, fetch)
        if _held.setdefault(home / key, lock) != lock:  # another thread was first
            os.close(lock)
    return home / key


def _holds(copy: Path) -> bool:
    """This process holds the copy; marks it as used. False too when somebody removed it by hand."""
    if copy not in _held:
        return False
    if not copy.is_dir():
        os.close(_held.pop(copy))
        return False
    _used(_held[copy])
    return True


def _ready(home: Path, key: str, size: Callable[[], int], fetch: Callable[[Path], None]) -> int:
    """A shared lock on a copy that is there."""
    home.mkdir(parents=True, exist_ok=True)
    while True:
        lock = _lock(home, key, fcntl.LOCK_SH)
        if (home / key).is_dir():
            _used(lock)
            return lock
        os.close(lock)
        # Never waiting for the lock alone: whoever fetched the copy in between may hold it shared until its process ends.
        try:
            lock = _lock(home, key, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(random.uniform(0.001, 0.02))
            continue
        try:
            if not (home / key).is_dir():
                _fetch(home, key, lock, size, fetch)
        finally:
            os.close(lock)


def _fetch(home: Path, key: str, lock: int, size: Callable[[], int], fetch: Callable[[Path], None]) -> None:
    draft = home / f"{key}.draft"
    shutil.rmtree(draft, ignore_errors=True)  # of a killed process
    try:
        bytes_ = size()
        os.pwrite(lock, b"%d" % bytes_, 0)
        make_room(home, bytes_)
        draft.mkdir()
        fetch(draft)
        os.rename(draft, home / key)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        (home / f"{key}.lock").unlink(missing_ok=True)
        raise


def _used(lock: int) -> None:
    os.utime(lock)


def _lock(home: Path, key: str, how: int) -> int:
    """The descriptor of the locked file. A lock on a file that was removed meanwhile is none: look again.

    Raises:
        BlockingIOError: with LOCK_NB, somebody else has it.
    """
    path = home / f"{key}.lock"
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, how)
            with suppress(FileNotFoundError):
                if os.fstat(lock).st_ino == path.stat().st_ino:
                    return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def make_room(home: Path, need: int) -> None:
    """Remove what was not used for longest and is not in use, until `need` more bytes fit the limit and the disk.

    What is in use stays, also when the limit is passed by it.

    Raises:
        StageError: the disk has no room.
    """
    free = shutil.disk_usage(home).free
    left = _unwatched.get(home, 0) - need
    if left >= 0 and free > 2 * need:
        _unwatched[home] = left
        return
    copies = []
    for entry in os.scandir(home):
        if ".gone-" in entry.name:  # of a process that was killed while it removed this
            shutil.rmtree(entry.path, ignore_errors=True)
        elif entry.name.endswith(".lock"):
            with suppress(FileNotFoundError, ValueError):
                size = int(Path(entry.path).read_text() or 0)
                copies.append((entry.stat().st_mtime_ns, size, entry.name.removesuffix(".lock")))
    # The copy that is about to be fetched is among them with its size, and its lock is held.
    used = sum(size for _, size, _ in copies)
    allowed = limit(free, max(0, used - need))
    for _, size, key in sorted(copies):
        if used <= allowed and shutil.disk_usage(home).free > need:
            break
        if _removed(home, key):
            used -= size
    free = shutil.disk_usage(home).free
    if free <= need:
        raise StageError(
            f"node cache {home}: {amount(need)} needed, {amount(free)} free; "
            f"make room there, or set RAYDRD_CACHE to a folder on a larger disk; {AGAIN}"
        )
    _unwatched[home] = max(0, min(allowed // 100, allowed - used))


def _removed(home: Path, key: str) -> bool:
    """Remove a copy unless it is in use."""
    try:
        lock = _lock(home, key, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    try:
        gone = [home / f"{key}.gone-{uuid4().hex[:8]}" for _ in range(2)]
        for name, place in zip((key, f"{key}.draft"), gone, strict=True):
            with suppress(FileNotFoundError):
                os.rename(home / name, place)
        (home / f"{key}.lock").unlink(missing_ok=True)
    finally:
        os.close(lock)
    for place in gone:
        shutil.rmtree(place, ignore_errors=True)
    return True
