"""The bi-encoder: token ids in, one vector a text out. Loads, cuts and saves model folders."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging

from raydrd.errors import InputError
from raydrd.models.layout import Layout, read_layout, write_layout


class Encoder(nn.Module):
    """One tower: transformer, pooling, dense layers, normalisation, as its folder says."""

    def __init__(self, backbone: PreTrainedModel, layout: Layout, dense: nn.ModuleList) -> None:
        super().__init__()
        self.backbone = backbone
        self.dense = dense
        self.layout = layout

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Vectors [B, D], float32; unit length when the layout normalises."""
        states = self.states(input_ids_BT, attention_mask_BT)
        vectors = pool(states, attention_mask_BT, self.layout.pooling).float()
        for layer in self.dense:
            vectors = layer(vectors)
        return nn.functional.normalize(vectors, dim=-1) if self.layout.normalize else vectors

    def states(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Last hidden states [B, T, H] of all tokens."""
        # Decoder-only bodies would keep every token's keys and values, which nothing here comes back to.
        more = {"use_cache": False} if getattr(self.backbone.config, "use_cache", False) else {}
        found: Tensor = self.backbone(input_ids=input_ids_BT, attention_mask=attention_mask_BT, **more).last_hidden_state
        return found

    @property
    def width(self) -> int:
        if not len(self.dense):
            return int(self.backbone.config.hidden_size)
        last: Any = self.dense[-1]  # nn.Sequential(Linear, activation)
        return int(last[0].out_features)


class BiEncoder(nn.Module):
    """Query tower and passage tower; the same module twice when they are shared."""

    def __init__(self, query: Encoder, passage: Encoder) -> None:
        super().__init__()
        self.query = query
        self.passage = passage

    @property
    def layout(self) -> Layout:
        return self.passage.layout

    def forward(self, batches: list[tuple[str, dict[str, Tensor]]]) -> list[Tensor]:
        """Vectors of several batches (role, model inputs) in one call."""
        return [self.tower(role)(inputs["input_ids"], inputs["attention_mask"]) for role, inputs in batches]

    def tower(self, role: str) -> Encoder:
        return self.query if role == "query" else self.passage

    @property
    def width(self) -> int:
        return self.passage.width

    def bodies(self) -> list[PreTrainedModel]:
        """The transformers of both towers; one where they are shared."""
        return list({id(t): t.backbone for t in (self.query, self.passage)}.values())


def pool(states_BTH: Tensor, mask_BT: Tensor, how: str) -> Tensor:
    """One vector a row from token states [B, T, H]; padding never counts."""
    if how == "cls":
        return states_BTH[:, 0]
    if how == "lasttoken":
        # The last real token, wherever the padding stands.
        last_B = mask_BT.shape[1] - 1 - mask_BT.flip(1).argmax(1)
        return states_BTH[torch.arange(len(states_BTH), device=states_BTH.device), last_B]
    mask_BT1 = mask_BT.unsqueeze(-1)
    if how == "max":
        return states_BTH.masked_fill(mask_BT1 == 0, torch.finfo(states_BTH.dtype).min).amax(1)
    # Summed in float32: half-precision sums over 500 tokens lose digits.
    weight = mask_BT1.float()
    return (states_BTH.float() * weight).sum(1) / weight.sum(1).clamp(min=1e-9)


def load_tower(path: Path, layout: Layout, role: str) -> Encoder:
    """The encoder of one role from a model folder, in float32, in eval mode."""
    quiet_transformers()
    folder = path / layout.folder(role)
    backbone = AutoModel.from_pretrained(
        folder,
        dtype=torch.float32,
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
        **without_pooler(folder),
    )
    dense = nn.ModuleList(load_dense(path / name) for name in layout.dense_of(role))
    return Encoder(backbone, layout, dense).eval()


def quiet_transformers() -> None:
    """No bars and no reports about heads that are left out: a stage says what it does in one line."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def without_pooler(folder: Path) -> dict[str, Any]:
    """Arguments that leave an unused pooler out."""
    # BERT-like bodies bring a pooler that no pooling mode here reads: left out, it costs nothing and is not saved.
    config = json.loads((folder / "config.json").read_text())
    return {"add_pooling_layer": False} if config.get("model_type") in ("bert", "roberta", "xlm-roberta", "ernie") else {}


def load_dense(path: Path) -> nn.Sequential:
    """A dense layer and its activation.

    Raises:
        InputError: another activation than the four that models here have.
    """
    config = json.loads((path / "config.json").read_text())
    weights = load_file(path / "model.safetensors")
    linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    linear.load_state_dict({name.removeprefix("linear."): value for name, value in weights.items()})
    name = str(config.get("activation_function", "torch.nn.modules.linear.Identity")).rpartition(".")[2]
    if name not in ("Identity", "Tanh", "GELU", "ReLU"):
        raise InputError(f"model {path}: activation {name} is not supported; use Identity, Tanh, GELU or ReLU")
    return nn.Sequential(linear, getattr(nn, name)())


def load_biencoder(path: Path) -> BiEncoder:
    """Both towers of a model folder; one module for both when they are shared."""
    layout = read_layout(path)
    query = load_tower(path, layout, "query")
    if layout.towers == "shared":
        return BiEncoder(query, query)
    return BiEncoder(query, load_tower(path, layout, "passage"))


def kept_layers(layers: int | tuple[int, ...], total: int, name: str = "student.layers") -> tuple[int, ...]:
    """Which layers a cut keeps: the ones named, or that many evenly spaced from the first to the last.

    The last layer is always among them: pooling was trained to read its output. `layers: 1` keeps the last.

    Raises:
        InputError: a layer that is not there, or more than there are.
    """
    if isinstance(layers, int):
        if not 1 <= layers <= total:
            raise InputError(f"{name}: {layers}: the model has {total} layers; write 1 to {total}, or a list")
        if layers == 1:
            return (total - 1,)
        return tuple(round(step * (total - 1) / (layers - 1)) for step in range(layers))
    wrong = [layer for layer in layers if not 0 <= layer < total]
    if wrong or not layers or list(layers) != sorted(set(layers)):
        raise InputError(f"{name}: {list(layers)}: write ascending numbers from 0 to {total - 1}, for example [0, {total - 1}]")
    return layers


def cut(encoder: Encoder, layers: int | tuple[int, ...]) -> None:
    """Keep only some transformer layers of a tower, in place."""
    cut_layers(encoder.backbone, layers)


def cut_layers(body: Any, layers: int | tuple[int, ...], name: str = "student.layers") -> None:
    """Keep only some layers of a transformer, in place.

    Raises:
        InputError: the layers cannot be found, or the choice is impossible.
    """
    lists = [(label, part) for label, part in body.named_modules() if isinstance(part, nn.ModuleList)]
    total = int(body.config.num_hidden_layers)
    found = [(label, part) for label, part in lists if len(part) == total]
    if len(found) != 1:
        raise InputError(f"{name}: cannot tell which of {[label for label, _ in lists]} are the {total} layers to cut")
    label, blocks = found[0]
    keep = kept_layers(layers, total, name)
    parent = body.get_submodule(label.rpartition(".")[0]) if "." in label else body
    setattr(parent, label.rpartition(".")[2], nn.ModuleList(blocks[layer] for layer in keep))
    body.config.num_hidden_layers = len(keep)
    if getattr(body.config, "layer_types", None):
        body.config.layer_types = [body.config.layer_types[layer] for layer in keep]


def untie(model: BiEncoder) -> BiEncoder:
    """Two towers with the same weights (CL-DRD and PROD train them apart)."""
    return BiEncoder(model.query, copy.deepcopy(model.query))


def save_biencoder(model: BiEncoder, layout: Layout, path: Path, *, tokenizer_from: Path) -> None:
    """A folder that plain `SentenceTransformer(path)` loads: weights, layout, tokenizer files."""
    path.mkdir(parents=True, exist_ok=True)
    towers = {"": model.passage} if layout.towers == "shared" else {"query": model.query, "document": model.passage}
    write_layout(path, layout, width=model.passage.backbone.config.hidden_size)
    for role, tower in towers.items():
        home = path / f"{role}_0_Transformer" if role else path
        tower.backbone.save_pretrained(home)
        for file in tokenizer_from.iterdir():
            if file.name in TOKENIZER_FILES:
                shutil.copy(file, home / file.name)
        match_tokenizer(home, layout.query_max_len if role == "query" else layout.passage_max_len)
        for number, layer in enumerate(tower.dense):
            save_dense(layer, path / (f"{role}_{number + 2}_Dense" if role else f"{number + 2}_Dense"))


TOKENIZER_FILES = {
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt",
    "spiece.model", "sentencepiece.bpe.model", "added_tokens.json", "tokenizer.model", "spm.model", "tekken.json", "bpe.codes",
}  # fmt: skip


def match_tokenizer(home: Path, limit: int) -> None:
    """Say the limit in the tokenizer's file, and where nothing is named to pad with, the end token: others need one."""
    # Newer sentence-transformers read the limit from here when sentence_bert_config.json does not say it.
    file = home / "tokenizer_config.json"
    if file.exists():
        told = json.loads(file.read_text())
        padding = {"pad_token": told["eos_token"]} if told.get("eos_token") and not told.get("pad_token") else {}
        file.write_text(json.dumps({**told, "model_max_length": limit, **padding}, indent=2) + "\n")


def save_dense(layer: Any, path: Path, **more: Any) -> None:
    """A dense layer's folder; `more` goes into its config."""
    linear, activation = layer
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "in_features": linear.in_features,
        "out_features": linear.out_features,
        "bias": linear.bias is not None,
        "activation_function": f"{type(activation).__module__}.{type(activation).__name__}",
        **more,
    }
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({f"linear.{name}": value.contiguous() for name, value in linear.state_dict().items()}, path / "model.safetensors")
