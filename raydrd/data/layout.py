"""Which files a collection has: found by name, reported when missing, opened as streams of rows."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

from raydrd.data import formats, parquet, pydocs
from raydrd.data.findings import Findings
from raydrd.data.formats import Judgement, Place, Scored, Text
from raydrd.data.spec import Data
from raydrd.errors import InputError
from raydrd.spine.storage import Folder

Row = TypeVar("Row")


@dataclass(frozen=True)
class Sources:
    """A collection, opened: each member gives its rows from the start, as often as it is called."""

    corpus: Callable[[Findings], Iterator[Text]]
    queries: Callable[[Findings], Iterator[Text]]
    qrels: dict[str, Callable[[Findings], Iterator[Judgement]]]  # by split name; a missing dev split is absent
    run: Callable[[Findings], Iterator[Scored]] | None = None
    scores: Callable[[Findings], Iterator[Scored]] | None = None
    labels: dict[str, str] = field(default_factory=dict)  # corpus, queries or a split's name -> its file in messages
    places: tuple[Place, ...] = ()  # every file that is read
    counts: dict[str, int] = field(default_factory=dict)  # how it was built (pydocs)


@dataclass(frozen=True)
class _Search:
    """Where files are looked for: a folder and the names of the files in it."""

    data: Data
    folder: Folder
    names: frozenset[str]
    findings: Findings

    def place(self, name: str) -> Place:
        return Place(self.folder, name, name)


def root_of(data: Data) -> str:
    """The collection's folder for messages, without the options and credentials of an object-store URI."""
    return "" if data.path is None else _shown(Folder.of(data.path).uri)


def _shown(uri: str) -> str:
    scheme, separator, rest = uri.partition("?")[0].partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if separator else uri


def names_in(where: str) -> frozenset[str]:
    """Names of all files below a folder, relative to it.

    Raises:
        InputError: it is not a folder, or cannot be listed.
    """
    folder = Folder.of(where)
    if folder.is_local and not Path(folder.uri).is_dir():
        what = "is a file" if Path(folder.uri).exists() else "no such folder"
        raise InputError(f"{where}: {what}; write the folder that holds the collection")
    try:
        return frozenset(folder.files())
    except OSError as error:
        raise InputError(f"{_shown(folder.uri)}: cannot be listed: {error}") from error


def find(data: Data, findings: Findings) -> Sources | None:
    """The collection's files as streams; None if a file that must be there is not (reported).

    Raises:
        InputError: the folder itself is not there.
    """
    before = findings.count("error")
    if data.path is None:
        search = _Search(data, Folder.of("."), frozenset(), findings)
        passages, counts = pydocs.build(data)
        sources = Sources(
            corpus=lambda _: iter(pydocs.passages(passages)),
            queries=lambda _: iter(pydocs.queries(passages)),
            qrels={name: partial(pydocs.judgements, passages, name) for name in pydocs.SPLITS},
            counts=counts,
        )
    else:
        search = _Search(data, Folder.of(data.path), names_in(data.path), findings)
        sources = _files(search)
    run, scores = _extras(search)
    if findings.count("error") > before:
        return None
    return replace(
        sources,
        run=partial(_all, formats.run_rows, run) if run else None,
        scores=partial(_all, parquet.parquet_scores, scores) if scores else None,
        places=(*sources.places, *run, *scores),
    )


def _extras(search: _Search) -> tuple[list[Place], list[Place]]:
    data = search.data
    run = _named(search, data.run, field="run") if data.run else []
    return run, _scores(search, data.scores) if data.scores else []


def places(data: Data, findings: Findings) -> tuple[Place, ...]:
    """Every file that would be read, without opening one; missing ones are reported.

    Raises:
        InputError: the folder itself is not there.
    """
    if data.path is not None:
        sources = find(data, findings)
        return sources.places if sources else ()
    return tuple(chain(*_extras(_Search(data, Folder.of("."), frozenset(), findings))))


def _files(search: _Search) -> Sources:
    data = search.data
    read_texts = read_queries = formats.beir_texts
    read_qrels = formats.beir_qrels
    if data.source == "beir":
        corpus, queries = _exactly(search, "corpus.jsonl"), _exactly(search, "queries.jsonl")
    elif data.source == "parquet":
        corpus, queries = _pieces(search, "corpus"), _pieces(search, "queries")
        read_texts, read_queries, read_qrels = (
            parquet.parquet_texts,
            parquet.parquet_texts,
            parquet.parquet_qrels,
        )
    else:
        corpus = _named(search, data.corpus, field="corpus") if data.corpus else _exactly(search, "collection.tsv")
        queries = _msmarco_queries(search)
        read_texts, read_queries, read_qrels = formats.tsv_passages, formats.tsv_queries, formats.trec_qrels
    splits = _splits(search)
    tables = {**splits, "corpus": corpus, "queries": queries}
    return Sources(
        corpus=partial(_all, read_texts, corpus),
        queries=partial(_all, read_queries, queries),
        qrels={name: partial(_all, read_qrels, found) for name, found in splits.items()},
        labels={name: found[0].label for name, found in tables.items() if found},
        places=tuple(chain(corpus, queries, *splits.values())),
    )


def _all(read: Callable[[Place, Findings], Iterator[Row]], places: list[Place], findings: Findings) -> Iterator[Row]:
    for place in places:
        yield from read(place, findings)


# -- files by name --------------------------------------------------------------------------------


def _missing(search: _Search, name: str, looked_for: str, instead: str) -> list[Place]:
    search.findings.error("missing file", name, None, f"no such file (looked for {looked_for})", instead)
    return []


def _present(search: _Search, name: str) -> list[Place]:
    """The file, plain or gzipped; both is an error, since they may differ."""
    found = [n for n in (name, f"{name}.gz") if n in search.names]
    if len(found) == 2:
        search.findings.error("ambiguous file", name, None, f"both {name} and {name}.gz are there", "remove one")
    return [search.place(n) for n in found[:1]]


def _exactly(search: _Search, name: str) -> list[Place]:
    found = _present(search, name)
    top = sorted({n.partition("/")[0] for n in search.names})[:12]
    return found or _missing(search, name, f"{name}, {name}.gz", f"add it; the folder holds {', '.join(top) or 'nothing'}")


def _pieces(search: _Search, stem: str, *, optional: bool = False) -> list[Place]:
    """Parquet: STEM.parquet, else all of STEM/*.parquet and STEM-*.parquet by name."""
    patterns = (f"{stem}.parquet", f"{stem}/*.parquet", f"{stem}-*.parquet")
    for pattern in patterns:
        found = sorted(n for n in fnmatch.filter(search.names, pattern) if n.count("/") == pattern.count("/"))
        if found:
            return [search.place(n) for n in found]
    return [] if optional else _missing(search, f"{stem}.parquet", ", ".join(patterns), "add one of them")


def _locate(search: _Search, name: str) -> Place:
    """A file the user named: absolute, a URI, or relative to the collection (pydocs: to this folder)."""
    if "://" not in name and not name.startswith(("/", "~")):
        return search.place(name)
    path, question, options = name.rstrip("/").partition("?")
    parent, _, base = path.rpartition("/")
    folder = Folder.of(f"{parent or '/'}{question}{options}")
    return Place(folder, base, f"{_shown(folder.uri).rstrip('/')}/{base}")


def _named(search: _Search, name: str, *, field: str) -> list[Place]:
    place = _locate(search, name)
    if place.folder.exists(place.name):
        return [place]
    shown = f"{_shown(place.folder.uri)}/{place.name}"
    return _missing(search, place.label, shown, f"correct data.{field}; names are relative to data.path")


def _scores(search: _Search, name: str) -> list[Place]:
    """One Parquet file, or a folder of them."""
    place = _locate(search, name)
    if place.folder.exists(place.name):
        return [place]
    found = [n for n in place.folder.files(place.name) if n.endswith(".parquet")]
    if found:
        return [Place(place.folder, n, place.label + n.removeprefix(place.name)) for n in found]
    return _missing(
        search,
        place.label,
        f"{name}, {name}/*.parquet",
        "correct data.scores; names are relative to data.path",
    )


def _msmarco_queries(search: _Search) -> list[Place]:
    data = search.data
    if data.queries:
        names = (data.queries,) if isinstance(data.queries, str) else data.queries
        return list(chain.from_iterable(_named(search, name, field="queries") for name in names))
    whole = _present(search, "queries.tsv")
    if whole:
        return whole
    wanted = [f"queries.{s}.tsv" for s in (data.train_split, data.dev_split, data.test_split) if s]
    found = list(chain.from_iterable(_present(search, name) for name in wanted))
    instead = "add them, or name your files: data.queries=[...]"
    return found or _missing(search, "queries.tsv", ", ".join(["queries.tsv", *wanted]), instead)


# -- splits ---------------------------------------------------------------------------------------


def available(data: Data, names: frozenset[str]) -> list[str]:
    """Names of the splits whose judgements are among the names."""
    source, given = data.source, data.qrels
    if given is not None:
        return sorted(given)
    if source == "parquet":
        stems = (n.removeprefix("qrels/") for n in names if n.startswith("qrels/") and n.endswith(".parquet"))
        return sorted({stem.removesuffix(".parquet").partition("/")[0].partition("-")[0] for stem in stems})
    prefix = "qrels/" if source == "beir" else "qrels."
    inner = (n.removesuffix(".gz").removeprefix(prefix) for n in names if n.startswith(prefix))
    return sorted({name.removesuffix(".tsv") for name in inner if name.endswith(".tsv") and "/" not in name})


def _judgements(search: _Search, split: str) -> list[Place]:
    if search.data.source == "parquet":
        return _pieces(search, f"qrels/{split}", optional=True)
    if search.data.qrels is not None:
        name = search.data.qrels.get(split)
        return _named(search, name, field=f"qrels.{split}") if name else []
    return _present(search, f"qrels/{split}.tsv" if search.data.source == "beir" else f"qrels.{split}.tsv")


def _splits(search: _Search) -> dict[str, list[Place]]:
    data = search.data
    found: dict[str, list[Place]] = {}
    for key in ("train_split", "dev_split", "test_split"):
        split = getattr(data, key)
        judged = _judgements(search, split) if split else []
        if judged:
            found[split] = judged
        elif split and (key != "dev_split" or data.train_split is None):  # a missing dev split is carved from train
            kind = {"beir": f"qrels/{split}.tsv", "msmarco": f"qrels.{split}.tsv"}.get(data.source, f"qrels/{split}.parquet")
            there = ", ".join(available(search.data, search.names)) or "none"
            instead = f"add it, set data.{key} to one of them, or data.{key}=null if there is none"
            search.findings.error(
                "missing split",
                kind,
                None,
                f"no judgements for {split!r}; available splits: {there}",
                instead,
            )
    return found
