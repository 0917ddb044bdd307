"""Teachers as a run holds them: opened from a folder, later perhaps trained here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from raydrd.errors import InputError
from raydrd.models.layout import find_model, folder_digest, read_layout
from raydrd.models.prompts import prompt_of
from raydrd.setting import (
    BiEncoderTeacher,
    CrossEncoderTeacher,
    Ensemble,
    Escalation,
    PromptedTeacher,
    ReadyScores,
    word_reader,
)
from raydrd.spine.store import Artifact, Located, Store
from raydrd.stages.adopt import adopt, located, wanted_layout
from raydrd.stages.score import import_teacher

SCORING = ("score_pairs", "score_lists", "score_duels")  # stages in which a teacher reads query and passages together


@dataclass(frozen=True)
class Teacher:
    """A teacher: what its config says, its model in the store, and what names its scores.

    identity: digest of the files it came from, or of what trained it. An ensemble and an escalation have members and no
    model of their own, ready-made scores have neither.
    """

    cfg: Any
    model: Artifact | None = None
    identity: str = ""
    members: tuple[Teacher, ...] = ()

    @property
    def is_trained(self) -> bool:
        """Whether nothing is left to train: it asks for no training, or has had it."""
        if self.members:
            return all(member.is_trained for member in self.members)
        return getattr(self.cfg, "train", None) is None or self.identity.startswith("trained:")

    @property
    def known_as(self) -> str:
        """What tells its scores from any other teacher's: its identity, or its members' and how they are joined."""
        joined = "+".join(member.identity for member in self.members)
        if isinstance(self.cfg, Escalation):
            joined += f", {self.cfg.by} {self.cfg.spend}"
        return self.identity or joined

    @property
    def metrics(self) -> dict[str, Any]:
        return self.model.metrics if self.model else {}

    @property
    def name(self) -> str:
        return str(self.cfg.model)


def found_sources(teachers: tuple[Any, ...]) -> dict[Any, Located]:
    """Where the models of all teachers are.

    Raises:
        InputError: one cannot be found, is no reranker and is not to be trained, or cannot be asked what its prompt asks.
    """
    from raydrd.models.answers import check_prompt
    from raydrd.models.rerankers import has_head

    sources: dict[Any, Located] = {}
    for one in (member for teacher in teachers for member in getattr(teacher, "members", (teacher,))):
        if isinstance(one, ReadyScores):
            continue
        if isinstance(one, BiEncoderTeacher):
            sources[one] = located(one)
            continue
        path = find_model(one.model, revision=one.revision)
        if isinstance(one, CrossEncoderTeacher) and one.train is None and not has_head(path):
            raise InputError(f"teacher.model: {one.model} is an encoder without a ranking head; set teacher.train to train one")
        if isinstance(one, PromptedTeacher):
            if one.engine == "vllm":
                check_vllm(one.model, path)
            spare = int(one.engine == "vllm")  # the answer's token stands in its window
            check_prompt(path, prompt_of(one.prompt), max_length=one.max_length, window=one.window, spare=spare)
        sources[one] = Located(identity=folder_digest(path), where=path)
    return sources


def check_vllm(model: str, path: Path) -> None:
    """What vLLM cannot do, before anything is paid for.

    Raises:
        InputError: it is not installed, or the model is an encoder with a decoder, which it no longer runs.
    """
    if find_spec("vllm") is None:
        raise InputError("teacher.engine: vllm is not installed; pip install 'raydrd[llm]', or write engine: transformers")
    if json.loads((path / "config.json").read_text(encoding="utf-8")).get("is_encoder_decoder"):
        raise InputError(f"teacher.engine: vllm runs no encoder-decoder models such as {model}; write engine: transformers")


def open_teacher(store: Store, cfg: Any, sources: dict[Any, Located]) -> Teacher:
    """The teacher's model in the store, as yet untrained."""
    from raydrd.models.rerankers import has_head

    if isinstance(cfg, Ensemble | Escalation):
        return Teacher(cfg, members=tuple(open_teacher(store, member, sources) for member in cfg.members))
    if isinstance(cfg, ReadyScores):
        return Teacher(cfg)
    source = sources[cfg]
    if isinstance(cfg, BiEncoderTeacher):
        layout = wanted_layout(cfg, read_layout(source.where))
        layers = list(cfg.layers) if isinstance(cfg.layers, tuple) else cfg.layers
        model = store.run(adopt, "teacher", source=source, layout=layout, layers=layers)
        return Teacher(cfg, model, model.id)
    if isinstance(cfg, PromptedTeacher):
        return Teacher(cfg, store.run(import_teacher, "teacher", source=source), str(source.identity))
    new_head = not has_head(source.where)
    if not new_head and cfg.layers is None:
        return Teacher(cfg, store.run(import_teacher, "teacher", source=source), str(source.identity))
    model = store.run(import_teacher, "teacher", source=source, layers=cfg.layers, new_head=new_head, seed=cfg.seed)
    return Teacher(cfg, model, model.id)


def reader(teacher: Teacher) -> Artifact | None:
    """The model of the cross-encoder whose attention gives word maps."""
    wanted = word_reader(teacher.cfg)
    return next((one.model for one in (teacher, *teacher.members) if one.cfg == wanted), None)
