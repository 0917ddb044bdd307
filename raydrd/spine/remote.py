"""Object stores through `pyarrow.fs`: the connection, with time limits that suit a busy store, and a stream that goes on."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from raydrd.errors import InputError, StageError
from raydrd.spine.trouble import patiently

# Seconds an object store may say nothing before a request is made again. The SDK's own three are too few for a busy
# store that puts the parts of a large object together.
SILENCE = 20.0


@lru_cache(maxsize=64)
def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    # from_uri, not the S3FileSystem constructor: only the former honours AWS_ENDPOINT_URL and finds the bucket's region.
    # It has no place for time limits, so its settings go through the constructor after all.
    try:
        fs, path = pafs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid as error:
        raise InputError(f"{uri.partition('?')[0]}: not an address of a store ({error})") from error
    if isinstance(fs, pafs.S3FileSystem):
        _, (settings,) = fs.__reduce__()
        settings |= {
            "request_timeout": SILENCE,
            "connect_timeout": 5.0,
            "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=3),
            "allow_delayed_open": True,  # one request for a small file, not three
            "proxy_options": settings["proxy_options"] if settings["proxy_options"]["host"] else None,
        }
        fs = pafs.S3FileSystem(**settings)
    return fs, path


def buffered(place: Callable[[], tuple[pafs.FileSystem, str]], address: str, block: int) -> io.BufferedReader:
    """A stored object as a seekable stream, read `block` bytes at a time.

    Raises:
        FileNotFoundError: there is no such object.
    """
    return io.BufferedReader(_Object(place, address), block)


class _Object(io.RawIOBase):
    """A stored object as a seekable stream whose reads are tried again; what was read before a break stays read."""

    def __init__(self, place: Callable[[], tuple[pafs.FileSystem, str]], address: str) -> None:
        self.place, self.address, self.at = place, address, 0
        self.stream: Any = None
        self.size: int = patiently(address, "read", lambda: int(self._opened().size()))

    def _opened(self) -> Any:
        if self.stream is None:
            fs, path = self.place()
            self.stream = fs.open_input_file(path)
        return self.stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence])
        return self.at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self.size - self.at)
        if wanted <= 0:
            return 0
        data = patiently(self.address, "read", lambda: self._read(wanted))
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)

    def _read(self, wanted: int) -> bytes:
        try:
            if self._opened().size() != self.size:
                raise StageError(f"{self.address}: was changed while it was being read; run the same command again")
            data: bytes = self.stream.read_at(wanted, self.at)
            if len(data) < wanted:
                raise OSError(f"broke off at byte {self.at + len(data)} of {self.size}")
        except OSError:
            self.stream = None
            raise
        return data

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()
            self.stream = None
        super().close()
