"""What stages are given in tests: tables, vectors, models and tokens as artifacts; and what they made, read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raydrd.data.collect import digest
from raydrd.data.spec import Data
from raydrd.models.layout import Layout, read_layout
from raydrd.spine.cluster import Cluster
from raydrd.spine.parts import VectorReader, part_name, ranges
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Located, Store, Work, stage
from raydrd.spine.tables import CANDIDATES, vectors
from raydrd.stages.adopt import Student, adopt, located, model_folder, wanted_layout
from raydrd.stages.embed import embed
from raydrd.stages.load import load, table
from raydrd.stages.shards import parts_of
from raydrd.stages.tokenize import tokenize


@stage(version=1)
def given(work: Work, *, name: str, parts: Any, metrics: Any) -> dict[str, Any]:
    """Tables made by a test, as an artifact."""
    for lo, hi, piece in parts.where:
        arrow = "vector" in piece.column_names
        (work.shards.write_arrow if arrow else work.shards.write_table)(
            part_name(lo, hi, "arrow" if arrow else "parquet"), piece
        )
    return dict(metrics)


def put(store: Store, name: str, rows: pa.Table, size: int = 10**9, **metrics: Any) -> Artifact:
    pieces = [(lo, hi, rows.slice(lo, hi - lo)) for lo, hi in ranges(rows.num_rows, size)]
    return store.run(given, name=f"{name}/{size}", parts=Located(rows.num_rows, pieces), metrics=metrics)


def put_vectors(store: Store, name: str, matrix: np.ndarray, size: int = 10**9) -> Artifact:
    column = pa.FixedSizeListArray.from_arrays(pa.array(matrix.astype(np.float32).ravel()), matrix.shape[1])
    return put(store, name, pa.table([column], schema=vectors(matrix.shape[1], "float32")), size, width=matrix.shape[1])


def whole(artifact: Artifact) -> pa.Table:
    return pa.concat_tables(part for _, part in parts_of(artifact).each())


def matrix_of(artifact: Artifact) -> np.ndarray:
    parts = parts_of(artifact)
    return VectorReader(parts).slice(0, parts.rows)


def with_resources(store: Store, root: Path, **changes: Any) -> Store:
    """Another store that runs its stages otherwise."""
    return Store(Folder.of(root), Cluster(store.cluster.resources.model_copy(update=changes)))


def open_data(store: Store, folder: Path) -> Artifact:
    data = Data(path=str(folder))
    return store.run(load, data=Located(digest(data), data))


def open_model(store: Store, folder: Path, **changes: Any) -> Artifact:
    model = Student(model=str(folder), **changes)
    source = located(model)
    return store.run(adopt, source=source, layout=wanted_layout(model, read_layout(source.where)), layers=None)


def open_tokens(store: Store, model: Artifact, data: Artifact, name: str) -> Artifact:
    layout = Layout.model_validate(model.metrics["layout"])
    role = "passage" if name == "corpus" else "query"
    known = Located(model.metrics["tokenizer"], (model_folder(model), layout.folder(role)))
    return store.run(tokenize, data=data, name=name, tokenizer=known, prompt=layout.prompt(role), lowercase=layout.lowercase)


def embed_all(store: Store, model: Artifact, data: Artifact, name: str, storage: str = "float16") -> Artifact:
    role = "passage" if name == "corpus" else "query"
    tokens = open_tokens(store, model, data, name)
    return store.run(embed, model=model, role=role, tokens=tokens, precision="fp32", storage=storage)


def whole_texts(data: Artifact, name: str) -> list[str]:
    parts = table(data, name)
    return list(parts.slice(0, parts.rows, ["text"])["text"].to_pylist())


def candidate_lists(lists: list[list[int]]) -> pa.Table:
    scores = [[1.0 / (n + 1) for n in range(len(rows))] for rows in lists]
    return pa.table([list(range(len(lists))), lists, scores], schema=CANDIDATES)
