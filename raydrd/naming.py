"""Which system a word of the command line means: RUN, a run folder, or RUN:SYSTEM."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from raydrd.errors import InputError
from raydrd.spine.storage import Folder

SYSTEMS = ("bm25", "student_before", "teacher", "student")


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`did you mean 'teacher'?`, or the whole list where nothing is near."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f"did you mean {by_lower[near[0]]!r}?" if near else f"write one of {', '.join(known)}"


def resolve(spec: str) -> tuple[Folder, str]:
    """The run folder and the system that RUN or RUN:SYSTEM names; a RUN alone is its final student.

    Raises:
        InputError: no such run, no such system, or a folder whose own name ends in :SYSTEM beside a run without it.
    """
    try:
        return _resolve(spec)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{spec}: cannot be read ({error}); write the folder of a finished run") from error


def _resolve(spec: str) -> tuple[Folder, str]:
    if Folder.of(spec).is_local and Path(spec).is_file():
        around = str(Path(spec).parent)
        raise InputError(f"{spec}: a file; {f'did you mean {around!r}?' if is_run(around) else 'write a run folder'}")
    head, _, tail = spec.rpartition(":")
    if head and tail in SYSTEMS:
        if is_run(head) and is_run(spec):
            raise InputError(f"{spec}: a run folder of this name stands beside {head}; write {head}/:{tail} or {spec}:student")
        return (_run(head), tail) if not is_run(spec) else (Folder.of(spec), "student")
    if head and not set("/\\?") & set(tail) and not is_run(spec) and is_run(head):
        raise InputError(f"{spec}: no system {tail!r}; {did_you_mean(tail, SYSTEMS)}")
    return _run(spec), "student"


def is_run(spec: str) -> bool:
    """Whether a finished run lies there: its report is written last."""
    return Folder.of(spec).exists("report.json")


def _run(spec: str) -> Folder:
    folder = Folder.of(spec)
    if folder.exists("report.json"):
        return folder
    if folder.exists("config.yaml"):
        raise InputError(f"{spec}: no report.json: this run has not finished; run its command again")
    inside = [name for name in folder.folders() if (folder / name).exists("report.json")]
    if inside:
        some = ", ".join(inside[:5]) + (", ..." if len(inside) > 5 else "")
        raise InputError(f"{spec}: holds {len(inside)} runs ({some}); name one, for example {spec.rstrip('/')}/{inside[0]}")
    near = _near(spec)
    hint = f"did you mean {near!r}?" if near else "write the folder of a finished run, for example runs/quickstart"
    raise InputError(f"{spec}: no report.json here; {hint}")


def _near(spec: str) -> str | None:
    """The run that was probably meant: one of a like name in the same place, or in runs/."""
    parent, slash, name = spec.rstrip("/").rpartition("/")
    found: dict[str, str] = {}
    for place in [f"{parent}{slash}", *([] if slash else ["runs/"])]:
        folder = Folder.of(place or ".")
        found |= {other: f"{place}{other}" for other in folder.folders() if other not in found}
    near = difflib.get_close_matches(name, found, n=3)
    return next((found[other] for other in near if is_run(found[other])), None)
