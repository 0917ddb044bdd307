"""ship: the FAISS index with its ids, and the proof that plain sentence-transformers gives the same vectors."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raydrd.spine.parts import Parts, TokenReader, VectorReader
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.stages.adopt import layout_of, model_folder
from raydrd.stages.load import table
from raydrd.stages.shards import parts_of

TRAINING_VECTORS = 200_000  # most vectors an IVF or PQ index is trained on: some 100 for each of 2,000 lists


class Indexer:
    """Vectors part by part into one FAISS index, in this worker's memory."""

    def __init__(self, *, vectors: Parts, corpus: Parts, out: Folder, factory: str, width: int) -> None:
        self.vectors, self.corpus, self.out, self.factory, self.width = vectors, corpus, out, factory, width

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        import faiss

        from raydrd.errors import InputError

        try:
            index = faiss.index_factory(self.width, self.factory, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            reason = str(error).strip().rsplit("\n", 1)[-1]
            raise InputError(f"index: FAISS cannot make {self.factory!r} for width {self.width}: {reason}") from error
        reader = VectorReader(self.vectors)
        if not index.is_trained:
            rows = np.random.default_rng(0).permutation(self.vectors.rows)[:TRAINING_VECTORS]
            index.train(reader.take(np.sort(rows)))
        for number in range(len(self.vectors.parts)):
            index.add(np.ascontiguousarray(reader.part(number), dtype=np.float32))
        ivf = faiss.try_extract_index_ivf(index)
        if ivf is not None:  # FAISS' own default looks into one list only
            ivf.nprobe = max(1, ivf.nlist // 32)
        with tempfile.TemporaryDirectory() as scratch:
            faiss.write_index(index, str(Path(scratch) / "index.faiss"))
            size = (Path(scratch) / "index.faiss").stat().st_size
            self.out.upload(Path(scratch))
        ids = pa.concat_tables(part for _, part in self.corpus.each(["doc_id"]))
        self.out.write_table("ids.parquet", ids)
        return {"bytes": size}


@stage(version=1)
def build_index(work: Work, *, vectors: Artifact, data: Artifact, factory: str) -> dict[str, Any]:
    """`index.faiss` over stored vectors (inner product) and `ids.parquet` with the passage ids in its order."""
    rows = parts_of(vectors).rows
    results = work.cluster.map(
        Indexer,
        {
            "vectors": parts_of(vectors),
            "corpus": table(data, "corpus"),
            "out": work.folder / "index",
            "factory": factory,
            "width": int(vectors.metrics["width"]),
        },
        [{"name": "index", "rows": rows}],
        label=work.label,
        unit="passages",
        marks=work.shards / "attempts",
        inline=rows <= 100_000 and factory == "Flat",
        models=False,
    )
    return {"rows": rows, "unit": "passages", "size_mb": results[0]["bytes"] / 1e6, "factory": factory}


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
