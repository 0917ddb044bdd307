"""What is measured on: texts and pairs of a real collection, and the token stores that our stages read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.data.collect import collect
from raydrd.data.guess import guess
from raydrd.data.spec import Data
from raydrd.models.layout import Layout
from raydrd.spine.parts import Parts, part_name
from raydrd.spine.storage import Folder
from raydrd.spine.tables import CORPUS
from raydrd.stages.tokenize import Tokenizer

PASSAGES_PER_QUERY = 10
SEED = 0


def collection(data: str, out: Folder) -> None:
    """The tables of `pydocs` (docstrings of this Python's standard library) or of a folder, written below `out`.

    Raises:
        InputError: the folder is not a collection.
    """
    collect(Data(source="pydocs") if data == "pydocs" else guess(data), out=out)


def table(out: Folder, name: str) -> pa.Table:
    """All rows of a collected table; a benchmark is small enough for that."""
    parts = Parts.of(out / name, list((out / name).files()))
    return parts.slice(0, parts.rows)


def drawn(rows: pa.Table, count: int) -> pa.Table:
    """At most `count` rows, drawn by a fixed seed, in the order of the table."""
    if rows.num_rows <= count:
        return rows
    return rows.take(np.sort(np.random.default_rng(SEED).permutation(rows.num_rows)[:count]))


@dataclass(frozen=True)
class Texts:
    """Texts as a list for sentence-transformers, and as one part of a table for our tokenizer stage."""

    texts: list[str]
    table: Parts
    home: Folder

    @staticmethod
    def of(texts: list[str], home: Folder) -> Texts:
        rows = pa.table([pa.array([str(number) for number in range(len(texts))]), pa.array(texts)], schema=CORPUS)
        name = _name(len(texts), "parquet")
        home.write_table(name, rows)
        return Texts(texts, Parts.of(home, [name]), home)

    def tokenizer(self, model: Path, layout: Layout | None = None, role: str = "passage") -> Any:
        """A call that tokenises all texts into the store, as the tokenize stage does."""
        worker = Tokenizer(
            texts=self.table,
            out=self.home / "tokens",
            model=Folder.of(model),
            subfolder=layout.folder(role) if layout else "",
            prompt=layout.prompt(role) if layout else "",
            lowercase=layout.lowercase if layout else False,
        )
        shard = {"name": _name(len(self.texts), "arrow"), "lo": 0, "hi": len(self.texts)}
        return lambda: worker(shard)

    @property
    def tokens(self) -> Parts:
        return Parts.of(self.home / "tokens", [_name(len(self.texts), "arrow")])


def _name(rows: int, ending: str) -> str:
    return part_name(0, rows, ending)


def pair_rows(queries: int, passages: int, pairs: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(query row, passage row) of each pair: queries in turn, each with passages drawn by a fixed seed."""
    each = min(PASSAGES_PER_QUERY, passages)
    rng = np.random.default_rng(SEED)
    needed = -(-pairs // each)
    query_rows = np.repeat(np.arange(needed) % queries, each)[:pairs]
    passage_rows = np.concatenate([rng.choice(passages, each, replace=False) for _ in range(needed)])[:pairs]
    return query_rows, passage_rows


def cross_encoder(encoder: Path, out: Path) -> Path:
    """A folder with a cross-encoder of `encoder`'s size: its body, and a pooler and head of fixed-seed random weights.

    Its scores mean nothing, its speed is that of a trained one.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = AutoModelForSequenceClassification.from_pretrained(
            encoder, num_labels=1, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(encoder, local_files_only=True, trust_remote_code=False).save_pretrained(out)
    return out
