"""cut: vectors -> their first numbers, of unit length again where whole ones are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.spine.parts import Parts, matrix
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.spine.tables import vectors as vector_table
from raydrd.stages.shards import parts_of, pending

ROWS = 50_000  # of a part
FEW_ROWS = 100_000


def cut(vectors_ND: NDArray[np.floating], dim: int, *, normalize: bool) -> NDArray[np.float32]:
    """The first `dim` numbers of each vector, float32 [N, dim]; a vector of zeros stays one.

    Vectors of that width stay as they are: they have the length their encoder gave them.
    """
    found = np.ascontiguousarray(vectors_ND[:, :dim], dtype=np.float32)
    if normalize and dim < vectors_ND.shape[1]:
        found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return found


class Cutter:
    """Row ranges of stored vectors, cut."""

    def __init__(self, *, vectors: Parts, dim: int, normalize: bool, out: Folder) -> None:
        self.vectors, self.dim, self.normalize, self.out = vectors, dim, normalize, out

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        found = cut(matrix(self.vectors.slice(shard["lo"], shard["hi"], ["vector"])), self.dim, normalize=self.normalize)
        column = pa.FixedSizeListArray.from_arrays(pa.array(found.ravel()), self.dim)
        self.out.write_arrow(shard["name"], pa.table([column], schema=vector_table(self.dim, "float32")))
        return {}


@stage(version=1)
def cut_vectors(work: Work, *, vectors: Artifact, dim: int, normalize: bool) -> dict[str, Any]:
    """The first `dim` numbers of every stored vector, kept as float32."""
    parts = parts_of(vectors)
    work.cluster.map(
        Cutter,
        {"vectors": parts, "dim": dim, "normalize": normalize, "out": work.shards},
        pending(work, parts.rows, ROWS),
        label=work.label,
        unit="vectors",
        marks=work.shards / "attempts",
        inline=parts.rows <= FEW_ROWS,
        models=False,
    )
    return {"rows": parts.rows, "unit": "vectors", "width": dim}
