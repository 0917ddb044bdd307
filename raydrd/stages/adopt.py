"""adopt: a model from a hub, a folder or a package -> a model folder of the store, cut if asked."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, Literal

from raydrd.config import Frozen
from raydrd.layout import Layout, file_digest, find_model, folder_digest, read_layout
from raydrd.storage import Folder
from raydrd.store import Artifact, Located, Work, stage


class Model(Frozen):
    """A model by name, and what of its own settings to change; whatever is None stays as its folder says."""

    model: str
    revision: str | None = None
    trust_remote_code: bool = False
    pooling: Literal["mean", "cls", "max", "lasttoken"] | None = None
    normalize: bool | None = None
    query_max_len: int | None = None
    passage_max_len: int | None = None
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
    path = find_model(model.model, revision=model.revision, trust_remote_code=model.trust_remote_code)
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
    from raydrd.encoders import cut, load_biencoder, save_biencoder, untie

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


def describe(folder: Path) -> dict[str, Any]:
    """What the planner must know about a model folder without loading it."""
    return {
        "tokenizer": tokenizer_digest(folder),
        "layout": read_layout(folder).model_dump(mode="json"),
        "size_mb": sum(p.stat().st_size for p in folder.rglob("*.safetensors")) / 1e6,
    }


def tokenizer_digest(folder: Path) -> str:
    """sha256 of the files that decide which ids a text gets (limits and paddings do not)."""
    if (folder / "router_config.json").exists():
        folder = folder / read_layout(folder).passage_folder
    total = hashlib.sha256()
    for name in ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model"):
        if not (folder / name).exists():
            continue
        if name == "tokenizer.json":
            rules = json.loads((folder / name).read_text(encoding="utf-8"))
            rules.pop("truncation", None)
            rules.pop("padding", None)
            total.update(json.dumps(rules, sort_keys=True).encode())
            break  # the fast tokenizer's file says everything
        total.update(f"{name}\0{file_digest(folder / name)}\n".encode())
    return total.hexdigest()


def model_folder(model: Artifact) -> Folder:
    """Where an `adopt`ed or trained model's files are."""
    return model.folder / "model"


def layout_of(model: Artifact) -> Layout:
    return Layout.model_validate(model.metrics["layout"])
