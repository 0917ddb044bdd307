"""Folders: one way to read and write a local folder or an object-store prefix (`pyarrow.fs`).

Every write appears whole or not at all: locally a temporary file is renamed, an object store shows
an object only once its stream is closed. Nothing here ever renames an object or lists more than one prefix.
What an object store refuses or does not answer is tried again for a while (`trouble.patiently`); every request here
can be made twice.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar
from uuid import uuid4

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raydrd.errors import InputError
from raydrd.spine.nodecache import copied, held
from raydrd.spine.remote import buffered, filesystem
from raydrd.spine.trouble import amount, patiently

T = TypeVar("T")

BLOCK = 4 << 20


@dataclass(frozen=True)
class Folder:
    """A folder by its URI: `/abs/path`, `s3://bucket/prefix?options` or `gs://...`. A value: it pickles to workers."""

    uri: str

    @staticmethod
    def of(where: str | Path | Folder) -> Folder:
        if isinstance(where, Folder):
            return where
        text = str(where)
        place, _, options = text.partition("?")
        if "@" in place.partition("://")[2].partition("/")[0] or "secret_key=" in options:
            raise InputError("a storage address with credentials would be written into reports; put them into the environment")
        if text.startswith("file://"):
            text = text[len("file://") :]
        return Folder(text.rstrip("/") if "://" in text else str(Path(text).expanduser().resolve()))

    @property
    def is_local(self) -> bool:
        return "://" not in self.uri

    def __truediv__(self, name: str) -> Folder:
        base, question, options = self.uri.partition("?")
        return Folder(f"{base}/{name}{question}{options}")

    def __str__(self) -> str:
        return self.uri

    def _at(self, name: str) -> tuple[pafs.FileSystem, str]:
        if self.is_local:
            return filesystem("file:///")[0], f"{self.uri}/{name}"
        fs, path = patiently(self.uri, "reached", lambda: filesystem(self.uri), asks=False)
        return fs, f"{path}/{name}"

    def _patiently(self, name: str, what: str, action: Callable[[], T]) -> T:
        """A request to an object store, again and again if need be; on a local disk once."""
        return action() if self.is_local else patiently((self / name).uri, what, action)

    def _info(self, name: str) -> pafs.FileInfo:
        fs, path = self._at(name)
        return self._patiently(name, "looked up", lambda: fs.get_file_info(path))

    def check(self) -> None:
        """Look, without writing anything, whether files could be kept here.

        Raises:
            InputError: no such bucket, no access, a file in the folder's place, or a folder that this user may not write.
            StageError: the object store does not answer.
        """
        if self.is_local:
            place = Path(self.uri)
            while not place.exists():
                place = place.parent
            if not place.is_dir():
                raise InputError(f"{self.uri}: {place} is a file; name another folder")
            if not os.access(place, os.W_OK | os.X_OK):
                raise InputError(
                    f"{self.uri}: this user may not write in {place}; change its permissions, or name another folder"
                )
            return
        fs, path = self._at("")
        bucket = path.partition("/")[0]
        if self._patiently("", "reached", lambda: fs.get_file_info(bucket)).type != pafs.FileType.NotFound:
            return
        if "allow_bucket_creation=true" not in self.uri.partition("?")[2]:
            raise InputError(f"{self.uri.partition('?')[0]}: no such bucket; create it, or correct the address")
        self._patiently("", "created", lambda: fs.create_dir(bucket))

    # -- whole files ------------------------------------------------------------------------------

    @contextmanager
    def writing(self, name: str) -> Iterator[Any]:
        """A binary stream; `name` exists only after the block ends well."""
        if not self.is_local:
            # Closing a stream publishes what it holds, also after an error: only a whole draft is sent.
            with tempfile.TemporaryFile() as whole:
                yield whole
                whole.flush()
                self._send(name, whole)
            return
        final = Path(self.uri) / name
        final.parent.mkdir(parents=True, exist_ok=True)
        draft = final.with_name(f".{final.name}.{uuid4().hex[:8]}")
        try:
            with filesystem("file:///")[0].open_output_stream(str(draft)) as stream:
                yield stream
            os.replace(draft, final)
        except OSError as error:
            size = draft.stat().st_size if draft.exists() else 0
            draft.unlink(missing_ok=True)
            if error.errno and not error.filename:  # Arrow names no file
                told = f"{os.strerror(error.errno)} after {amount(size)} of this file"
                raise OSError(error.errno, told, str(final)) from error
            raise
        except BaseException:
            draft.unlink(missing_ok=True)
            raise

    def _send(self, name: str, whole: IO[bytes]) -> None:
        """Put a whole file into the object store. One `write` call, so that no interrupt can cut it in two."""
        fs, path = self._at(name)
        size = os.fstat(whole.fileno()).st_size

        def put(data: Any) -> None:
            with fs.open_output_stream(path) as stream:
                stream.write(data)

        if not size:
            self._patiently(name, "written", lambda: put(b""))
            return
        with mmap.mmap(whole.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self._patiently(name, "written", lambda: put(data))

    @contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        """A seekable binary stream over the stored bytes.

        Raises:
            FileNotFoundError: there is no such file.
        """
        if self.is_local:
            with filesystem("file:///")[0].open_input_file(f"{self.uri}/{name}") as stream:
                yield stream
            return
        with buffered(lambda: self._at(name), (self / name).uri, BLOCK) as stream:
            yield stream

    def write_bytes(self, name: str, data: bytes) -> None:
        with self.writing(name) as stream:
            stream.write(data)

    def read_bytes(self, name: str) -> bytes:
        if self.is_local:
            with self.reading(name) as stream:
                return stream.read()
        fs, path = self._at(name)

        def get() -> bytes:
            with fs.open_input_file(path) as stream:
                found: bytes = stream.read()
                if len(found) != stream.size():
                    raise OSError(f"broke off after {len(found)} of {stream.size()} bytes")
                return found

        return self._patiently(name, "read", get)

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def create(self, name: str, data: bytes) -> bool:
        """Write `name` unless it is there already; False when somebody else was first.

        Locally this is atomic (a hard link). `pyarrow.fs` has no conditional put: on an object store it is
        look-then-write, and two writers in the same instant leave the later one's manifest, whose own files are
        complete too.
        """
        if not self.is_local:
            if self.exists(name):
                return False
            self.write_bytes(name, data)
            return True
        final = Path(self.uri) / name
        draft = final.with_name(f".{final.name}.{uuid4().hex[:8]}")
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_bytes(data)
            os.link(draft, final)
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        return True

    # -- tables -----------------------------------------------------------------------------------

    def write_table(self, name: str, table: pa.Table) -> None:
        with self.writing(name) as stream:
            pq.write_table(table, stream, compression="zstd")

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        if not self.is_local and columns is None:
            return pq.read_table(pa.BufferReader(self.read_bytes(name)))
        with self.reading(name) as stream:
            return pq.read_table(stream, columns=columns)

    def write_arrow(self, name: str, table: pa.Table) -> None:
        """Uncompressed Arrow IPC as one record batch, so that a reader can memory-map it."""
        with self.writing(name) as stream, pa.ipc.new_file(stream, table.schema) as writer:
            writer.write_table(table.combine_chunks())

    def map_arrow(self, name: str) -> pa.Table:
        """The table of an Arrow IPC file, memory-mapped (a remote file is fetched once to this node)."""
        if self.is_local:
            with pa.memory_map(f"{self.uri}/{name}") as source:
                return pa.ipc.open_file(source).read_all()
        # A mapping outlives its file, so nothing is held: the copy may leave the cache while it is read.
        with copied(**self._copy(name, "")) as home, pa.memory_map(str(home / Path(name).name)) as source:
            return pa.ipc.open_file(source).read_all()

    # -- names ------------------------------------------------------------------------------------

    def exists(self, name: str) -> bool:
        return bool(self._info(name).type == pafs.FileType.File)

    def files(self, under: str = "") -> dict[str, int]:
        """Relative name -> size in bytes of every file below `under`, sorted by name; drafts are left out."""
        fs, path = self._at(under)
        root = self._at("")[1].rstrip("/")
        selector = pafs.FileSelector(path.rstrip("/"), recursive=True, allow_not_found=True)
        found = {
            info.path[len(root) :].lstrip("/"): int(info.size)
            for info in self._patiently(under, "listed", lambda: fs.get_file_info(selector))
            if info.type == pafs.FileType.File and not info.base_name.startswith(".")
        }
        return dict(sorted(found.items()))

    def folders(self) -> list[str]:
        """Names of the folders right here, sorted."""
        fs, path = self._at("")
        selector = pafs.FileSelector(path.rstrip("/"), recursive=False, allow_not_found=True)
        found = self._patiently("", "listed", lambda: fs.get_file_info(selector))
        return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)

    def delete_file(self, name: str) -> None:
        """Remove one file; nothing happens if it is not there."""
        fs, path = self._at(name)
        if self.exists(name):
            with suppress(FileNotFoundError):
                self._patiently(name, "deleted", lambda: fs.delete_file(path))

    def delete(self) -> None:
        """Remove the folder and all that is in it; nothing happens if it is not there."""
        fs, path = self._at("")
        if self.is_local:
            shutil.rmtree(self.uri, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):
                self._patiently("", "deleted", lambda: fs.delete_dir(path.rstrip("/")))

    # -- this node's own copy ---------------------------------------------------------------------

    def local(self, name: str, stamp: str = "") -> Path:
        """A path on this machine that holds `name`: the file itself, or a copy fetched once into the node's cache.

        The copy stays as long as this process. Artifacts never change; of a folder that may be written again, give a
        `stamp` that says which writing it is.
        """
        if self.is_local:
            return Path(self.uri) / name
        return held(**self._copy(name, stamp)) / Path(name).name

    def _copy(self, name: str, stamp: str) -> dict[str, Any]:
        """What the node's cache must know of one file."""

        def size() -> int:
            found = self._info(name)
            if found.type != pafs.FileType.File:
                raise FileNotFoundError(f"{self.uri}: no file {name}")
            return int(found.size)

        return {
            "key": _key(self.uri, stamp, name),
            "size": size,
            "fetch": lambda home: self._fetch(name, home / Path(name).name),
        }

    def local_folder(self, stamp: str = "") -> Path:
        """This folder as a path on this machine, all files fetched; the copy stays as long as this process."""
        if self.is_local:
            return Path(self.uri)
        files: dict[str, int] = {}

        def size() -> int:
            files.update(self.files())
            if not files:
                raise FileNotFoundError(self.uri)
            return sum(files.values())

        def fetch(home: Path) -> None:
            for name in files:
                (home / name).parent.mkdir(parents=True, exist_ok=True)
                self._fetch(name, home / name)

        return held(_key(self.uri, stamp, ""), size=size, fetch=fetch)

    def _fetch(self, name: str, target: Path) -> None:
        with self.reading(name) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, BLOCK)

    def upload(self, source: Path) -> None:
        """Copy every file below a local folder here."""
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            name = path.relative_to(source).as_posix()
            with path.open("rb") as data:
                if not self.is_local:
                    self._send(name, data)
                    continue
                with self.writing(name) as stream:
                    shutil.copyfileobj(data, stream, BLOCK)


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
