"""Readers of the field's file formats: rows in file order with their lines; what is wrong goes to `Findings`.

A line ends at "\\n" and nowhere else: passages hold U+2028 and U+0085, at which `str.splitlines` would cut
them in two, and text-mode files cut at a lone carriage return. Every line is decoded by itself, so that bad
UTF-8 has a line number.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from raydrd.data.fields import (
    LISTS,
    brief,
    decode,
    finite,
    grade,
    identifier,
    is_broken,
    json_type,
    plain_id,
    string,
    whole_number,
)
from raydrd.data.findings import Findings
from raydrd.spine.storage import Folder

QRELS_HEADER = ["query-id", "corpus-id", "score"]


@dataclass(frozen=True)
class Place:
    """A file to read, and its name in messages (relative to the collection)."""

    folder: Folder
    name: str
    label: str


class Text(NamedTuple):
    """A passage or a query. `text` is None when the line was wrong and has been reported."""

    file: str
    line: int
    id: str
    title: str
    text: str | None


class Judgement(NamedTuple):
    """`grade` is None when it was wrong and has been reported."""

    file: str
    line: int
    query: str
    doc: str
    grade: int | None


class Scored(NamedTuple):
    """A passage in a run, or with a teacher's score; None when it was wrong and has been reported."""

    file: str
    line: int
    query: str
    doc: str
    score: float | None


def lines(place: Place, findings: Findings) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of every line that is not blank, without its line end; gunzips `*.gz`."""
    number = 0
    with place.folder.reading(place.name) as stream:
        raw: Any = gzip.GzipFile(fileobj=stream) if place.name.endswith(".gz") else io.BufferedReader(stream, 1 << 20)
        try:
            for number, line in enumerate(raw, 1):
                if number == 1 and line.startswith(b"\xef\xbb\xbf"):
                    findings.error(
                        "byte order mark",
                        place.label,
                        1,
                        "starts with a byte order mark",
                        "save as UTF-8 without BOM",
                    )
                    line = line[3:]
                text = decode(line.removesuffix(b"\n").removesuffix(b"\r"), place.label, number, findings)
                if text is None:
                    continue
                if text.strip():
                    yield number, text
                else:
                    findings.warning("blank line", place.label, number, "blank line, skipped", "remove it")
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            findings.error(
                "gzip",
                place.label,
                number + 1,
                f"not a whole gzip file ({error})",
                "compress it again with gzip",
            )


# -- BEIR -----------------------------------------------------------------------------------------


def beir_texts(place: Place, findings: Findings) -> Iterator[Text]:
    """Rows of corpus.jsonl or queries.jsonl: `_id`, `text`, optional `title`; other fields are not read."""
    for number, line in lines(place, findings):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            findings.error(
                "bad JSON",
                place.label,
                number,
                f"not JSON: {error}",
                'write one object a line, {"_id": "1", "text": "..."}',
            )
            continue
        if not isinstance(row, dict):
            what = f"{json_type(row)} where an object belongs"
            findings.error("bad JSON", place.label, number, what, 'write one object a line, {"_id": "1", "text": "..."}')
            continue
        if "\\ud" in line.lower() and any(isinstance(v, str) and is_broken(v) for v in map(row.get, ("_id", "title", "text"))):
            findings.error(
                "bad JSON",
                place.label,
                number,
                "holds half of a surrogate pair (\\ud...)",
                "write the whole character",
            )
            continue
        for name in LISTS & row.keys():
            if isinstance(row[name], str):
                what = f"field {name!r} is a string where a list belongs"
                findings.error("wrong type", place.label, number, what, f"write {json.dumps(name)}: [{brief(row[name])}]")
        key = identifier(row, place.label, number, findings)
        if key is not None:
            title = string(row, "title", place.label, number, findings, optional=True)
            yield Text(place.label, number, key, title or "", string(row, "text", place.label, number, findings))


def beir_qrels(place: Place, findings: Findings) -> Iterator[Judgement]:
    """Rows of qrels/SPLIT.tsv: a header, then query id, passage id, grade between tabs."""
    header = "\\t".join(QRELS_HEADER)
    first = True
    for number, line in lines(place, findings):
        fields = line.split("\t")
        if first:
            first = False
            if fields == QRELS_HEADER:
                continue
            if whole_number(fields[-1]) is None:
                what = f"the header is {brief(line)}"
                findings.error("qrels header", place.label, number, what, f"write {header}")
                continue
            what = "the header is missing: the first line looks like data"
            findings.error("qrels header", place.label, number, what, f"put the line {header} before it")
        if len(fields) != 3:
            what = f"{_columns(len(fields))} between tabs where 3 belong ({header})"
            advice = {1: "separate them by tabs", 4: "TREC qrels? remove the second column"}.get(len(fields), "write those 3")
            findings.error("column count", place.label, number, what, advice)
            continue
        yield Judgement(place.label, number, fields[0], fields[1], grade(fields[2], place.label, number, findings))


# -- TREC and MS MARCO ----------------------------------------------------------------------------


def _columns(n: int) -> str:
    return "1 column" if n == 1 else f"{n} columns"


def _words(line: str) -> list[str]:
    # Not str.split(): that would also cut at U+00A0 or U+0085 inside an id.
    return [word for word in line.replace("\t", " ").split(" ") if word]


def trec_qrels(place: Place, findings: Findings) -> Iterator[Judgement]:
    """Rows of TREC or MS MARCO qrels: `query 0 passage grade`, any white space, no header."""
    for number, line in lines(place, findings):
        fields = _words(line)
        if fields[:3] == QRELS_HEADER:
            findings.error(
                "qrels header",
                place.label,
                number,
                "a header, as BEIR has",
                "use source beir, or remove this line",
            )
            return
        if len(fields) != 4:
            findings.error(
                "column count",
                place.label,
                number,
                f"{_columns(len(fields))} where 4 belong",
                "write: query 0 passage grade",
            )
            continue
        yield Judgement(place.label, number, fields[0], fields[2], grade(fields[3], place.label, number, findings))


def tsv_passages(place: Place, findings: Findings) -> Iterator[Text]:
    """Rows of an MS MARCO collection between tabs: `pid text` or `pid title text`, as in the first line."""
    width = 0
    for number, line in lines(place, findings):
        fields = line.split("\t")
        if not width:
            width = len(fields) if len(fields) in (2, 3) else 2
        if len(fields) != width:
            shape = "pid, text" if width == 2 else "pid, title, text"
            what = f"{_columns(len(fields))} between tabs where {width} belong ({shape}, as in the first line)"
            findings.error(
                "column count",
                place.label,
                number,
                what,
                "replace tabs inside texts by spaces, write both columns",
            )
            continue
        key = plain_id(fields[0], place.label, number, findings)
        if key is not None:
            yield Text(place.label, number, key, fields[1] if width == 3 else "", fields[-1])


def tsv_queries(place: Place, findings: Findings) -> Iterator[Text]:
    """Rows of MS MARCO queries: `qid text` between tabs."""
    for number, line in lines(place, findings):
        fields = line.split("\t")
        if len(fields) != 2:
            what = f"{_columns(len(fields))} between tabs where 2 belong (qid, text)"
            findings.error("column count", place.label, number, what, "write an id, one tab, and the query without tabs")
            continue
        key = plain_id(fields[0], place.label, number, findings)
        if key is not None:
            yield Text(place.label, number, key, "", fields[1])


def run_rows(place: Place, findings: Findings) -> Iterator[Scored]:
    """Rows of a TREC run (`query Q0 passage rank score tag`) or an MS MARCO one (`query passage rank`).

    The first line says which. Where there is only a rank, the score is -rank: exact, and in the same order.
    """
    width = 0
    for number, line in lines(place, findings):
        fields = _words(line)
        width = width or (3 if len(fields) == 3 else 6)
        if len(fields) != width:
            what = f"{_columns(len(fields))} where {width} belong"
            advice = "write: query Q0 passage rank score tag (TREC), or: query passage rank"
            findings.error("column count", place.label, number, what, advice)
        elif width == 6:
            yield Scored(place.label, number, fields[0], fields[2], finite(fields[4], place.label, number, findings))
        else:
            rank = whole_number(fields[2])
            if rank is None or rank < 0:
                what = f"the rank {brief(fields[2])} is not a whole number"
                findings.error(
                    "rank",
                    place.label,
                    number,
                    what,
                    "write 1, 2, 3, ...; for scores use the 6 columns of a TREC run",
                )
            yield Scored(place.label, number, fields[0], fields[1], None if rank is None else -float(rank))
