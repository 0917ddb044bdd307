"""What bf16 does to retrieval: nDCG@10 of the same model with exact search, embedded in fp32 and in bf16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raydrd.benchmark.inputs import Texts, table
from raydrd.benchmark.sides import embedder
from raydrd.metrics import DEFAULT_METRICS, per_query
from raydrd.models.layout import read_layout
from raydrd.spine.precision import Precision
from raydrd.spine.storage import Folder
from raydrd.stages.search import top_k, write_candidates


def quality(model: Path, collection: Folder, *, work: Folder) -> dict[str, Any]:
    """Means over the test queries of every default metric in each precision, and how many queries changed.

    Raises:
        ValueError: the collection has no test queries.
    """
    corpus, queries = table(collection, "corpus"), table(collection, "queries/test")
    layout = read_layout(model)
    sides = {}
    for role, rows in (("query", queries), ("passage", corpus)):
        made = Texts.of(rows["text"].to_pylist(), work / f"quality-{role}")
        made.tokenizer(model, layout, role)()
        sides[role] = made
    found: dict[Precision, pa.Table] = {}
    for precision in ("fp32", "bf16"):
        vectors = {
            role: torch.from_numpy(
                embedder(model, made, out=work, precision=precision, role=role).encode(np.arange(len(made.texts)))
            )
            for role, made in sides.items()
        }
        scores, rows = top_k(vectors["query"] @ vectors["passage"].T, 100)
        name = f"run-{precision}.parquet"
        write_candidates(work, name, np.arange(len(rows)), rows.numpy(), scores.numpy())
        found[precision] = per_query(work.read_table(name), queries)
    ndcg = {precision: rows["nDCG@10"].to_numpy() for precision, rows in found.items()}
    return {
        "queries": len(ndcg["fp32"]),
        "passages": corpus.num_rows,
        "queries whose nDCG@10 changed": int((ndcg["fp32"] != ndcg["bf16"]).sum()),
        **{p: {name: float(np.mean(rows[name].to_numpy())) for name in DEFAULT_METRICS} for p, rows in found.items()},
    }
