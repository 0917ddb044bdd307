"""adopt: a model from a hub, a folder or a package -> a model folder of the store, cut if asked."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from raydrd.config import Frozen
from raydrd.models.adapters import Lora
from raydrd.models.latelayout import Late
from raydrd.models.layout import Layout, describe, find_model, folder_digest, read_layout
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Located, Work, stage


class Model(Frozen):
    """A model by name, and what of its own settings to change; whatever is None stays as its folder says."""

    model: str
    revision: str | None = None
    pooling: Literal["mean", "cls", "max", "lasttoken"] | None = None
    normalize: bool | None = None
    query_max_len: int | None = Field(None, ge=4, le=512, description="tokens, special ones included")
    passage_max_len: int | None = Field(None, ge=4, le=512, description="tokens, special ones included")
    query_prompt: str | None = None
    passage_prompt: str | None = None


# Fields that only students with token vectors have, and those that they do not have.
_LATE = ("dim", "query_expansion", "attend_to_expansion", "skip_punctuation", "markers")
_SINGLE = ("dims", "pooling", "normalize")


class Student(Model):
    """The student to start from: an encoder, perhaps cut to fewer layers, with shared or separate towers.

    kind: `single_vector`, one vector a text; `late_interaction`, one a token, compared by MaxSim (ColBERT); `hybrid`, both.
    """

    kind: Literal["single_vector", "late_interaction", "hybrid"] = "single_vector"
    layers: int | tuple[int, ...] | None = None
    towers: Literal["shared", "separate"] | None = None
    lora: Lora | None = Field(None, description="train small matrices beside the large ones, by peft; {} for its defaults")
    dims: tuple[int, ...] | None = Field(
        None, description="widths trained at once (Matryoshka), falling from the model's own: [384, 192, 96, 48]"
    )

    dim: int | None = Field(
        None, ge=1, description="late_interaction: numbers of a token's vector; none: the model's own, or 128"
    )
    query_expansion: bool | None = Field(
        None, description="late_interaction: fill queries up to query_max_len with mask tokens, which count (ColBERT)"
    )
    attend_to_expansion: bool | None = Field(None, description="late_interaction: the query's words attend to these tokens")
    skip_punctuation: bool | None = Field(
        None, description="late_interaction: a passage's punctuation is read but does not count"
    )
    markers: tuple[str, str] | None = Field(
        None, description="late_interaction: tokens that tell queries from passages; none: the model's own, or unused ones"
    )
    projection_seed: int = Field(4680, description="late_interaction: of a new projection's weights")

    @model_validator(mode="after")
    def _of_its_kind(self) -> Self:
        if self.kind == "single_vector":
            if wrong := [name for name in _LATE if getattr(self, name) is not None]:
                raise ValueError(f"{wrong[0]}: a student with token vectors has it; add kind: late_interaction, or remove it")
            return self
        single = _SINGLE[:1] if self.kind == "hybrid" else _SINGLE
        if wrong := [name for name in single if getattr(self, name) is not None]:
            raise ValueError(f"{wrong[0]}: a {self.kind} student has no such field; remove it, or write kind: single_vector")
        if self.towers == "separate":
            raise ValueError(f"towers: a {self.kind} student has one tower for queries and passages; remove it")
        return self

    @property
    def tokens(self) -> bool:
        """Whether it gives one vector a token."""
        return self.kind != "single_vector"

    @field_validator("dims")
    @classmethod
    def _falling(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (len(value) < 2 or value[-1] < 1 or list(value) != sorted(set(value), reverse=True)):
            raise ValueError("write two or more falling numbers, the model's own width first, for example [384, 192, 96]")
        return value


def located(model: Model) -> Located:
    """The model by the digest of its folder, which is found (or fetched) now.

    Raises:
        InputError: it cannot be found or is not safe to load.
    """
    path = find_model(model.model, revision=model.revision)
    return Located(identity=folder_digest(path), where=path)


def wanted_layout(model: Model, found: Layout) -> Layout:
    """The folder's layout with the changes that the config asks for."""
    changes = {
        name: getattr(model, name)
        for name in ("pooling", "normalize", "query_max_len", "passage_max_len", "query_prompt", "passage_prompt", "towers")
        if getattr(model, name, None) is not None
    }
    if changes.get("towers") == "shared" and found.towers == "separate":
        changes.pop("towers")  # two towers that were trained apart cannot become one
    return found.model_copy(update=changes)


@stage(version=1)
def adopt(work: Work, *, source: Located, layout: Layout, layers: int | list[int] | None) -> dict[str, Any]:
    """A sentence-transformers folder under `model/`, with `layout`, cut to `layers`."""
    from raydrd.models.encoders import cut, load_biencoder, save_biencoder, untie

    original = read_layout(source.where)
    model = load_biencoder(source.where)
    if layers is not None:
        for tower in {id(t): t for t in (model.query, model.passage)}.values():
            cut(tower, layers if isinstance(layers, int) else tuple(layers))
    if layout.towers == "separate" and original.towers == "shared":
        model = untie(model)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        # Dense folders are named by their place in the saved chain.
        save_biencoder(model, layout, folder, tokenizer_from=source.where / original.passage_folder)
        work.folder.upload(Path(scratch))
        parameters = sum(p.numel() for p in model.parameters())
        return {
            **describe(folder),
            "rows": 1,
            "unit": "model",
            "parameters": parameters,
            "width": model.passage.width,
            "layers": int(model.passage.backbone.config.num_hidden_layers),
        }


def model_folder(model: Artifact) -> Folder:
    """Where an `adopt`ed or trained model's files are."""
    return model.folder / "model"


def layout_of(model: Artifact) -> Layout:
    return Layout.model_validate(model.metrics["layout"])


def late_of(model: Artifact) -> Late | None:
    """How a model gives one vector a token; None where it does not."""
    found = model.metrics.get("late")
    return Late.model_validate(found) if found is not None else None
