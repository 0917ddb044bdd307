"""Late-interaction students of the toy world: folders, and slow ways to what they give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydrd.models.late import Reading, load_late, load_tokenizer, made_late, save_late
from raydrd.models.latelayout import read_late
from tests.worlds import tiny_encoder

MARKS = (".", ",", "!")  # punctuation that the tiny tokenizer knows, where it is asked to


def late_model(folder: Path, *, seed: int = 0, source: Path | None = None, dropout: float = 0.0, **wanted: Any) -> Path:
    """A late-interaction folder made of a tiny random encoder, or of `source`."""
    if source is None:
        source = folder.parent / f"{folder.name}-plain"
        if not source.exists():
            tiny_encoder(source, words=MARKS, dropout=dropout, seed=seed)
    model, tokenizer = made_late(source, {"dim": 16, **wanted}, seed=seed)
    save_late(model, model.layout, folder, tokenizer=tokenizer)
    return folder


def given(folder: Path, role: str, texts: list[str], name: str = "") -> list[np.ndarray]:
    """What our encoder gives for texts one by one: [tokens, D] each, or [D] of a hybrid's pooled vectors."""
    layout, late = read_late(folder)
    assert late is not None
    model, tokenizer = load_late(folder), load_tokenizer(folder, layout)
    reading = Reading.of(tokenizer, layout, late)
    found = []
    for text in texts:
        ids = np.array(tokenizer(layout.prompt(role) + text, add_special_tokens=False)["input_ids"], dtype=np.int32)
        with torch.inference_mode():
            made = model.encode(reading.inputs(role, [reading.single(role, ids)]))[name][0]
        found.append((made[made.ne(0).any(1)] if made.ndim == 2 else made).numpy())
    return found


def slow_maxsim(query_TD: Tensor, passage_SD: Tensor) -> Tensor:
    """One pair, token by token."""
    total = torch.zeros((), dtype=query_TD.dtype)
    for one in query_TD:
        if not len(passage_SD):
            continue
        best = one @ passage_SD[0]
        for other in passage_SD[1:]:
            best = torch.maximum(best, one @ other)
        total = total + best
    return total
