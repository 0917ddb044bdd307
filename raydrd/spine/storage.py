"""Folders: one way to read and write a local folder or an object-store prefix (`pyarrow.fs`).

Every write appears whole or not at all: locally a temporary file is renamed, an object store shows
an object only once its stream is closed. Nothing here ever renames an object or lists more than one prefix.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raydrd.errors import InputError


@lru_cache(maxsize=64)
def _filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    # from_uri, not the S3FileSystem constructor: only the former honours AWS_ENDPOINT_URL.
    fs, path = pafs.FileSystem.from_uri(uri)
    return fs, path


def cache_home() -> Path:
    """Where copies of remote files live on this node: $RAYDRD_CACHE or ~/.cache/raydrd."""
    return Path(os.environ.get("RAYDRD_CACHE") or Path.home() / ".cache" / "raydrd")


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
            return _filesystem("file:///")[0], f"{self.uri}/{name}"
        fs, path = _filesystem(self.uri)
        return fs, f"{path}/{name}"

    # -- whole files ------------------------------------------------------------------------------

    @contextmanager
    def writing(self, name: str) -> Iterator[Any]:
        """A binary stream; `name` exists only after the block ends well."""
        fs, path = self._at(name)
        if not self.is_local:
            # Closing a stream publishes what it holds, also after an error: only a whole draft is sent.
            with tempfile.TemporaryFile() as whole:
                yield whole
                whole.seek(0)
                with fs.open_output_stream(path) as stream:
                    shutil.copyfileobj(whole, stream, 1 << 22)
            return
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        draft = final.with_name(f".{final.name}.{uuid4().hex[:8]}")
        try:
            with fs.open_output_stream(str(draft)) as stream:
                yield stream
            os.replace(draft, final)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise

    @contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        """A seekable binary stream over the stored bytes.

        Raises:
            FileNotFoundError: there is no such file.
        """
        fs, path = self._at(name)
        with fs.open_input_file(path) as stream:
            yield stream

    def write_bytes(self, name: str, data: bytes) -> None:
        with self.writing(name) as stream:
            stream.write(data)

    def read_bytes(self, name: str) -> bytes:
        with self.reading(name) as stream:
            return stream.read()

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
        draft.write_bytes(data)
        try:
            os.link(draft, final)
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        return True

    # -- tables -----------------------------------------------------------------------------------

    def write_table(self, name: str, table: pa.Table) -> None:
        with self.writing(name) as stream:
            pq.write_table(table, stream, compression="zstd")

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        with self.reading(name) as stream:
            return pq.read_table(stream, columns=columns)

    def write_arrow(self, name: str, table: pa.Table) -> None:
        """Uncompressed Arrow IPC as one record batch, so that a reader can memory-map it."""
        with self.writing(name) as stream, pa.ipc.new_file(stream, table.schema) as writer:
            writer.write_table(table.combine_chunks())

    def map_arrow(self, name: str) -> pa.Table:
        """The table of an Arrow IPC file, memory-mapped (a remote file is fetched once to this node)."""
        with pa.memory_map(str(self.local(name))) as source:
            return pa.ipc.open_file(source).read_all()

    # -- names ------------------------------------------------------------------------------------

    def exists(self, name: str) -> bool:
        fs, path = self._at(name)
        return bool(fs.get_file_info(path).type == pafs.FileType.File)

    def files(self, under: str = "") -> dict[str, int]:
        """Relative name -> size in bytes of every file below `under`, sorted by name; drafts are left out."""
        fs, path = self._at(under)
        root = self._at("")[1].rstrip("/")
        selector = pafs.FileSelector(path.rstrip("/"), recursive=True, allow_not_found=True)
        found = {
            info.path[len(root) :].lstrip("/"): int(info.size)
            for info in fs.get_file_info(selector)
            if info.type == pafs.FileType.File and not info.base_name.startswith(".")
        }
        return dict(sorted(found.items()))

    def folders(self) -> list[str]:
        """Names of the folders right here, sorted."""
        fs, path = self._at("")
        selector = pafs.FileSelector(path.rstrip("/"), recursive=False, allow_not_found=True)
        return sorted(info.base_name for info in fs.get_file_info(selector) if info.type == pafs.FileType.Directory)

    def delete_file(self, name: str) -> None:
        """Remove one file; nothing happens if it is not there."""
        fs, path = self._at(name)
        if self.exists(name):
            fs.delete_file(path)

    def delete(self) -> None:
        """Remove the folder and all that is in it; nothing happens if it is not there."""
        fs, path = self._at("")
        if self.is_local:
            shutil.rmtree(self.uri, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):
                fs.delete_dir(path.rstrip("/"))

    # -- this node's own copy ---------------------------------------------------------------------

    def local(self, name: str, stamp: str = "") -> Path:
        """A path on this machine that holds `name`: the file itself, or a copy fetched once into the node's cache.

        Artifacts never change; of a folder that may be written again, give a `stamp` that says which writing it is.
        """
        if self.is_local:
            return Path(self.uri) / name
        key = hashlib.sha256(f"{self.uri}\0{stamp}".encode()).hexdigest()[:16]
        copy = cache_home() / key / name
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            draft = copy.with_name(f".{copy.name}.{uuid4().hex[:8]}")
            with self.reading(name) as source, draft.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 22)
            os.replace(draft, copy)
        return copy

    def local_folder(self, stamp: str = "") -> Path:
        """This folder as a path on this machine, all files fetched."""
        if self.is_local:
            return Path(self.uri)
        paths = [(self.local(name, stamp), name) for name in self.files()]
        if not paths:
            raise FileNotFoundError(self.uri)
        first, name = paths[0]
        return first.parents[len(Path(name).parts) - 1]

    def upload(self, source: Path) -> None:
        """Copy every file below a local folder here."""
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            with self.writing(path.relative_to(source).as_posix()) as stream, path.open("rb") as data:
                shutil.copyfileobj(data, stream, 1 << 22)
