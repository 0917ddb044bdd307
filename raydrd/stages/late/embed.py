"""embed_tokens: token ids -> one vector a token, on a pool of actors; of a hybrid also one a text, by the same weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.spine.parts import Parts, TokenReader
from raydrd.spine.precision import Precision
from raydrd.spine.ragged import ragged_table
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.spine.tables import vectors
from raydrd.stages.adopt import late_of, layout_of, model_folder
from raydrd.stages.shards import note_counts, parts_of, pending, total_counts

FEW_TEXTS = 3000
GPU_ROWS = 4096  # of a shard: 180 vectors of 128 float16 numbers each are 190 MB


class TokenEmbedder:
    """The encoder on this worker's device; a shard is a row range of the token store.

    pooled: of a hybrid, its one vector a text.
    """

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
        pooled: bool = False,
    ) -> None:
        from raydrd.models.devices import TokenBudget, inference, keep_freed_memory, prepare, this_device
        from raydrd.models.late import Reading, load_late, load_tokenizer
        from raydrd.models.latelayout import TOKENS, read_late

        path = model.local_folder()
        layout, late = read_late(path)
        assert late is not None
        self.device = this_device()
        keep_freed_memory()
        self.model = load_late(path).to(self.device)
        prepare(self.model.backbone, precision)
        self.reading = Reading.of(load_tokenizer(path, layout), layout, late)
        self.name = TOKENS if late.pooled and not pooled else ""
        self.pooled, self.width = pooled, self.model.width if pooled else late.dim
        self.budget = TokenBudget(self.device, tokens_per_batch)
        self.role, self.tokens, self.out, self.storage = role, TokenReader(tokens), out, storage
        self.inference: Callable[[], AbstractContextManager[None]] = lambda: inference(self.device, precision)

    def encode(self, rows: NDArray[np.int64]) -> list[NDArray[np.floating]]:
        """Vectors of these texts in the type they are stored in: [tokens, D] each, or [D] where they are pooled."""
        lengths = self.reading.lengths(self.role, self.tokens.lengths(rows))
        ids = self.tokens.take(rows)
        result: list[Any] = [None] * len(rows)

        def run(batch: NDArray[np.int64]) -> None:
            made = self.reading.inputs(self.role, [self.reading.single(self.role, ids[i]) for i in batch])
            inputs = {name: tensor.to(self.device) for name, tensor in made.items()}
            found = self.model.encode(inputs)[self.name].float().cpu().numpy()
            for i, vectors_TD, counts in zip(batch, found, made["counts"].numpy(), strict=True):
                result[i] = (vectors_TD if self.pooled else vectors_TD[counts]).astype(self.storage)

        with self.inference():
            self.budget.each(lengths, run)
        return result

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        found = self.encode(np.arange(shard["lo"], shard["hi"]))
        if not all(np.isfinite(one).all() for one in found):
            raise ValueError(f"rows {shard['lo']}..{shard['hi']}: the encoder gave NaN or infinity")
        if self.pooled:
            column = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(found)), self.width)
            self.out.write_arrow(shard["name"], pa.table([column], schema=vectors(self.width, self.storage)))
            return {}
        lengths = np.fromiter(map(len, found), dtype=np.int64, count=len(found))
        note_counts(self.out, shard["name"], tokens=int(lengths.sum()))
        self.out.write_arrow(shard["name"], ragged_table(np.concatenate(found), lengths))
        return {}


@stage(version=1)
def embed_tokens(
    work: Work, *, model: Artifact, role: str, tokens: Artifact, precision: Precision, storage: str = "float16"
) -> dict[str, Any]:
    """One vector a token of every text of a token store, stored as float16 or float32; skipped pieces are left out."""
    about = _run(work, model, role, tokens, precision, storage, pooled=False)
    late = late_of(model)
    assert late is not None
    return {**about, **total_counts(work, "tokens"), "width": late.dim, "similarity": "maxsim"}


@stage(version=1)
def embed_pooled(
    work: Work, *, model: Artifact, role: str, tokens: Artifact, precision: Precision, storage: str = "float16"
) -> dict[str, Any]:
    """One vector a text by a hybrid, as `embed` stores them."""
    about = _run(work, model, role, tokens, precision, storage, pooled=True)
    return {**about, "width": model.metrics["width"], "similarity": layout_of(model).similarity}


def _run(
    work: Work, model: Artifact, role: str, tokens: Artifact, precision: Precision, storage: str, *, pooled: bool
) -> dict[str, Any]:
    store = parts_of(tokens)
    resources = work.cluster.resources
    results = work.cluster.map(
        TokenEmbedder,
        {
            "model": model_folder(model),
            "role": role,
            "tokens": store,
            "out": work.shards,
            "precision": precision,
            "storage": storage,
            "tokens_per_batch": resources.tokens_per_batch,
            "pooled": pooled,
        },
        pending(work, store.rows, resources.rows_per_shard or (GPU_ROWS if work.cluster.has_gpu else 2048)),
        label=work.label,
        unit="texts",
        marks=work.shards / "attempts",
        inline=store.rows <= FEW_TEXTS,
    )
    busy = sum(result["busy_seconds"] for result in results)
    rows = sum(result["rows"] for result in results)
    # Texts a second of busy actors: what encoding costs, without starting them.
    return {"rows": store.rows, "unit": "texts", "per_second": rows / busy if busy else None}
