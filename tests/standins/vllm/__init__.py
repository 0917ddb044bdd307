"""A stand-in for vLLM 0.29: the classes that `ray.data.llm` of Ray 2.60 calls, with the same names and refusals.

The model is run by transformers, one request at a time. What the real one would refuse (a parameter that it does not have,
log probabilities of another number than tokens were named) is refused here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vllm import outputs
from vllm.outputs import CompletionOutput, Logprob, RequestOutput

__all__ = ["AsyncEngineArgs", "AsyncLLMEngine", "SamplingParams", "outputs"]


@dataclass
class SamplingParams:
    """The fields that raydrd may name, with the real one's defaults; anything else is a TypeError, as there."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: Any = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    allowed_token_ids: list[int] | None = None
    structured_outputs: Any = None
    extra_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = self.logprob_token_ids
        if ids is not None and (len(ids) > 128 or (self.logprobs is not None and self.logprobs != len(ids))):
            raise ValueError(f"logprobs ({self.logprobs}) must be the number of logprob_token_ids ({len(ids)}), at most 128")


ARGUMENTS = {
    "model", "runner", "convert", "tokenizer", "dtype", "max_model_len", "enable_prefix_caching", "load_format", "seed",
    "trust_remote_code", "tensor_parallel_size", "pipeline_parallel_size", "distributed_executor_backend",
    "enable_log_requests", "max_logprobs", "logprobs_mode", "gpu_memory_utilization", "max_num_seqs",
}  # fmt: skip


class AsyncEngineArgs:
    def __init__(self, **given: Any) -> None:
        unknown = set(given) - ARGUMENTS
        if unknown:
            raise TypeError(f"AsyncEngineArgs: unexpected {sorted(unknown)}")
        self.given = given

    def create_engine_config(self) -> Any:
        return SimpleNamespace(
            scheduler_config=SimpleNamespace(max_num_seqs=256), parallel_config=SimpleNamespace(pipeline_parallel_size=1)
        )


class AsyncLLMEngine:
    def __init__(self, args: AsyncEngineArgs) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.args = args.given
        assert self.args["runner"] == "generate" and self.args["load_format"] == "safetensors"
        assert self.args["dtype"] == "float32" and not self.args["trust_remote_code"]
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(self.args["model"], dtype=torch.float32).eval()

    @classmethod
    def from_engine_args(cls, args: AsyncEngineArgs, stat_loggers: Any = None) -> AsyncLLMEngine:
        return cls(args)

    async def generate(
        self, *, prompt: dict[str, Any], sampling_params: SamplingParams, request_id: str, lora_request: Any = None
    ) -> Any:
        ids = prompt["prompt_token_ids"]
        assert isinstance(ids, list) and all(type(one) is int for one in ids)
        if len(ids) + (sampling_params.max_tokens or 0) > self.args["max_model_len"]:
            raise ValueError(f"the decoder prompt (length {len(ids)}) is longer than the maximum model length")
        fails = Path(os.environ["STANDIN_FAILS"])  # so many requests fail before the others are answered
        left = int(fails.read_text())
        if left:
            fails.write_text(str(left - 1))
            raise ValueError("no luck")
        with self.torch.inference_mode():
            logits = self.model(input_ids=self.torch.tensor([ids])).logits[0, -1].double()
        log_p = self.torch.log_softmax(logits, -1)
        own = int(log_p.argmax())
        asked = [own, *(sampling_params.logprob_token_ids or [])]
        found = {token: Logprob(float(log_p[token]), int((log_p >= log_p[token]).sum()), None) for token in asked}
        yield RequestOutput(request_id, ids, [CompletionOutput([own], "", [found])])

    async def do_log_stats(self) -> None:
        return None

    def shutdown(self) -> None:
        return None
