"""What a training worker is given."""

from __future__ import annotations

from dataclasses import dataclass

from raydrd.methods.nested import Nested
from raydrd.methods.objectives import Objective
from raydrd.methods.tokenwise import TokenObjective
from raydrd.models.adapters import Lora
from raydrd.spine.precision import Precision
from raydrd.spine.storage import Folder
from raydrd.training.plan import TrainConfig
from raydrd.training.sources import ListExamples, TextExamples
from raydrd.training.words import WordTeacher


@dataclass(frozen=True)
class Job:
    """Everything a worker needs; a value, so that it travels."""

    start: Folder
    examples: ListExamples | TextExamples
    objective: Objective | Nested | TokenObjective
    config: TrainConfig
    precision: Precision
    scratch: Folder
    out: Folder
    per_device: int | None
    tokens_per_batch: int | None
    save_seconds: float
    max_length: int | None = None  # of a cross-encoder's input; None: a bi-encoder is trained, its layout says
    words: WordTeacher | None = None
    lora: Lora | None = None  # only adapters learn; what is saved is a plain model
