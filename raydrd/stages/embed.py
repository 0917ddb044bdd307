"""embed: token ids -> vectors, on a pool of actors; length-sorted in large windows, batches by token budget."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pyarrow as pa

from raydrd.models.batching import SpecialTokens
from raydrd.spine.parts import Parts, TokenReader
from raydrd.spine.precision import Precision
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.spine.tables import vectors
from raydrd.stages.adopt import layout_of, model_folder
from raydrd.stages.shards import parts_of, pending

FEW_TEXTS = 3000


class Embedder:
    """One tower on this worker's device; a shard is a row range of the token store."""

    def __init__(
        self,
        *,
        model: Folder,
        role: str,
        tokens: Parts,
        out: Folder,
        precision: Precision,
        storage: str,
        tokens_per_batch: int | None,
    ) -> None:
        from transformers import AutoTokenizer

        from raydrd.models.devices import TokenBudget, inference, keep_freed_memory, prepare, skip_padding, this_device
        from raydrd.models.encoders import load_tower
        from raydrd.models.layout import read_layout

        path = model.local_folder()
        layout = read_layout(path)
        self.device = this_device()
        keep_freed_memory()
        self.tower = load_tower(path, layout, role).to(self.device)
        prepare(self.tower.backbone, precision)
        skip_padding(self.tower.backbone, self.device, precision)
        self.special = SpecialTokens.of(
            AutoTokenizer.from_pretrained(path / layout.folder(role), local_files_only=True, trust_remote_code=False)
        )
        self.max_len = layout.max_len(role)
        self.budget = TokenBudget(self.device, tokens_per_batch)
        self.tokens, self.out, self.storage = TokenReader(tokens), out, storage
        self.inference: Callable[[], AbstractContextManager[None]] = lambda: inference(self.device, precision)

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Vectors [len(rows), D] of these texts, float32."""
        lengths = self.special.single_lengths(self.tokens.lengths(rows), self.max_len)
        ids = self.tokens.take(rows)
        result = np.empty((len(rows), self.tower.width), dtype=np.float32)

        def run(batch: np.ndarray) -> None:
            inputs = self.special.model_inputs([self.special.single(ids[i], self.max_len) for i in batch])
            found = self.tower(inputs["input_ids"].to(self.device), inputs["attention_mask"].to(self.device))
            result[batch] = found.float().cpu().numpy()

        with self.inference():
            self.budget.each(lengths, run)
        return result

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        found = self.encode(np.arange(shard["lo"], shard["hi"]))
        if not np.isfinite(found).all():
            raise ValueError(f"rows {shard['lo']}..{shard['hi']}: the encoder gave NaN or infinity")
        schema = vectors(found.shape[1], self.storage)
        column = pa.FixedSizeListArray.from_arrays(pa.array(found.astype(self.storage).ravel()), found.shape[1])
        self.out.write_arrow(shard["name"], pa.table([column], schema=schema))
        return {}


@stage(version=1)
def embed(
    work: Work, *, model: Artifact, role: str, tokens: Artifact, precision: Precision, storage: str = "float16"
) -> dict[str, Any]:
    """Vectors of every text of a token store by one tower of `model`, stored as float16 or float32."""
    store = parts_of(tokens)
    resources = work.cluster.resources
    results = work.cluster.map(
        Embedder,
        {
            "model": model_folder(model),
            "role": role,
            "tokens": store,
            "out": work.shards,
            "precision": precision,
            "storage": storage,
            "tokens_per_batch": resources.tokens_per_batch,
        },
        pending(work, store.rows, resources.rows_per_shard or (16_384 if work.cluster.has_gpu else 2048)),
        label=work.label,
        unit="texts",
        marks=work.shards / "attempts",
        inline=store.rows <= FEW_TEXTS,
    )
    busy = sum(result["busy_seconds"] for result in results)
    rows = sum(result["rows"] for result in results)
    return {
        "rows": store.rows,
        "unit": "texts",
        "width": model.metrics["width"],
        "similarity": layout_of(model).similarity,
        # Texts a second of busy actors: what encoding costs, without starting them.
        "per_second": rows / busy if busy else None,
    }
