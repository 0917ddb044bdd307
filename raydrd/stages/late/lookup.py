"""One query against token vectors: candidates by their kind, then MaxSim. What `raydrd search` and measurements ask."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydrd.spine.parts import Parts
from raydrd.spine.storage import Folder
from raydrd.stages.indexfile import opened
from raydrd.stages.late.index import look_into, near, starts_of
from raydrd.stages.late.pack import open_passages
from raydrd.stages.late.pairs import scores_of


class Lookup:
    """Passages of a collection, opened: all of them scored, or those that an index of tokens or of pooled vectors finds.

    name: of the index file in the folder `index`.
    """

    def __init__(
        self,
        *,
        passages: Parts,
        codec: Folder | None,
        candidates: str,
        index: Folder | None = None,
        name: str = "index.faiss",
        each: int = 0,
        depth: int = 0,
        probes: int = 1,
        stamp: str = "",
    ) -> None:
        self.passages, self.candidates = open_passages(passages, codec), candidates
        self.each, self.depth = each, depth
        self.rows = passages.rows
        self.index: Any = None
        if candidates != "all":
            assert index is not None
            self.index = opened(index.local(name, stamp))
            look_into(self.index, probes)
        self.starts = starts_of(passages) if candidates == "tokens" else np.empty(0, dtype=np.int64)

    def __call__(
        self, query_TD: NDArray[np.floating], pooled_D: NDArray[np.float32] | None = None, *, k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and MaxSim of the k best, best first; ties by row. pooled_D: the query's one vector, where those decide."""
        query = np.ascontiguousarray(query_TD, dtype=np.float32)
        if self.candidates == "all":
            docs = np.arange(self.rows)
        elif self.candidates == "tokens":
            docs = np.sort(near(self.index, self.starts, query, each=self.each, depth=self.depth)[0])
        else:
            assert pooled_D is not None
            found = self.index.search(pooled_D[None].astype(np.float32), min(self.depth, self.rows))[1][0]
            docs = np.sort(found[found >= 0])
        scores = scores_of(query, self.passages, docs)
        best = np.lexsort((docs, -scores))[:k]
        return docs[best], scores[best]
