"""`raydrd scores`: what the score books of a store hold; taken out, brought in, tidied up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raydrd.errors import InputError
from raydrd.spine.scorebook import BUCKETS, ENTRIES, Book, once, teacher_name
from raydrd.spine.storage import Folder

# One file for all teachers; what each of them is stands in the file's metadata, by its name.
EXPORTED = pa.schema([("teacher", pa.string()), *ENTRIES])
TEACHERS = b"raydrd.teachers"


def books(store: str, teacher: str | None = None) -> list[Book]:
    """The books of a store, or the one whose name begins with `teacher`.

    Raises:
        InputError: there is none, or several names begin so.
    """
    root = Folder.of(store)
    names = (root / "scores").folders()
    chosen = [name for name in names if teacher is None or name.startswith(teacher)]
    if not names:
        raise InputError(f"{root}: no teacher scores are kept here; name another store with --store")
    if teacher is not None and len(chosen) != 1:
        raise InputError(f"--teacher {teacher}: {len(chosen)} teachers' names begin so; write one of {', '.join(names)}")
    return [Book(root / "scores" / name) for name in chosen]


def stats(store: str) -> list[dict[str, Any]]:
    """One entry a teacher: name, scores (pairs that stand there twice count twice), files, megabytes, what it is."""
    found = []
    for book in books(store):
        files = book.files()
        found.append(
            {
                "teacher": book.name, "scores": book.rows(), "files": len(files), "mb": sum(files.values()) / 1e6,
                "about": book.about(),
            }
        )  # fmt: skip
    return found


def stats_table(found: list[dict[str, Any]]) -> str:
    """`stats` as text."""
    lines = [f"{'teacher':<18}{'scores':>14}{'files':>8}{'MB':>9}  what"]
    for one in found:
        about = one["about"]
        compares = "pairs, " if about.get("compares") else ""
        what = f"{about['kind']}, {compares}{about['max_length']} tokens, {about['precision']}, weights {about['weights'][:20]}"
        lines.append(f"{one['teacher']:<18}{one['scores']:>14,}{one['files']:>8}{one['mb']:>9.1f}  {what}")
    return "\n".join(lines)


def export(store: str, path: str, teacher: str | None = None) -> int:
    """All scores, or one teacher's, as one Parquet file; how many there are.

    Raises:
        InputError: there are none, or the file cannot be written.
    """
    chosen = books(store, teacher)
    schema = EXPORTED.with_metadata({TEACHERS: json.dumps({book.name: book.about() for book in chosen}).encode()})
    total = 0
    target = Folder.of(Path(path).resolve().parent)
    try:
        with target.writing(Path(path).name) as stream, pq.ParquetWriter(stream, schema, compression="zstd") as file:
            for book in chosen:
                for bucket in range(BUCKETS):
                    found = once(book.read(bucket, bucket + 1))
                    total += len(found)
                    named = found.add_column(0, "teacher", pa.array([book.name] * len(found), pa.string()))
                    file.write_table(named.cast(schema))
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}; name another file") from error
    return total


def bring_in(store: str, path: str) -> int:
    """Add the scores of an exported file to a store; how many there were. A second time adds nothing.

    Raises:
        InputError: it is no file that `raydrd scores export` wrote.
    """
    root, total = Folder.of(store), 0
    try:
        with Path(path).open("rb") as stream:
            stamp = hashlib.file_digest(stream, "sha256").hexdigest()[:12]
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; write the path of a file that `raydrd scores export` made") from None
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: not a Parquet file ({error}); write one that `raydrd scores export` made") from error
    teachers = json.loads((file.schema_arrow.metadata or {}).get(TEACHERS, b"{}"))
    if not teachers or file.schema_arrow.remove_metadata() != EXPORTED:
        raise InputError(f"{path}: `raydrd scores export` did not write this file; its columns are {EXPORTED.names}")
    if wrong := [name for name, about in teachers.items() if teacher_name(about) != name]:
        raise InputError(f"{path}: teacher {wrong[0]} is not what its description says; export it again")
    kept = {name: Book.of(root, about) for name, about in teachers.items()}
    for number, found in enumerate(_groups(file)):
        for name in pc.unique(found["teacher"]).to_pylist():
            if name not in kept:
                raise InputError(f"{path}: row group {number} has scores of {name}, which the file does not describe")
            rows = found.filter(pc.equal(found["teacher"], name)).drop(["teacher"])
            kept[name].add(f"import-{stamp}-{number:06d}", rows.cast(ENTRIES))
            total += len(rows)
    return total


def _groups(file: pq.ParquetFile) -> Iterator[pa.Table]:
    for number in range(file.num_row_groups):
        yield file.read_row_group(number)


def compact(store: str, teacher: str | None = None) -> list[tuple[str, int, int]]:
    """Many files as few: name, files before, files after. Runs may read and write meanwhile."""
    return [(book.name, *book.compact()) for book in books(store, teacher)]
