"""Checkpoints of the loop: weights that learn, optimizer moments and the loss curve, as safetensors; one file, written whole.

Order, learning rate and dropout are functions of the step, so nothing else is needed to go on as if nothing happened.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from raydrd.spine.storage import Folder

Curve = list[list[float]]


def save(folder: Folder, *, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, curve: Curve) -> None:
    """`checkpoint-STEP.safetensors`; older ones are removed once it is there."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = {f"model.{name}": value.detach().cpu() for name, value in model.named_parameters() if value.requires_grad}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"optimizer.{names[id(parameter)]}.{key}"] = torch.as_tensor(value).detach().cpu()
    # Parameters that share memory (tied weights) are one tensor in named_parameters, so nothing is stored twice.
    data = save_tensors({k: v.contiguous() for k, v in tensors.items()}, metadata={"curve": json.dumps(curve)})
    folder.write_bytes(_name(step), data)
    for name, at in _found(folder):
        if at < step:
            folder.delete_file(name)


def latest(folder: Folder) -> int:
    """Step of the newest checkpoint; 0 if there is none."""
    return max((step for _, step in _found(folder)), default=0)


def restore(folder: Folder, *, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> Curve:
    """Put everything back as it was after `step` updates; the loss curve so far."""
    data = folder.read_bytes(_name(step))
    tensors = load_tensors(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    groups: dict[str, dict[str, Tensor]] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:  # the others are as they were
                parameter.copy_(tensors[f"model.{name}"])
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            name, _, field = key.removeprefix("optimizer.").rpartition(".")
            groups.setdefault(name, {})[field] = value
    state: dict[Any, Any] = {}
    for name, parameter in model.named_parameters():
        if name in groups:
            fields = groups[name]
            state[parameter] = {k: v.to(parameter.device) for k, v in fields.items()}
    optimizer.state.clear()
    optimizer.state.update(state)
    return [list(row) for row in json.loads(header["__metadata__"]["curve"])]


def _name(step: int) -> str:
    return f"checkpoint-{step:09d}.safetensors"


def _found(folder: Folder) -> list[tuple[str, int]]:
    return [
        (name, int(name.removeprefix("checkpoint-").removesuffix(".safetensors")))
        for name in folder.files()
        if name.startswith("checkpoint-")
    ]
