"""The device a worker computes on, and how."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from raydrd.precision import Precision


def this_device() -> torch.device:
    """The GPU that Ray gave this process, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def inference(device: torch.device, precision: Precision) -> Iterator[None]:
    """No gradients; bf16 by autocast, so that weights, normalisation and softmax stay in float32."""
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
