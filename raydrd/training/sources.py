"""Examples by number: training lists, or texts with target vectors. Read from memory-mapped stores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from raydrd.methods.lists import DARK, POSITIVE
from raydrd.methods.objectives import DuelBatch, ListBatch, TextBatch
from raydrd.spine.parts import Chain, Parts, VectorReader
from raydrd.spine.ragged import COLUMN, RaggedReader

Form = Literal["texts", "pairs", "duels"]


@dataclass(frozen=True)
class ListExamples:
    """Training lists, and the tokens of their queries and passages.

    form: what the model reads: texts (a bi-encoder), pairs (a cross-encoder: query and passage), or duels (query and two
    passages). group: passages a list gives a step, its first and others drawn anew each epoch; None: all.
    teacher_vectors: role -> stored vectors, for objectives that compare whole batches with a bi-encoder teacher.
    """

    lists: Parts
    tokens: dict[str, Parts | Chain]
    form: Form = "texts"
    group: int | None = None
    seed: int = 0
    teacher_vectors: dict[str, Parts] = field(default_factory=dict)

    def open(self) -> ListSource:
        return ListSource(self)


@dataclass(frozen=True)
class TextExamples:
    """Texts of several token stores with their target vectors: (role, tokens, vectors) each.

    Vectors are one a text or one a token. also: names of targets of the same texts (`query tokens`, ..) with their role.
    """

    stores: tuple[tuple[str, Parts, Parts], ...]
    also: tuple[tuple[str, str, Parts], ...] = ()

    @property
    def tokens(self) -> dict[str, Parts]:
        return {role: tokens for role, tokens, _ in self.stores}

    def open(self) -> TextSource:
        return TextSource(self)


class Ragged:
    """A list column of all parts as one flat array."""

    def __init__(self, tables: list[Any], name: str) -> None:
        columns = [t[name].combine_chunks() for t in tables]
        self.values = np.concatenate([np.asarray(c.flatten()) for c in columns])
        self.starts = np.concatenate([[0], np.cumsum(np.concatenate([np.asarray(c.value_lengths()) for c in columns]))])

    def of(self, number: int) -> NDArray[Any]:
        return self.values[self.starts[number] : self.starts[number + 1]]

    def padded(self, numbers: NDArray[np.int64], fill: Any) -> NDArray[Any]:
        """These lists as rows, filled up to the longest."""
        starts, ends = self.starts[numbers], self.starts[numbers + 1]
        places = starts[:, None] + np.arange(int((ends - starts).max()))
        inside = places < ends[:, None]
        return np.where(inside, self.values[np.where(inside, places, 0)], fill) if inside.size else np.empty(places.shape, int)


class ListSource:
    """All lists as flat arrays: some 25 bytes a passage, so 500,000 lists of 30 take 400 MB."""

    def __init__(self, examples: ListExamples) -> None:
        tables = [table for _, table in examples.lists.each()]
        self.examples = examples
        self.columns = {name: Ragged(tables, name) for name in ("doc_rows", "labels", "teacher_scores", "flags", "relevant")}
        self.anchor = Ragged(tables, "anchor_scores")
        self.pairs = {name: Ragged(tables, name) for name in ("pair_left", "pair_right", "pair_p")}
        self.starts = self.columns["doc_rows"].starts
        self.query_rows = np.concatenate([np.asarray(t["query_row"]) for t in tables])
        self.confidence = np.concatenate([np.asarray(t["confidence"]) for t in tables]).astype(np.float32)
        # Ascending: a quantile of it is the gate of self-paced learning.
        self.confidences = torch.from_numpy(np.sort(self.confidence[~np.isnan(self.confidence)]))
        self.targets = {role: VectorReader(parts) for role, parts in examples.teacher_vectors.items()}

    def __len__(self) -> int:
        return len(self.query_rows)

    def _drawn(self, number: int, epoch: int) -> NDArray[np.int64]:
        """Places of the passages this list gives in this epoch: the first, dark ones, and others drawn by its own seed."""
        places: NDArray[np.int64] = np.arange(self.starts[number], self.starts[number + 1])
        group = self.examples.group
        if group is None or len(places) <= group:
            return np.asarray(places)
        kept = (self.columns["flags"].values[places] & DARK) != 0
        kept[0] = True
        pool = np.flatnonzero(~kept)
        salt = f"{self.examples.seed}\x1f{epoch}\x1f{self.query_rows[number]}".encode()
        keys = np.random.PCG64(int.from_bytes(sha256(salt).digest(), "big")).random_raw(len(pool))
        kept[pool[np.argsort(keys, kind="stable")[: max(0, group - int(kept.sum()))]]] = True
        return np.asarray(places[kept])

    def batch(
        self, numbers: NDArray[np.int64], width: int | None = None, epochs: NDArray[np.int64] | None = None
    ) -> ListBatch | DuelBatch:
        """These lists, padded to the longest (or `width`), passages that several lists share encoded once."""
        epochs = np.zeros(len(numbers), dtype=np.int64) if epochs is None else epochs
        chosen = [self._drawn(int(n), int(e)) for n, e in zip(numbers, epochs, strict=True)]
        lengths = np.array([len(c) for c in chosen])
        width = int(lengths.max()) if width is None else width
        mask_QN = np.arange(width) < lengths[:, None]
        places_QN = np.repeat(np.array([c[0] for c in chosen])[:, None], width, axis=1)
        places_QN[mask_QN] = np.concatenate(chosen)
        if self.examples.form == "duels":
            return self._duels(numbers, places_QN, mask_QN)
        doc_rows_QN = self.columns["doc_rows"].values[places_QN]
        rows: dict[str, torch.Tensor]
        if self.examples.form == "pairs":
            pairs = np.stack([np.repeat(self.query_rows[numbers], lengths), doc_rows_QN[mask_QN]], axis=1)
            rows = {"pair": torch.from_numpy(pairs)}
            index_QN = np.zeros(mask_QN.shape, dtype=np.int64)
            index_QN[mask_QN] = np.arange(len(pairs))
        else:
            distinct, index = np.unique(doc_rows_QN, return_inverse=True)
            rows = {"query": torch.from_numpy(self.query_rows[numbers]), "passage": torch.from_numpy(distinct)}
            index_QN = index.reshape(doc_rows_QN.shape)
        pairs_P3, p_P = self._pairs(numbers, chosen)
        anchored = len(self.anchor.values) == len(self.columns["doc_rows"].values)
        return ListBatch(
            rows=rows,
            index_QN=torch.from_numpy(index_QN),
            doc_rows_QN=torch.from_numpy(doc_rows_QN),
            labels_QN=torch.from_numpy(self.columns["labels"].values[places_QN]),
            teacher_QN=torch.from_numpy(self.columns["teacher_scores"].values[places_QN]),
            mask_QN=torch.from_numpy(mask_QN),
            flags_QN=torch.from_numpy(self.columns["flags"].values[places_QN].astype(np.int8)),
            anchor_QN=torch.from_numpy(self.anchor.values[places_QN]) if anchored else None,
            relevant_QR=torch.from_numpy(self.columns["relevant"].padded(numbers, -1)),
            confidence_Q=torch.from_numpy(self.confidence[numbers]),
            confidences_A=self.confidences,
            pairs_P3=torch.from_numpy(pairs_P3),
            pair_p_P=torch.from_numpy(p_P),
            teacher_vectors={r: torch.from_numpy(self.targets[r].take(rows[r].numpy())) for r in self.targets},
        )

    def _pairs(
        self, numbers: NDArray[np.int64], chosen: list[NDArray[np.int64]]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Compared pairs of these lists: (place in the batch, left, right) and P(left is better).

        Pairs name places of the whole list: where only some passages were drawn, these are found again by their places,
        and a pair with one that was not drawn is left out.
        """
        found, known = [], []
        for q, (number, drawn) in enumerate(zip(numbers.tolist(), chosen, strict=True)):
            sides = np.stack([self.pairs[name].of(number) for name in ("pair_left", "pair_right")]).astype(np.int64)
            sides += self.starts[number]
            there = np.isin(sides, drawn).all(axis=0)
            left, right = np.searchsorted(drawn, sides[:, there])
            found.append(np.stack([np.full(len(left), q), left, right], axis=1))
            known.append(self.pairs["pair_p"].of(number)[there])
        return np.concatenate(found), np.concatenate(known).astype(np.float32)

    def _duels(self, numbers: NDArray[np.int64], places_QN: NDArray[np.int64], mask_QN: NDArray[np.bool_]) -> DuelBatch:
        """The first passage of each list against each of the others; which stands first alternates."""
        doc_rows_QN = self.columns["doc_rows"].values[places_QN]
        positive_QN = (self.columns["flags"].values[places_QN] & POSITIVE) != 0
        q, n = np.nonzero(mask_QN & ~positive_QN)
        q, n = q[n > 0], n[n > 0]
        first, other = doc_rows_QN[q, 0], doc_rows_QN[q, n]
        ahead = (n + numbers[q]) % 2 == 0
        rows = np.stack([self.query_rows[numbers][q], np.where(ahead, first, other), np.where(ahead, other, first)], axis=1)
        return DuelBatch(rows={"duel": torch.from_numpy(rows)}, p_P=torch.from_numpy(ahead.astype(np.float32)))

    def width(self) -> int:
        """The longest list: what every rank pads to, so that gathered tensors have one shape."""
        longest = int(np.diff(self.starts).max())
        return longest if self.examples.group is None else min(longest, self._widest())

    def _widest(self) -> int:
        assert self.examples.group is not None
        dark = (self.columns["flags"].values & DARK) != 0
        most = int(np.add.reduceat(dark, self.starts[:-1]).max()) if len(dark) else 0
        return max(self.examples.group, most + 1)


def open_targets(vectors: Parts) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
    """What gives rows of stored vectors as float32: [rows, D], or [rows, longest, D] of those that are one a token."""
    first = vectors.read(vectors.parts[0])
    return RaggedReader(vectors).padded if COLUMN in first.column_names else VectorReader(vectors).take


class TextSource:
    """Texts of all stores as one numbering."""

    def __init__(self, examples: TextExamples) -> None:
        self.roles = [role for role, _, _ in examples.stores]
        self.targets = [open_targets(vectors) for _, _, vectors in examples.stores]
        self.also = [(name, role, open_targets(vectors)) for name, role, vectors in examples.also]
        sizes = [tokens.rows for _, tokens, _ in examples.stores]
        self.starts = np.concatenate([[0], np.cumsum(sizes)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def batch(self, numbers: NDArray[np.int64], width: int | None = None, epochs: NDArray[np.int64] | None = None) -> TextBatch:
        rows, targets = {}, {}
        for n, role in enumerate(self.roles):
            here = np.sort(numbers[(numbers >= self.starts[n]) & (numbers < self.starts[n + 1])] - self.starts[n])
            if len(here):
                rows[role] = torch.from_numpy(here)
                targets[role] = torch.from_numpy(self.targets[n](here))
                targets |= {name: torch.from_numpy(take(here)) for name, of, take in self.also if of == role}
        return TextBatch(rows=rows, targets=targets)

    def width(self) -> int | None:
        return None
