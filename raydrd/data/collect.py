"""Data in: read a collection, check everything, write the tables the stages begin with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.data import pydocs
from raydrd.data.findings import Findings
from raydrd.data.ids import joined
from raydrd.data.layout import Sources, find, places, root_of
from raydrd.data.spec import Data
from raydrd.data.survey import Judged, Pairs, Survey, survey
from raydrd.errors import StageError
from raydrd.spine.parts import part_name
from raydrd.spine.storage import Folder
from raydrd.spine.tables import CANDIDATES, CORPUS, QUERIES

PART_ROWS = 20_000  # passages, or queries with their candidates, in one file
SCORES_PART_ROWS = 1_000_000
SCORES = pa.schema([("query_row", pa.int64()), ("doc_row", pa.int64()), ("score", pa.float32())])


def check(data: Data) -> Findings:
    """Read everything and write nothing.

    Raises:
        InputError: the folder itself is not there.
    """
    findings = Findings(root_of(data))
    sources = find(data, findings)
    if sources is not None:
        survey(data, sources, findings)
    return findings


def collect(data: Data, *, out: Folder) -> dict[str, Any]:
    """Check the collection, then write its tables.

    They are corpus/, queries/{train,dev,test,unlabelled}/ and, if the data has them, candidates/train/ and
    scores/train/, each in parts named by the rows they hold. Returns the rows of each table, `rows` (their sum),
    `judgements` by split, `words_per_passage`, `dev_carved`, `warnings` (the first) and their count, `notes`.

    Raises:
        InputError: something is wrong; one line an error, and nothing has been written.
        StageError: the files changed between the two readings.
    """
    findings = Findings(root_of(data))
    sources = find(data, findings)
    findings.raise_if_errors()
    assert sources is not None  # find reports why when it gives none
    seen = survey(data, sources, findings)
    findings.raise_if_errors()

    counts = {"passages": _write_corpus(sources, seen, data.titles, out)}
    train = np.unique(seen.splits["train"].query_rows)
    for split, judged in seen.splits.items():
        counts[split] = _write_queries(seen, judged, split, out)
    counts["unlabelled"] = _write_unlabelled(seen, out)
    if seen.run is not None:
        counts["candidates"] = _write_candidates(seen.run, train, out)
        without = len(train) - counts["candidates"]
        if without:
            what = f"{without} of {len(train)} train queries have no candidates in it"
            findings.warning(
                "no candidates",
                str(data.run),
                None,
                what,
                "add them, or leave data.run out to search for all",
            )
    if seen.scores is not None:
        counts["scores"] = _write_scores(seen.scores, train, out)
    return {
        **counts,
        "rows": sum(counts.values()),
        "judgements": {split: len(judged.grades) for split, judged in seen.splits.items()},
        "words_per_passage": round(seen.words / seen.passages, 1),
        "dev_carved": seen.dev_carved,
        "warning_count": findings.count("warning"),
        "warnings": findings.lines("warning", relative=True),
        "notes": findings.lines("note", relative=True),
        **sources.counts,
    }


def digest(data: Data) -> str:
    """Hex sha256 of all that would be read: names, sizes and bytes of files; pydocs: packages' versions.

    Raises:
        InputError: a file is missing.
    """
    whole = hashlib.sha256()
    if data.path is None:
        whole.update(pydocs.identity(data).encode())
    findings = Findings(root_of(data))
    files = places(data, findings)
    findings.raise_if_errors()
    for place in files:
        content, size = hashlib.sha256(), 0
        with place.folder.reading(place.name) as stream:
            while chunk := stream.read(1 << 22):
                content.update(chunk)
                size += len(chunk)
        # Outside the collection a file's folder is an accident of this machine.
        label = place.name if "/" in place.label and place.label.endswith("/" + place.name) else place.label
        whole.update(f"{label}\0{size}\0{content.hexdigest()}\n".encode())
    return whole.hexdigest()


def _write(out: Folder, folder: str, first: int, table: pa.Table) -> None:
    out.write_table(f"{folder}/{part_name(first, first + table.num_rows, 'parquet')}", table)


def _write_corpus(sources: Sources, seen: Survey, titles: bool, out: Folder) -> int:
    again = Findings()
    ids: list[str] = []
    texts: list[str] = []
    total = 0
    for row in sources.corpus(again):
        ids.append(row.id)
        texts.append(joined(row, titles))
        total += 1
        if len(ids) == PART_ROWS:
            _write(out, "corpus", total - len(ids), pa.table([ids, texts], schema=CORPUS))
            ids, texts = [], []
    if ids:
        _write(out, "corpus", total - len(ids), pa.table([ids, texts], schema=CORPUS))
    if total != seen.passages or again.count("error"):
        what = f"corpus: {seen.passages} passages at the first reading, {total} at the second"
        raise StageError(f"{what}; do not change the collection's files during a run")
    return total


def _query_table(seen: Survey, rows: list[int], doc_rows: pa.ListArray, grades: pa.ListArray) -> pa.Table:
    ids = pa.array([seen.query_ids[row] for row in rows], pa.string())
    texts = pa.array([seen.query_texts[row] for row in rows], pa.string())
    return pa.table([ids, texts, doc_rows, grades], schema=QUERIES)


def _lists(offsets: NDArray[np.int64], values: NDArray[Any], kind: pa.DataType) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, kind))


def _write_queries(seen: Survey, judged: Judged, split: str, out: Folder) -> int:
    """One row a judged query, in the order of the queries file; judgements in the order of their file."""
    order = np.argsort(judged.query_rows, kind="stable")
    rows, starts = np.unique(judged.query_rows[order], return_index=True)
    offsets = np.append(starts, len(order))
    doc_rows = _lists(offsets, judged.doc_rows[order], pa.int64())
    grades = _lists(offsets, judged.grades[order], pa.int32())
    _write(out, f"queries/{split}", 0, _query_table(seen, rows.tolist(), doc_rows, grades))
    return len(rows)


def _write_unlabelled(seen: Survey, out: Folder) -> int:
    judged = np.concatenate([split.query_rows for split in seen.splits.values()])
    rows = np.setdiff1d(np.arange(len(seen.query_ids)), judged).tolist()
    nothing = np.zeros(len(rows) + 1, np.int64)
    empty = np.empty(0, np.int64)
    table = _query_table(seen, rows, _lists(nothing, empty, pa.int64()), _lists(nothing, empty, pa.int32()))
    _write(out, "queries/unlabelled", 0, table)
    return len(rows)


def _write_candidates(run: Pairs, train: NDArray[np.int64], out: Folder) -> int:
    """One row a train query that is in the run: passages by descending score, ties by ascending row."""
    query_rows = np.searchsorted(train, run.query_rows)
    order = np.lexsort((run.doc_rows, -run.scores, query_rows))
    rows, starts = np.unique(query_rows[order], return_index=True)
    offsets = np.append(starts, len(order))
    for first in _firsts(len(rows), PART_ROWS):
        here = offsets[first : first + PART_ROWS + 1]
        inside = order[here[0] : here[-1]]
        doc_rows = _lists(here - here[0], run.doc_rows[inside], pa.int64())
        scores = _lists(here - here[0], run.scores[inside], pa.float32())
        columns = [pa.array(rows[first : first + PART_ROWS], pa.int64()), doc_rows, scores]
        _write(out, "candidates/train", first, pa.table(columns, schema=CANDIDATES))
    return len(rows)


def _write_scores(scores: Pairs, train: NDArray[np.int64], out: Folder) -> int:
    """Rows sorted by query and passage."""
    query_rows = np.searchsorted(train, scores.query_rows)
    order = np.lexsort((scores.doc_rows, query_rows))
    for first in _firsts(len(order), SCORES_PART_ROWS):
        inside = order[first : first + SCORES_PART_ROWS]
        columns = [query_rows[inside], scores.doc_rows[inside], scores.scores[inside]]
        _write(out, "scores/train", first, pa.table(columns, schema=SCORES))
    return len(order)


def _firsts(total: int, size: int) -> Iterator[int]:
    yield from range(0, max(total, 1), size)
