"""The texts of a step as batches of tokens, of similar length together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydrd.models.batching import Encoded, SpecialTokens, token_batches
from raydrd.models.late import Reading
from raydrd.models.latelayout import Late
from raydrd.models.layout import Layout
from raydrd.spine.parts import TokenReader

Chunk = tuple[str, NDArray[np.int64]]  # role, places among the batch's distinct texts of that role


class Texts:
    """Token batches of a batch's distinct texts (query, passage), pairs or duels."""

    def __init__(
        self,
        path: Path,
        layout: Layout | None,
        tokens: dict[str, TokenReader],
        budget: int,
        max_length: int = 0,
        late: Late | None = None,
    ) -> None:
        from transformers import AutoTokenizer

        home = path / layout.passage_folder if layout else path
        tokenizer = AutoTokenizer.from_pretrained(home, local_files_only=True, trust_remote_code=False)
        self.special = SpecialTokens.of(tokenizer)
        self.reading = Reading.of(tokenizer, layout, late) if layout and late else None
        self.layout, self.max_length, self.tokens, self.budget = layout, max_length, tokens, budget

    def _encoded(self, role: str, rows: NDArray[np.int64]) -> list[Encoded]:
        if role in ("query", "passage"):
            assert self.layout is not None
            if self.reading is not None:
                return [self.reading.single(role, ids) for ids in self.tokens[role].take(rows)]
            limit = self.layout.max_len(role)
            return [self.special.single(ids, limit) for ids in self.tokens[role].take(rows)]
        queries = self.tokens["query"].take(rows[:, 0])
        texts = [self.tokens["passage"].take(column) for column in rows[:, 1:].T]
        join: Any = self.special.pair if role == "pair" else self.special.duel
        return [join(*one, self.max_length) for one in zip(queries, *texts, strict=True)]

    def _lengths(self, role: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        if role in ("query", "passage"):
            assert self.layout is not None
            if self.reading is not None:
                return self.reading.lengths(role, self.tokens[role].lengths(rows))
            return self.special.single_lengths(self.tokens[role].lengths(rows), self.layout.max_len(role))
        lengths = sum(self.tokens["passage"].lengths(column) for column in rows[:, 1:].T)
        return self.special.pair_lengths(self.tokens["query"].lengths(rows[:, 0]), np.asarray(lengths), self.max_length)

    def chunks(self, rows: dict[str, Tensor]) -> list[Chunk]:
        """Texts of similar length together, by token budget."""
        return [
            (role, places)
            for role, these in rows.items()
            for places in token_batches(self._lengths(role, these.cpu().numpy()), tokens_per_batch=self.budget)
        ]

    def padded(self, rows: dict[str, Tensor], chunk: Chunk) -> int:
        """Tokens of a chunk, its padding among them."""
        role, places = chunk
        return len(places) * int(self._lengths(role, rows[role].cpu().numpy()[places]).max())

    def inputs(self, rows: dict[str, Tensor], chunk: Chunk, device: torch.device) -> tuple[str, dict[str, Tensor]]:
        """Role and model inputs of one chunk, on the device."""
        role, places = chunk
        sequences = self._encoded(role, rows[role].cpu().numpy()[places])
        made = self.special.model_inputs(sequences) if self.reading is None else self.reading.inputs(role, sequences)
        return role, {name: tensor.to(device) for name, tensor in made.items()}
