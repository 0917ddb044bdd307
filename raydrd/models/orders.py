"""Teachers that write an order: a language model's own words, the likeliest one at each step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from raydrd.errors import InputError
from raydrd.models.answers import load_language_model
from raydrd.models.batching import Ids, pad
from raydrd.models.devices import TokenBudget, inference, prepare, this_device
from raydrd.models.encoders import quiet_transformers
from raydrd.models.prompts import ListPrompt, Pieces, order_length, pieces_of
from raydrd.spine.precision import Precision


class OrderModel:
    """A language model with a listwise prompt: reads assembled prompts, gives what it writes.

    `path` is a local folder with safetensors weights. `pieces(n)` is what `prompts.assemble` needs for n passages, whose
    texts are named p1 to pn.

    Raises:
        InputError: no language model, weights missing, or a prompt that does not fit the tokenizer.
    """

    def __init__(
        self,
        path: Path,
        *,
        prompt: ListPrompt,
        precision: Precision,
        tokens_per_batch: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        quiet_transformers()
        here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(path, **here)
        self.seq2seq, self.prompt = bool(config.is_encoder_decoder), prompt
        self.tokenizer = AutoTokenizer.from_pretrained(path, **here)
        self.pad_id = 0 if self.tokenizer.pad_token_id is None else int(self.tokenizer.pad_token_id)
        self.max_length: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
        model = load_language_model(path, config, here)
        model.generation_config = greedy(model.generation_config)
        head = model.get_output_embeddings()
        prepare(model, precision, exact=(head,) if isinstance(head, nn.Linear) else ())
        self.device, self.precision = device or this_device(), precision
        self.model = model.to(self.device)
        self.budget = TokenBudget(self.device, tokens_per_batch)
        self._pieces: dict[int, Pieces] = {}

    def pieces(self, count: int) -> Pieces:
        """The fixed part of the question about `count` passages."""
        if count not in self._pieces:
            self._pieces[count] = pieces_of(self.tokenizer, self.prompt.question(count), closed=self.seq2seq)
        return self._pieces[count]

    def answer_length(self, count: int) -> int:
        """Tokens that an order of `count` passages takes, and a few more."""
        return order_length(self.tokenizer, count)

    def answers(self, prompts: Sequence[Ids], *, count: int) -> list[str]:
        """What the model writes after each prompt: greedily, up to the length of an order of `count` passages.

        Raises:
            InputError: a prompt and its answer are longer than the model's positions.
        """
        lengths = np.fromiter(map(len, prompts), dtype=np.int64, count=len(prompts))
        new = self.answer_length(count)
        longest = int(lengths.max(initial=0)) + (0 if self.seq2seq else new)
        if self.max_length is not None and longest > self.max_length:
            raise InputError(
                f"max_length: a prompt and its answer have {longest} tokens, the teacher takes {self.max_length}; lower it, "
                "or take a smaller window"
            )
        found = [""] * len(prompts)

        def run(batch: NDArray[np.int64]) -> None:
            ids_BT, mask_BT = self._padded([prompts[i] for i in batch])
            written_BT = self.model.generate(
                input_ids=ids_BT.to(self.device), attention_mask=mask_BT.to(self.device), do_sample=False, num_beams=1,
                max_new_tokens=new, pad_token_id=self.pad_id,
            )  # fmt: skip
            own_BT = written_BT if self.seq2seq else written_BT[:, ids_BT.shape[1] :]
            for place, text in zip(batch.tolist(), self.tokenizer.batch_decode(own_BT, skip_special_tokens=True), strict=True):
                found[place] = text

        with inference(self.device, self.precision):
            self.budget.each(lengths + new, run)
        return found

    def _padded(self, prompts: list[Ids]) -> tuple[Tensor, Tensor]:
        """A causal model goes on from the last place of the batch, so what is filled in stands on the left."""
        if self.seq2seq:
            return pad(prompts, pad_id=self.pad_id)
        ids_BT, mask_BT = pad([ids[::-1] for ids in prompts], pad_id=self.pad_id)
        return ids_BT.flip(1), mask_BT.flip(1)


_ENDS = (
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id",
)  # fmt: skip


def greedy(made: GenerationConfig) -> GenerationConfig:
    """Where a model's own texts begin and end, and nothing else of how its makers would have it write.

    A penalty for repetition (Qwen2.5 comes with one) is one for brackets and for the numbers of the question.
    """
    known = {name: getattr(made, name, None) for name in _ENDS}
    return GenerationConfig(**{name: value for name, value in known.items() if value is not None})
