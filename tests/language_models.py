"""Tiny language models of several families, with real tokenizers over a few words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from raydrd.models.prompts import PROMPTS, Ids
from tests.worlds import sharpen

TEXTS = {
    "query": "what is a reef",
    "passage": "a reef keeps the tide out",
    "a": "a reef keeps the tide out",
    "b": "old wave and salt",
}
LINES = [*TEXTS.values(), *(p.template.format(**TEXTS) for p in PROMPTS.values() if not p.listwise)] * 3
ANSWERS = ["Relevant: true", "Relevant: false", "Answer: Yes", "Answer: No", "Answer: A", "Answer: B", "Yes", "No"] * 3
CHAT = (
    "{% for m in messages %}<u>{{ m.role }}\n{{ m.content | trim }}</u>\n{% endfor %}"
    "{% if add_generation_prompt %}<u>assistant\n{% endif %}"
)


def _t5() -> Any:
    """The real T5 class with words and, for the rest, letters."""
    words = sorted({word.strip(".:?,") for line in LINES + ANSWERS for word in line.split()})
    pieces = [(f"▁{word}", -3.0) for word in words if len(word) > 1 or word in "AB"]
    letters = [(letter, -9.0) for letter in sorted(set("".join(LINES + ANSWERS)) - {" ", "\n"})]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -6.0)]
    return T5Tokenizer(vocab=[*special, *pieces, *letters], extra_ids=0)


def byte_level() -> Any:
    """As GPT-2, Llama 3 and Qwen tokenise: spaces belong to words; special tokens only in chats."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<end>", "<u>", "</u>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(LINES + ANSWERS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>", chat_template=CHAT)


def _metaspace() -> Any:
    """As Llama 1 and 2 and Mistral tokenise: a text starts with a space of its own; <s> before, no padding token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=True)
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(LINES + ANSWERS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


TOKENIZERS = {"t5": _t5(), "byte": byte_level(), "space": _metaspace()}


def token_ids(tokenizer: Any, text: str) -> Ids:
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)


def texts_of(tokenizer: Any, texts: dict[str, str] = TEXTS) -> dict[str, Ids]:
    return {name: token_ids(tokenizer, text) for name, text in texts.items()}


def language_model(kind: str, folder: Path) -> Path:
    """A random model of about ten thousand weights, with the tokenizer that its kind has."""
    tokenizer = TOKENIZERS[{"t5": "t5", "flan": "t5", "llama": "space"}.get(kind, "byte")]
    size, two = len(tokenizer) + 3, {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(3)
    if kind in ("t5", "flan"):
        made: Any = T5ForConditionalGeneration(
            T5Config(
                vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0,
                tie_word_embeddings=kind == "t5", feed_forward_proj="relu" if kind == "t5" else "gated-gelu",
            )
        )  # fmt: skip
        if kind == "flan":  # its output layer is its own
            made.lm_head.weight = torch.nn.Parameter(torch.randn(size, 16))
    elif kind == "bart":
        layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
        dims = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 256}
        made = BartForConditionalGeneration(
            BartConfig(vocab_size=size, decoder_start_token_id=1, forced_eos_token_id=0, **layers, **dims, **ends)
        )
        made.final_logits_bias.normal_()
    elif kind == "llama":
        made = LlamaForCausalLM(LlamaConfig(vocab_size=size, intermediate_size=32, max_position_embeddings=256, **two, **ends))
    elif kind == "gemma2":  # a soft cap around tied logits
        more = {"num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32, "final_logit_softcapping": 3.0}
        made = Gemma2ForCausalLM(Gemma2Config(vocab_size=size, max_position_embeddings=256, **two, **more, **ends))
    else:
        made = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=16, n_layer=2, n_head=2, n_positions=256, **ends))
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if kind not in ("t5", "flan"):  # T5's matrices are large as they are
        sharpen(folder, by=6)
    return folder
