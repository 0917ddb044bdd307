"""Prompts for teachers that are language models: as values, read from files, and as token ids with texts put in."""

from __future__ import annotations

from raydrd.models.prompts.form import (
    PROMPTS,
    AnyPrompt,
    ListPrompt,
    Prompt,
    Question,
    named_or_read,
    prompt_kind,
    prompt_of,
    read_prompt,
)
from raydrd.models.prompts.ids import Ids, Pieces, answer_ids, assemble, order_length, pieces_of, shares

__all__ = [
    "A_OR_B", "DUOT5", "MONOT5", "PROMPTS", "YES_NO", "AnyPrompt", "Ids", "ListPrompt", "Pieces", "Prompt", "Question",
    "answer_ids", "assemble", "named_or_read", "order_length", "pieces_of", "prompt_kind", "prompt_of", "read_prompt", "shares",
]  # fmt: skip

MONOT5, DUOT5, YES_NO, A_OR_B = (PROMPTS[name] for name in ("monot5", "duot5", "yes_no", "a_or_b"))
