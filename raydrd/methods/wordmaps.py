"""MD2PR's word level: which word of one text belongs to which word of the other, from reranker to retriever.

The reranker (a cross-encoder) reads both texts together: its attention between them says which words belong together.
The retriever reads them apart: inner products of its token states have to say the same. The abstract (arXiv 2312.16821)
gives the idea; the formulas here are this project's own. What retrieves is the pooled vector: the word level reaches it
only through the shared encoder, and its projection is left behind after training.

Shapes: B pairs, Q and P content tokens of the longest query and passage (no special tokens, padding on the right), R rows
and C columns of a map in either direction, T tokens with special ones, H the width of token states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import log_softmax, pad

from raydrd.config import Frozen
from raydrd.errors import InputError
from raydrd.models.batching import Ids, SpecialTokens, token_batches
from raydrd.spine.precision import Precision

Directions = Literal["both", "query", "passage"]
RowWeights = Literal["mass", "uniform"]

# Attention of all layers and heads that may exist at once: a pair of 163 tokens takes 15 MB in a BERT base.
_ATTENTION_BYTES = 1 << 30
# How far a row of attention may sum from 1. Eager attention in bf16 may round each share to 8 bits: up to 2**-9 of the sum.
_TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "bf16": 1e-2}


class WordMaps(Frozen):
    """The word-level part of MD2PR's loss: its weight, what the maps are, and for which pairs they are made."""

    kind: Literal["word_maps"] = "word_maps"
    weight: float = Field(0.5, ge=0, description="of the word loss in the sum, once warm")
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps in which the weight grows from 0")
    layers: int = Field(1, ge=1, description="the teacher's last layers whose attention is averaged")
    directions: Directions = Field("both", description="rows of which text are matched")
    row_weights: RowWeights = Field("mass", description="mass: a token counts by the attention that crosses to the other text")
    negatives: int = Field(3, ge=0, description="highest-scored surviving negatives a query, besides the positive")
    projection: int | None = Field(128, ge=1, description="width of token states in training; none: the model's own")

    def weight_at(self, progress: float) -> float:
        """The weight after this share of the steps, from 0 to 1.

        Raises:
            ValueError: `progress` is not in [0, 1].
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress {progress}: a share of the steps lies between 0 and 1")
        return self.weight if progress >= self.warmup else self.weight * progress / self.warmup


def word_loss(
    teacher_BQP: Tensor,
    teacher_BPQ: Tensor,
    student_BQP: Tensor,
    query_mask_BQ: Tensor,
    passage_mask_BP: Tensor,
    *,
    row_weights: RowWeights = "mass",
    directions: Directions = "both",
) -> tuple[Tensor, float]:
    """Mean KL(teacher's row || student's row) over a pair's tokens, summed over pairs; and the number of pairs.

    Both directions count half each; one alone counts whole. A token weighs by its row's mass, so that tokens that look
    only at special tokens teach no noise; rows without mass are left out. Padding has no influence and gets no gradient.
    A pair without a query or a passage token adds nothing and is not counted: the count depends on the masks only.

    Args:
        teacher_BQP: attention of query tokens to passage tokens, not negative; rows need not sum to 1.
        teacher_BPQ: attention of passage tokens to query tokens, likewise.
        student_BQP: logits; the softmax is taken over P for queries' rows and over Q for passages' rows.

    Raises:
        ValueError: shapes that do not fit together, or a mask that is not bool.
    """
    pairs, queries, passages = student_BQP.shape
    shapes = [tuple(t.shape) for t in (teacher_BQP, teacher_BPQ, query_mask_BQ, passage_mask_BP)]
    if shapes != [(pairs, queries, passages), (pairs, passages, queries), (pairs, queries), (pairs, passages)]:
        raise ValueError(f"word maps: teacher and masks are {shapes} for a student of {(pairs, queries, passages)}")
    if query_mask_BQ.dtype != torch.bool or passage_mask_BP.dtype != torch.bool:
        raise ValueError(f"word maps: masks are {query_mask_BQ.dtype} and {passage_mask_BP.dtype}; expected torch.bool")
    halves = []
    if directions != "passage":
        halves.append(_half(teacher_BQP, student_BQP, query_mask_BQ, passage_mask_BP, row_weights))
    if directions != "query":
        halves.append(_half(teacher_BPQ, student_BQP.transpose(1, 2), passage_mask_BP, query_mask_BQ, row_weights))
    return torch.stack(halves).mean(0).sum(), float((query_mask_BQ.any(1) & passage_mask_BP.any(1)).sum())


def row_divergences(
    teacher_BRC: Tensor, student_BRC: Tensor, row_mask_BR: Tensor, column_mask_BC: Tensor
) -> tuple[Tensor, Tensor]:
    """KL(teacher's row scaled to 1 || softmax of the student's row) of every row, and the row's mass; both [B, R].

    Both are 0 in the padding and where a row has no mass.
    """
    student_BRC = _raised(student_BRC)
    valid_BRC = row_mask_BR[:, :, None] & column_mask_BC[:, None, :]
    limits = torch.finfo(student_BRC.dtype)
    with torch.no_grad():
        target_BRC = teacher_BRC.to(student_BRC.dtype).masked_fill(~valid_BRC, 0.0)
        mass_BR = target_BRC.sum(2)
        # Below the smallest normal number a row has no digits left. A NaN is not below: it stays, and training stops.
        empty_BR = mass_BR <= limits.tiny
        mass_BR = mass_BR.masked_fill(empty_BR, 0.0)
        target_BRC = target_BRC / mass_BR.masked_fill(empty_BR, 1.0)[:, :, None]
        logs_BRC = target_BRC.clamp(min=limits.tiny).log()  # 0 log 0 is 0
    student_BRC = log_softmax(student_BRC.masked_fill(~valid_BRC, limits.min), dim=2).masked_fill(~valid_BRC, 0.0)
    return (target_BRC * (logs_BRC - student_BRC)).sum(2).masked_fill(empty_BR, 0.0), mass_BR


def _half(teacher_BRC: Tensor, student_BRC: Tensor, rows_BR: Tensor, columns_BC: Tensor, row_weights: RowWeights) -> Tensor:
    """The weighted mean over rows, [B]; 0 for a pair none of whose rows has mass."""
    divergences_BR, weights_BR = row_divergences(teacher_BRC, student_BRC, rows_BR, columns_BC)
    if row_weights == "uniform":
        weights_BR = (weights_BR != 0).to(weights_BR.dtype)
    return (weights_BR * divergences_BR).sum(1) / weights_BR.sum(1).clamp(min=torch.finfo(weights_BR.dtype).tiny)


def make_projection(width: int, rule: WordMaps, seed: int) -> nn.Linear | None:
    """The training-only map from token states of this width, None if the rule has none. The same for the same seed.

    Normal weights of variance 1 / width: inner products keep their order, on the scale projection / width.
    """
    if rule.projection is None:
        return None
    # Not drawn twice: a Linear made plainly would also move torch's global generator.
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, width, rule.projection, bias=False)
    # Hashed: two things drawn from one bare seed are the same numbers.
    digest = sha256(f"{seed}/word projection".encode()).digest()
    with torch.no_grad():
        layer.weight.normal_(std=width**-0.5, generator=torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1))
    return layer


def student_maps(query_states_BQH: Tensor, passage_states_BPH: Tensor, projection: nn.Linear | None) -> Tensor:
    """Logits [B, Q, P] of a retriever's map: (W h_i) . (W h_j) / sqrt(width of W h), float32 or better.

    Padding must be finite, as `content_states` leaves it: in a product the gradient 0 of a NaN is a NaN.
    """
    query_states_BQH, passage_states_BPH = _raised(query_states_BQH), _raised(passage_states_BPH)
    if projection is not None:
        query_states_BQH, passage_states_BPH = projection(query_states_BQH), projection(passage_states_BPH)
    return query_states_BQH @ passage_states_BPH.transpose(1, 2) / math.sqrt(query_states_BQH.shape[2])


def content_ids(texts: Sequence[Ids], special: SpecialTokens, max_len: int) -> list[Ids]:
    """The tokens of each text that a retriever sees in `max_len`: what `special.single` keeps, without special tokens.

    Raises:
        ValueError: `max_len` has no room for the special tokens.
    """
    if max_len < special.single_overhead:
        raise ValueError(f"a maximum length of {max_len} tokens has no room for {special.single_overhead} special tokens")
    return [ids[: max_len - special.single_overhead] for ids in texts]


def content_states(
    states_BTH: Tensor, attention_mask_BT: Tensor, special: SpecialTokens, *, width: int | None = None
) -> tuple[Tensor, Tensor]:
    """Token states without those of special tokens and padding: [B, C, H], zeros at the end of short texts; mask [B, C].

    Inputs are those of single texts, padded on the right (`special.model_inputs`). C is `width`, else the longest text.

    Raises:
        ValueError: a text is longer than `width`, or a row is shorter than its special tokens.
    """
    lengths_B = attention_mask_BT.sum(1) - special.single_overhead
    longest, shortest = (int(lengths_B.max()), int(lengths_B.min())) if len(lengths_B) else (0, 0)
    width = longest if width is None else width
    if longest > width or shortest < 0:
        raise ValueError(f"texts of {shortest} to {longest} content tokens do not fit a width of {width}")
    before = len(special.single_template.runs[0])
    states_BCH = states_BTH[:, before : before + width]
    states_BCH = pad(states_BCH, (0, 0, 0, width - states_BCH.shape[1]))
    mask_BC = torch.arange(width, device=states_BTH.device) < lengths_B[:, None]
    return states_BCH.masked_fill(~mask_BC[:, :, None], 0.0), mask_BC


class TextMaps(NamedTuple):
    """Attention between the texts of B pairs, float32, 0 in the padding; and where there are tokens."""

    query_to_passage_BQP: Tensor
    passage_to_query_BPQ: Tensor
    query_mask_BQ: Tensor
    passage_mask_BP: Tensor


class TeacherMaps:
    """A frozen cross-encoder that says which words of two texts attend to one another.

    Any sequence classifier of transformers that gives attention weights, from a local folder with safetensors. With
    `bf16` it computes under autocast. `layers`: how many of its last layers are averaged, all heads alike.

    Raises:
        InputError: the model has fewer layers.
    """

    def __init__(
        self, path: str | Path, *, layers: int = 1, precision: Precision = "fp32", device: torch.device | str = "cpu"
    ) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.name, self.layers, self.precision, self.device = str(path), layers, precision, torch.device(device)
        # Fused kernels never hold the weights: transformers then gives no attention, with a warning at most.
        model = AutoModelForSequenceClassification.from_pretrained(
            path,
            attn_implementation="eager",
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
        total = int(model.config.num_hidden_layers)
        if layers > total:
            raise InputError(f"word_maps.layers: {layers}: the teacher {path} has {total} layers; write 1 to {total}")
        self.model = model.requires_grad_(False).eval().to(self.device)
        self.special = SpecialTokens.of(AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False))
        self._cells = _ATTENTION_BYTES // (4 * total * int(model.config.num_attention_heads))

    @torch.no_grad()
    def __call__(self, query_ids: Sequence[Ids], passage_ids: Sequence[Ids], *, max_length: int | None = None) -> TextMaps:
        """Maps of these pairs, given as the content tokens that the student sees (`content_ids`).

        Nothing is cut: row i is the student's token i, by construction. The limit is the tokenizer's, or `max_length` if
        that is lower. The tensors are on the model's device and may enter a graph.

        Raises:
            ValueError: no pairs, texts without a partner, a pair longer than the limit, or a model that gives no
                attention whose rows sum to 1.
        """
        q_lengths, p_lengths = (np.array([len(ids) for ids in texts], dtype=np.int64) for texts in (query_ids, passage_ids))
        if not len(q_lengths) or len(q_lengths) != len(p_lengths):
            raise ValueError(f"word maps: {len(q_lengths)} queries and {len(p_lengths)} passages are no pairs")
        lengths = q_lengths + p_lengths + self.special.pair_overhead
        self._check_room(lengths, max_length)
        template = self.special.pair_template
        pairs = [template.fill(pair, self.special.has_types) for pair in zip(query_ids, passage_ids, strict=True)]
        q_lengths_B, p_lengths_B = (torch.from_numpy(n).to(self.device) for n in (q_lengths, p_lengths))
        # Padding points at token 0: any token will do, what is read there is masked.
        rows_BQ, mask_BQ = _places(q_lengths_B, torch.full_like(q_lengths_B, len(template.runs[0])))
        columns_BP, mask_BP = _places(p_lengths_B, q_lengths_B + len(template.runs[0]) + len(template.runs[1]))
        there_BQP = torch.zeros(*rows_BQ.shape, columns_BP.shape[1], device=self.device)
        back_BPQ = torch.zeros(*columns_BP.shape, rows_BQ.shape[1], device=self.device)
        # Attention takes length * length cells, so batches are cut by squares.
        for batch in token_batches(lengths**2, tokens_per_batch=self._cells):
            attention_bTT = self._attention([pairs[i] for i in batch])
            here = torch.from_numpy(batch).to(self.device)
            pair_b11 = torch.arange(len(batch), device=self.device)[:, None, None]
            there_BQP[here] = attention_bTT[pair_b11, rows_BQ[here][:, :, None], columns_BP[here][:, None, :]]
            back_BPQ[here] = attention_bTT[pair_b11, columns_BP[here][:, :, None], rows_BQ[here][:, None, :]]
        valid_BQP = mask_BQ[:, :, None] & mask_BP[:, None, :]
        return TextMaps(
            there_BQP.masked_fill(~valid_BQP, 0.0), back_BPQ.masked_fill(~valid_BQP.transpose(1, 2), 0.0), mask_BQ, mask_BP
        )

    def _check_room(self, lengths: np.ndarray[Any, np.dtype[np.int64]], max_length: int | None) -> None:
        limit = min((n for n in (max_length, self.special.max_length) if n is not None), default=None)
        if limit is not None and lengths.max() > limit:
            worst = int(lengths.argmax())
            raise ValueError(
                f"word maps: pair {worst} has {lengths[worst]} tokens with special ones, the teacher {self.name} reads "
                f"{limit}; lower the student's query_max_len or passage_max_len"
            )

    def _attention(self, pairs: list[Any]) -> Tensor:
        """Mean over heads and the last layers, [pairs, T, T] float32, checked."""
        inputs = {name: t.to(self.device) for name, t in self.special.model_inputs(pairs).items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            found = getattr(self.model(**inputs, output_attentions=True), "attentions", None)
        found = [] if found is None else [a for a in found[-self.layers :] if a is not None]
        how = f"teacher {self.name} with attn_implementation={self.model.config._attn_implementation!r}"
        if len(found) < self.layers:
            raise ValueError(f"word maps: {how} gives no attention weights; the model must support 'eager'")
        real_BT = inputs["attention_mask"].bool()
        total_BTT = torch.zeros(*real_BT.shape, real_BT.shape[1], device=self.device)
        for attention_BHTT in found:
            sums_BHT = (attention_BHTT.float() * real_BT[:, None, None, :]).sum(3)
            off = (sums_BHT - 1).abs().masked_fill(~real_BT[:, None, :], 0.0).max()
            if not off <= _TOLERANCE[self.precision]:
                raise ValueError(f"word maps: {how} gives attention whose rows do not sum to 1 (off by {float(off):.2g})")
            total_BTT += attention_BHTT.float().mean(1)
        return total_BTT / self.layers


def _places(lengths_B: Tensor, starts_B: Tensor) -> tuple[Tensor, Tensor]:
    """Where the tokens of a text stand in its pair, [B, longest], 0 in the padding; and the mask."""
    steps = torch.arange(int(lengths_B.max()), device=lengths_B.device)
    mask = steps < lengths_B[:, None]
    return (starts_B[:, None] + steps).masked_fill(~mask, 0), mask


def _raised(states: Tensor) -> Tensor:
    return states.float() if states.dtype in (torch.float16, torch.bfloat16) else states
