"""Single values of a row: the value if it is good, or None and an error with what to write instead."""

from __future__ import annotations

import json
import math
from typing import Any

from raydrd.data.findings import Findings

# Fields of other tools' training files that hold lists; as a string they are mined letter by letter there.
LISTS = frozenset(
    (
        "pos",
        "neg",
        "positives",
        "negatives",
        "hard_negatives",
        "pos_scores",
        "neg_scores",
        "positive_passages",
    )
    + ("negative_passages", "positive_document_ids", "document_ids", "doc_rows", "grades")
)
_OTHER_NAMES = {
    "_id": ("id", "doc_id", "docid", "query_id", "qid", "pid"),
    "text": ("contents", "content", "body", "query"),
}


def decode(raw: bytes, label: str, line: int, findings: Findings) -> str | None:
    """The bytes as UTF-8, or None and an error."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start + 1}"
        findings.error("bad UTF-8", label, line, what, "convert the file, for example: iconv -f LATIN1 -t UTF-8")
        return None


def identifier(row: dict[str, Any], label: str, line: int, findings: Findings) -> str | None:
    """The row's `_id`, or None and an error. A number is an error too, but still names the row."""
    value = row.get("_id")
    if isinstance(value, int | float) and not isinstance(value, bool):
        what = f"'_id' is the number {value}; ids are strings"
        findings.error("wrong type", label, line, what, f'quote it: "_id": "{value}"')
        return str(value)
    key = string(row, "_id", label, line, findings)
    return key if key is None else plain_id(key, label, line, findings)


def plain_id(key: str, label: str, line: int, findings: Findings) -> str | None:
    """The id if it is not empty; one with white space is warned of, since TREC files cannot hold it."""
    if not key.strip():
        findings.error("empty id", label, line, "the id is empty", "give every row an id of its own")
        return None
    if len(key.split()) > 1 or key != key.strip():
        findings.warning(
            "white space in id",
            label,
            line,
            f"white space in the id {brief(key)}",
            "TREC files cannot hold it; use _",
        )
    return key


def string(row: dict[str, Any], name: str, label: str, line: int, findings: Findings, *, optional: bool = False) -> str | None:
    """A field that must hold one string, or None and an error; an optional one may be absent or null."""
    value = row.get(name)
    if isinstance(value, str):
        return value
    if optional and value is None:
        return None
    if name not in row:
        near = [other for other in _OTHER_NAMES.get(name, ()) if other in row]
        instead = f"rename {near[0]!r} to {name!r}" if near else f"add it; the fields here are {', '.join(map(repr, row))}"
        findings.error("missing field", label, line, f"no field {name!r}", instead)
    else:
        advice = "join its items into one string" if isinstance(value, list) else "write one string"
        findings.error("wrong type", label, line, f"{name!r} is {json_type(value)} where a string belongs", advice)
    return None


def json_type(value: Any) -> str:
    """What JSON calls it, with its article."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def brief(text: str) -> str:
    """Quoted, and cut if it is long."""
    return json.dumps(text if len(text) <= 40 else text[:37] + "...", ensure_ascii=False)


def is_broken(text: str) -> bool:
    """Whether it holds half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def whole_number(value: Any) -> int | None:
    """The value if it is a whole number ("2", "2.0", 2) that fits 32 bits, else None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() and abs(number) < 2**31 else None


def grade(value: Any, label: str, line: int, findings: Findings) -> int | None:
    """A grade, or None and an error."""
    number = whole_number(value)
    if number is None:
        what = f"the grade {brief(str(value))} is not a whole number"
        findings.error("grade", label, line, what, "write 0 for not relevant, 1 or more for relevant")
    return number


def finite(value: Any, label: str, line: int, findings: Findings) -> float | None:
    """A score, or None and an error."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if abs(number) < 3e38:  # finite as float32; False for nan
        return number
    findings.error("score", label, line, f"the score {brief(str(value))} is not a finite number", "write a number")
    return None
