"""pack_tokens: token vectors -> a centroid and two bits a number each (ColBERTv2), on a pool of workers; read like vectors."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.errors import InputError
from raydrd.methods.residual import Codec, bytes_of_bits, centroids_for, code_type, compress, decompress, learn
from raydrd.spine.parts import Parts
from raydrd.spine.ragged import RaggedReader
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.stages.shards import parts_of, pending

CODEC = "codec.safetensors"
SAMPLE_EACH = 64  # vectors of a sample for each centroid: below 39 FAISS warns
ROUNDS = 10  # of k-means; ColBERTv2 takes 4, and 10 change little
ROWS = 4096  # texts of a part
FEW_TOKENS = 500_000
SEED = 0


def sampled(vectors: Parts, tokens: int, most: int) -> NDArray[np.float32]:
    """The vectors of evenly spaced texts, about `most` of them and no fewer; all where there are not so many."""
    reader = RaggedReader(vectors)
    share = min(1.0, 1.1 * most / max(1, tokens))
    rows = np.unique(np.linspace(0, vectors.rows - 1, max(1, round(share * vectors.rows))).astype(np.int64))
    return np.concatenate([one.astype(np.float32) for one in reader.take(rows)])


def learned(vectors: Parts, tokens: int, centroids: int | None) -> Codec:
    """The codec of a sample of stored vectors: centroids by k-means, the rest by quantiles.

    Raises:
        InputError: more centroids than a quarter of the vectors there are.
    """
    import faiss

    count = centroids or centroids_for(tokens)
    if count > tokens / 4:
        raise InputError(f"late.centroids: {count:,}, and there are {tokens:,} token vectors; write a quarter of that, or less")
    sample = sampled(vectors, tokens, SAMPLE_EACH * count)
    clusters = faiss.Kmeans(
        sample.shape[1], count, niter=ROUNDS, seed=SEED, spherical=True, min_points_per_centroid=1,
        max_points_per_centroid=4 * SAMPLE_EACH,
    )  # fmt: skip
    clusters.train(np.ascontiguousarray(sample))
    return learn(np.asarray(clusters.centroids).reshape(count, -1), sample)


def save_codec(codec: Codec, out: Folder) -> None:
    from safetensors.numpy import save_file

    with tempfile.TemporaryDirectory() as scratch:
        save_file({name: getattr(codec, name) for name in ("centroids", "borders", "values")}, Path(scratch) / CODEC)
        out.upload(Path(scratch))


def load_codec(folder: Folder) -> Codec:
    from safetensors.numpy import load_file

    return Codec(**load_file(folder.local(CODEC)))


def packed_schema(width: int, centroids: int) -> pa.Schema:
    """One row a text: codes and bits of its vectors."""
    code = pa.from_numpy_dtype(code_type(centroids))
    bits = pa.list_(pa.uint8(), bytes_of_bits(width))
    return pa.schema([("codes", pa.list_(code)), ("bits", pa.list_(pa.field("item", bits, nullable=False)))])


def lists_in(column: pa.ChunkedArray) -> pa.ListArray:
    """The lists of a column: a view of the file where it is one batch. `combine_chunks` copies, also a single chunk."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


class PackedReader:
    """Compressed token vectors by row, from memory-mapped parts: read like `RaggedReader`, decompressed when asked for."""

    def __init__(self, parts: Parts, codec: Codec) -> None:
        self.parts, self.codec, self.width = parts, codec, codec.width
        self._open: dict[int, tuple[NDArray[np.int32], NDArray[Any], NDArray[np.uint8]]] = {}

    def _part(self, number: int) -> tuple[NDArray[np.int32], NDArray[Any], NDArray[np.uint8]]:
        if number not in self._open:
            table = self.parts.read(self.parts.parts[number])
            codes, bits = (lists_in(table[name]) for name in ("codes", "bits"))
            flat = bits.values.flatten().to_numpy().reshape(-1, bytes_of_bits(self.width))
            self._open[number] = (codes.offsets.to_numpy(), codes.values.to_numpy(), flat)
        return self._open[number]

    def take(self, rows: NDArray[np.int64]) -> list[NDArray[np.floating]]:
        """float32 [tokens, D] of these rows, in their order."""
        numbers = self.parts.locate(rows)
        codes, bits, lengths = [], [], []
        for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
            offsets, all_codes, all_bits = self._part(number)
            local = row - self.parts.parts[number].lo
            inside = slice(offsets[local], offsets[local + 1])
            codes.append(all_codes[inside])
            bits.append(all_bits[inside])
            lengths.append(len(codes[-1]))
        if not codes:
            return []
        flat = decompress(self.codec, np.concatenate(codes), np.concatenate(bits))
        return list(np.split(flat, np.cumsum(lengths)[:-1]))


def open_passages(parts: Parts, codec: Folder | None) -> RaggedReader | PackedReader:
    """Token vectors as they are, or compressed ones with their codec's folder."""
    return RaggedReader(parts) if codec is None else PackedReader(parts, load_codec(codec))


def codec_of(passages: Artifact) -> Folder | None:
    """Where the codec of compressed token vectors lies; None for vectors as they are."""
    return passages.folder if "bytes_each" in passages.metrics else None


class Packer:
    """Row ranges of stored token vectors, compressed."""

    def __init__(self, *, vectors: Parts, codec: Folder, out: Folder) -> None:
        self.vectors, self.codec, self.out = RaggedReader(vectors), load_codec(codec), out

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        texts = self.vectors.take(np.arange(shard["lo"], shard["hi"]))
        codes, bits = compress(self.codec, np.concatenate(texts).astype(np.float32))
        schema = packed_schema(self.codec.width, len(self.codec.centroids))
        offsets = pa.array(np.concatenate([[0], np.cumsum([len(one) for one in texts])]), pa.int32())
        inner = pa.FixedSizeListArray.from_arrays(pa.array(bits.ravel()), type=schema.field("bits").type.value_type)
        columns = [
            pa.ListArray.from_arrays(offsets, pa.array(codes)),
            pa.ListArray.from_arrays(offsets, inner, type=schema.field("bits").type),
        ]
        self.out.write_arrow(shard["name"], pa.table(columns, schema=schema))
        return {}


class Learner:
    """The codec, learnt by one worker."""

    def __init__(self, *, vectors: Parts, tokens: int, centroids: int | None, out: Folder) -> None:
        self.vectors, self.tokens, self.centroids, self.out = vectors, tokens, centroids, out

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        save_codec(learned(self.vectors, self.tokens, self.centroids), self.out)
        return {}


@stage(version=1)
def learn_codec(work: Work, *, vectors: Artifact, centroids: int | None = None) -> dict[str, Any]:
    """What compresses token vectors: centroids, and two bits a number of what is left over."""
    tokens = int(vectors.metrics["tokens"])
    work.cluster.map(
        Learner,
        {"vectors": parts_of(vectors), "tokens": tokens, "centroids": centroids, "out": work.folder},
        [{"name": "codec", "rows": tokens}],
        label=work.label,
        unit="vectors",
        marks=work.shards / "attempts",
        inline=tokens <= FEW_TOKENS,
        models=False,
    )
    codec = load_codec(work.folder)
    return {"rows": tokens, "unit": "vectors", "centroids": len(codec.centroids), "bytes_each": codec.bytes_each}


@stage(version=1)
def pack_tokens(work: Work, *, vectors: Artifact, codec: Artifact) -> dict[str, Any]:
    """Token vectors compressed by a codec, which lies beside them."""
    parts = parts_of(vectors)
    work.cluster.map(
        Packer,
        {"vectors": parts, "codec": codec.folder, "out": work.shards},
        pending(work, parts.rows, ROWS),
        label=work.label,
        unit="texts",
        marks=work.shards / "attempts",
        inline=int(vectors.metrics["tokens"]) <= FEW_TOKENS,
        models=False,
    )
    save_codec(load_codec(codec.folder), work.folder)
    about = {name: vectors.metrics[name] for name in ("tokens", "width", "similarity")}
    bytes_each = int(codec.metrics["bytes_each"])
    return {"rows": parts.rows, "unit": "texts", **about, "type": "2bit", "bytes_each": bytes_each}
