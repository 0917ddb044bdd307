"""The first reading of a collection: everything is checked, and ids become rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from raydrd.data.findings import Findings
from raydrd.data.formats import Judgement, Scored
from raydrd.data.ids import Hashes, Ids, Rows, Where, fingerprint, read_texts, repeats
from raydrd.data.layout import Sources
from raydrd.data.spec import Data

Item = TypeVar("Item")
CHUNK = 65_536


@dataclass(frozen=True)
class Judged:
    """Judgements of one split in file order, each pair once; `query_rows` are rows of all queries."""

    query_rows: Rows
    doc_rows: Rows
    grades: Rows


@dataclass(frozen=True)
class Pairs:
    """Passages of a run, or with teacher scores, in file order; only queries of train."""

    query_rows: Rows
    doc_rows: Rows
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class Survey:
    """What the first reading learned; enough to write every table but the corpus."""

    passages: int
    words: int
    query_ids: list[str]
    query_texts: list[str]
    splits: dict[str, Judged]  # train, dev, test
    dev_carved: bool
    run: Pairs | None
    scores: Pairs | None


def survey(data: Data, sources: Sources, findings: Findings) -> Survey:
    """Read all there is. What is returned has a meaning only if `findings` has no errors."""
    before = findings.count("error")
    corpus, words, _ = read_texts(sources.corpus(findings), data.titles, "passage", findings, None)
    kept: list[tuple[str, str]] = []
    queries, _, where = read_texts(sources.queries(findings), False, "query", findings, kept)
    for table, ids in (("corpus", corpus), ("queries", queries)):
        if not len(ids.rows) and findings.count("error") == before:
            findings.error("empty file", sources.labels.get(table, table), None, "no rows at all", "write at least one")
    names = {"train": data.train_split, "dev": data.dev_split, "test": data.test_split}
    splits: dict[str, Judged] = {}
    for split, name in names.items():
        if name in sources.qrels:
            before = findings.count("error")
            splits[split] = _judgements(sources.qrels[name](findings), queries, corpus, findings)
            if not len(splits[split].query_rows) and findings.count("error") == before:
                label = sources.labels.get(name, f"split {name}")
                instead = f"add some, or set data.{split}_split=null"
                findings.error("empty split", label, None, f"split {name!r} has no judgements", instead)
    carved = data.dev_split is not None and "dev" not in splits and "train" in splits
    if carved:
        label = sources.labels.get(str(data.train_split), "train")
        splits["train"], splits["dev"] = _carve(splits["train"], [key for key, _ in kept], data, label, findings)
    none = np.empty(0, np.int64)
    splits = {split: splits.get(split, Judged(none, none, none)) for split in names}
    _overlaps(splits, [text for _, text in kept], where, findings)
    _unjudged(splits, len(kept), where, findings)
    in_train = np.zeros(len(kept), bool)
    in_train[splits["train"].query_rows] = True
    run = _pairs(sources.run(findings), queries, corpus, in_train, findings) if sources.run else None
    scores = _pairs(sources.scores(findings), queries, corpus, in_train, findings) if sources.scores else None
    return Survey(len(corpus.rows), words, [k for k, _ in kept], [t for _, t in kept], splits, carved, run, scores)


def _chunks(items: Iterator[Item]) -> Iterator[list[Item]]:
    while chunk := list(islice(items, CHUNK)):
        yield chunk


def _known(chunk: list[Judgement] | list[Scored], queries: Ids, corpus: Ids, findings: Findings) -> tuple[Rows, Rows]:
    """Rows of the chunk's queries and passages, -1 for those that are nowhere (reported)."""
    query_rows, doc_rows = queries.find([row.query for row in chunk]), corpus.find([row.doc for row in chunk])
    for at in np.flatnonzero(query_rows < 0):
        row = chunk[at]
        instead = "add the query, or remove this line"
        findings.error("unknown query", row.file, row.line, f"query id {row.query!r} is not among the queries", instead)
    for at in np.flatnonzero(doc_rows < 0):
        row = chunk[at]
        instead = "add the passage, or remove this line"
        findings.error("unknown passage", row.file, row.line, f"passage id {row.doc!r} is not in the corpus", instead)
    return query_rows, doc_rows


def _judgements(rows: Iterator[Judgement], queries: Ids, corpus: Ids, findings: Findings) -> Judged:
    found: list[Rows] = []
    files: list[str] = []
    for chunk in _chunks(rows):
        query_rows, doc_rows = _known(chunk, queries, corpus, findings)
        grades = np.array([0 if row.grade is None else row.grade for row in chunk], np.int64)
        good = (query_rows >= 0) & (doc_rows >= 0) & np.array([row.grade is not None for row in chunk])
        files += [row.file for row, keep in zip(chunk, good, strict=True) if keep]
        found.append(np.stack([query_rows, doc_rows, grades, np.array([row.line for row in chunk])])[:, good])
    query_rows, doc_rows, grades, lines = np.concatenate(found, axis=1) if found else np.empty((4, 0), np.int64)
    pairs = query_rows * (len(corpus.rows) + 1) + doc_rows
    keep = np.ones(len(pairs), bool)
    for first, again in repeats(pairs, np.argsort(pairs, kind="stable")):
        keep[again] = False
        file, line = files[again], int(lines[again])
        if grades[first] == grades[again]:
            findings.warning("judged twice", file, line, f"the same judgement as line {lines[first]}", "remove one")
        else:
            what = f"grade {grades[again]}, but the same pair has grade {grades[first]} in line {lines[first]}"
            findings.error("two grades", file, line, what, "keep one of the two")
    relevant = np.unique(query_rows[grades > 0])
    hopeless, at = np.unique(query_rows, return_index=True)
    for first in at[~np.isin(hopeless, relevant)]:
        what = "this query has no passage with a grade above 0"
        findings.warning(
            "nothing relevant",
            files[first],
            int(lines[first]),
            what,
            "add a relevant passage, or leave it out",
        )
    return Judged(query_rows[keep], doc_rows[keep], grades[keep])


def _carve(train: Judged, ids: list[str], data: Data, file: str, findings: Findings) -> tuple[Judged, Judged]:
    """Train without the queries whose id falls into dev by its hash, and those."""
    rows = np.unique(train.query_rows)
    chosen = rows[[fingerprint(f"dev:{ids[row]}") < data.dev_fraction * 2**64 for row in rows.tolist()]] if len(rows) else rows
    if len(rows) and not 0 < len(chosen) < len(rows):
        what = f"dev split {data.dev_split!r} is missing and cannot be carved: the hash picks {len(chosen)}"
        what += f" of {len(rows)} train queries"
        findings.error(
            "dev split",
            file,
            None,
            what,
            "add a dev split, or set data.dev_fraction nearer to 0.5, or data.dev_split=null",
        )
    what = f"no dev split {data.dev_split!r}: {len(chosen)} of {len(rows)} train queries become dev"
    findings.note("dev split", file, None, f"{what}, chosen by a hash of their id")
    inside = np.isin(train.query_rows, chosen)

    def part(mask: NDArray[np.bool_]) -> Judged:
        return Judged(train.query_rows[mask], train.doc_rows[mask], train.grades[mask])

    return part(~inside), part(inside)


def _overlaps(splits: dict[str, Judged], texts: list[str], where: Where, findings: Findings) -> None:
    """Warn of queries that two splits share, by id or by exact text."""
    hashes: Hashes = np.fromiter(map(fingerprint, texts), np.uint64, len(texts))
    rows = {split: np.unique(judged.query_rows) for split, judged in splits.items()}
    for one, other in (("train", "test"), ("train", "dev"), ("dev", "test")):
        shared = np.intersect1d(rows[one], rows[other])
        for row in shared.tolist():
            what = f"this query is judged in both {one} and {other}"
            findings.warning(f"{one}/{other} overlap by id", *where(row), what, f"remove its judgements from {one}")
        alone = np.setdiff1d(rows[other], shared)
        values, first = np.unique(hashes[rows[one]], return_index=True)
        if not len(values):
            continue
        at = np.minimum(np.searchsorted(values, hashes[alone]), len(values) - 1)
        for hit in np.flatnonzero(values[at] == hashes[alone]).tolist():
            file, line = where(int(rows[one][first[at[hit]]]))
            what = f"a {other} query with the text of a {one} query ({file}:{line})"
            findings.warning(f"{one}/{other} overlap by text", *where(int(alone[hit])), what, f"remove the one in {one}")


def _unjudged(splits: dict[str, Judged], total: int, where: Where, findings: Findings) -> None:
    judged = np.unique(np.concatenate([split.query_rows for split in splits.values()]))
    rest = np.setdiff1d(np.arange(total), judged)
    if len(rest):
        what = f"first of {len(rest)} queries that no split judges; written as unlabelled"
        findings.note("unlabelled", *where(int(rest[0])), what)


def _pairs(rows: Iterator[Scored], queries: Ids, corpus: Ids, in_train: NDArray[np.bool_], findings: Findings) -> Pairs:
    found_rows, found_scores = [np.empty((3, 0), np.int64)], [np.empty(0, np.float32)]
    files: list[tuple[int, str]] = []  # first row of each file
    elsewhere, label = 0, ""
    for chunk in _chunks(rows):
        label = chunk[0].file
        query_rows, doc_rows = _known(chunk, queries, corpus, findings)
        good = (query_rows >= 0) & (doc_rows >= 0) & np.array([row.score is not None for row in chunk])
        wanted = good & in_train[query_rows] if len(in_train) else good
        elsewhere += int((good & ~wanted).sum())
        found_rows.append(np.stack([query_rows, doc_rows, np.array([row.line for row in chunk])])[:, wanted])
        found_scores.append(np.array([0.0 if row.score is None else row.score for row in chunk], np.float32)[wanted])
        if not files or files[-1][1] != label or chunk[-1].file != label:
            files += _starts(chunk, wanted, sum(block.shape[1] for block in found_rows[:-1]))
    if elsewhere:
        findings.note("not in train", label, None, f"{elsewhere} rows of queries that are not in train, left out")
    (query_rows, doc_rows, lines), scores = np.concatenate(found_rows, axis=1), np.concatenate(found_scores)
    pairs = query_rows * (len(corpus.rows) + 1) + doc_rows
    starts = [start for start, _ in files]
    for first, again in repeats(pairs, np.argsort(pairs, kind="stable")):
        file = files[int(np.searchsorted(starts, again, side="right")) - 1][1]
        findings.error(
            "pair twice",
            file,
            int(lines[again]),
            f"the same query and passage as line {lines[first]}",
            "keep one of the two",
        )
    return Pairs(query_rows, doc_rows, scores)


def _starts(chunk: list[Scored], wanted: NDArray[np.bool_], before: int) -> list[tuple[int, str]]:
    """(row, file) wherever the file changes among the wanted rows of a chunk."""
    result: list[tuple[int, str]] = []
    for at, index in enumerate(np.flatnonzero(wanted).tolist()):
        if not result or result[-1][1] != chunk[index].file:
            result.append((before + at, chunk[index].file))
    return result
