"""ship: the proof that plain sentence-transformers gives the vectors that were measured."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raydrd.errors import StageError
from raydrd.models.layout import CARD, truncated
from raydrd.spine.parts import Parts, TokenReader
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.stages.adopt import layout_of, model_folder
from raydrd.stages.cutting import cut
from raydrd.stages.load import table
from raydrd.stages.shards import parts_of


class Verifier:
    """The exported folder in plain sentence-transformers beside our own encoder, both in float32."""

    def __init__(
        self, *, model: Folder, queries: Parts, passages: Parts, tokens: dict[str, Parts], dim: int | None, normalize: bool
    ) -> None:
        self.model, self.texts, self.tokens = model, {"query": queries, "passage": passages}, tokens
        self.dim, self.normalize = dim, normalize

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        import torch
        from sentence_transformers import SentenceTransformer

        from raydrd.models.encoders import quiet_transformers
        from raydrd.stages.embed import Embedder

        quiet_transformers()
        plain: Any
        with tempfile.TemporaryDirectory() as scratch:
            plain = SentenceTransformer(str(self._exported(Path(scratch))), device="cpu")
        if self.dim is not None and plain.truncate_dim is None:  # a version that does not read it from the folder
            plain.truncate_dim = self.dim
        worst, checked = 0.0, 0
        for role, texts in self.texts.items():
            ours = Embedder(
                model=self.model, role=role, tokens=self.tokens[role], out=self.model, precision="fp32", storage="float32",
                tokens_per_batch=None,
            )  # fmt: skip
            rows = np.arange(min(shard["sample"], texts.rows))
            if role == "query":  # plain sentence-transformers knows one length limit: longer queries would differ
                lengths = TokenReader(self.tokens[role]).lengths(rows)
                rows = rows[lengths + ours.special.single_overhead <= ours.max_len]
            if not len(rows):
                continue
            strings = texts.slice(0, int(rows.max()) + 1, ["text"])["text"].take(pa.array(rows)).to_pylist()
            encode = plain.encode_query if role == "query" else plain.encode_document
            with torch.inference_mode():
                # Cut vectors are not of unit length until they are asked to be.
                more = {"normalize_embeddings": self.normalize} if self.dim is not None else {}
                theirs = encode(strings, convert_to_numpy=True, show_progress_bar=False, **more)
            # Relative where vectors are not normalised: 1e-4 of a component of 20 is the same promise.
            size = max(1.0, float(np.abs(theirs).max()))
            own = ours.encode(rows)
            own = own if self.dim is None else cut(own, self.dim, normalize=self.normalize)
            if own.shape != theirs.shape:
                raise StageError(f"export: plain sentence-transformers gives {theirs.shape[1]} dimensions, not {own.shape[1]}")
            worst = max(worst, float(np.abs(own - theirs).max()) / size)
            checked += len(rows)
        return {"worst": worst, "checked": checked}

    def _exported(self, scratch: Path) -> Path:
        """The folder as it is published."""
        path = self.model.local_folder()
        if self.dim is None:
            return path
        shutil.copytree(path, scratch / "model")
        (scratch / "model" / CARD).write_bytes(truncated((path / CARD).read_bytes(), self.dim))
        return scratch / "model"


@stage(version=1)
def verify_export(
    work: Work,
    *,
    model: Artifact,
    data: Artifact,
    query_tokens: Artifact,
    passage_tokens: Artifact,
    dim: int | None = None,
) -> dict[str, Any]:
    """The largest difference between our vectors and plain `SentenceTransformer(path)`, on some queries and passages.

    dim: the export is cut to so many dimensions by its own settings.

    Raises:
        StageError: it is 1e-4 or more: the exported folder does not do what was measured.
    """
    results = work.cluster.map(
        Verifier,
        {
            "model": model_folder(model),
            "queries": table(data, "queries/test"),
            "passages": table(data, "corpus"),
            "tokens": {"query": parts_of(query_tokens), "passage": parts_of(passage_tokens)},
            "dim": dim,
            "normalize": layout_of(model).normalize,
        },
        [{"name": "check", "rows": 1, "sample": 32}],
        label=work.label,
        unit="models",
        marks=work.shards / "attempts",
        inline=True,
    )
    found = results[0]
    if not found["worst"] < 1e-4:
        raise StageError(f"export: plain sentence-transformers gives other vectors (difference {found['worst']:.2e})")
    work.shards.write_json("verified.json", {**found, "similarity": layout_of(model).similarity})
    return {"rows": int(found["checked"]), "unit": "texts", "difference": found["worst"]}
