"""What vLLM is asked of a prompt, and what is read from its answer. Pure: vLLM itself is not imported.

The prompt goes as token ids, the same that `AnswerModel` reads, so no template or tokenizer stands between the two engines.
Asked for is one token, greedily, with the log probabilities of the two answers over the whole vocabulary: their difference
is that of the two logits. vLLM gives them by `logprob_token_ids`, whichever tokens it would have said itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from raydrd.models.prompts import Ids
from raydrd.spine.precision import Precision


def request(prompt: Ids, answers: tuple[int, int]) -> dict[str, Any]:
    """One row for `ray.data.llm`: `tokenized_prompt` and `sampling_params`; answers: vocabulary ids (positive, negative)."""
    wanted = {"max_tokens": 1, "temperature": 0.0, "logprobs": 2, "logprob_token_ids": list(answers), "detokenize": False}
    return {"tokenized_prompt": prompt.tolist(), "sampling_params": wanted}


def score_of(answered: Mapping[str, Any], answers: tuple[int, int]) -> float:
    """log P(positive) - log P(negative) of an answered row: the difference of their logits.

    Raises:
        ValueError: an answer's log probability is not there, or not finite.
    """
    positions = answered.get("logprobs")
    if positions is None or not len(positions):
        raise ValueError("no log probabilities came back")
    first = {int(token): value for token, value in dict(positions[0]).items()}
    found = []
    for token in answers:
        if token not in first:
            raise ValueError(f"the log probability of token {token} did not come back, only of {sorted(first)}")
        value = first[token]
        found.append(float(value["logprob"] if isinstance(value, Mapping) else value))
    score = found[0] - found[1]
    if not math.isfinite(score):
        raise ValueError(f"the answers' log probabilities are {found[0]} and {found[1]}")
    return score


def engine_options(*, max_length: int, precision: Precision, gpus: int) -> dict[str, Any]:
    """vLLM's own settings. Prompts of one query that begin alike are read once up to where they differ."""
    return {
        "max_model_len": max_length + 1,  # and the one token of the answer
        "dtype": "bfloat16" if precision == "bf16" else "float32",
        "enable_prefix_caching": True,
        "load_format": "safetensors",
        "trust_remote_code": False,
        "tensor_parallel_size": gpus,
        "seed": 0,
    }
