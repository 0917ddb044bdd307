"""Pools of candidates with teacher scores over the toy world, and a reranker with its tokens, as stages take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raydrd.models.layout import folder_digest
from raydrd.spine.store import Artifact, Located, Store
from raydrd.spine.tables import SCORED
from raydrd.stages.duel import score_duels
from raydrd.stages.score import import_teacher
from raydrd.stages.tokenize import tokenize
from tests.recipes import table_rows

QUERIES, PASSAGES = 24, 60


def pool(depth: int = 12, *, queries: int = QUERIES, seed: int = 0) -> pa.Table:
    """Candidates drawn at random, by descending score, with teacher scores that say something else."""
    rng = np.random.default_rng(seed)
    docs = [rng.permutation(PASSAGES)[:depth].tolist() for _ in range(queries)]
    own = [np.sort(rng.normal(size=depth))[::-1].astype(np.float32).tolist() for _ in range(queries)]
    teacher = [rng.normal(size=depth).astype(np.float32).tolist() for _ in range(queries)]
    return pa.table([list(range(queries)), docs, own, teacher], schema=SCORED)


def judged(data: Artifact) -> list[list[int]]:
    return [row["doc_rows"] for row in table_rows(data, "queries/train")]


def scored_as(table_: pa.Table, scores: list[list[float]]) -> pa.Table:
    return table_.set_column(3, SCORED.field(3), pa.array(scores, SCORED.field(3).type))


def opened(store: Store, toy: Path, data: Artifact, name: str = "reranker") -> dict[str, Any]:
    """A reranker as stages take it, with the tokens it reads."""
    folder = toy / name
    model = store.run(import_teacher, source=Located(folder_digest(folder), folder))
    known = Located(model.metrics["tokenizer"], (model.folder / "model", ""))
    tokens = {
        f"{role}_tokens": store.run(tokenize, data=data, name=table_, tokenizer=known, prompt="", lowercase=False)
        for role, table_ in (("query", "queries/train"), ("passage", "corpus"))
    }
    return {**tokens, "teacher": Located(folder_digest(folder), model.folder / "model"), "max_length": 64, "precision": "fp32"}


def duel(store: Store, pairs: Artifact, with_: dict[str, Any], **more: Any) -> Artifact:
    return store.run(score_duels, pairs=pairs, kind="cross_encoder", prompt=None, **{"symmetrize": False, **more}, **with_)
