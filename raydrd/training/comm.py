"""The workers of a step as one: gathering with gradients, and sums.

A global batch need not divide by the number of workers: the first ranks hold one example more, and what is gathered is
padded to the largest share on its way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn


class _Gather(torch.autograd.Function):
    """All ranks' tensors along dimension 0; the gradient of each part goes back to its owner, summed over ranks.

    (Detaching the others' parts, as much published code does, trains with 1/W of the gradient: methods' trap.)
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, comm: Ranks) -> Tensor:
        ctx.comm, ctx.rows = comm, len(tensor)
        return comm.everyone(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        ctx.comm.together(dist.all_reduce, total)
        lo = ctx.comm.offset(ctx.rows)
        return total[lo : lo + ctx.rows], None


class Alone:
    """One worker."""

    rank, world = 0, 1
    entered = 0

    def cut(self, examples: NDArray[np.int64]) -> NDArray[np.int64]:
        """This rank's share of a global batch: columns of int64 [..., examples]."""
        return examples

    def offset(self, rows: int) -> int:
        """Place of this rank's first row among the rows of all ranks."""
        return 0

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor

    def sums(self, counts: dict[str, float]) -> dict[str, float]:
        return counts

    def sum_gradients(self, model: nn.Module) -> None:
        """Nothing to add; a parameter without a gradient gets zeros, as it does among several ranks."""
        for p in model.parameters():
            if p.requires_grad and p.grad is None:
                p.grad = torch.zeros_like(p)

    def agreed(self, value: int) -> int:
        return value


class Ranks:
    """The default process group. Every rank holds equally many rows, but where `cut` could not share a batch out evenly.

    entered: collective operations begun. Of ranks that wait for one another, the one that is missing has begun the fewest.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.world, self.device = dist.get_rank(), dist.get_world_size(), device
        self.shares: list[int] | None = None
        self.entered = 0

    def together(self, operation: Callable[..., Any], *tensors: Any, **more: Any) -> None:
        """One collective operation, counted."""
        self.entered += 1
        operation(*tensors, **more)

    def cut(self, examples: NDArray[np.int64]) -> NDArray[np.int64]:
        """This rank's share of a global batch: columns of int64 [..., examples]; the first ranks have one more."""
        parts = np.array_split(examples, self.world, axis=-1)
        shares = [part.shape[-1] for part in parts]
        self.shares = None if len(set(shares)) == 1 else shares
        return parts[self.rank]

    def _shares(self, rows: int) -> list[int]:
        shares = self.shares or [rows] * self.world
        if shares[self.rank] != rows:
            raise ValueError(f"rank {self.rank} holds {rows} rows, its share is {shares[self.rank]}")
        return shares

    def offset(self, rows: int) -> int:
        """Place of this rank's first row among the rows of all ranks."""
        return sum(self._shares(rows)[: self.rank])

    def everyone(self, tensor: Tensor) -> Tensor:
        """All ranks' tensors along dimension 0, without gradients."""
        shares = self._shares(len(tensor))
        lacking = max(shares) - len(tensor)
        padded = torch.cat([tensor, tensor.new_zeros(lacking, *tensor.shape[1:])]) if lacking else tensor.contiguous()
        parts = [torch.empty_like(padded) for _ in shares]
        self.together(dist.all_gather, parts, padded)
        return torch.cat([part[:rows] for part, rows in zip(parts, shares, strict=True)])

    def gather(self, tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.bool:  # NCCL gathers no booleans
            return self.gather(tensor.to(torch.uint8)).bool()
        if not tensor.requires_grad:
            return self.everyone(tensor)
        gathered: Tensor = _Gather.apply(tensor, self)  # type: ignore[no-untyped-call]
        return gathered

    def sums(self, counts: dict[str, float]) -> dict[str, float]:
        """Named numbers added over ranks."""
        values = torch.tensor(list(counts.values()), dtype=torch.float64)
        values = values.to(self.device)
        self.together(dist.all_reduce, values)
        return dict(zip(counts, values.tolist(), strict=True))

    def sum_gradients(self, model: nn.Module) -> None:
        """Data parallelism: the gradients of all ranks added, once a step, in buckets of one type.

        torch's DistributedDataParallel averages what is a sum here, and its hooks want every parameter used in the
        last of several backward passes, which cached vectors and separate towers do not give.
        """
        parameters = [p for p in model.parameters() if p.requires_grad]
        for lo in range(0, len(parameters), 64):
            bucket = parameters[lo : lo + 64]
            flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in bucket])
            self.together(dist.all_reduce, flat)
            for p, grad in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                p.grad = grad.view_as(p).clone()

    def agreed(self, value: int) -> int:
        """Rank 0's value on every rank."""
        tensor = torch.tensor([value], device=self.device)
        self.together(dist.broadcast, tensor, src=0)
        return int(tensor.item())
