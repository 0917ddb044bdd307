"""Vectors cut and kept as floats, bytes or bits: what an index of them finds is what their own numbers say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pytest

import raydrd.stages.index as building
import raydrd.stages.sizes as sizing
from raydrd.errors import InputError
from raydrd.spine.parts import part_name
from raydrd.spine.store import Artifact, Store, Work, stage
from raydrd.spine.tables import CORPUS, QUERIES
from raydrd.stages.cutting import cut, cut_vectors
from raydrd.stages.evaluate import evaluate
from raydrd.stages.index import build_index
from raydrd.stages.indexfile import FACTORIES, bytes_each, check_index, made, signs
from raydrd.stages.lookup import search_index
from raydrd.stages.search import search
from raydrd.stages.sizes import measure_sizes, widths
from tests.stage_inputs import matrix_of, put_vectors, whole

ROWS, ASKED, WIDTH = 700, 30, 32


def unit(rows: int, seed: int) -> np.ndarray:
    """Vectors as an encoder gives them: clustered, unit length, stored as float16."""
    rng = np.random.default_rng(seed)
    found = np.random.default_rng(9).standard_normal((25, WIDTH))[rng.integers(0, 25, rows)] + rng.standard_normal(
        (rows, WIDTH)
    )
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype("f2").astype("f4")


@stage(version=1)
def judged(work: Work, *, seed: int) -> dict[str, Any]:
    """A collection of `ROWS` passages; the relevant ones of a query are what it is nearest to, and some others."""
    ids = [f"d{row}" for row in range(ROWS)]
    work.shards.write_table(
        f"corpus/{part_name(0, ROWS, 'parquet')}", pa.table(dict.fromkeys(CORPUS.names, ids), schema=CORPUS)
    )
    near = np.argsort(-(unit(ASKED, seed) @ unit(ROWS, 1).T), axis=1)[:, 3:40:6]
    rows = [near.tolist(), np.ones_like(near).tolist()]
    rows[0][7], rows[1][7] = [], []  # nobody judged it
    names = [f"q{n}" for n in range(ASKED)]
    table = pa.table([names, names, *rows], schema=QUERIES)
    work.shards.write_table(f"queries/test/{part_name(0, ASKED, 'parquet')}", table)
    return {"rows": ROWS, "unit": "passages", "passages": ROWS}


@pytest.fixture
def world(store: Store) -> tuple[Artifact, Artifact, Artifact]:
    """Passages in parts, queries, and a collection that judges them."""
    return put_vectors(store, "p", unit(ROWS, 1), 150), put_vectors(store, "q", unit(ASKED, 2)), store.run(judged, seed=2)


# -- cut ---------------------------------------------------------------------------------------------


def test_cut_vectors_are_their_first_numbers_of_unit_length(store: Store, world: Any) -> None:
    made_ = store.run(cut_vectors, vectors=world[0], dim=5, normalize=True)
    found, stored = matrix_of(made_), unit(ROWS, 1)
    assert (found.dtype, found.shape, made_.metrics["width"]) == (np.float32, (ROWS, 5), 5)
    for own, vector in zip(found[::97], stored[::97], strict=True):
        size = math.sqrt(sum(float(x) ** 2 for x in vector[:5]))
        assert own.tolist() == pytest.approx([float(x) / size for x in vector[:5]], rel=1e-6)
    assert np.array_equal(cut(stored, 5, normalize=False), stored[:, :5])
    assert np.array_equal(cut(stored, WIDTH, normalize=True), stored), "whole vectors keep the length they have"
    assert np.array_equal(cut(np.zeros((2, 4)), 2, normalize=True), np.zeros((2, 2)))


# -- indexes -----------------------------------------------------------------------------------------


def decoded(type_: str, vectors: np.ndarray) -> np.ndarray:
    """What is left of the vectors, by hand: 256 even steps between a dimension's ends, or signs of one length."""
    if type_ == "binary":
        return np.where(vectors > 0, 1.0, -1.0) / math.sqrt(vectors.shape[1])
    if type_ == "float32":
        return vectors.astype(np.float64)
    low, high = vectors.min(axis=0), vectors.max(axis=0)
    steps = np.clip((vectors - low) / (high - low), 0, 1)
    return low + (np.floor(255 * steps) + 0.5) / 255 * (high - low)


@pytest.mark.parametrize("dim", [32, 16])
@pytest.mark.parametrize("type_", FACTORIES)
def test_an_index_finds_what_an_exact_search_of_its_numbers_finds(store: Store, world: Any, type_: Any, dim: int) -> None:
    passages, queries, data = world
    if dim < WIDTH:
        passages, queries = (store.run(cut_vectors, vectors=one, dim=dim, normalize=True) for one in (passages, queries))
    index = store.run(build_index, vectors=passages, data=data, factory=FACTORIES[type_])
    found = whole(store.run(search_index, index=index, queries=queries, k=20))
    exact = matrix_of(queries).astype(np.float64) @ decoded(type_, matrix_of(passages)).T
    order = np.argsort(-exact, axis=1, kind="stable")[:, :20]
    scores = np.array(found["scores"].to_pylist())
    np.testing.assert_allclose(scores, np.take_along_axis(exact, order, axis=1), atol=2e-6)
    rows = np.array(found["doc_rows"].to_pylist())
    same = rows == order
    gaps = np.abs(np.diff(np.take_along_axis(exact, order, axis=1), axis=1)).min(axis=1)
    assert same[gaps > 1e-5].all() and same.mean() > 0.98
    assert np.abs(decoded(type_, matrix_of(passages)) - matrix_of(passages)).max() > (0 if type_ == "float32" else 1e-4) - 1e-9


def test_quantised_vectors_searched_by_our_own_search_rank_the_same(store: Store, world: Any) -> None:
    passages, queries, data = world
    for type_ in ("int8", "binary"):
        index = store.run(build_index, vectors=passages, data=data, factory=FACTORIES[type_])  # type: ignore[index]
        kept = put_vectors(store, f"kept {type_}", decoded(type_, unit(ROWS, 1)).astype(np.float32))
        ours, faiss_ = (
            whole(one)
            for one in (
                store.run(search, queries=queries, passages=kept, k=20),
                store.run(search_index, index=index, queries=queries, k=20),
            )
        )
        a, b = (np.array(one["scores"].to_pylist()) for one in (ours, faiss_))
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_bits_are_those_of_sentence_transformers() -> None:
    from sentence_transformers.util.quantization import quantize_embeddings

    vectors = unit(50, 4)
    vectors[3, :9] = 0.0
    index = signs(WIDTH)
    index.add(vectors)
    codes = faiss.vector_to_array(index.codes).reshape(50, -1)
    bits = np.unpackbits(codes, axis=1, bitorder="little")
    assert np.array_equal(bits, np.unpackbits(quantize_embeddings(vectors, precision="ubinary"), axis=1))
    assert index.sa_code_size() == 4 and index.is_trained and np.array_equal(bits, vectors > 0)


def test_equal_scores_are_ordered_by_row(store: Store) -> None:
    passages = put_vectors(store, "same", np.repeat(unit(4, 1), 5, axis=0)[np.random.default_rng(0).permutation(20)])
    data = store.run(judged, seed=2)
    index = store.run(build_index, vectors=passages, data=data, factory="Signs")
    found = whole(store.run(search_index, index=index, queries=put_vectors(store, "q", unit(3, 2)), k=50)).to_pylist()
    for one in found:
        assert len(one["doc_rows"]) == 20
        pairs = list(zip([-s for s in one["scores"]], one["doc_rows"], strict=True))
        assert pairs == sorted(pairs)


@pytest.mark.parametrize("type_", ["int8", "binary"])
def test_filled_by_many_is_what_one_fills(store: Store, world: Any, type_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "FILL_ROWS", 300)
    index = store.run(build_index, vectors=world[0], data=world[2], factory=FACTORIES[type_])
    plain = made(FACTORIES[type_], WIDTH)
    if not plain.is_trained:  # FAISS would learn other codes than signs
        plain.train(unit(ROWS, 1))
    plain.add(unit(ROWS, 1))
    assert index.folder.local("index/index.faiss").read_bytes() == faiss.serialize_index(plain).tobytes()


@pytest.mark.parametrize("factory", ["Flat", "SQ8", "Signs", "IVF16,PQ8x4", "IVF16,Flat", "PCA16,SQ8", "HNSW8", "HNSW32"])
def test_bytes_a_passage_are_what_a_file_grows_by(factory: str) -> None:
    index = made(factory, WIDTH)
    vectors = unit(6000, 3)
    if not index.is_trained:
        index.train(vectors[:1000])
    sizes = []
    for lo in (0, 3000):
        index.add(vectors[lo : lo + 3000])
        sizes.append(len(faiss.serialize_index(index)))
    told = bytes_each(index)
    assert told is not None and told == pytest.approx((sizes[1] - sizes[0]) / 3000, rel=0.02)
    assert bytes_each(made(factory, WIDTH)) == told, "it is known before anything is in it"


def test_bits_need_whole_bytes_and_nothing_to_learn_from() -> None:
    with pytest.raises(InputError, match=r"vectors: binary keeps 8 dimensions in a byte, and 12 is not a multiple of 8"):
        check_index("Signs", width=12, passages=1000)
    check_index("Signs", width=16, passages=3)
    check_index("SQ8", width=12, passages=3)


# -- all sizes ---------------------------------------------------------------------------------------


def all_sizes(store: Store, world: Any, **more: Any) -> Artifact:
    passages, queries, data = world
    asked: dict[str, Any] = {"dims": [32, 16, 12], "also": None, "normalize": True, "metrics": ["nDCG@10", "R@100"], "k": 100}
    made_: Artifact = store.run(
        measure_sizes, passages=passages, queries=queries, data=data, name="queries/test", **{**asked, **more}
    )
    return made_


def test_each_size_is_measured_as_it_would_ship(store: Store, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = all_sizes(store, world)
    rows = {(one["dim"], one["type"]): one for one in found.metrics["sizes"]}
    assert list(rows) == [(d, t) for d in (32, 16) for t in FACTORIES] + [(12, "float32"), (12, "int8")]
    assert {key: one["bytes"] for key, one in rows.items() if key[0] == 16} == {
        (16, "float32"): 64, (16, "int8"): 16, (16, "binary"): 2,
    }  # fmt: skip
    assert all(one["ms"] > 0 for one in rows.values()) and found.metrics["rows"] == ASKED - 1
    values = found.folder.read_table("by_query.parquet")
    for (dim, type_), one in rows.items():
        passages, queries = world[0], world[1]
        if dim < WIDTH:
            passages, queries = (store.run(cut_vectors, vectors=v, dim=dim, normalize=True) for v in (passages, queries))
        index = store.run(build_index, vectors=passages, data=world[2], factory=FACTORIES[type_])
        run = store.run(search_index, index=index, queries=queries, k=100)
        told = store.run(evaluate, run=run, data=world[2], name="queries/test", metrics=["nDCG@10", "R@100"])
        assert one["means"] == pytest.approx(told.metrics["means"], abs=1e-9), (dim, type_)
        own = [row for row in values.to_pylist() if (row["dim"], row["type"]) == (dim, type_)]
        by_query = whole(told)
        assert [row["query_row"] for row in own] == by_query["query_row"].to_pylist() and 7 not in by_query[
            "query_row"
        ].to_pylist()
        assert [row["nDCG@10"] for row in own] == pytest.approx(by_query["nDCG@10"].to_pylist(), abs=1e-9)
    best = {type_: rows[32, type_]["means"]["nDCG@10"] for type_ in FACTORIES}
    assert best["float32"] > 0.15 and best["binary"] < best["float32"]


def test_blocks_of_passages_change_nothing(store: Store, world: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.stage_inputs import with_resources

    whole_ = all_sizes(store, world).metrics["sizes"]
    monkeypatch.setattr(sizing, "BLOCK", 90)
    cut_ = all_sizes(with_resources(store, tmp_path / "other"), world).metrics["sizes"]
    assert [one["means"] for one in cut_] == [one["means"] for one in whole_]


def test_many_queries_are_sampled_evenly(store: Store, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "MOST_QUERIES", 5)
    found = all_sizes(store, world)
    rows = found.folder.read_table("by_query.parquet")["query_row"].to_pylist()[:5]
    assert found.metrics["rows"] == 5 and rows == [0, 8, 15, 22, 29]


def test_the_widths_that_are_measured() -> None:
    assert widths(384, None, None) == [384, 192, 96, 48]
    assert widths(32, None, 12) == [32, 16, 12, 8]
    assert widths(300, None, None) == [300]
    assert widths(384, [384, 96], 48) == [384, 96, 48]
