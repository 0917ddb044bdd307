"""The FAISS index: filled in parallel or whole, the same to the byte; read without being loaded; measured against exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pytest

import raydrd.stages.index as building
from raydrd.errors import InputError, StageError
from raydrd.spine.parts import Part, Parts, part_name
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Store, Work, stage
from raydrd.spine.tables import CORPUS
from raydrd.stages.index import Gpu, add_assigned, build_index
from raydrd.stages.indexfile import check_index, fewest, ids_at, kind_of, made, opened, settings_of, write_lists
from raydrd.stages.recall import about_index, measure_index, recall
from raydrd.stages.search import search
from tests.test_search_spread import WIDTH, put

ROWS = 3000
MERGED = ["IVF16,Flat", "IVF16,PQ6x4", "IVF16_HNSW8,SQ8", "PCA12,IVF16,PQ6x4", "SQ8", "PQ6x4", "PCA12,PQ6x4"]


def matrix() -> np.ndarray:
    """Clustered vectors, as those of texts are; float16 as they are stored."""
    rng = np.random.default_rng(3)
    return (3 * rng.standard_normal((40, WIDTH))[rng.integers(0, 40, ROWS)] + rng.standard_normal((ROWS, WIDTH))).astype("f2")


def collection(store: Store) -> Artifact:
    """Passages in parts of another size than their vectors'."""

    @stage(version=1)
    def loaded(work: Work) -> dict[str, Any]:
        for lo in range(0, ROWS, 700):
            ids = [f"d{row}" for row in range(lo, min(lo + 700, ROWS))]
            table = pa.table(dict.fromkeys(CORPUS.names, ids), schema=CORPUS)
            work.shards.write_table(f"corpus/{part_name(lo, lo + len(ids), 'parquet')}", table)
        return {"rows": ROWS, "unit": "passages"}

    return store.run(loaded)


@pytest.fixture
def vectors(store: Store) -> Artifact:
    return put(store, "p", matrix(), rows=250)


def parts(artifact: Artifact) -> Parts:
    from raydrd.stages.shards import parts_of

    return parts_of(artifact)


def serial(factory: str, vectors: Artifact) -> bytes:
    """What one process makes with plain FAISS: trained, then all vectors, part by part."""
    index = made(factory, WIDTH)
    whole = matrix().astype("f4")
    index.train(whole)
    for lo in range(0, ROWS, 250):
        index.add(whole[lo : lo + 250])
    return bytes(faiss.serialize_index(index).tobytes())


def file_of(index: Artifact) -> Path:
    return index.folder.local("index/index.faiss")


@pytest.mark.parametrize("factory", MERGED)
def test_filled_by_many_is_to_the_byte_what_one_fills(
    store: Store, vectors: Artifact, factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "FILL_ROWS", 800)
    filled: list[tuple[int, int]] = []
    fill = building.Filler.__call__
    monkeypatch.setattr(
        building.Filler, "__call__", lambda self, shard: (filled.append((shard["lo"], shard["hi"])), fill(self, shard))[1]
    )
    index = store.run(build_index, vectors=vectors, data=collection(store), factory=factory)
    assert filled == [(0, 750), (750, 1500), (1500, 2250), (2250, 3000)]
    assert file_of(index).read_bytes() == serial(factory, vectors)
    assert index.metrics["size_mb"] == file_of(index).stat().st_size / 1e6
    assert [name for name in index.manifest["files"] if "scratch" in name] == []


@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF16,PQ6x4fs", "IVF16,SQ8,RFlat"])
def test_what_is_not_merged_is_what_faiss_writes(
    store: Store, vectors: Artifact, factory: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(building, "FILL_ROWS", 800)
    monkeypatch.setattr(building, "Filler", None)
    index = store.run(build_index, vectors=vectors, data=collection(store), factory=factory)
    assert file_of(index).read_bytes() == serial(factory, vectors)
    said = f"build_index: FAISS cannot merge parts of {factory}, so one worker holds all of it while it is filled"
    assert (said in capsys.readouterr().out) == (factory != "Flat")


def test_lists_without_vectors_are_read_back(store: Store, vectors: Artifact, tmp_path: Path) -> None:
    empty = made("IVF16,Flat", WIDTH)
    empty.train(matrix().astype("f4"))
    shard = faiss.clone_index(empty)
    shard.add_with_ids(matrix()[:3].astype("f4"), np.arange(3))
    write_lists(Folder.of(tmp_path), "few.faiss", empty, [shard])
    found = opened(tmp_path / "few.faiss", rows=3)
    found.nprobe = 16
    assert sorted(found.search(matrix()[:1].astype("f4"), 3)[1][0].tolist()) == [0, 1, 2]
    with pytest.raises(StageError, match="FAISS reads 3 vectors of the 4"):
        opened(tmp_path / "few.faiss", rows=4)


def test_another_faiss_format_is_not_guessed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = made("IVF16,Flat", WIDTH)
    empty.train(matrix().astype("f4"))
    serialize = faiss.serialize_index
    monkeypatch.setattr(faiss, "serialize_index", lambda index: np.append(serialize(index), np.zeros(4, np.uint8)))
    with pytest.raises(StageError, match="writes inverted files in another way"):
        write_lists(Folder.of(tmp_path), "x.faiss", empty, [empty])
    assert not list(tmp_path.iterdir())


def test_a_killed_build_keeps_what_was_trained_and_filled(
    store: Store, vectors: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "FILL_ROWS", 800)
    data, done = collection(store), []
    fill, train = building.fill, building.train

    def dying(index: Any, vectors: Parts, lo: int, hi: int, gpu: Gpu) -> None:
        if lo == 1500:
            raise OSError("no space left")
        done.append(lo)
        fill(index, vectors, lo, hi, gpu)

    monkeypatch.setattr(building, "fill", dying)
    with pytest.raises(StageError, match="no space left"):
        store.run(build_index, vectors=vectors, data=data, factory="IVF16,SQ8")
    assert done == [0, 750, 2250]

    def counted(index: Any, vectors: Parts, lo: int, hi: int, gpu: Gpu) -> None:
        done.append(lo)
        fill(index, vectors, lo, hi, gpu)

    def never(*_: Any) -> None:
        raise AssertionError("it is trained already")

    monkeypatch.setattr(building, "fill", counted)
    monkeypatch.setattr(building, "train", never)
    index = store.run(build_index, vectors=vectors, data=data, factory="IVF16,SQ8")
    assert done == [0, 750, 2250, 1500]
    monkeypatch.setattr(building, "train", train)
    assert file_of(index).read_bytes() == serial("IVF16,SQ8", vectors)


@pytest.mark.parametrize("factory", ["IVF16,PQ6x4", "PCA12,IVF16,PQ6x4"])
def test_lists_chosen_by_a_copy_of_the_centroids_are_the_same(vectors: Artifact, factory: str) -> None:
    # What a GPU does, with a copy on the CPU.
    index = made(factory, WIDTH)
    index.train(matrix().astype("f4"))
    other = faiss.clone_index(index)
    building.fill(index, parts(vectors), 100, 900, Gpu())
    coarse = faiss.clone_index(faiss.downcast_index(faiss.extract_index_ivf(other).quantizer))
    add_assigned(other, parts(vectors), 100, 900, coarse)
    assert other.ntotal == 800
    assert faiss.serialize_index(other).tobytes() == faiss.serialize_index(index).tobytes()


def test_vectors_are_trained_on_a_sample(vectors: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    found = building.sample(parts(vectors), 500)
    assert found.shape == (500, WIDTH) and found.dtype == np.float32
    places = {row.tobytes(): n for n, row in enumerate(matrix().astype("f4"))}
    rows = [places[row.tobytes()] for row in found]
    assert rows == sorted(set(rows)) and rows[0] < 100 and rows[-1] > ROWS - 100
    assert np.array_equal(building.sample(parts(vectors), ROWS), matrix().astype("f4"))


def test_ids_are_read_by_row_and_only_where_they_lie(store: Store, vectors: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    index = store.run(build_index, vectors=vectors, data=collection(store), factory="Flat")
    home = index.folder / "index"
    assert home.read_table("ids.parquet")["doc_id"].to_pylist() == [f"d{row}" for row in range(ROWS)]
    import pyarrow.parquet as pq

    groups: list[int] = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, n, *a, **k: (groups.append(n), read(self, n, *a, **k))[1]
    )
    assert ids_at(home, np.array([2999, 5, 701, 5])) == ["d2999", "d5", "d701", "d5"]
    assert groups == [0, 1, 4]


def private_bytes() -> int:
    """Memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks the Linux kernel")
@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat"])
def test_an_index_is_opened_and_asked_without_being_loaded(tmp_path: Path, factory: str) -> None:
    index = made(factory, 256)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60_000, 256), dtype=np.float32)  # 61 MB
    index.train(x[:2000])
    index.add(x)
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    expected = index.search(x[:2], 3)[1].tolist()
    del index
    before = private_bytes()
    read = opened(tmp_path / "index.faiss")
    assert read.search(x[:2], 3)[1].tolist() == expected
    assert private_bytes() - before < 15e6


# -- what cannot be built ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "width", "passages", "message"),
    [
        ("Flatt", 32, 1000, "index: FAISS cannot make 'Flatt' for width 32: .*; write Flat, HNSW32, or"),
        (
            "IVF16,PQ5",
            32,
            1000,
            "index: FAISS cannot make 'IVF16,PQ5' for width 32: The dimension of the vector .* should be a multiple",
        ),
        ("", 32, 1000, "index: FAISS cannot make '' for width 32"),
        ("LSH", 32, 1000, "index: FAISS cannot make 'LSH' for width 32: metric == METRIC_L2"),
        ("IDMap,Flat", 32, 1000, "index: 'IDMap,Flat' maps ids, which are passage rows here; leave out IDMap"),
        ("IVF2000,Flat", 32, 1000, "index: 'IVF2000,Flat' learns 2,000 lists from at least 2,000 vectors, .* 1,000 passages"),
        ("PQ8", 32, 100, "index: 'PQ8' learns 256 codes from at least 256 vectors"),
        ("OPQ8,IVF4,PQ8", 32, 100, "learns 256 codes from at least 256 vectors"),
    ],
)
def test_a_wrong_factory_is_refused_in_one_line(factory: str, width: int, passages: int, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        check_index(factory, width=width, passages=passages)
    assert "\n" not in str(refused.value)


def test_good_factories_pass() -> None:
    for factory in ("Flat", "HNSW32", "IVF256,PQ48", "IVF1024_HNSW32,SQ8", "OPQ48,IVF256,PQ48", "SQ8", "PQ48x4fs"):
        check_index(factory, width=384, passages=2000)
    assert fewest(made("Flat", 8))[0] == fewest(made("HNSW8", 8))[0] == 0


def test_a_wrong_factory_ends_a_run_before_any_model_runs(toy: Path, toy_config: dict[str, Any], tmp_path: Path) -> None:
    from raydrd.session import run
    from tests.conftest import write_config

    config = write_config(tmp_path / "wrong.yaml", toy_config)
    with pytest.raises(InputError, match=r"index: 'IVF64,Flat' learns 64 lists from at least 64 vectors, .* 60 passages"):
        run(config, ["index=IVF64,Flat"], out=str(tmp_path / "run"), store=str(tmp_path / "store"))
    assert not {path.parent.parent.name for path in (tmp_path / "store").rglob("manifest.json")} - {"load", "adopt"}


# -- recall --------------------------------------------------------------------------------------------------


def test_recall_is_the_share_of_exact_passages_that_are_found() -> None:
    found = np.array([[1, 2, 3, 4], [5, -1, -1, -1]])
    exact = [[1, 9, 2, 3], [7, 8, 5]]
    assert recall(found, exact, 2) == pytest.approx((1 / 2 + 0) / 2)
    assert recall(found, exact, 4) == pytest.approx((3 / 4 + 1 / 3) / 2)


def measured(store: Store, vectors: Artifact, factory: str, k: int = 100) -> tuple[Artifact, Artifact]:
    queries = put(store, "q", matrix()[::40] + np.float16(0.25), rows=30)
    run = store.run(search, queries=queries, passages=vectors, k=k)
    index = store.run(build_index, vectors=vectors, data=collection(store), factory=factory)
    return index, store.run(measure_index, index=index, queries=queries, passages=vectors, run=run)


def test_recall_of_an_index_is_what_plain_faiss_says(store: Store, vectors: Artifact) -> None:
    index, found = measured(store, vectors, "IVF64,PQ6x4")
    plain = faiss.read_index(str(file_of(index)))
    assert plain.nprobe == 2
    whole = matrix().astype("f4")
    asked = (matrix()[::40] + np.float16(0.25)).astype("f4")
    exact = np.argsort(-(asked @ whole.T), axis=1, kind="stable")
    for cutoff in (10, 100):
        mine = plain.search(asked, 100)[1][:, :cutoff]
        expected = np.mean([len(set(a) & set(b)) / cutoff for a, b in zip(mine, exact[:, :cutoff], strict=True)])
        assert found.metrics[f"recall@{cutoff}"] == pytest.approx(expected, abs=2e-3) and 0.05 < expected < 0.95
    told = about_index(index, found)
    assert told["nprobe"] == 2 and told["queries"] == 75 and not told["exact"]
    assert found.metrics["per_second"] > 0 and found.metrics["exact_per_second"] > 0


def test_an_exhaustive_index_finds_everything_and_threads_come_back(store: Store, vectors: Artifact) -> None:
    import torch

    before = (faiss.omp_get_max_threads(), torch.get_num_threads())
    _, found = measured(store, vectors, "IVF16,Flat,RFlat", k=20)
    assert "recall@100" not in found.metrics and 0 < found.metrics["recall@10"] <= 1
    _, graph = measured(store, vectors, "HNSW32")
    assert graph.metrics["recall@10"] > 0.9 and graph.metrics["efSearch"] == 16
    assert (faiss.omp_get_max_threads(), torch.get_num_threads()) == before


def test_a_run_tells_how_good_its_index_is(
    toy: Path, toy_config: dict[str, Any], toy_run: dict[str, Any], tmp_path: Path
) -> None:
    from raydrd.measure import search_run
    from raydrd.report.table import final_table
    from raydrd.session import run
    from tests.conftest import write_config

    flat = json.loads((toy_run["folder"] / "index" / "meta.json").read_text())
    assert flat["exact"] is True and flat["factory"] == "Flat" and "index Flat, 0.0 MB: exact" in final_table(toy_run)

    config = write_config(tmp_path / "ivf.yaml", toy_config)
    report = run(config, ["index=IVF8,Flat"], out=str(tmp_path / "run"), store=str(toy_run["store"]))
    meta = json.loads((tmp_path / "run" / "index" / "meta.json").read_text())
    assert meta["nprobe"] == 1 and meta["nlist"] == 8 and 0 < meta["recall@10"] < 1 and meta["queries"] == 12
    said = f"index IVF8,Flat, 0.0 MB: recall@10 {meta['recall@10']:.3f} of exact search (nprobe 1); "
    assert said in final_table(report) and "queries/s, exact search" in final_table(report)
    assert said[1:] in (tmp_path / "run" / "report.html").read_text()
    found = search_run(str(tmp_path / "run"), "ocean", k=3)
    assert len(found) == 3 and all(one["doc_id"].startswith("d") and one["text"] for one in found)
    same = search_run(str(toy_run["folder"]), "ocean", k=3)
    assert [one["score"] for one in same] == sorted((one["score"] for one in same), reverse=True)


# -- kinds ---------------------------------------------------------------------------------------------------


def test_kinds_and_settings() -> None:
    kinds = {
        "Flat": "flat", "IVF4,Flat": "lists", "OPQ8,IVF4,PQ8": "lists", "SQ8": "codes", "PCA16,Flat": "codes",
        "HNSW8": "whole", "IVF4,PQ8x4fs": "whole", "IVF4,Flat,RFlat": "whole", "NSG8": "whole", "PQ8x4fs": "whole",
    }  # fmt: skip
    assert {factory: kind_of(made(factory, 32)) for factory in kinds} == kinds
    assert settings_of(made("OPQ8,IVF128,PQ8", 32)) == {"nprobe": 4, "nlist": 128}
    assert settings_of(made("HNSW8", 32)) == {"efSearch": 16} and settings_of(made("Flat", 32)) == {}


def test_vectors_of_a_part_are_let_go(vectors: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    seen: list[Any] = []
    read = Parts.read

    def watched(self: Parts, part: Part, columns: list[str] | None = None) -> pa.Table:
        found = read(self, part, columns)
        seen.append(weakref.ref(found))
        return found

    monkeypatch.setattr(Parts, "read", watched)
    for _ in building.blocks(parts(vectors), 0, ROWS):
        assert sum(one() is not None for one in seen) <= 1
    assert len(seen) == 12
