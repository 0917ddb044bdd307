"""Examples by number: training lists, or texts with target vectors. Read from memory-mapped stores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from raydrd.objectives import ListBatch, TextBatch
from raydrd.parts import Parts, VectorReader


@dataclass(frozen=True)
class ListExamples:
    """Training lists, and the tokens of their queries and passages."""

    lists: Parts
    tokens: dict[str, Parts]

    def open(self) -> ListSource:
        return ListSource(self)


@dataclass(frozen=True)
class TextExamples:
    """Texts of several token stores with their target vectors: (role, tokens, vectors) each."""

    stores: tuple[tuple[str, Parts, Parts], ...]

    @property
    def tokens(self) -> dict[str, Parts]:
        return {role: tokens for role, tokens, _ in self.stores}

    def open(self) -> TextSource:
        return TextSource(self)


class ListSource:
    """All lists as flat arrays: some 12 bytes a passage, so 500,000 lists of 30 take 180 MB."""

    def __init__(self, examples: ListExamples) -> None:
        tables = [table for _, table in examples.lists.each()]
        columns = {
            name: np.concatenate([np.asarray(t[name].combine_chunks().flatten()) for t in tables])
            for name in ("doc_rows", "labels", "teacher_scores")
        }
        lengths = np.concatenate([np.asarray(t["doc_rows"].combine_chunks().value_lengths()) for t in tables])
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.query_rows = np.concatenate([np.asarray(t["query_row"]) for t in tables])
        self.columns = columns

    def __len__(self) -> int:
        return len(self.query_rows)

    def batch(self, numbers: NDArray[np.int64], width: int | None = None) -> ListBatch:
        """These lists, padded to the longest (or `width`), passages that several lists share encoded once."""
        starts, ends = self.starts[numbers], self.starts[numbers + 1]
        width = int((ends - starts).max()) if width is None else width
        places_QN = starts[:, None] + np.arange(width)
        mask_QN = places_QN < ends[:, None]
        places_QN = np.where(mask_QN, places_QN, starts[:, None])
        doc_rows_QN = self.columns["doc_rows"][places_QN]
        distinct, index = np.unique(doc_rows_QN, return_inverse=True)
        return ListBatch(
            rows={"query": torch.from_numpy(self.query_rows[numbers]), "passage": torch.from_numpy(distinct)},
            index_QN=torch.from_numpy(index.reshape(doc_rows_QN.shape)),
            doc_rows_QN=torch.from_numpy(doc_rows_QN),
            labels_QN=torch.from_numpy(self.columns["labels"][places_QN]),
            teacher_QN=torch.from_numpy(self.columns["teacher_scores"][places_QN]),
            mask_QN=torch.from_numpy(mask_QN),
        )

    def width(self) -> int:
        """The longest list: what every rank pads to, so that gathered tensors have one shape."""
        return int(np.diff(self.starts).max())


class TextSource:
    """Texts of all stores as one numbering."""

    def __init__(self, examples: TextExamples) -> None:
        self.roles = [role for role, _, _ in examples.stores]
        self.targets = [VectorReader(vectors) for _, _, vectors in examples.stores]
        sizes = [tokens.rows for _, tokens, _ in examples.stores]
        self.starts = np.concatenate([[0], np.cumsum(sizes)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def batch(self, numbers: NDArray[np.int64], width: int | None = None) -> TextBatch:
        rows, targets = {}, {}
        for n, role in enumerate(self.roles):
            here = np.sort(numbers[(numbers >= self.starts[n]) & (numbers < self.starts[n + 1])] - self.starts[n])
            if len(here):
                rows[role] = torch.from_numpy(here)
                targets[role] = torch.from_numpy(self.targets[n].take(here))
        return TextBatch(rows=rows, targets=targets)

    def width(self) -> int | None:
        return None
