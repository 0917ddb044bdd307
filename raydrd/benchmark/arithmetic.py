"""What speed is measured in: multiply-adds of a transformer, tokens, the machine's matrix peak."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raydrd.spine.precision import Precision


@dataclass(frozen=True)
class Cost:
    """What one forward pass costs. `parameters` are those of the matrices that every token is multiplied with."""

    parameters: int
    layers: int
    width: int

    @staticmethod
    def of(backbone: Any) -> Cost:
        """Of a Hugging Face encoder: the linear layers of its blocks. Embeddings, pooler and head are left out.

        Raises:
            ValueError: the blocks cannot be found.
        """
        layers = int(backbone.config.num_hidden_layers)
        blocks = [part for part in backbone.modules() if isinstance(part, nn.ModuleList) and len(part) == layers]
        if not blocks:
            raise ValueError(f"{type(backbone).__name__}: no list of {layers} layers in it")
        linear = [part for part in blocks[0].modules() if isinstance(part, nn.Linear)]
        return Cost(sum(part.weight.numel() for part in linear), layers, int(backbone.config.hidden_size))

    def flops(self, lengths: NDArray[np.int64]) -> float:
        """Floating-point operations of sequences of these lengths [N], without padding.

        A token takes 2 operations for each parameter, and in each layer 2 L H for its row of Q K^T and 2 L H for its
        row of the product with V, in a sequence of length L and width H.
        """
        tokens = np.asarray(lengths, dtype=np.float64)
        return float((tokens * (2.0 * self.parameters + 4.0 * tokens * self.width * self.layers)).sum())


def peak(device: torch.device, precision: Precision, shapes: list[tuple[int, int, int]], *, seconds: float = 0.25) -> float:
    """FLOP/s of a plain torch matmul, the best try of all shapes (m, k, n): what the machine gives a model at most."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    for m, k, n in shapes:
        a, b = torch.randn(m, k, device=device, dtype=dtype), torch.randn(k, n, device=device, dtype=dtype)
        a @ b
        ends = time.perf_counter() + seconds
        while True:
            _wait(device)
            began = time.perf_counter()
            a @ b
            _wait(device)
            done = time.perf_counter()
            best = max(best, 2.0 * m * k * n / (done - began))
            if done > ends:
                break
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def counting(lookup: nn.Module, run: Callable[[], Any], counts: dict[str, int], name: str) -> Callable[[], Any]:
    """`run`, whose first call also adds up in `counts[name]` the tokens, padding included, that `lookup` is given.

    `lookup` is the model's table of token vectors: a hook on the model itself is not called by everybody who uses it.
    """

    def count(module: nn.Module, args: tuple[Any, ...]) -> None:
        counts[name] += int(args[0].numel())

    def once() -> Any:
        if name in counts:
            return run()
        counts[name] = 0
        hook = lookup.register_forward_pre_hook(count)
        try:
            return run()
        finally:
            hook.remove()  # hooks cost time, which later rounds measure

    return once
