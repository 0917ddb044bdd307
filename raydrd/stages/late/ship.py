"""verify_late_export: the proof that a plain library gives the token vectors that were measured."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from raydrd.errors import InputError, StageError
from raydrd.spine.parts import Parts
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.stages.adopt import late_of, model_folder
from raydrd.stages.late.embed import TokenEmbedder
from raydrd.stages.load import table
from raydrd.stages.shards import parts_of

SAMPLE = 32  # texts of each side


def require_library() -> None:
    """Refuse before any work what could not be checked at its end.

    Raises:
        InputError: a sentence-transformers without MultiVectorEncoder.
    """
    found = find_spec("sentence_transformers")
    home = Path(found.origin).parent if found is not None and found.origin else None
    if home is None or not (home / "multi_vector_encoder").is_dir():
        raise InputError(
            "student.kind: the exported token vectors are checked with sentence-transformers' MultiVectorEncoder, which this "
            "version lacks; pip install -U sentence-transformers"
        )


class LateVerifier:
    """The exported folder in plain sentence-transformers beside our own encoder, both in float32."""

    def __init__(self, *, model: Folder, queries: Parts, passages: Parts, tokens: dict[str, Parts], pooled: bool) -> None:
        self.model, self.texts, self.tokens, self.pooled = model, {"query": queries, "passage": passages}, tokens, pooled

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        from sentence_transformers import MultiVectorEncoder, SentenceTransformer

        from raydrd.models.encoders import quiet_transformers
        from raydrd.models.late import flattened

        quiet_transformers()
        path = self.model.local_folder()
        with tempfile.TemporaryDirectory() as scratch:
            libraries: list[Any] = [MultiVectorEncoder(str(flattened(path, Path(scratch) / "model")), device="cpu")]
        libraries += [SentenceTransformer(str(path), device="cpu")] if self.pooled else []
        worst, checked = 0.0, 0
        for number, plain in enumerate(libraries):
            for role, texts in self.texts.items():
                ours = TokenEmbedder(
                    model=self.model, role=role, tokens=self.tokens[role], out=self.model, precision="fp32",
                    storage="float32", tokens_per_batch=None, pooled=number == 1,
                )  # fmt: skip
                rows = np.arange(min(shard["sample"], texts.rows))
                if number == 1 and role == "query":  # one length limit is all that it knows
                    lengths = ours.reading.unfilled(role, ours.tokens.lengths(rows))
                    rows = rows[lengths < ours.reading.limits[role]]
                if not len(rows):
                    continue
                strings = texts.slice(0, int(rows.max()) + 1, ["text"])["text"].to_pylist()
                encode = plain.encode_query if role == "query" else plain.encode_document
                theirs = encode([strings[row] for row in rows], convert_to_numpy=True, show_progress_bar=False)
                for own, other in zip(ours.encode(rows), theirs, strict=True):
                    if own.shape != other.shape:
                        raise StageError(f"export: plain sentence-transformers gives vectors of {other.shape}, not {own.shape}")
                    worst = max(worst, float(np.abs(own - other).max()))
                checked += len(rows)
        return {"worst": worst, "checked": checked}


@stage(version=1)
def verify_late_export(
    work: Work, *, model: Artifact, data: Artifact, query_tokens: Artifact, passage_tokens: Artifact
) -> dict[str, Any]:
    """The largest difference between our token vectors and plain `MultiVectorEncoder(path)`'s, on some queries and passages;
    of a hybrid also between its pooled vectors and `SentenceTransformer(path)`'s.

    Raises:
        StageError: it is 1e-4 or more, or there are other tokens: the exported folder does not do what was measured.
    """
    late = late_of(model)
    assert late is not None
    results = work.cluster.map(
        LateVerifier,
        {
            "model": model_folder(model),
            "queries": table(data, "queries/test"),
            "passages": table(data, "corpus"),
            "tokens": {"query": parts_of(query_tokens), "passage": parts_of(passage_tokens)},
            "pooled": late.pooled,
        },
        [{"name": "check", "rows": 1, "sample": SAMPLE}],
        label=work.label,
        unit="models",
        marks=work.shards / "attempts",
        inline=True,
    )
    found = results[0]
    if not found["worst"] < 1e-4:
        raise StageError(f"export: plain sentence-transformers gives other token vectors (difference {found['worst']:.2e})")
    work.shards.write_json("verified.json", {**found, "similarity": "maxsim"})
    return {"rows": int(found["checked"]), "unit": "texts", "difference": found["worst"]}
