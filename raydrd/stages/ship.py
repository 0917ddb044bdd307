"""ship: the proof that plain sentence-transformers gives the vectors that were measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from raydrd.spine.parts import Parts, TokenReader
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.stages.adopt import layout_of, model_folder
from raydrd.stages.load import table
from raydrd.stages.shards import parts_of


class Verifier:
    """The exported folder in plain sentence-transformers beside our own encoder, both in float32."""

    def __init__(self, *, model: Folder, queries: Parts, passages: Parts, tokens: dict[str, Parts]) -> None:
        self.model, self.texts, self.tokens = model, {"query": queries, "passage": passages}, tokens

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        import torch
        from sentence_transformers import SentenceTransformer

        from raydrd.models.encoders import quiet_transformers
        from raydrd.stages.embed import Embedder

        quiet_transformers()
        plain = SentenceTransformer(str(self.model.local_folder()), device="cpu")
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
                theirs = encode(strings, convert_to_numpy=True, show_progress_bar=False)
            # Relative where vectors are not normalised: 1e-4 of a component of 20 is the same promise.
            size = max(1.0, float(np.abs(theirs).max()))
            worst = max(worst, float(np.abs(ours.encode(rows) - theirs).max()) / size)
            checked += len(rows)
        return {"worst": worst, "checked": checked}


@stage(version=1)
def verify_export(
    work: Work, *, model: Artifact, data: Artifact, query_tokens: Artifact, passage_tokens: Artifact
) -> dict[str, Any]:
    """The largest difference between our vectors and plain `SentenceTransformer(path)`, on some queries and passages.

    Raises:
        StageError: it is 1e-4 or more: the exported folder does not do what was measured.
    """
    from raydrd.errors import StageError

    results = work.cluster.map(
        Verifier,
        {
            "model": model_folder(model),
            "queries": table(data, "queries/test"),
            "passages": table(data, "corpus"),
            "tokens": {"query": parts_of(query_tokens), "passage": parts_of(passage_tokens)},
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
