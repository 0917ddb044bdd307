"""Cross-encoders: (query, passage) or (query, passage a, passage b) in, one raw logit out. Load, make, cut, save."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from raydrd.errors import InputError
from raydrd.models.encoders import TOKENIZER_FILES, cut_layers, quiet_transformers


class CrossEncoder(nn.Module):
    """A sequence classifier with one output. `width` 1: its "vectors" are scores."""

    width = 1

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body

    def forward(self, batches: list[tuple[str, dict[str, Tensor]]]) -> list[Tensor]:
        """Raw logits [B, 1] float32 of several batches (role, model inputs)."""
        return [self.body(**inputs).logits.float() for _, inputs in batches]

    def bodies(self) -> list[Any]:
        return [self.body]


def load_reranker(path: Path) -> CrossEncoder:
    """A cross-encoder folder, float32, in eval mode.

    Raises:
        InputError: it has not exactly one output.
    """
    quiet_transformers()
    body = AutoModelForSequenceClassification.from_pretrained(
        path, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False
    )
    if body.config.num_labels != 1:
        raise InputError(f"teacher: it has {body.config.num_labels} outputs, a reranker has 1; choose another model")
    return CrossEncoder(body).eval()


def has_head(path: Path) -> bool:
    """Whether the folder holds a sequence classifier (else an encoder, whose head must first be trained)."""
    names = json.loads((path / "config.json").read_text()).get("architectures") or []
    return any("SequenceClassification" in name for name in names)


def make_reranker(path: Path, *, layers: int | None, seed: int) -> CrossEncoder:
    """A cross-encoder out of any encoder: its body, cut if asked, and a new head drawn from `seed`.

    Raises:
        InputError: transformers knows no sequence classifier of this kind.
    """
    quiet_transformers()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            body = AutoModelForSequenceClassification.from_pretrained(
                path, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False, num_labels=1
            )
        except ValueError as error:
            raise InputError(f"teacher.model: no cross-encoder can be made of it ({error}); choose another encoder") from error
    if layers is not None:
        cut_layers(body, layers, name="teacher.layers")
    return CrossEncoder(body).eval()


def save_reranker(model: CrossEncoder, path: Path, *, tokenizer_from: Path) -> None:
    """A folder that plain `CrossEncoder(path)` loads."""
    path.mkdir(parents=True, exist_ok=True)
    model.body.save_pretrained(path)
    for file in tokenizer_from.iterdir():
        if file.name in TOKENIZER_FILES:
            shutil.copy(file, path / file.name)
