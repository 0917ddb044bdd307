"""Folders of late-interaction models, which give one vector a token: PyLate's, ColBERTv2's, and plain encoders.

No torch here: the planner reads layouts, only workers load weights.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

from raydrd.config import Frozen
from raydrd.errors import InputError
from raydrd.models.layout import CARD, Layout, describe, read_layout

QUERY_LENGTH, PASSAGE_LENGTH = 32, 180  # tokens, markers among them: what ColBERT and PyLate take where nobody says
UNUSED = ("[unused0]", "[unused1]")  # ColBERT's markers: tokens that BERT's vocabulary has and no text uses
PYLATE = ("[Q] ", "[D] ")  # PyLate's, which it adds to a vocabulary
HEAD = "late_interaction"  # of a hybrid's folder: what makes token vectors of the same weights
TOKENS = " tokens"  # behind a role: a hybrid's token vectors, beside its pooled ones
PUNCTUATION = tuple(string.punctuation)


class Late(Frozen):
    """How an encoder gives one vector a token, and which of them count in a score.

    A marker stands behind a text's first special token and says which side the text is on; empty: there is none.
    """

    dim: int
    query_marker: str = PYLATE[0]
    passage_marker: str = PYLATE[1]
    query_expansion: bool = False
    attend_to_expansion: bool = False
    skiplist: tuple[str, ...] = ()
    dense: tuple[str, ...] = ()
    pooled: bool = False

    def marker(self, role: str) -> str:
        return self.query_marker if role == "query" else self.passage_marker


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def family(path: Path) -> str:
    """pylate, colbert, hybrid (ours: a vector a text, and a head for tokens), or plain: an encoder without a token head."""
    if (path / HEAD / CARD).exists():
        return "hybrid"
    card = _json(path / CARD) or {}
    if card.get("model_type") == "ColBERT" or "query_prefix" in card:
        return "pylate"
    if card.get("model_type") == "MultiVectorEncoder":
        raise InputError(
            f"model {path}: sentence-transformers' own layout of a MultiVectorEncoder is not read; save it with PyLate, or "
            "name the encoder that it was made from"
        )
    return "colbert" if "HF_ColBERT" in ((_json(path / "config.json") or {}).get("architectures") or []) else "plain"


def is_late(path: Path) -> bool:
    """Whether a folder says of itself that it gives one vector a token."""
    return family(path) in ("pylate", "hybrid")


def read_late(path: Path) -> tuple[Layout, Late | None]:
    """The layout of a folder, and its token head; None for a plain encoder, which has yet to be given one.

    Lengths are those for tokens: 32 and 180 where the folder does not say.

    Raises:
        InputError: modules that this project does not run.
    """
    kind = family(path)
    if kind == "pylate":
        return _pylate(path, path)
    if kind == "hybrid":
        layout = read_layout(path)
        found, late = _pylate(path / HEAD, path)
        lengths = {"query_max_len": found.query_max_len, "passage_max_len": found.passage_max_len}
        prompts = {"query_prompt": found.query_prompt, "passage_prompt": found.passage_prompt}
        return layout.model_copy(update={**lengths, **prompts}), late.model_copy(update={"pooled": True})
    if kind == "colbert":
        return _colbert(path)
    layout = read_layout(path)
    if layout.towers == "separate":
        raise InputError(f"model {path}: it has two towers; a late_interaction student has one for queries and passages")
    return layout.model_copy(update=_lengths(path / layout.passage_folder, QUERY_LENGTH, PASSAGE_LENGTH)), None


def read_student(path: Path) -> tuple[Layout, Late | None]:
    """The layout of a folder that this project wrote, and its token head where it gives one vector a token."""
    return read_late(path) if is_late(path) else (read_layout(path), None)


def _lengths(home: Path, query: int, passage: int) -> dict[str, int]:
    """No longer than the encoder has positions for."""
    config = _json(home / "config.json") or {}
    most = int(config.get("max_position_embeddings", 512))
    return {"query_max_len": min(int(query), most), "passage_max_len": min(int(passage), most)}


def _pylate(head: Path, path: Path) -> tuple[Layout, Late]:
    """What a PyLate folder says; its encoder lies in `path`."""
    card, modules = _json(head / CARD) or {}, _json(head / "modules.json") or []
    kinds = [(one["path"], str(one["type"]).rpartition(".")[2]) for one in modules]
    if not kinds or kinds[0][1] != "Transformer" or any(kind != "Dense" for _, kind in kinds[1:]):
        raise InputError(f"model {path}: modules {[kind for _, kind in kinds]} are not those of PyLate: Transformer, Dense, ..")
    prefix = f"{head.name}/" if head != path else ""
    dense = tuple(f"{prefix}{folder}" for folder, kind in kinds if kind == "Dense")
    if not dense:
        raise InputError(f"model {path}: it has no Dense module, so its token vectors were never projected; not supported")
    configs = [_json(path / folder / "config.json") or {} for folder in dense]
    if any(config.get("use_residual") for config in configs):
        raise InputError(f"model {path}: a Dense module with use_residual is not supported; choose a model without")
    expansion = bool(card.get("do_query_expansion", True))
    prompts = card.get("prompts") or {}
    folder = kinds[0][0] if head == path else ""
    bert = _json(path / folder / "sentence_bert_config.json") or {}
    layout = Layout(
        normalize=True,
        query_prompt=prompts.get("query") or "",
        passage_prompt=prompts.get("document") or "",
        lowercase=bool(bert.get("do_lower_case", False)),
        query_folder=folder,
        passage_folder=folder,
        **_lengths(path / folder, card.get("query_length") or QUERY_LENGTH, card.get("document_length") or PASSAGE_LENGTH),
    )
    words = card.get("skiplist_words")
    late = Late(
        dim=int(configs[-1]["out_features"]),
        query_marker=_or(card.get("query_prefix"), PYLATE[0]),
        passage_marker=_or(card.get("document_prefix"), PYLATE[1]),
        query_expansion=expansion,
        attend_to_expansion=expansion and bool(card.get("attend_to_expansion_tokens", False)),
        skiplist=PUNCTUATION if words is None else tuple(words),
        dense=dense,
    )
    return layout, late


def _or(value: str | None, otherwise: str) -> str:
    return otherwise if value is None else value


def _colbert(path: Path) -> tuple[Layout, Late]:
    """What a folder of the ColBERT program says; its projection lies among the encoder's weights."""
    from safetensors import safe_open

    about = _json(path / "artifact.metadata") or {}
    with safe_open(path / "model.safetensors", framework="numpy") as weights:
        if "linear.weight" not in weights.keys():  # noqa: SIM118  # no mapping
            raise InputError(f"model {path}: a ColBERT without linear.weight in model.safetensors; not supported")
        dim = int(weights.get_slice("linear.weight").get_shape()[0])
    layout = Layout(
        normalize=True, **_lengths(path, about.get("query_maxlen") or QUERY_LENGTH, about.get("doc_maxlen") or PASSAGE_LENGTH)
    )
    late = Late(
        dim=dim,
        query_marker=about.get("query_token_id") or UNUSED[0],
        passage_marker=about.get("doc_token_id") or UNUSED[1],
        query_expansion=True,  # that program always did
        attend_to_expansion=bool(about.get("attend_to_mask_tokens", False)),
        skiplist=PUNCTUATION if about.get("mask_punctuation", True) else (),
    )
    return layout, late


def write_late(path: Path, layout: Layout, late: Late) -> None:
    """PyLate's files around an encoder and the projections `late.dense`, in the folder of the encoder.

    Of a hybrid they go into a folder of their own, whose encoder is the one above; the other files say how one vector a
    text is made of it.
    """
    home = path / HEAD if late.pooled else path
    home.mkdir(parents=True, exist_ok=True)

    def put(name: str, value: Any) -> None:
        (home / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

    rows = [{"idx": 0, "name": "0", "path": "../" if late.pooled else "", "type": "sentence_transformers.models.Transformer"}]
    rows += [
        {"idx": number, "name": str(number), "path": name.rpartition("/")[2], "type": "pylate.models.Dense.Dense"}
        for number, name in enumerate(late.dense, 1)
    ]
    put("modules.json", rows)
    put(
        CARD,
        {
            "model_type": "ColBERT",
            "prompts": {"query": layout.query_prompt, "document": layout.passage_prompt},
            "default_prompt_name": None,
            "similarity_fn_name": "MaxSim",
            "query_prefix": late.query_marker,
            "document_prefix": late.passage_marker,
            "query_length": layout.query_max_len,
            "document_length": layout.passage_max_len,
            "attend_to_expansion_tokens": late.attend_to_expansion,
            "skiplist_words": list(late.skiplist),
            "do_query_expansion": late.query_expansion,
        },
    )
    if not late.pooled:
        put("sentence_bert_config.json", {"max_seq_length": layout.passage_max_len, "do_lower_case": layout.lowercase})
        put("raydrd.json", {"query_max_len": layout.query_max_len, "passage_max_len": layout.passage_max_len})


def describe_late(folder: Path) -> dict[str, Any]:
    """What the planner must know of a folder written by `write_late`, without loading it."""
    layout, late = read_late(folder)
    if late is None:
        return describe(folder)
    return {**describe(folder, layout), "late": late.model_dump(mode="json")}
