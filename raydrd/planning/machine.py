"""What there is: cores, memory, GPUs and room on the disk of this machine, or of a node like it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydrd.config import Resources
from raydrd.errors import InputError
from raydrd.spine.cluster import Pool, available_cores, plan_pool
from raydrd.spine.storage import Folder

_CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Machine:
    """A node, and how many of its kind: memory and disk in bytes, GPUs of all nodes together.

    disk: free where the store is; None: an object store, which is not asked.
    """

    cores: int
    memory: int
    gpus: int
    disk: int | None
    nodes: int = 1

    def pool(self, resources: Resources, shards: int, *, models: bool = True) -> Pool:
        """The actors that a stage of so many shards gets here."""
        gpus = self.gpus // self.nodes if models else 0
        # One core more than there are, as `Cluster.start` gives a Ray of its own.
        return plan_pool(resources, cpus=[self.cores + 1] * self.nodes, gpus=[gpus] * self.nodes, shards=shards)

    def told(self) -> dict[str, Any]:
        return {"cores": self.cores, "memory": self.memory, "gpus": self.gpus, "nodes": self.nodes, "disk": self.disk}


def this_machine(root: Folder, gpus: int | None) -> Machine:
    """This machine; with `gpus` as many nodes like it as it takes to have so many.

    Raises:
        InputError: GPUs are asked about and there is none here to measure.
    """
    import torch

    here = torch.cuda.device_count()
    if gpus and not here:
        raise InputError("--gpus: rates are measured, and there is no GPU here; run plan on a machine that has one")
    nodes = -(-gpus // here) if gpus else 1
    if gpus and gpus % here and gpus > here:
        raise InputError(f"--gpus: nodes like this one have {here} each; write a multiple of {here}, or less")
    total = gpus if gpus is not None else here
    return Machine(available_cores(), memory_limit(), total, free_disk(root), nodes)


def memory_limit() -> int:
    """Bytes of memory that this machine, or the container this runs in, has."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in _CGROUP:
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def free_disk(root: Folder) -> int | None:
    """Bytes free where a local store is (or will be); None for an object store."""
    if not root.is_local:
        return None
    path = Path(root.uri)
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


class PeakMemory:
    """The most memory this process held within a block, in bytes; 0 where the system does not tell."""

    def __init__(self) -> None:
        self.bytes = 0

    def __enter__(self) -> PeakMemory:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
        except OSError:
            return self
        return self

    def __exit__(self, *_: object) -> None:
        try:
            lines = Path("/proc/self/status").read_text().split("\n")
        except OSError:
            return
        self.bytes = next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)
