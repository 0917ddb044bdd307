"""The device a worker computes on, and how."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from raydrd.spine.precision import Precision

# Padded tokens a forward pass. Measured on a CPU: from 512 to 8,192 a batch of texts of one length costs the same a
# token, so what decides is padding, which small batches have less of (2,000 texts: 0.9 % at 2,048, 1.7 % at 4,096).
# GPUs want much at once.
TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 65_536}


def this_device() -> torch.device:
    """The GPU that Ray gave this process, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepare(model: nn.Module, precision: Precision, *, exact: tuple[nn.Module, ...] = ()) -> None:
    """Make a model ready for `inference`, in place: for bf16 its linear layers are stored so.

    Autocast would cast the same weights again in every batch: the numbers are the same, the casts cost time and memory.
    Modules in `exact` compute in float32 whatever the precision: a logit rounded to bf16's 8 bits ties with others.
    """
    if precision == "fp32":
        return
    for module in model.modules():
        if isinstance(module, nn.Linear) and module not in exact:
            module.to(torch.bfloat16)
    for module in exact:
        module.forward = _in_float32(module)


def _in_float32(module: nn.Module) -> Callable[[Tensor], Tensor]:
    plain = module.forward

    def forward(inputs: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, enabled=False):
            result: Tensor = plain(inputs.float())
        return result

    return forward


@contextmanager
def inference(device: torch.device, precision: Precision) -> Iterator[None]:
    """No gradients; bf16 by autocast, so that normalisation, softmax and sums stay in float32. See `prepare`."""
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free: a step allocates the same blocks again, and fresh pages cost 10 % of it.

    Nothing happens where the C library has no `mallopt`.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(-4, 0)  # M_MMAP_MAX: no block of its own for large allocations
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: give nothing back while the process runs
