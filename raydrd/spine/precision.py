"""Which arithmetic the hardware is fastest in: bf16 on GPUs and on CPUs with bf16 units, fp32 elsewhere."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

Precision = Literal["fp32", "bf16"]


def resolve(setting: str, *, gpu: bool) -> Precision:
    """`auto` as what it means here; the answer, not the setting, enters identities.

    The same config on other hardware may so give other bits, and says it: fix `precision` to compare across machines.
    """
    if setting == "auto":
        return "bf16" if gpu or cpu_has_bf16() else "fp32"
    return "bf16" if setting == "bf16" else "fp32"


@lru_cache(maxsize=1)
def cpu_has_bf16() -> bool:
    """AVX512-BF16 or AMX: measured 2 to 2.6 times fp32 there; elsewhere bf16 on a CPU is emulated and slow."""
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().split("\n") if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(flags.split()))


def local_gpu() -> bool:
    """An NVIDIA GPU on this machine, without importing torch."""
    return Path("/dev/nvidia0").exists()
