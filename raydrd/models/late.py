"""The late-interaction encoder: token ids in, one vector a token out. Loads, makes, cuts and saves model folders.

Vectors come as a rectangle [B, T, D] in which a vector of zeros is no token: padding, or punctuation of a passage. Every
other one is of unit length, so nobody mistakes them, and no mask travels along.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from raydrd.errors import InputError
from raydrd.models.batching import Encoded, Ids, SpecialTokens, pad
from raydrd.models.encoders import (
    TOKENIZER_FILES,
    BiEncoder,
    load_biencoder,
    load_dense,
    match_tokenizer,
    pool,
    quiet_transformers,
    save_dense,
    without_pooler,
)
from raydrd.models.latelayout import HEAD, PUNCTUATION, PYLATE, TOKENS, UNUSED, Late, family, is_late, read_late, write_late
from raydrd.models.layout import Layout, write_layout


@dataclass(frozen=True, eq=False)
class Reading:
    """How texts become inputs: markers, lengths, expansion, and the pieces of passages that do not count."""

    special: SpecialTokens
    late: Late
    limits: dict[str, int]
    markers: dict[str, int | None]
    filler: int
    skipped: NDArray[np.int64]

    @staticmethod
    def of(tokenizer: Any, layout: Layout, late: Late) -> Reading:
        """Learnt from a tokenizer.

        Raises:
            InputError: a marker that it does not know as one token, or nothing to expand queries with.
        """
        filler = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else tokenizer.eos_token_id
        if late.query_expansion and filler is None:
            raise InputError(
                "student.query_expansion: the tokenizer has neither a mask token nor an end token; set it to false"
            )
        return Reading(
            special=SpecialTokens.of(tokenizer),
            late=late,
            limits={role: layout.max_len(role) for role in ("query", "passage")},
            markers={role: marker_id(tokenizer, late.marker(role)) for role in ("query", "passage")},
            filler=int(filler or 0),
            skipped=np.array(known_pieces(tokenizer, late.skiplist), dtype=np.int64),
        )

    def single(self, role: str, ids: Ids) -> Encoded:
        """A text with its special tokens and its marker, at most the role's length; the text's end is cut."""
        marker, limit = self.markers[role], self.limits[role]
        if marker is None:
            return self.special.single(ids, limit)
        plain = self.special.single(ids, limit - 1)
        return Encoded(
            np.insert(plain.ids, 1, np.int32(marker)), None if plain.types is None else np.insert(plain.types, 1, np.int32(0))
        )

    def lengths(self, role: str, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Lengths that inputs of texts of these lengths have."""
        if role == "query" and self.late.query_expansion:
            return np.full(len(lengths), self.limits[role], dtype=np.int64)
        return self.unfilled(role, lengths)

    def unfilled(self, role: str, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """As `lengths`, before queries are filled up."""
        extra = int(self.markers[role] is not None)
        return self.special.single_lengths(lengths, self.limits[role] - extra) + extra

    def inputs(self, role: str, sequences: Sequence[Encoded]) -> dict[str, Tensor]:
        """A padded batch: input_ids and attention_mask [B, T], and `counts`, bool: whose vectors count.

        Expanded queries are filled up to their length with mask tokens, which count; whether others attend to them,
        `attend_to_expansion` says.
        """
        if role == "query" and self.late.query_expansion:
            sequences = [*sequences, Encoded(np.empty(self.limits[role], dtype=np.int32), None)]
            ids, mask = (one[:-1] for one in pad([s.ids for s in sequences], pad_id=self.filler))
            seen = torch.ones_like(mask) if self.late.attend_to_expansion else mask
            return {"input_ids": ids, "attention_mask": seen, "counts": torch.ones_like(mask, dtype=torch.bool)}
        ids, mask = pad([s.ids for s in sequences], pad_id=self.special.pad_id)
        counts = mask.bool()
        if role == "passage" and len(self.skipped):
            counts &= ~torch.isin(ids, torch.from_numpy(self.skipped))
        return {"input_ids": ids, "attention_mask": mask, "counts": counts}


def marker_id(tokenizer: Any, marker: str) -> int | None:
    """The id of a marker; None where there is none.

    Raises:
        InputError: the tokenizer does not know it as one token.
    """
    if not marker:
        return None
    found = tokenizer.convert_tokens_to_ids(marker)
    if found is None or found == tokenizer.unk_token_id:
        raise InputError(f"student.markers: the tokenizer does not know {marker!r} as a token")
    return int(found)


def known_pieces(tokenizer: Any, words: Sequence[str]) -> list[int]:
    """Ids of the words that are single tokens; the unknown token is none, or every unknown word would be skipped."""
    found = [tokenizer.convert_tokens_to_ids(word) for word in words]
    return [int(one) for one in found if one is not None and one != tokenizer.unk_token_id]


class LateEncoder(nn.Module):
    """One transformer for queries and passages; a projection without bias gives each token a vector of unit length.

    A hybrid (`late.pooled`) gives one vector a text as well, by the layout's pooling, from the same forward pass.
    """

    def __init__(self, backbone: PreTrainedModel, layout: Layout, late: Late, dense: nn.ModuleList) -> None:
        super().__init__()
        self.backbone, self.layout, self.late, self.dense = backbone, layout, late, dense

    def forward(self, batches: list[tuple[str, dict[str, Tensor]]]) -> list[dict[str, Tensor]]:
        """What each batch (role, model inputs) gives, by name: `encode`."""
        return [self.encode(inputs) for _, inputs in batches]

    def encode(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Token vectors [B, T, D] under "", float32; of a hybrid under TOKENS, and pooled ones [B, W] under ""."""
        mask_BT = inputs["attention_mask"]
        states_BTH = self.states(inputs["input_ids"], mask_BT)
        vectors = states_BTH
        for layer in self.dense:
            vectors = layer(vectors)
        tokens_BTD = nn.functional.normalize(vectors.float(), dim=-1) * inputs["counts"][:, :, None]
        if not self.late.pooled:
            return {"": tokens_BTD}
        pooled_BH = pool(states_BTH, mask_BT, self.layout.pooling).float()
        pooled_BH = nn.functional.normalize(pooled_BH, dim=-1) if self.layout.normalize else pooled_BH
        return {"": pooled_BH, TOKENS: tokens_BTD}

    def states(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """Last hidden states [B, T, H] of all tokens."""
        found: Tensor = self.backbone(input_ids=input_ids_BT, attention_mask=attention_mask_BT).last_hidden_state
        return found

    @property
    def width(self) -> int:
        """Numbers of a pooled vector of a hybrid, else of a token's."""
        return int(self.backbone.config.hidden_size) if self.late.pooled else self.late.dim

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes, by name, of what `encode` gives of a text of one token."""
        tokens = (1, self.late.dim)
        return {"": (self.width,), TOKENS: tokens} if self.late.pooled else {"": tokens}

    @property
    def passage(self) -> LateEncoder:
        return self

    def tower(self, role: str) -> LateEncoder:
        return self

    def bodies(self) -> list[PreTrainedModel]:
        """The transformer."""
        return [self.backbone]


def load_student(path: Path) -> BiEncoder | LateEncoder:
    """The bi-encoder or late-interaction encoder of a folder that this project wrote."""
    return load_late(path) if is_late(path) else load_biencoder(path)


def load_late(path: Path) -> LateEncoder:
    """The late-interaction encoder of a folder, in float32, in eval mode.

    Raises:
        InputError: it is a plain encoder, without a projection.
    """
    layout, late = read_late(path)
    if late is None:
        raise InputError(f"model {path}: a plain encoder, without a projection of its tokens; make one with `made_late`")
    backbone = load_body(path, layout)
    if late.dense:
        return LateEncoder(backbone, layout, late, nn.ModuleList(load_dense(path / name) for name in late.dense)).eval()
    with safe_open(path / "model.safetensors", framework="pt") as weights:  # ColBERT's, beside the encoder's
        linear = projection(int(backbone.config.hidden_size), late.dim, seed=0)
        linear.load_state_dict({"weight": weights.get_tensor("linear.weight").float()})
    return LateEncoder(backbone, layout, late, _chain(linear)).eval()


def load_body(path: Path, layout: Layout) -> PreTrainedModel:
    """The transformer of a folder, in float32."""
    quiet_transformers()
    folder = path / layout.passage_folder
    body: PreTrainedModel = AutoModel.from_pretrained(
        folder,
        dtype=torch.float32,
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
        **without_pooler(folder),
    )
    return body


def load_tokenizer(path: Path, layout: Layout) -> Any:
    return AutoTokenizer.from_pretrained(path / layout.passage_folder, local_files_only=True, trust_remote_code=False)


def projection(width: int, dim: int, *, seed: int) -> nn.Linear:
    """A projection without bias, drawn by seed: orthonormal, so that inner products of states keep their order best."""
    linear = nn.Linear(width, dim, bias=False)
    draw = torch.Generator().manual_seed(seed)
    nn.init.orthogonal_(linear.weight, generator=draw)
    return linear


def _chain(linear: nn.Linear) -> nn.ModuleList:
    return nn.ModuleList([nn.Sequential(linear, nn.Identity())])


def made_late(path: Path, wanted: dict[str, Any], *, seed: int) -> tuple[LateEncoder, Any]:
    """The late-interaction encoder of any folder with the settings that are `wanted`, and its tokenizer.

    A plain encoder gets a projection drawn by `seed`; one that has a projection keeps it, and its dim. Markers that the
    vocabulary lacks are added to it, with embeddings drawn by `seed`.

    Args:
        wanted: dim, markers (query, passage), query_expansion, attend_to_expansion, skip_punctuation, pooled; what is None
            stays as the folder says, and is ColBERT's for a plain encoder: 128, [unused0] and [unused1] (PyLate's where the
            vocabulary has no such), no expansion, punctuation skipped.

    Raises:
        InputError: a dim that the folder does not have, a marker that cannot be one token, or `settings` refuses.
    """
    layout, found = read_late(path)
    tokenizer = load_tokenizer(path, layout)
    if found is not None and wanted.get("dim") not in (None, found.dim):
        raise InputError(f"student.dim: {wanted['dim']}, and the model's token vectors have {found.dim}; write that, or none")
    late = settings(found, wanted, tokenizer)
    body = load_body(path, layout) if found is None else None
    if body is not None:
        width = int(body.config.hidden_size)
        if late.dim > width:
            raise InputError(f"student.dim: {late.dim}, and the encoder's tokens have {width} numbers; write that or less")
        model = LateEncoder(body, layout, late, _chain(projection(width, late.dim, seed=seed))).eval()
    else:
        model = load_late(path)
        model.late = late
    _add_markers(model, tokenizer, seed)
    return model, tokenizer


def settings(found: Late | None, wanted: dict[str, Any], tokenizer: Any) -> Late:
    """What the folder says with what the config asks for; skipped are only pieces that the tokenizer knows.

    Raises:
        InputError: attention to expansion, where there is none, or where a pooled vector would be made of it too.
    """
    own = found or Late(dim=wanted.get("dim") or 128, skiplist=PUNCTUATION)
    changes = {name: wanted[name] for name in ("query_expansion", "attend_to_expansion") if wanted.get(name) is not None}
    skip = wanted.get("skip_punctuation")
    words = own.skiplist if skip is None else (PUNCTUATION if skip else ())
    changes["skiplist"] = tuple(word for word in words if known_pieces(tokenizer, [word]))
    if wanted.get("pooled") is not None:
        changes["pooled"] = wanted["pooled"]
    markers = wanted.get("markers")
    if markers is None and found is None:
        markers = UNUSED if len(known_pieces(tokenizer, UNUSED)) == 2 else PYLATE
    if markers is not None:
        changes |= {"query_marker": markers[0], "passage_marker": markers[1]}
    late = own.model_copy(update=changes)
    if not late.query_expansion:
        if wanted.get("attend_to_expansion"):
            raise InputError(
                "student.attend_to_expansion: its queries are not filled up; write query_expansion: true as well, or remove it"
            )
        return late.model_copy(update={"attend_to_expansion": False})
    if late.pooled and late.attend_to_expansion:
        raise InputError(
            "student.attend_to_expansion: a hybrid's vector of a query would be made of its mask tokens too, which plain "
            "sentence-transformers does not add; write attend_to_expansion: false"
        )
    return late


def _add_markers(model: LateEncoder, tokenizer: Any, seed: int) -> None:
    """Markers that the vocabulary lacks; a hybrid's are told apart in plain text too, where they stand as prompts."""
    markers = [marker for marker in (model.late.query_marker, model.late.passage_marker) if marker]
    missing = [marker for marker in markers if not known_pieces(tokenizer, [marker])]
    if model.late.pooled:
        tokenizer.add_tokens([AddedToken(marker, normalized=False, special=True) for marker in markers], special_tokens=True)
    elif missing:
        tokenizer.add_tokens([AddedToken(marker, normalized=False, special=True) for marker in missing], special_tokens=True)
    if missing:
        embeddings: Any = model.backbone.get_input_embeddings()
        rows = embeddings.weight.shape[0]
        if len(tokenizer) > rows:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model.backbone.resize_token_embeddings(len(tokenizer), mean_resizing=False)


def save_late(
    model: LateEncoder, layout: Layout, path: Path, *, tokenizer_from: Path | None = None, tokenizer: Any = None
) -> None:
    """A folder that plain PyLate, and sentence-transformers' MultiVectorEncoder, load; of a hybrid, its head does.

    Args:
        tokenizer: to be saved; else the files of `tokenizer_from` are taken over.
    """
    late = model.late
    path.mkdir(parents=True, exist_ok=True)
    prefix = f"{HEAD}/" if late.pooled else ""
    late = late.model_copy(update={"dense": tuple(f"{prefix}{number}_Dense" for number in range(1, len(model.dense) + 1))})
    if late.pooled:
        prompts = {f"{role}_prompt": late.marker(role) + layout.prompt(role) for role in ("query", "passage")}
        write_layout(path, layout.model_copy(update={**prompts, "dense": ()}), width=int(model.backbone.config.hidden_size))
    write_late(path, layout, late)
    model.backbone.save_pretrained(path)
    if tokenizer is not None:
        tokenizer.save_pretrained(path)
    else:
        assert tokenizer_from is not None
        for file in tokenizer_from.iterdir():
            if file.name in TOKENIZER_FILES:
                shutil.copy(file, path / file.name)
    match_tokenizer(path, max(layout.query_max_len, layout.passage_max_len))
    for name, layer in zip(late.dense, model.dense, strict=True):
        save_dense(layer, path / name, use_residual=False)


def flattened(path: Path, home: Path) -> Path:
    """A hybrid's token head as a PyLate folder of its own in `home`, by links to its files; any other folder as it is.

    PyLate reads the head where it lies; sentence-transformers' MultiVectorEncoder reads no folder above a model's own.
    """
    if family(path) != "hybrid":
        return path
    home.mkdir(parents=True, exist_ok=True)
    for file in path.iterdir():
        if file.name not in (HEAD, "1_Pooling", "2_Normalize"):
            (home / file.name).symlink_to(file.resolve())
    for file in (path / HEAD).iterdir():
        (home / file.name).unlink(missing_ok=True)
        (home / file.name).symlink_to(file.resolve())
    (home / "modules.json").unlink()
    (home / "modules.json").write_text((path / HEAD / "modules.json").read_text().replace('"../"', '""'))
    return home
