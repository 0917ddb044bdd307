"""Readers of Parquet files with BEIR's columns; a line number here is the row's number, from 1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydrd.data.fields import LISTS, decode, finite, grade, plain_id, string
from raydrd.data.findings import Findings
from raydrd.data.formats import Judgement, Place, Scored, Text

BATCH = 8192


def _wrong_type(name: str, kind: pa.DataType) -> str | None:
    """What to write instead of a column of this type where strings belong, or None if it holds strings."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value):
        return None
    if pa.types.is_list(value) or pa.types.is_large_list(value):
        return "join each list into one string"
    return f"cast the column to string: df[{name!r}] = df[{name!r}].astype(str)"


def _strings(column: pa.Array, label: str, first: int, findings: Findings) -> list[str | None]:
    """One value a row; bad UTF-8 becomes None and an error. Parquet does not check what its strings hold."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    raw = column.cast(pa.large_binary()).to_pylist()
    return [None if value is None else decode(value, label, first + i, findings) for i, value in enumerate(raw)]


def _batches(
    place: Place,
    texts: tuple[str, ...],
    optional: tuple[str, ...],
    others: tuple[str, ...],
    findings: Findings,
) -> Iterator[tuple[int, dict[str, list[Any]]]]:
    """First row number and columns of each batch; nothing where the file's columns are wrong (reported).

    `texts` must hold strings (integer ids are an error, but are read so that one problem stays one message).
    """
    with place.folder.reading(place.name) as stream:
        try:
            file = pq.ParquetFile(stream)
        except (pa.ArrowInvalid, OSError) as error:
            findings.error(
                "parquet",
                place.label,
                None,
                f"not a Parquet file ({str(error).splitlines()[0]})",
                "write it again",
            )
            return
        schema = file.schema_arrow
        missing = [name for name in (*texts, *others) if name not in schema.names]
        for name in missing:
            there = ", ".join(map(repr, schema.names))
            findings.error(
                "missing column",
                place.label,
                None,
                f"no column {name!r}",
                f"rename or add it; columns are {there}",
            )
        usable = not missing
        for name in (*texts, *(n for n in optional if n in schema.names)):
            kind = schema.field(name).type if name in schema.names else None
            advice = None if kind is None or pa.types.is_null(kind) else _wrong_type(name, kind)
            if advice:
                findings.error("wrong type", place.label, None, f"column {name!r} is {kind} where strings belong", advice)
                usable &= pa.types.is_integer(kind)
        for name in LISTS & set(schema.names):
            if not _wrong_type(name, schema.field(name).type):
                what = f"column {name!r} holds strings where lists belong"
                findings.error("wrong type", place.label, None, what, "write one list a row")
        if not usable:
            return
        wanted = [name for name in (*texts, *optional, *others) if name in schema.names]
        first = 1
        try:
            for batch in file.iter_batches(batch_size=BATCH, columns=wanted):
                columns: dict[str, list[Any]] = {name: [None] * batch.num_rows for name in optional}
                for name in wanted:
                    column = batch.column(name)
                    if pa.types.is_null(column.type) or name in others:
                        columns[name] = column.to_pylist()
                    else:
                        if pa.types.is_integer(column.type):
                            column = column.cast(pa.string())
                        columns[name] = _strings(column, place.label, first, findings)
                yield first, columns
                first += batch.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            findings.error(
                "parquet",
                place.label,
                first,
                f"cannot be read ({str(error).splitlines()[0]})",
                "write it again",
            )


def _key(value: str | None, name: str, label: str, line: int, findings: Findings) -> str | None:
    value = string({name: value}, name, label, line, findings)
    return None if value is None else plain_id(value, label, line, findings)


def parquet_texts(place: Place, findings: Findings) -> Iterator[Text]:
    """Rows of a corpus or of queries: `_id`, `text`, optional `title`, all strings."""
    for first, columns in _batches(place, ("_id", "text"), ("title",), (), findings):
        for line, (key, text, title) in enumerate(zip(columns["_id"], columns["text"], columns["title"], strict=True), first):
            name = _key(key, "_id", place.label, line, findings)
            if name is not None:
                text = string({"text": text}, "text", place.label, line, findings)
                yield Text(place.label, line, name, title or "", text)


def parquet_qrels(place: Place, findings: Findings) -> Iterator[Judgement]:
    """Rows of judgements: `query-id`, `corpus-id` (strings) and `score` (whole numbers)."""
    for first, columns in _batches(place, ("query-id", "corpus-id"), (), ("score",), findings):
        rows = zip(columns["query-id"], columns["corpus-id"], columns["score"], strict=True)
        for line, (query, doc, score) in enumerate(rows, first):
            query = _key(query, "query-id", place.label, line, findings)
            doc = _key(doc, "corpus-id", place.label, line, findings)
            if query is not None and doc is not None:
                yield Judgement(place.label, line, query, doc, grade(score, place.label, line, findings))


def parquet_scores(place: Place, findings: Findings) -> Iterator[Scored]:
    """Rows of teacher scores: `query_id`, `doc_id` (strings) and `score`."""
    for first, columns in _batches(place, ("query_id", "doc_id"), (), ("score",), findings):
        rows = zip(columns["query_id"], columns["doc_id"], columns["score"], strict=True)
        for line, (query, doc, score) in enumerate(rows, first):
            query = _key(query, "query_id", place.label, line, findings)
            doc = _key(doc, "doc_id", place.label, line, findings)
            if query is not None and doc is not None:
                yield Scored(place.label, line, query, doc, finite(score, place.label, line, findings))
