"""load: a raw collection -> corpus and queries tables, everything checked; and pieces of it made smaller."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa

from raydrd.data.collect import collect
from raydrd.data.spec import Data
from raydrd.spine.parts import Parts, part_name
from raydrd.spine.progress import say
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Located, Work, stage
from raydrd.spine.tables import QUERIES


def table(data: Artifact, name: str) -> Parts:
    """A table of a `load`ed collection: `corpus`, `queries/train`, `queries/dev`, `queries/test`, ..."""
    prefix = f"shards/{name}/"
    files = [file.removeprefix(prefix) for file in data.manifest["files"] if file.startswith(prefix)]
    return Parts.of(data.shards / name, files)


class Loader:
    """Reads and checks a collection in one pass of a worker: the driver sees counts only."""

    def __init__(self, *, data: Data, out: Folder) -> None:
        self.data, self.out = data, out

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        return {"metrics": collect(self.data, out=self.out)}


@stage(version=1)
def load(work: Work, *, data: Located) -> dict[str, Any]:
    """The collection behind `data` (identity: digest of its files and how they are read) as tables."""
    results = work.cluster.map(
        Loader,
        {"data": data.where, "out": work.shards},
        [{"name": "collection", "rows": 1}],
        label=work.label,
        unit="collection",
        marks=work.shards / "attempts",
        inline=work.cluster.is_local,
        models=False,
    )
    metrics = dict(results[0]["metrics"])
    return {**metrics, "unit": "rows"}


def report_load(data: Artifact) -> None:
    """What the collection holds and what to know about it, one line each; the same whether made or reused."""
    metrics = data.metrics
    counts = ", ".join(
        f"{metrics.get(name, 0):,} {name}" for name in ("passages", "train", "dev", "test", "unlabelled") if metrics.get(name)
    )
    lines = [f"data: {counts}", *(f"  {note}" for note in metrics.get("notes", []))]
    if metrics.get("warning_count"):
        lines.append(f"  {metrics['warning_count']:,} warnings:")
        lines += [f"    {line}" for line in metrics.get("warnings", [])[:10]]
    for line in lines:
        say(line)


@stage(version=1)
def sample_dev(work: Work, *, data: Artifact, passages: int, queries: int, seed: int) -> dict[str, Any]:
    """A small collection to watch training on: dev queries with all their judged passages, filled up at random.

    Metrics on it are higher than on the full corpus; they serve to compare one step with another only.
    """
    rng = np.random.default_rng(seed)
    dev = table(data, "queries/dev")
    chosen = dev.slice(0, dev.rows)
    if chosen.num_rows > queries:
        chosen = chosen.take(np.sort(rng.permutation(chosen.num_rows)[:queries]))
    corpus = table(data, "corpus")
    judged = np.unique(chosen["doc_rows"].combine_chunks().flatten().to_numpy(zero_copy_only=False))
    others = np.setdiff1d(rng.permutation(corpus.rows)[: passages + len(judged)], judged, assume_unique=False)
    others = rng.permutation(others)[: max(0, passages - len(judged))]
    rows = np.union1d(judged, others).astype(np.int64)
    texts = corpus.take(rows)
    work.shards.write_table(f"corpus/{part_name(0, len(rows), 'parquet')}", texts)
    lists = chosen["doc_rows"].combine_chunks()
    moved = pa.ListArray.from_arrays(lists.offsets, pa.array(np.searchsorted(rows, lists.flatten().to_numpy())))
    mini = chosen.set_column(2, QUERIES.field("doc_rows"), moved.cast(QUERIES.field("doc_rows").type))
    work.shards.write_table(f"queries/dev/{part_name(0, mini.num_rows, 'parquet')}", mini)
    return {"rows": len(rows), "unit": "passages", "passages": len(rows), "dev": mini.num_rows}


# A sentence ends at . ! or ? before a space; good enough for queries, and the same in every version of Python.
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


class QueryMaker:
    """Unlabelled queries made from passages: their leading sentences (a title comes first in its text)."""

    def __init__(self, *, corpus: Parts, out: Folder, sentences: int, words: tuple[int, int]) -> None:
        self.corpus, self.out, self.sentences, self.words = corpus, out, sentences, words

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        rows = np.array(shard["doc_rows"], dtype=np.int64)
        texts = self.corpus.take(rows)
        ids, made = [], []
        for doc_id, text in zip(texts["doc_id"].to_pylist(), texts["text"].to_pylist(), strict=True):
            found = [s for s in _SENTENCE.split(text) if len(s.split()) >= self.words[0]][: self.sentences]
            for number, sentence in enumerate(found):
                ids.append(f"made:{doc_id}:{number}")
                made.append(" ".join(sentence.split()[: self.words[1]]))
        empty: list[list[int]] = [[] for _ in ids]
        out = pa.table([ids, made, empty, empty], schema=QUERIES)
        self.out.write_table(f"{shard['name']}.parquet", out)
        return {"made": out.num_rows}


@stage(version=1)
def sample_queries(work: Work, *, data: Artifact, count: int, seed: int) -> dict[str, Any]:
    """`count` of the labelled train queries, drawn at random, in their order."""
    train = table(data, "queries/train")
    rows = np.sort(np.random.default_rng(seed).permutation(train.rows)[:count])
    work.shards.write_table(f"queries/train/{part_name(0, len(rows), 'parquet')}", train.take(rows))
    return {"rows": len(rows), "unit": "queries", "train": len(rows)}


@stage(version=2)
def make_queries(work: Work, *, data: Artifact, labelled: Artifact, count: int, sentences: int, seed: int) -> dict[str, Any]:
    """Training queries: the labelled ones (of `labelled`), then up to `count` unlabelled ones made from passages.

    Few labelled queries are the rule; a teacher needs none. The passage a query was cut from is no positive: the
    teacher alone says what answers it.
    """
    corpus, train = table(data, "corpus"), table(labelled, "queries/train")
    rng = np.random.default_rng(seed)
    # A third more passages than needed: some hold no sentence of five words.
    wanted = min(corpus.rows, -(-4 * count // (3 * max(1, sentences))))
    rows = np.sort(rng.permutation(corpus.rows)[:wanted])
    size = 5000
    shards = [
        {"name": f"made-{n:06d}", "rows": len(rows[lo : lo + size]), "doc_rows": rows[lo : lo + size].tolist()}
        for n, lo in enumerate(range(0, len(rows), size))
    ]
    scratch = work.shards / "scratch"
    work.cluster.map(
        QueryMaker,
        {"corpus": corpus, "out": scratch, "sentences": sentences, "words": (5, 24)},
        shards,
        label=work.label,
        unit="passages",
        marks=work.shards / "attempts",
        inline=True,
        models=False,
    )
    made = pa.concat_tables([QUERIES.empty_table(), *(scratch.read_table(f"{s['name']}.parquet") for s in shards)])
    if made.num_rows > count:
        made = made.take(np.sort(rng.permutation(made.num_rows)[:count]))
    both = pa.concat_tables([train.slice(0, train.rows) if train.rows else QUERIES.empty_table(), made.cast(QUERIES)])
    work.shards.write_table(f"queries/train/{part_name(0, both.num_rows, 'parquet')}", both)
    return {"rows": both.num_rows, "unit": "queries", "train": both.num_rows, "labelled": train.rows, "made": made.num_rows}


@stage(version=1)
def take_run(work: Work, *, data: Artifact) -> dict[str, Any]:
    """The ready-made candidates that came with the collection, as this project's candidates."""
    given = table(data, "candidates/train")
    for part, rows in given.each():
        work.shards.write_table(part.name, rows)
    return {"rows": given.rows, "unit": "queries"}
