"""What goes wrong with disks and object stores: what is tried again, and the one line that says what it was."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from raydrd.errors import InputError, StageError
from raydrd.spine.progress import say

T = TypeVar("T")

PATIENCE = 120.0
AGAIN = "what is finished is kept, the same command goes on from there"

# Answers that waiting does not change (S3 in pyarrow's names, Google in its own).
_REFUSED = {
    "ACCESS_DENIED": "access denied; check the credentials of every node, and what they may read, list and write",
    "PERMISSION_DENIED": "access denied; check the credentials of every node, and what they may read, list and write",
    "UNAUTHENTICATED": "no credentials that are known there; put them into the environment of every node",
    "INVALID_ACCESS_KEY_ID": "no credentials that are known there; put them into the environment of every node",
    "SIGNATURE_DOES_NOT_MATCH": "the secret key is not the one of this access key; correct the environment of every node",
    "EXPIRED_TOKEN": "the credentials have expired; renew them and run the same command again",
    "ExpiredToken": "the credentials have expired; renew them and run the same command again",
    "NO_SUCH_BUCKET": "no such bucket; create it, or correct the address",
    "INVALID_BUCKET_NAME": "no such bucket; create it, or correct the address",
}
_CODE = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))? during \w+ operation: ([^(;]*)")

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_BLOCKED = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST)

# Object stores that were waited for in vain: until one answers again, nothing else in this process waits that long.
_given_up: set[str] = set()


def patience() -> float:
    """Seconds that an object store may not answer before a stage gives up: $RAYDRD_PATIENCE, or two minutes."""
    text = os.environ.get("RAYDRD_PATIENCE", "")
    try:
        return max(0.0, float(text)) if text else PATIENCE
    except ValueError:
        raise InputError(f"RAYDRD_PATIENCE={text}: not a number of seconds; write for example 120") from None


def patiently(address: str, what: str, action: Callable[[], T], *, asks: bool = True) -> T:
    """The action's result, tried again while the object store does not answer, answers with errors or breaks off.

    `what` completes "cannot be ..." in the message. The action must be one that can be done twice. `asks=False`: it may
    succeed without having asked the store, so its success does not say that the store is back.

    Raises:
        FileNotFoundError: as the action says.
        InputError: the store answers and refuses: credentials, rights, no such bucket.
        StageError: it was no use for as long as `patience` allows.
    """
    place = _place(address)
    limit = 0.0 if place in _given_up else patience()
    began, tries, told = time.monotonic(), 0, False
    while True:
        tries += 1
        try:
            result = action()
        except FileNotFoundError:
            raise
        except OSError as error:
            for sign, advice in _REFUSED.items():
                if sign in str(error):
                    raise InputError(f"{_shown(address)}: cannot be {what}: {advice}") from error
            waited = time.monotonic() - began
            if waited >= limit:
                _given_up.add(place)
                raise StageError(
                    f"{_shown(address)}: cannot be {what}: {_reason(error)} "
                    f"({tries} {'try' if tries == 1 else 'tries'} in {waited:.0f} s); {AGAIN} when it answers again"
                ) from error
            if waited > 10 and not told:
                told = True
                say(f"{_shown(address)}: cannot be {what} yet: {_reason(error)}; trying for {limit:.0f} s")
            # Many workers that were refused at once do not come back at once.
            time.sleep(min(0.2 * 2 ** min(tries, 6), 10.0, max(0.05, limit - waited)) * random.uniform(0.5, 1.0))
        else:
            if asks:
                _given_up.discard(place)
            return result


def _place(address: str) -> str:
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def _shown(address: str) -> str:
    """The address without its options."""
    place, question, rest = address.partition("?")
    return place + ("/" + rest.partition("/")[2] if question and "/" in rest else "")


def _reason(error: OSError) -> str:
    """`no answer (could not connect to server)` from what pyarrow says of the same."""
    found = _CODE.search(str(error))
    if not found:
        return " ".join(str(error).split())[:200]
    code, status, rest = found.groups()
    detail = re.sub(r"^curlCode: \d+, ", "", " ".join(rest.split())).rstrip(". ")
    if code == "NETWORK_CONNECTION":
        return f"no answer ({detail or 'connection lost'})"
    return f"{code if code != 'UNKNOWN' else f'HTTP status {status}'}{f' ({detail})' if detail else ''}"


def explained(error: BaseException) -> InputError | StageError | None:
    """A disk that is full, or that may not be written, as the one line that the user needs; None for all other errors."""
    if isinstance(error, InputError | StageError):
        return error
    text = " ".join(str(error).split())
    number = error.errno if isinstance(error, OSError) else None
    name = getattr(error, "filename", None)
    where = os.fsdecode(name) if isinstance(name, str | bytes) else ""
    if number in _FULL or "No space left on device" in text:
        # Libraries that write weights and indexes by themselves have errors of their own, with the system's words.
        _, after, written = str(getattr(error, "strerror", "") or "").partition(" after ")
        where = where or "scratch or store"
        return StageError(
            f"{where}: the disk is full{after}{written}{_room(where)}; make room, or name another folder; {AGAIN}"
        )
    if number == errno.EFBIG:
        return StageError(f"{where or 'a file'}: larger than a file may be here (ulimit -f, or the file system); {AGAIN}")
    if number in _DENIED and where:
        what = "is on a read-only disk" if number == errno.EROFS else f"may not be used by this user (uid {os.getuid()})"
        return InputError(f"{where}: {what}; change its permissions, or name another folder")
    if number in _BLOCKED and where:
        return InputError(f"{where}: {os.strerror(number).lower()}: a file and a folder of one name; name another folder")
    if number in (errno.EIO, errno.ESTALE) and where:
        return StageError(f"{where}: {os.strerror(number).lower()}: the disk or its server fails; {AGAIN}")
    return None


def _room(where: str) -> str:
    """` (2 MB free of 8 MB)` on the disk of a path, if it can be told."""
    if not where.startswith("/"):
        return ""
    place = Path(where)
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        found = shutil.disk_usage(place)
    except OSError:
        return ""
    return f" ({amount(found.free)} free of {amount(found.total)})"


def amount(size: float) -> str:
    """`1.5 GB`: bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
