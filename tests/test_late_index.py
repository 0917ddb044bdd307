"""Searching token vectors: exact against a slow loop, the same however it is cut; compressed and approximate against exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import raydrd.stages.late.search as module
from raydrd.errors import InputError
from raydrd.methods.residual import bytes_of_bits, centroids_for, compress, decompress, learn, nearest
from raydrd.spine.parts import part_name, ranges
from raydrd.spine.ragged import RaggedReader, ragged_table
from raydrd.spine.store import Artifact, Located, Store, Work, stage
from raydrd.stages import spread as spreading
from raydrd.stages.index import build_index
from raydrd.stages.indexfile import opened
from raydrd.stages.late.index import default_factory, near, near_tokens, rescore_tokens, starts_of
from raydrd.stages.late.lookup import Lookup
from raydrd.stages.late.pack import PackedReader, learn_codec, load_codec, pack_tokens
from raydrd.stages.late.search import search_tokens
from raydrd.stages.shards import note_counts, parts_of, tokens_of
from tests.late_worlds import slow_maxsim
from tests.stage_inputs import whole, with_resources

WIDTH = 16


def texts(count: int, longest: int, seed: int, *, subjects: int = 12) -> list[np.ndarray]:
    """Texts of 0 to `longest` unit vectors near those of a few subjects: some are alike to the last bit."""
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((subjects, WIDTH))
    found = []
    for _ in range(count):
        own = centres[draw.integers(0, subjects, draw.integers(1, longest + 1))]
        own = own + 0.4 * draw.standard_normal(own.shape)
        found.append((own / np.linalg.norm(own, axis=1, keepdims=True)).astype(np.float16))
    return found


@stage(version=1)
def embedded(work: Work, *, name: str, given: Any, size: int) -> dict[str, Any]:
    """Token vectors as `embed_tokens` would store them, in parts of so many texts."""
    for lo, hi in ranges(len(given.where), size):
        block = given.where[lo:hi]
        lengths = np.array([len(one) for one in block])
        note_counts(work.shards, part_name(lo, hi, "arrow"), tokens=int(lengths.sum()))
        work.shards.write_arrow(part_name(lo, hi, "arrow"), ragged_table(np.concatenate(block), lengths))
    tokens = sum(map(len, given.where))
    return {"rows": len(given.where), "unit": "texts", "tokens": tokens, "width": WIDTH, "similarity": "maxsim"}


def world(store: Store, *, queries: int = 70, passages: int = 900, size: int = 64) -> tuple[Artifact, Artifact]:
    q, p = texts(queries, 7, 0), texts(passages, 20, 1)
    for row in range(40, passages, 90):  # ties, within a tile and across them
        p[row] = p[row - 40]
    p[17] = p[17][:0]  # nothing but punctuation
    made = [store.run(embedded, name=n, given=Located(n, one), size=size) for n, one in (("q", q), ("p", p))]
    return made[0], made[1]


def slow(queries: Artifact, passages: Artifact, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores of the k best by a loop over all pairs, ties by row."""
    q, p = (RaggedReader(parts_of(one)) for one in (queries, passages))
    asked, held = ([torch.from_numpy(t.astype(np.float32)) for t in one.take(np.arange(one.parts.rows))] for one in (q, p))
    scores = np.stack([[float((a @ b.T).amax(1).sum()) if len(b) else 0.0 for b in held] for a in asked])
    assert scores[3, 5] == pytest.approx(float(slow_maxsim(asked[3], held[5])), abs=1e-5)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


@pytest.mark.parametrize("k", [1, 25, 2000])
def test_exact_search_is_a_slow_loop(store: Store, k: int) -> None:
    q, p = world(store)
    found = whole(store.run(search_tokens, queries=q, passages=p, k=k))
    rows, scores = slow(q, p, k)
    np.testing.assert_allclose(np.array(found["scores"].to_pylist()), scores, atol=1e-5)
    mine = np.array(found["doc_rows"].to_pylist())
    # Two passages may be apart by less than float32 tells: where rows differ their scores do not.
    differ = mine != rows
    assert differ.mean() < 0.01 and np.allclose(np.array(found["scores"].to_pylist())[differ], scores[differ], atol=1e-5)


def test_parts_shards_and_ranges_change_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    q, p = world(store)
    wanted = whole(store.run(search_tokens, queries=q, passages=p, k=30))
    other = with_resources(store, tmp_path / "parts")
    assert whole(
        other.run(search_tokens, **dict(zip(("queries", "passages"), world(other, size=7), strict=True)), k=30)
    ).equals(wanted)
    monkeypatch.setattr(module, "RANGE", module.TILE)
    monkeypatch.setattr(module, "SHARD", module.BLOCK)
    monkeypatch.setattr(spreading, "RANGE_BYTES", 60_000)
    monkeypatch.setattr(spreading, "SHARD_PRODUCTS", 10**7)
    ranged = with_resources(store, tmp_path / "ranges")
    q, p = world(ranged)
    made = ranged.run(search_tokens, queries=q, passages=p, k=30)
    assert len(parts_of(made).parts) == 3
    assert whole(made).equals(wanted)


@pytest.mark.ray
def test_actors_search_and_compress_as_this_process_does(ray_store: Store, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "FEW_PRODUCTS", 0)
    q, p = world(ray_store)
    by_actors = whole(ray_store.run(search_tokens, queries=q, passages=p, k=30))
    alone = with_resources(ray_store, tmp_path / "alone", ray="off")
    monkeypatch.setattr(module, "FEW_PRODUCTS", 10**12)
    q, p = world(alone)
    assert whole(alone.run(search_tokens, queries=q, passages=p, k=30)).equals(by_actors)


# -- compression --------------------------------------------------------------------------------


def test_codes_and_bits_are_a_slow_loops() -> None:
    draw = np.random.default_rng(0)
    vectors = np.concatenate(texts(80, 12, 3)).astype(np.float32)
    for width in (16, 6):
        sample = vectors[:, :width]
        codec = learn(draw.standard_normal((9, width)).astype(np.float32), sample)
        assert np.allclose(np.linalg.norm(codec.centroids, axis=1), 1, atol=1e-5)
        codes, bits = compress(codec, sample[:50])
        assert codes.dtype == np.uint16 and bits.shape == (50, bytes_of_bits(width)) and bits.dtype == np.uint8
        assert codec.bytes_each == 2 + -(-width // 4)
        again = decompress(codec, codes, bits)
        for vector, code, row in zip(sample[:50], codes, again, strict=True):
            products = [float(vector @ one) for one in codec.centroids]
            assert products[code] == max(products)
            left = vector - codec.centroids[code]
            buckets = [sum(bool(left[d] > border) for border in codec.borders[d]) for d in range(width)]
            made = codec.centroids[code] + np.array([codec.values[d, b] for d, b in enumerate(buckets)])
            np.testing.assert_allclose(row, made / np.linalg.norm(made), atol=1e-5)
        # Quarters of what is left over, dimension by dimension, are about equally full.
        left = sample - codec.centroids[nearest(codec.centroids, sample)]
        shares = (left[:, :, None] > codec.borders).mean(0)
        np.testing.assert_allclose(shares, [[0.75, 0.5, 0.25]] * width, atol=0.02)


def test_more_centroids_and_their_bits_come_nearer() -> None:
    vectors = np.concatenate(texts(400, 20, 4)).astype(np.float32)
    draw = np.random.default_rng(1)
    errors = []
    for count in (8, 64):
        codec = learn(vectors[draw.choice(len(vectors), count, replace=False)], vectors)
        errors.append(float(((decompress(codec, *compress(codec, vectors)) - vectors) ** 2).sum(1).mean()))
        alone = float(((codec.centroids[nearest(codec.centroids, vectors)] - vectors) ** 2).sum(1).mean())
        assert errors[-1] < 0.5 * alone, "the bits tell more than the centroids do"
    assert errors[1] < errors[0]
    assert [centroids_for(n) for n in (8, 1000, 10**6, 10**9)] == [2, 128, 8192, 262_144]


def test_compressed_search_agrees_with_exact(store: Store) -> None:
    q, p = world(store)
    exact = whole(store.run(search_tokens, queries=q, passages=p, k=50))
    codec = store.run(learn_codec, vectors=p)
    packed = store.run(pack_tokens, vectors=p, codec=codec)
    assert codec.metrics["bytes_each"] == 2 + WIDTH // 4 and packed.metrics["tokens"] == p.metrics["tokens"]
    stored = sum(size for name, size in packed.manifest["files"].items() if name.endswith(".arrow"))
    assert stored < 0.35 * sum(size for name, size in p.manifest["files"].items() if name.endswith(".arrow"))
    found = whole(store.run(search_tokens, queries=q, passages=packed, k=50))
    pairs = zip(found["doc_rows"].to_pylist(), exact["doc_rows"].to_pylist(), strict=True)
    assert np.mean([len(set(a) & set(b)) / 50 for a, b in pairs]) > 0.75  # noise of 16 dimensions is hard to compress
    # What is read by row is what the codec gives of the very vectors, in their order.
    reader, before = PackedReader(parts_of(packed), load_codec(packed.folder)), RaggedReader(parts_of(p))
    rows = np.array([899, 17, 3, 64, 3])
    for made, was in zip(reader.take(rows), before.take(rows), strict=True):
        assert made.shape == was.shape
        if len(was):
            wanted = decompress(reader.codec, *compress(reader.codec, was.astype(np.float32)))
            np.testing.assert_allclose(made, wanted, atol=1e-6)


def test_too_many_centroids_are_refused(store: Store) -> None:
    _, p = world(store, passages=20)
    with pytest.raises(InputError, match=r"late.centroids: 500, and there are \d+ token vectors; write a quarter"):
        store.run(learn_codec, vectors=p, centroids=500)


# -- candidates ---------------------------------------------------------------------------------


def test_a_flat_token_index_finds_what_a_loop_finds(store: Store) -> None:
    q, p = world(store, passages=200)
    flat = tokens_of(p)
    assert flat.rows == p.metrics["tokens"] and flat.parts[1].lo == flat.parts[0].hi
    starts = starts_of(parts_of(p))
    index = store.run(build_index, vectors=p, data=_corpus(store, 200), factory="Flat")
    assert index.metrics["rows"] == flat.rows and index.metrics["unit"] == "tokens"
    made = opened((index.folder / "index").local("index.faiss"))
    held = [one.astype(np.float32) for one in RaggedReader(parts_of(p)).take(np.arange(200))]
    every = np.concatenate(held)
    owner = np.repeat(np.arange(200), [len(one) for one in held])
    for query in RaggedReader(parts_of(q)).take(np.arange(5)):
        query = query.astype(np.float32)
        rows, scores = near(made, starts, query, each=60, depth=30)
        sums: dict[int, float] = {}
        for token in query:
            products = every @ token
            best = np.argsort(-products, kind="stable")[:60]
            worst = float(products[best].min())
            for passage in set(owner[best].tolist()):
                gain = max(float(products[t]) for t in best if owner[t] == passage) - worst
                sums[passage] = sums.get(passage, 0.0) + gain
        base = sum(float(np.sort(every @ token)[-60]) for token in query)
        assert set(rows.tolist()) <= set(sums)
        np.testing.assert_allclose(scores, sorted((s + base for s in sums.values()), reverse=True)[:30], atol=1e-4)


def _corpus(store: Store, passages: int) -> Artifact:
    @stage(version=1)
    def collected(work: Work, passages: int) -> dict[str, Any]:
        rows = pa.table([[f"d{n}" for n in range(passages)], ["text"] * passages], names=["doc_id", "text"])
        (work.shards / "corpus").write_table(part_name(0, passages, "parquet"), rows)
        return {"rows": passages, "unit": "passages"}

    return store.run(collected, passages=passages)


@pytest.mark.parametrize("factory", ["Flat", "IVF16,SQ8"])
def test_candidates_by_tokens_then_maxsim_come_near_exact(store: Store, factory: str) -> None:
    q, p = world(store)
    exact = whole(store.run(search_tokens, queries=q, passages=p, k=10))["doc_rows"].to_pylist()
    index = store.run(build_index, vectors=p, data=_corpus(store, 900), factory=factory)
    found = store.run(near_tokens, index=index, queries=q, passages=p, each=200, depth=100, probes=4)
    assert max(map(len, whole(found)["doc_rows"].to_pylist())) <= 100
    ranked = whole(store.run(rescore_tokens, candidates=found, queries=q, passages=p, k=10))
    mine = ranked["doc_rows"].to_pylist()
    share = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(mine, exact, strict=True)])
    assert share > (0.95 if factory == "Flat" else 0.85), share
    # One query at a time, as `raydrd search` asks: the same passages.
    lookup = Lookup(passages=parts_of(p), codec=None, candidates="tokens", index=index.folder / "index", each=200,
                    depth=100, probes=4)  # fmt: skip
    rows, scores = lookup(RaggedReader(parts_of(q)).take(np.array([8]))[0], k=10)
    assert rows.tolist() == mine[8]
    np.testing.assert_allclose(scores, ranked["scores"].to_pylist()[8], atol=1e-5)


def test_the_default_index_goes_by_size() -> None:
    assert default_factory(5000, 64) == "Flat"
    assert default_factory(100_000, 64) == "IVF1024,PQ16"
    assert default_factory(10**6, 30) == "IVF2048,PQ6"
