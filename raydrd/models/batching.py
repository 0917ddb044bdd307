"""From token ids to model inputs: special tokens, truncation as Hugging Face does it, batches of equal cost,
padding.

Texts are tokenised once, without special tokens; every template (single text, pair, any maximum length) is
built from those ids. Padding goes on the right, whatever the tokenizer's habit: pooling must go by the
attention mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Ids = NDArray[np.int32]

# Tokenizers that do not know their limit say a number of about 1e30.
_NO_LIMIT = 10**9


class Encoded(NamedTuple):
    """One sequence as the model sees it: ids and, for models that use them, token types; both int32 [L]."""

    ids: Ids
    types: Ids | None


class _Template(NamedTuple):
    """Special tokens around one text or two: fixed runs of ids, and the type of everything."""

    runs: tuple[Ids, ...]  # before, (between,) after
    run_types: tuple[Ids, ...]
    text_types: tuple[int, ...]

    def fill(self, texts: Sequence[Ids], with_types: bool) -> Encoded:
        length = sum(map(len, self.runs)) + sum(map(len, texts))
        ids = np.empty(length, dtype=np.int32)
        types = np.empty(length, dtype=np.int32) if with_types else None
        at = 0
        for part, run in enumerate(self.runs):
            end = at + len(run)
            ids[at:end] = run
            if types is not None:
                types[at:end] = self.run_types[part]
            at = end
            if part < len(texts):
                end = at + len(texts[part])
                ids[at:end] = texts[part]
                if types is not None:
                    types[at:end] = self.text_types[part]
                at = end
        return Encoded(ids, types)


@dataclass(frozen=True, eq=False)
class SpecialTokens:
    """What a tokenizer adds to ids: [CLS] q [SEP] p [SEP], <s> q </s></s> p </s>, q </s> p </s> and the like.

    `max_length` is the tokenizer's own limit in tokens, specials included; None if it states none.
    """

    single_template: _Template
    pairs: _Template | ValueError  # why two texts cannot be joined: bi-encoders never ask
    has_types: bool
    pad_id: int
    pad_type_id: int
    max_length: int | None

    @staticmethod
    def of(tokenizer: Any) -> SpecialTokens:
        """Learnt from what the tokenizer does with two short texts, so no model family is named here.

        Raises:
            ValueError: neither a padding nor an end token, truncation on the left, or special tokens that depend on the text.
        """
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        pad_id = padding_id(tokenizer)
        if pad_id is None:
            raise ValueError(f"tokenizer {name} has no padding token; set pad_token in its tokenizer_config.json")
        if getattr(tokenizer, "truncation_side", "right") != "right":
            raise ValueError(f"tokenizer {name} cuts texts on the left; only truncation_side=right is supported")
        limit = getattr(tokenizer, "model_max_length", None)
        return SpecialTokens(
            single_template=_learn(tokenizer, name, ("a",)),
            pairs=_learned_pairs(tokenizer, name),
            has_types="token_type_ids" in tokenizer.model_input_names,
            pad_id=pad_id,
            pad_type_id=int(getattr(tokenizer, "pad_token_type_id", 0) or 0),
            max_length=None if limit is None or limit > _NO_LIMIT else int(limit),
        )

    @property
    def pair_template(self) -> _Template:
        """
        Raises:
            ValueError: the tokenizer joins two texts in a way that depends on them.
        """
        if isinstance(self.pairs, ValueError):
            raise self.pairs
        return self.pairs

    @property
    def single_overhead(self) -> int:
        """Special tokens around one text."""
        return sum(map(len, self.single_template.runs))

    @property
    def pair_overhead(self) -> int:
        """Special tokens around two texts."""
        return sum(map(len, self.pair_template.runs))

    def single(self, ids: Ids, max_len: int) -> Encoded:
        """One text with its special tokens, at most `max_len` long; the text's end is cut.

        Raises:
            ValueError: `max_len` has no room for the special tokens.
        """
        room = _room(max_len, self.single_overhead)
        return self.single_template.fill((ids[:room],), self.has_types)

    def pair(self, q_ids: Ids, p_ids: Ids, max_len: int) -> Encoded:
        """Two texts with their special tokens, at most `max_len` long, cut as `truncation=True` cuts them.

        Raises:
            ValueError: `max_len` has no room for the special tokens.
        """
        keep_q, keep_p = longest_first(len(q_ids), len(p_ids), _room(max_len, self.pair_overhead))
        return self.pair_template.fill((q_ids[:keep_q], p_ids[:keep_p]), self.has_types)

    def duel(self, q_ids: Ids, a_ids: Ids, b_ids: Ids, max_len: int) -> Encoded:
        """A query and two passages: the pair template around q and `a [SEP] b`, both passages cut alike.

        The query keeps at most a third of the room, so that two long passages cannot be pushed out by a long query.

        Raises:
            ValueError: `max_len` has no room for the special tokens.
        """
        between = self.pair_template.runs[1]
        room = _room(max_len, self.pair_overhead + len(between))
        keep_q = min(len(q_ids), max(room // 3, room - len(a_ids) - len(b_ids)))
        keep_a, keep_b = longest_first(len(a_ids), len(b_ids), room - keep_q)
        both = np.concatenate([a_ids[:keep_a], between, b_ids[:keep_b]])
        return self.pair_template.fill((q_ids[:keep_q], both), self.has_types)

    def single_lengths(self, lengths: NDArray[np.int64], max_len: int) -> NDArray[np.int64]:
        """Lengths that `single` gives texts of these lengths."""
        kept: NDArray[np.int64] = np.minimum(lengths, _room(max_len, self.single_overhead))
        return kept + self.single_overhead

    def pair_lengths(self, q_lengths: NDArray[np.int64], p_lengths: NDArray[np.int64], max_len: int) -> NDArray[np.int64]:
        """Lengths that `pair` gives pairs of these lengths."""
        kept: NDArray[np.int64] = np.minimum(q_lengths + p_lengths, _room(max_len, self.pair_overhead))
        return kept + self.pair_overhead

    def model_inputs(self, sequences: Sequence[Encoded], *, multiple_of: int = 1) -> dict[str, torch.Tensor]:
        """A padded batch as models take it: input_ids, attention_mask and, if used, token_type_ids."""
        input_ids, attention_mask = pad([s.ids for s in sequences], pad_id=self.pad_id, multiple_of=multiple_of)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        types = [s.types for s in sequences if s.types is not None]
        if types:
            inputs["token_type_ids"], _ = pad(types, pad_id=self.pad_type_id, multiple_of=multiple_of)
        return inputs


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens two texts keep in `room`: HF fast tokenizers' longest-first rule.

    The longer one pays alone down to the other's length; if that is not enough each gets half, and an odd
    token goes to the longer one (to the second of two equals).
    """
    if first + second <= room:
        return first, second
    shorter = min(first, second)
    longer = room - shorter
    if longer < shorter:
        shorter = room // 2
        longer = room - shorter
    return (longer, shorter) if first > second else (shorter, longer)


def token_batches(lengths: NDArray[np.int64], *, tokens_per_batch: int, max_rows: int | None = None) -> list[NDArray[np.int64]]:
    """Indices cut into batches of similar length, longest first, each with rows * longest <=
    tokens_per_batch.

    Every index is in exactly one batch. A sequence longer than the budget makes a batch of its own.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    batches = []
    at = 0
    while at < len(order):
        rows = max(1, tokens_per_batch // max(1, int(lengths[order[at]])))
        end = at + (rows if max_rows is None else min(rows, max_rows))
        batches.append(order[at:end])
        at = end
    return batches


def pad(sequences: Sequence[NDArray[Any]], *, pad_id: int, multiple_of: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and attention mask, both int64 [rows, longest rounded up to `multiple_of`].

    Raises:
        ValueError: there is no sequence.
    """
    if not sequences:
        raise ValueError("pad: no sequences to pad")
    lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
    width = -(-int(lengths.max()) // multiple_of) * multiple_of
    filled = np.arange(width) < lengths[:, None]
    ids = np.full(filled.shape, pad_id, dtype=np.int64)
    ids[filled] = np.concatenate(sequences)
    return torch.from_numpy(ids), torch.from_numpy(filled.astype(np.int64))


def padding_id(tokenizer: Any) -> int | None:
    """What fills a batch up: the padding token, or where there is none (Llama) the end token; padding is masked anyway."""
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return None if found is None else int(found)


def _learned_pairs(tokenizer: Any, name: str) -> _Template | ValueError:
    try:
        return _learn(tokenizer, name, ("a", "b c"))
    except ValueError as error:
        return error


def _room(max_len: int, overhead: int) -> int:
    if max_len < overhead:
        raise ValueError(f"a maximum length of {max_len} tokens has no room for {overhead} special tokens; raise it")
    return max_len - overhead


def _learn(tokenizer: Any, name: str, texts: tuple[str, ...]) -> _Template:
    """The template, found by looking for each text's own ids in what the tokenizer makes of them together."""
    bare = [[int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
    full = tokenizer(*texts)
    ids = [int(i) for i in full["input_ids"]]
    types = [int(i) for i in full.get("token_type_ids") or [0] * len(ids)]
    runs, run_types, text_types = [], [], []
    at = 0
    for text in bare:
        start = _find(ids, text, at)
        if not text or start is None:
            raise ValueError(f"tokenizer {name}: cannot tell text from special tokens in {ids} (texts {bare})")
        runs.append(_array(ids[at:start]))
        run_types.append(_array(types[at:start]))
        text_types.append(types[start])
        at = start + len(text)
    return _Template((*runs, _array(ids[at:])), (*run_types, _array(types[at:])), tuple(text_types))


def _find(ids: list[int], part: list[int], start: int) -> int | None:
    places = range(start, len(ids) - len(part) + 1)
    return next((at for at in places if ids[at : at + len(part)] == part), None)


def _array(values: Iterable[int]) -> Ids:
    return np.array(list(values), dtype=np.int32)
