"""The workers of a step as one: gathering with gradients, and sums."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Gather(torch.autograd.Function):
    """All ranks' tensors along dimension 0; the gradient of each part goes back to its owner, summed over ranks.

    (Detaching the others' parts, as much published code does, trains with 1/W of the gradient: methods' trap.)
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        ctx.rows = len(tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank() * ctx.rows : (dist.get_rank() + 1) * ctx.rows]


class Alone:
    """One worker."""

    rank, world = 0, 1

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
    """The default process group. Every rank holds equally many rows."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.world, self.device = dist.get_rank(), dist.get_world_size(), device

    def gather(self, tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.bool:  # NCCL gathers no booleans
            return self.gather(tensor.to(torch.uint8)).bool()
        if not tensor.requires_grad:
            parts = [torch.empty_like(tensor) for _ in range(self.world)]
            dist.all_gather(parts, tensor.contiguous())
            return torch.cat(parts)
        gathered: Tensor = _Gather.apply(tensor)  # type: ignore[no-untyped-call]
        return gathered

    def sums(self, counts: dict[str, float]) -> dict[str, float]:
        """Named numbers added over ranks."""
        values = torch.tensor(list(counts.values()), dtype=torch.float64)
        values = values.to(self.device)
        dist.all_reduce(values)
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
            dist.all_reduce(flat)
            for p, grad in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                p.grad = grad.view_as(p).clone()

    def agreed(self, value: int) -> int:
        """Rank 0's value on every rank."""
        tensor = torch.tensor([value], device=self.device)
        dist.broadcast(tensor, src=0)
        return int(tensor.item())
