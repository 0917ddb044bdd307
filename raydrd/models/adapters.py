"""LoRA: a student's large matrices stay as they are, and small ones beside them learn; in the end they are added up.

Hu et al., arXiv 2106.09685, by `peft`. What is saved is a plain model, so nothing behind a training knows of adapters.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

from pydantic import Field

from raydrd.config import Frozen
from raydrd.errors import InputError


class Lora(Frozen):
    """Which matrices get adapters, and how large these are. Norms, token vectors and biases stay as they are.

    A dense layer behind the pooling and a late-interaction projection are small and learn whole.
    """

    r: int = Field(16, ge=1, description="rank of an adapter: two matrices of r rows and columns for each large one")
    alpha: float = Field(32.0, gt=0, description="adapters count alpha / r times")
    dropout: float = Field(0.0, ge=0, lt=1, description="of an adapter's input, while training")
    target_modules: tuple[str, ...] | Literal["all-linear"] = Field(
        "all-linear", description="ends of names of linear layers, such as [q_proj, v_proj]; all-linear: every one"
    )


def check_peft() -> None:
    """Before anything is paid for.

    Raises:
        InputError: peft is not installed.
    """
    if find_spec("peft") is None:
        raise InputError("student.lora: peft is not installed; pip install 'raydrd[lora]', or remove student.lora")


def add_adapters(bodies: list[Any], lora: Lora, *, seed: int) -> None:
    """Put adapters into transformers, in place: from then on only these learn. They change nothing before they have learnt.

    Raises:
        InputError: peft is missing, or no linear layer has such a name.
    """
    check_peft()
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    alpha: Any = lora.alpha  # annotated as a whole number there; any will do
    config = LoraConfig(r=lora.r, lora_alpha=alpha, lora_dropout=lora.dropout, target_modules=targets, bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the same first adapters on every rank, and after every restart
        for body in bodies:
            try:
                inject_adapter_in_model(config, body)
            except ValueError as error:
                linear = [name for name, part in body.named_modules() if isinstance(part, torch.nn.Linear)]
                names = sorted({name.rpartition(".")[2] for name in linear})
                raise InputError(
                    f"student.lora.target_modules: {targets!r} fit no linear layer of the student; write all-linear, or some "
                    f"of {', '.join(names)}"
                ) from error


def merge_adapters(bodies: list[Any]) -> None:
    """Add the adapters to the matrices that they stand beside, in place, and take them out: a plain transformer again."""
    from peft.tuners.lora import LoraLayer

    for body in bodies:
        layers = [(name, part) for name, part in body.named_modules() if isinstance(part, LoraLayer)]
        for name, part in layers:
            part.merge()
            above, _, last = name.rpartition(".")
            setattr(body.get_submodule(above) if above else body, last, part.get_base_layer())
        if hasattr(body, "peft_config"):
            del body.peft_config
        body.requires_grad_(True)
