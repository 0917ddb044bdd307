"""The device a worker computes on, and how."""

from __future__ import annotations

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
