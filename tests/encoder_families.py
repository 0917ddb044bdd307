"""Tiny encoders that are no BERT, with real tokenizers of their kind: Llama, Qwen3 and ModernBERT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import LlamaConfig, LlamaForCausalLM, ModernBertConfig, ModernBertModel, Qwen3Config, Qwen3ForCausalLM

from tests.language_models import _metaspace, byte_level
from tests.worlds import sharpen

FAMILIES = ("llama", "qwen3", "modernbert")
CAUSAL = ("llama", "qwen3")


def family_tokenizer(kind: str) -> Any:
    """Llama's: <s> and </s> around, nothing to pad with. Qwen's: an end token, padding on the left. ModernBERT's: both."""
    if kind == "llama":
        tokenizer = _metaspace()
        before, after = ("<s>", 1), ("</s>", 2)
        ends = processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[before, after])
    else:
        tokenizer = byte_level()
        ends = processors.TemplateProcessing(single="$A <end>", pair="$A <end> $B <end>", special_tokens=[("<end>", 0)])
        if kind == "modernbert":
            marks = [("<u>", 1), ("<end>", 0)]
            ends = processors.TemplateProcessing(
                single="<u> $A <end>", pair="<u> $A <end> $B <end>", special_tokens=marks
            )  # fmt: skip
        tokenizer.padding_side = "left" if kind == "qwen3" else "right"
    tokenizer.backend_tokenizer.post_processor = ends
    tokenizer.model_max_length = 64
    return tokenizer


def family_model(kind: str, folder: Path, *, layers: int = 2, seed: int = 0, by: float = 6) -> Path:
    """A plain Hugging Face folder with a random model, as its makers would publish it; `by`: see `worlds.sharpen`."""
    tokenizer = family_tokenizer(kind)
    size = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2}
    more = {"intermediate_size": 64, "max_position_embeddings": 128, "pad_token_id": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "llama":
            made: Any = LlamaForCausalLM(LlamaConfig(**size, **more, num_key_value_heads=1))
        elif kind == "qwen3":
            made = Qwen3ForCausalLM(Qwen3Config(**size, **more, num_key_value_heads=1, head_dim=16))
        else:
            window = {"local_attention": 8, "global_attn_every_n_layers": 2, "classifier_pooling": "mean"}
            made = ModernBertModel(ModernBertConfig(**size, **{**more, "pad_token_id": 0}, **window))
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sharpen(folder, by=by)
