"""adopt: a model from a hub, a folder or a package -> a model folder of the store, cut if asked."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from raydrd.config import Frozen
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


class Student(Model):
    """The student to start from: an encoder, perhaps cut to fewer layers, with shared or separate towers."""

    layers: int | tuple[int, ...] | None = None
    towers: Literal["shared", "separate"] | None = None


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
