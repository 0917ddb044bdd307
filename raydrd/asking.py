"""What a finished run ships, opened to be asked: its model and its index, as `raydrd search` and measurements use them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raydrd.errors import InputError
from raydrd.spine.parts import Parts
from raydrd.spine.storage import Folder

By = Literal["tokens", "pooled"]
Found = tuple[NDArray[np.int64], NDArray[np.float32]]


@dataclass(frozen=True)
class Retriever:
    """encode: a query's vectors, in float32. find: rows and scores of the k best passages for them, best first.

    meta: what the index's `meta.json` says.
    """

    meta: dict[str, Any]
    encode: Callable[[str], Any]
    find: Callable[[Any, int], Found]


def open_run(run: str, *, by: By | None = None) -> Retriever:
    """A finished run's model and index.

    by: of a hybrid, tokens (MaxSim over the candidates that the index was laid out for) or pooled (its one vector a text).

    Raises:
        InputError: no such run, or vectors that the student does not have.
    """
    folder = Folder.of(run)
    if not (folder / "index").exists("meta.json"):
        raise InputError(f"{run}: no index here; write the folder of a finished run, for example runs/quickstart")
    meta = (folder / "index").read_json("meta.json")
    # The folder is written again by every run of its name.
    stamp = f"{meta['model']} {meta['data']} {meta['factory']} {meta['width']}"
    if meta.get("kind", "single_vector") != "single_vector":
        return _late(folder, meta, f"{stamp} {meta['type']} {meta['candidates']}", by)
    if by is not None:
        raise InputError(f"--by {by}: {run} holds a student with one vector a text; leave it out")
    return _single(folder, meta, stamp)


def _single(folder: Folder, meta: dict[str, Any], stamp: str) -> Retriever:
    """One vector a text, and a FAISS index."""
    import torch
    from transformers import AutoTokenizer

    from raydrd.models.batching import SpecialTokens
    from raydrd.models.encoders import load_tower
    from raydrd.models.layout import read_layout
    from raydrd.stages.cutting import cut
    from raydrd.stages.indexfile import opened

    path = (folder / "model").local_folder(stamp)
    layout = read_layout(path)
    tokenizer = AutoTokenizer.from_pretrained(path / layout.query_folder, local_files_only=True, trust_remote_code=False)
    special, tower = SpecialTokens.of(tokenizer), load_tower(path, layout, "query")
    index = opened((folder / "index").local("index.faiss", stamp))

    def encode(query: str) -> NDArray[np.float32]:
        inputs = special.model_inputs([special.single(_ids(tokenizer, layout, query), layout.query_max_len)])
        with torch.inference_mode():
            vector = tower(inputs["input_ids"], inputs["attention_mask"]).numpy()
        return cut(vector, int(meta["width"]), normalize=layout.normalize)

    return Retriever(meta, encode, lambda vector, k: _kept(index.search(vector, k)))


def _late(folder: Folder, meta: dict[str, Any], stamp: str, by: By | None) -> Retriever:
    """One vector a token, and MaxSim; of a hybrid one vector a text, too."""
    import torch

    from raydrd.flow.servelate import POOLED_INDEX, TOKEN_INDEX
    from raydrd.models.latelayout import TOKENS
    from raydrd.stages.indexfile import opened
    from raydrd.stages.late.lookup import Lookup
    from raydrd.stages.late.pack import CODEC

    home, hybrid = folder / "index", meta["kind"] == "hybrid"
    if by == "pooled" and not hybrid:
        raise InputError(f"--by pooled: {folder} holds a {meta['kind']} student without a vector a text; write --by tokens")
    given = _encoder((folder / "model").local_folder(stamp))
    if by == "pooled":
        index = opened(home.local(POOLED_INDEX, stamp))
        return Retriever(meta, lambda query: given(query)[""].numpy(), lambda vector, k: _kept(index.search(vector, k)))
    lookup = Lookup(
        passages=Parts.of(home / "tokens", list((home / "tokens").files())),
        codec=home if home.exists(CODEC) else None,
        candidates=meta["candidates"],
        index=home,
        name=TOKEN_INDEX if meta["candidates"] == "tokens" else POOLED_INDEX,
        each=meta.get("each", 0),
        depth=meta.get("depth", 0),
        probes=meta.get("probes", 1),
        stamp=stamp,
    )

    def encode(query: str) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        made = given(query)
        tokens = made[TOKENS if hybrid else ""][0]
        return tokens[torch.ne(tokens, 0).any(1)].numpy(), made[""][0].numpy() if hybrid else None

    return Retriever(meta, encode, lambda vectors, k: lookup(*vectors, k=k))


def _encoder(path: Path) -> Callable[[str], dict[str, Any]]:
    """What a late-interaction model's folder gives of one query, in float32."""
    import torch

    from raydrd.models.late import Reading, load_late, load_tokenizer
    from raydrd.models.latelayout import read_late

    layout, late = read_late(path)
    assert late is not None
    tokenizer, model = load_tokenizer(path, layout), load_late(path)
    reading = Reading.of(tokenizer, layout, late)

    def encode(query: str) -> dict[str, Any]:
        with torch.inference_mode():
            return model.encode(reading.inputs("query", [reading.single("query", _ids(tokenizer, layout, query))]))

    return encode


def _ids(tokenizer: Any, layout: Any, query: str) -> NDArray[np.int32]:
    text = layout.query_prompt + (query.lower() if layout.lowercase else query)
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)


def _kept(answer: tuple[NDArray[np.float32], NDArray[np.int64]]) -> Found:
    """Of what FAISS found for one query: without the places that it could not fill."""
    scores, rows = answer[0][0], answer[1][0]
    return rows[rows >= 0], scores[rows >= 0]
