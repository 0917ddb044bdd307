"""Teachers that answer with a token: seq2seq (monoT5, duoT5, Flan-T5) and causal language models."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from raydrd.errors import InputError
from raydrd.models.batching import Ids, pad
from raydrd.models.devices import TokenBudget, inference, prepare, this_device
from raydrd.models.encoders import quiet_transformers
from raydrd.models.prompts import AnyPrompt, ListPrompt, Prompt, answer_ids, assemble, order_length, pieces_of
from raydrd.spine.precision import Precision

Floats = NDArray[np.float32]
SHARED = 16  # tokens at the beginning of several prompts that are worth reading apart
ENOUGH = 4096  # tokens of a query's prompts that keep even a GPU busy


class AnswerModel:
    """A language model with a prompt: reads assembled prompts, gives the logits of its two answers.

    `path` is a local folder with safetensors weights; the model's kind is what its config says. `pieces` is what
    `prompts.assemble` needs. bf16 is the precision to ask for: T5 overflows in fp16, and fp32 costs twice.

    Raises:
        InputError: no language model, weights missing, or a prompt that does not fit the tokenizer.
    """

    def __init__(
        self,
        path: Path,
        *,
        prompt: Prompt,
        precision: Precision,
        tokens_per_batch: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        quiet_transformers()
        here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(path, **here)
        self.seq2seq = bool(config.is_encoder_decoder)
        tokenizer = AutoTokenizer.from_pretrained(path, **here)
        self.answers = answer_ids(tokenizer, prompt, closed=self.seq2seq)
        self.pieces = pieces_of(tokenizer, prompt, closed=self.seq2seq)
        # Padding is masked; Llama-like tokenizers have no token for it, so any id will do.
        self.pad_id = 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        model = load_language_model(path, config, here)
        # Relative positions (T5) have no limit, whatever the tokenizer's config says.
        self.max_length: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.start_id = _start_id(model) if self.seq2seq else None
        self.shares = not self.seq2seq  # an encoder looks both ways: nothing it has read can be kept
        prepare(model, precision, exact=(keep_answers(model, self.answers),))
        self.device = device or this_device()
        self.model = model.to(self.device)
        self.precision = precision
        self.budget = TokenBudget(self.device, tokens_per_batch)

    def logits(
        self,
        prompts: Sequence[Ids],
        *,
        alike: NDArray[np.int64] | None = None,
        named: Callable[[int], str] = "prompt {}".format,
    ) -> Floats:
        """Logits float32 [prompts, 2] of (positive, negative) as the first token of the answer.

        alike: int64 [prompts], equal for prompts that may begin with the same tokens (those of one query): a causal model
        then reads these once. named: what an error calls a prompt, by its number.

        Raises:
            InputError: a prompt is longer than the model's positions.
            ValueError: a logit is not finite.
        """
        lengths = np.fromiter(map(len, prompts), dtype=np.int64, count=len(prompts))
        if self.max_length is not None and len(prompts) and lengths.max() > self.max_length:
            raise InputError(f"max_length: a prompt has {lengths.max()} tokens, the teacher takes {self.max_length}; lower it")
        result = np.empty((len(prompts), 2), dtype=np.float32)
        with inference(self.device, self.precision):
            for places, begun in self._groups(prompts, lengths, alike):
                read = self._read(prompts[int(places[0])][:begun]) if begun else None
                kept = begun if read is not None else 0

                def run(batch: NDArray[np.int64], places: Any = places, begun: int = kept, read: Any = read) -> None:
                    ids_BT, mask_BT = pad([prompts[i][begun:] for i in places[batch]], pad_id=self.pad_id)
                    found_B2 = self._answers(ids_BT.to(self.device), mask_BT.to(self.device), read, begun)
                    result[places[batch]] = found_B2.float().cpu().numpy()

                self.budget.each(lengths[places], run)
        wrong = np.flatnonzero(~np.isfinite(result).all(axis=1))
        if len(wrong):
            raise ValueError(f"the teacher gave {result[wrong[0]].tolist()} for {named(int(wrong[0]))}; try precision: fp32")
        return result

    def _groups(
        self, prompts: Sequence[Ids], lengths: NDArray[np.int64], alike: NDArray[np.int64] | None
    ) -> Iterator[tuple[NDArray[np.int64], int]]:
        """Places of prompts that are read together, and how many first tokens they share; 0: they are read whole.

        A group that would fill neither half a batch nor `ENOUGH` is left to the others: a beginning saved costs more than
        it is worth where the device then works on too little at once.
        """
        whole = np.arange(len(prompts))
        for key in np.unique(alike) if alike is not None else ():
            if not self.shares:
                break
            places = np.flatnonzero(alike == key)
            begun = shared_beginning([prompts[int(i)] for i in places])
            if begun >= SHARED and int(lengths[places].sum()) >= min(self.budget.tokens // 2, ENOUGH):
                yield places, begun
                whole = whole[~np.isin(whole, places)]
        yield whole, 0

    def _read(self, beginning: Ids) -> Any:
        """Keys and values of the tokens that several prompts begin with; None where the model keeps anything else.

        A state that sums up what was read (Mamba, the linear attention of Qwen3-Next and LFM2) cannot be handed to several
        prompts by the means that transformers has.
        """
        ids_1T = torch.from_numpy(beginning.astype(np.int64))[None].to(self.device)
        read = getattr(self.model(input_ids=ids_1T, use_cache=True), "past_key_values", None)
        layers = getattr(read, "layers", None) or [None]
        self.shares = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
        return read if self.shares else None

    def _answers(self, ids_BT: Tensor, mask_BT: Tensor, read: Any = None, begun: int = 0) -> Tensor:
        """Logits [B, 2] of a right-padded batch, each after the `begun` tokens that were read before, if any."""
        inputs = {"input_ids": ids_BT, "attention_mask": mask_BT, "use_cache": False}
        rows_B = torch.arange(len(ids_BT), device=ids_BT.device)
        if read is not None:
            own = copy.deepcopy(read)  # what is read next is added to it
            own.batch_repeat_interleave(len(ids_BT))
            seen_BT = torch.cat([mask_BT.new_ones(len(mask_BT), begun), mask_BT], dim=1)
            places_1T = begun + torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]
            inputs = {"input_ids": ids_BT, "attention_mask": seen_BT, "past_key_values": own, "position_ids": places_1T}
        if self.start_id is not None:
            start_B1 = torch.full_like(ids_BT[:, :1], self.start_id)
            logits_BT2, last_B = self.model(**inputs, decoder_input_ids=start_B1).logits, torch.zeros_like(rows_B)
        else:
            # Causal: what stands right of the last real token changes nothing before it.
            logits_BT2, last_B = self.model(**inputs).logits, mask_BT.sum(1) - 1
        answers_B2: Tensor = logits_BT2[rows_B, last_B]
        return answers_B2


def shared_beginning(prompts: Sequence[Ids]) -> int:
    """How many first tokens all of these prompts have in common, one of each prompt left over; 0 for a single one."""
    if len(prompts) < 2:
        return 0
    shortest = min(map(len, prompts)) - 1
    same = np.all(np.stack([ids[:shortest] for ids in prompts]) == prompts[0][:shortest], axis=0)
    return shortest if same.all() else int(same.argmin())


def keep_answers(model: Any, rows: tuple[int, int]) -> nn.Linear:
    """Cut a language model's output layer to these rows of the vocabulary, in place; the new layer.

    Everything that families do around that layer (T5's scale for tied embeddings, Gemma's soft cap) stays the model's
    own, and two columns of logits cost nothing at any number of positions.

    Raises:
        InputError: the output layer is not a plain linear one.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise InputError(
            f"teacher: its output layer is {type(head).__name__}, which cannot be read by rows; choose another model"
        )
    picked = list(rows)
    two = nn.Linear(head.in_features, 2, bias=head.bias is not None, dtype=head.weight.dtype, device=head.weight.device)
    with torch.no_grad():
        two.weight.copy_(head.weight[picked])
        if head.bias is not None:
            two.bias.copy_(head.bias[picked])
    model.set_output_embeddings(two)
    if isinstance(getattr(model, "final_logits_bias", None), Tensor):  # BART-like: added to the logits
        model.final_logits_bias = model.final_logits_bias[:, picked]
    return two


def check_prompt(path: Path, prompt: AnyPrompt, *, max_length: int, window: int = 0, spare: int = 0) -> None:
    """Whether the model in this folder can be asked so, by its configuration and tokenizer alone: no weights are read.

    window: passages of a listwise prompt. spare: tokens of the answer that an engine counts with the prompt's; a written
    order's are counted here.

    Raises:
        InputError: no language model, answers of several tokens, no chat template, no room for texts, or more tokens than
            the model has positions.
    """
    quiet_transformers()
    here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(path, **here)
    _language_kind(path, config)
    tokenizer, closed = AutoTokenizer.from_pretrained(path, **here), bool(config.is_encoder_decoder)
    if isinstance(prompt, ListPrompt):
        pieces = pieces_of(tokenizer, prompt.question(window), closed=closed)
        spare = 0 if closed else order_length(tokenizer, window)
    else:
        answer_ids(tokenizer, prompt, closed=closed)
        pieces = pieces_of(tokenizer, prompt, closed=closed)
    assemble(pieces, {name: np.zeros(1, np.int32) for name in ("query", *pieces.slots)}, max_length=max_length)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and max_length + spare > positions:
        answer = f", and {spare} of them for its answer" if spare else ""
        raise InputError(
            f"max_length: {max_length} tokens, but the teacher has {positions} positions{answer}; write {positions - spare} "
            "or less"
        )


def _language_kind(path: Path, config: Any) -> Any:
    """The class that loads the language model of a folder.

    Raises:
        InputError: it is a classifier, or transformers knows no language model of this kind.
    """
    architectures = list(config.architectures or [])
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        raise InputError(f"teacher {path}: {architectures[0]} gives a score, not words; write kind: cross_encoder")
    known: Any = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in known:
        raise InputError(f"teacher {path}: {config.model_type} is no language model, so it cannot answer; choose another model")
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def load_language_model(path: Path, config: Any, here: dict[str, Any]) -> Any:
    """The language model of a folder, float32, in eval mode; `here` is what every `from_pretrained` is told.

    Raises:
        InputError: it is a classifier, no language model, or weights are missing.
    """
    kind = _language_kind(path, config)
    model, report = kind.from_pretrained(path, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **here)
    if report["missing_keys"]:
        # They would be drawn at random, and answers with them.
        missing = sorted(report["missing_keys"])
        raise InputError(f"teacher {path}: its files lack {len(missing)} weights, first {missing[0]}; choose a language model")
    return model.eval()


def _start_id(model: Any) -> int:
    """The token a decoder starts from, looked for where `generate` looks."""
    places = (
        (model.config, "decoder_start_token_id"),
        (model.generation_config, "decoder_start_token_id"),
        (model.generation_config, "bos_token_id"),
    )
    found = next((value for place, name in places if (value := getattr(place, name, None)) is not None), None)
    if found is None:
        raise InputError("teacher: its config has no decoder_start_token_id; add it to config.json (T5's is 0)")
    return int(found)


def pointwise_scores(logits_N2: Floats) -> Floats:
    """z_positive - z_negative [N]: the log-odds. By way of the probabilities a sure teacher would give infinities."""
    return logits_N2[:, 0] - logits_N2[:, 1]


def pairwise_log_p(log_odds_N: ArrayLike) -> NDArray[np.float64]:
    """log P(a before b) [N] from its log-odds: `pointwise_scores` of a prompted teacher, or a cross-encoder's logit.

    The same as z_positive - logsumexp(z_positive, z_negative) (PairDistill, duoT5).
    """
    return -np.logaddexp(0.0, -np.asarray(log_odds_N, dtype=np.float64))


def symmetrized(log_p_ij: ArrayLike, log_p_ji: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both orders of a pair as one probability: (p, inconsistency), float64 [N].

    `log_p_ij` is log P(i before j) with i shown first, `log_p_ji` log P(j before i) with j shown first.
    p = 1/2 (P_ij + 1 - P_ji); inconsistency = |P_ij + P_ji - 1|, 0 for a teacher without position bias. Swapping i
    and j gives 1 - p to the last bit: the larger of the two is computed, and the smaller is 1 minus it, which is exact.
    """
    p_ij, p_ji = np.exp(np.asarray(log_p_ij, dtype=np.float64)), np.exp(np.asarray(log_p_ji, dtype=np.float64))
    larger = 0.5 + 0.5 * np.abs(p_ij - p_ji)
    return np.where(p_ij >= p_ji, larger, 1.0 - larger), np.abs(p_ij + p_ji - 1.0)
