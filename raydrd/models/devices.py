"""The device a worker computes on, and how."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raydrd.errors import StageError
from raydrd.models.batching import token_batches
from raydrd.spine.precision import Precision
from raydrd.spine.progress import note

T = TypeVar("T")

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


def skip_padding(body: Any, device: torch.device, precision: Precision) -> bool:
    """Attention that is not computed for padding (flash-attn's kernels; what ModernBERT was made for), if it can be had.

    In place, for inference: on a GPU, in bf16, where the package is installed and the model's family knows it. Whether it is.
    Training does without: it computes attention for padding too.
    """
    there = device.type == "cuda" and precision == "bf16" and find_spec("flash_attn") is not None
    if not there or not getattr(body, "_supports_flash_attn", False):
        return False
    body.set_attn_implementation("flash_attention_2")
    return True


@contextmanager
def inference(device: torch.device, precision: Precision) -> Iterator[None]:
    """No gradients; bf16 by autocast, so that normalisation, softmax and sums stay in float32. See `prepare`."""
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


# How else than by torch.OutOfMemoryError a device says that it has no room: cuBLAS' workspace, and the CPU's allocator.
NO_ROOM = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "can't allocate memory")


def fitting(work: Callable[[], T]) -> T | None:
    """What `work` gives; None if the device's memory was too small for it, and what it held is then free again."""
    try:
        return work()
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(sign in str(error) for sign in NO_ROOM):
            raise
    # Here the error is gone, and with it the frames that held tensors.
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
    return None


class TokenBudget:
    """How many padded tokens this worker's device takes at once: what did not fit is split, and that is remembered."""

    def __init__(self, device: torch.device, tokens: int | None) -> None:
        self.device = device
        self.tokens = tokens or TOKENS_PER_BATCH[device.type]

    def each(self, lengths: NDArray[np.int64], run: Callable[[NDArray[np.int64]], Any]) -> None:
        """Call `run` with the places of texts of similar length, each text once (again, if its batch did not fit).

        Raises:
            StageError: a single text does not fit.
        """
        todo = token_batches(lengths, tokens_per_batch=self.tokens)[::-1]
        refused = 0
        while todo:
            batch = todo.pop()
            if fitting(lambda batch=batch: [run(batch)]) is not None:  # type: ignore[misc]
                if refused:
                    note(
                        f"a batch of {refused:,} padded tokens did not fit the memory of {self.device}; it goes on with "
                        f"{self.tokens:,}; resources.tokens_per_batch={max(64, self.tokens)} spares the tries"
                    )
                refused = 0
                continue
            longest = int(lengths[batch].max())
            refused = refused or len(batch) * longest
            if len(batch) == 1:
                raise StageError(
                    f"a single text of {longest} tokens does not fit the memory of {self.device}; set precision=bf16, cut "
                    "texts shorter (max_length), take a smaller model, or give fewer workers a GPU (resources.gpus_per_worker)"
                )
            self.tokens = len(batch) * longest // 2
            left = np.concatenate([batch, *todo])
            todo = [left[places] for places in token_batches(lengths[left], tokens_per_batch=self.tokens)][::-1]


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


def give_memory_back() -> None:
    """What `keep_freed_memory` held for the next step, once there is none: a process that trains again and again in blocks of
    other sizes would grow (measured: 9 GB after five trainings of a 2-layer student). On a GPU also what torch holds of it."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return
