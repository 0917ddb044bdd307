"""Two runs' stores and reports compared by content: what an undisturbed run made against what a killed one made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydrd.spine.parts import found_ranges

# Numbers that say how a result was made, not what it is: seconds, and what was computed here rather than found.
HOW = {"per_second", "seconds", "busy_seconds", "pairs", "taken", "asked", "passages_per_s", "queries_per_s"}
TOLD = ("systems", "comparisons", "queries", "curve", "facts", "examples")  # of report.json
COUNTS = "shards/counts/"  # what each shard computed itself: how, not what


def differences(calm: Path, other: Path) -> list[str]:
    """What differs between two local stores, a line each: artefacts, their tables, weights, files and metrics."""
    ours, theirs = artefacts(calm), artefacts(other)
    found = [f"{name}: only in the undisturbed run" for name in sorted({*ours} - {*theirs})]
    found += [f"{name}: only in the disturbed run" for name in sorted({*theirs} - {*ours})]
    for name in sorted({*ours} & {*theirs}):
        metrics = [_without_how(one["metrics"]) for one in (ours[name], theirs[name])]
        if metrics[0] != metrics[1]:
            keys = sorted(k for k in {*metrics[0], *metrics[1]} if metrics[0].get(k) != metrics[1].get(k))
            found.append(f"{name}: metrics {', '.join(keys)} differ")
        try:
            found += [f"{name}: {what}" for what in _contents_differ(calm / name, ours[name], other / name, theirs[name])]
        except (OSError, ValueError) as error:
            found.append(f"{name}: cannot be read: {error}")
    return found + _books_differ(calm, other)


def reports_differ(calm: Path, other: Path) -> list[str]:
    """The figures in two run folders' report.json that differ, speed left out."""
    ours, theirs = (json.loads((folder / "report.json").read_text(encoding="utf-8")) for folder in (calm, other))
    return [f"report.json: {key} differs" for key in TOLD if _without_how(ours.get(key)) != _without_how(theirs.get(key))]


def artefacts(store: Path) -> dict[str, dict[str, Any]]:
    """`STAGE/ID` -> manifest of everything that was finished."""
    return {
        path.parent.relative_to(store).as_posix(): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(store.glob("*/*/manifest.json"))
    }


def _without_how(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_how(item) for key, item in value.items() if key not in HOW}
    return [_without_how(item) for item in value] if isinstance(value, list) else value


def _contents_differ(home_a: Path, a: dict[str, Any], home_b: Path, b: dict[str, Any]) -> list[str]:
    files_a, files_b = _files(home_a, a), _files(home_b, b)
    tables_a, tables_b = _tables(files_a), _tables(files_b)
    found = [f"table {name} differs" for name in sorted({*tables_a, *tables_b}) if not _same_rows(tables_a, tables_b, name)]
    single = [{n: p for n, p in files.items() if not found_ranges([n])} for files in (files_a, files_b)]
    for name in sorted({*single[0], *single[1]}):
        if name not in single[0] or name not in single[1]:
            found.append(f"{name} is in one of them only")
        elif not _same_file(single[0][name], single[1][name]):
            found.append(f"{name} differs")
    return found


def _files(home: Path, manifest: dict[str, Any]) -> dict[str, Path]:
    """The files that count, under names without the attempt's own."""
    attempt = f"{manifest['attempt']}/"
    names = {name.replace(attempt, "out/", 1): home / name for name in manifest["files"] if not name.startswith(COUNTS)}
    for path in names.values():
        if path.stat().st_size != manifest["files"][path.relative_to(home).as_posix()]:
            raise ValueError(f"{path.relative_to(home)}: not the size that the manifest says")
    return names


def _tables(files: dict[str, Path]) -> dict[str, list[Path]]:
    """Folder -> the parts of its table in row order: a restart may cut the rows otherwise."""
    tables: dict[str, list[tuple[tuple[int, int], Path]]] = {}
    for name, path in files.items():
        if ranges := found_ranges([name]):
            tables.setdefault(name.rpartition("/")[0], []).append((ranges[0], path))
    return {folder: [path for _, path in sorted(parts)] for folder, parts in tables.items()}


def _same_rows(a: dict[str, list[Path]], b: dict[str, list[Path]], name: str) -> bool:
    if name not in a or name not in b:
        return False
    if len(a[name]) == len(b[name]) and all(x.read_bytes() == y.read_bytes() for x, y in zip(a[name], b[name], strict=True)):
        return True
    return bool(_joined(a[name]).equals(_joined(b[name])))


def _joined(parts: list[Path]) -> pa.Table:
    return pa.concat_tables([_table(path) for path in parts]).combine_chunks()


def _table(path: Path) -> pa.Table:
    if path.suffix == ".arrow":
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    return pq.read_table(path)


def _same_file(a: Path, b: Path) -> bool:
    if a.read_bytes() == b.read_bytes():
        return True
    if a.suffix in (".parquet", ".arrow"):
        return bool(_table(a).equals(_table(b)))
    if a.suffix == ".json":
        return bool(_without_how(json.loads(a.read_text())) == _without_how(json.loads(b.read_text())))
    if a.suffix == ".safetensors":
        return _same_weights(a, b)
    return False


def _same_weights(a: Path, b: Path) -> bool:
    import torch
    from safetensors.torch import load_file

    ours, theirs = load_file(a), load_file(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _books_differ(calm: Path, other: Path) -> list[str]:
    """The teachers' score books: the same pairs with the same scores, in whatever files."""
    books = sorted({path.parent.name for store in (calm, other) for path in store.glob("scores/*/about.json")})
    return [f"scores/{book}: other pairs or scores" for book in books if _entries(calm, book) != _entries(other, book)]


def _entries(store: Path, book: str) -> set[tuple[Any, ...]]:
    tables = [pq.read_table(path) for path in sorted((store / "scores" / book).glob("*.parquet"))]
    return {row for table in tables for row in zip(*(column.to_pylist() for column in table.columns), strict=True)}
