"""A small piece of the user's own collection, with everything that the stages of a run read of one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.flow.lab import Lab
from raydrd.spine.parts import Parts, part_name
from raydrd.spine.store import Artifact, Store
from raydrd.spine.tables import CANDIDATES, CORPUS, QUERIES, SCORED
from raydrd.stages.load import table

PASSAGES = (512, 4096)  # fewest and most: a step's passages must differ from one another, as they do in a large corpus
QUERIES_EACH = (48, 512)  # of the training queries; a step reads different ones
OTHERS = 48  # dev and test queries
JUDGED = 8  # most judged passages a query that are taken along
READ_PARTS = 4  # files of the corpus that passages are drawn from


def sample(lab: Lab, scratch: Store, *, batch: int, width: int) -> Artifact:
    """A collection in `scratch` with tables corpus, queries/{train,dev,test}, and candidates of the training queries.

    batch, width: queries of the largest training step, and passages of its lists.
    """
    draw = np.random.default_rng(0)
    corpus = table(lab.data, "corpus")
    sources = {
        "train": (lab.train_data, int(np.clip(2 * batch, *QUERIES_EACH))),
        "dev": (lab.data, OTHERS),
        "test": (lab.data, OTHERS),
    }
    asked = {split: _drawn(table(data, f"queries/{split}"), count, draw) for split, (data, count) in sources.items()}
    judged = np.unique(np.concatenate([_judged(one) for one in asked.values()]))
    wanted = int(np.clip(2 * batch * width, *PASSAGES))
    rows = np.union1d(judged, _spread(corpus, max(0, wanted - len(judged)), draw))
    made = {"corpus": corpus.take(rows).select(CORPUS.names).cast(CORPUS)}
    made |= {f"queries/{split}": _moved(one, rows) for split, one in asked.items() if one.num_rows}
    lists = _lists(made["queries/train"].num_rows, len(rows), draw)
    made |= {"candidates/train": lists.select(CANDIDATES.names), "scored/train": lists}
    home, files = scratch.root / "load" / "sample", {}
    for name, one in made.items():
        file = f"{name}/{part_name(0, one.num_rows, 'parquet')}"
        (home / "shards").write_table(file, one)
        files[f"shards/{file}"] = 0
    return Artifact(
        "sample", "load", home, {"attempt": "none", "files": files, "metrics": {"passages": len(rows), "depth": None}}
    )


def view(sample: Artifact, name: str) -> Artifact:
    """One table of the sample as an artifact of its own."""
    prefix = f"shards/{name}/"
    files = {file: 0 for file in sample.manifest["files"] if file.startswith(prefix)}
    rows = table(sample, name).rows
    about = {**sample.manifest, "files": files, "metrics": {"rows": rows, "unit": "queries"}}
    return Artifact(f"sample-{name.replace('/', '-')}", "load", sample.home, about)


def _drawn(queries: Parts, count: int, draw: np.random.Generator) -> pa.Table:
    if not queries.rows:
        return QUERIES.empty_table()
    return queries.take(_spread(queries, count, draw)).select(QUERIES.names).cast(QUERIES)


def _spread(parts: Parts, count: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """Rows of at most a few files, ascending: a corpus of many files is not read for a sample of it."""
    chosen = draw.permutation(len(parts.parts))[:READ_PARTS]
    rows = np.concatenate([np.arange(parts.parts[n].lo, parts.parts[n].hi) for n in chosen])
    return np.asarray(np.sort(draw.permutation(rows)[:count]))


def _judged(queries: pa.Table) -> NDArray[np.int64]:
    found = [d for row in queries["doc_rows"].to_pylist() for d in row[:JUDGED]]
    return np.array(found, dtype=np.int64)


def _moved(queries: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """The queries with their judged passages counted in the sample."""
    place = {int(row): n for n, row in enumerate(rows)}
    docs, grades = [], []
    for query in queries.select(["doc_rows", "grades"]).to_pylist():
        kept = [(place[d], g) for d, g in zip(query["doc_rows"], query["grades"], strict=True) if d in place]
        docs.append([d for d, _ in kept])
        grades.append([g for _, g in kept])
    return pa.table([queries["query_id"], queries["text"], docs, grades], schema=QUERIES)


def _lists(queries: int, passages: int, draw: np.random.Generator) -> pa.Table:
    """Candidates as a ready-made run, or ready-made scores, would hold them."""
    depth = min(100, passages)
    docs = [draw.permutation(passages)[:depth].tolist() for _ in range(queries)]
    scores = [sorted(draw.normal(size=depth).tolist(), reverse=True) for _ in range(queries)]
    return pa.table([list(range(queries)), docs, scores, scores], schema=SCORED)
