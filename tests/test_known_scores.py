"""No pair is put to the same teacher twice, whatever asked for it first; counted by the teacher itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raydrd.config import Resources
from raydrd.models.prompts import prompt_of
from raydrd.spine.cluster import Cluster
from raydrd.spine.scorebook import Book
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Store
from raydrd.spine.tables import CANDIDATES, PAIRS
from raydrd.stages import known, score
from raydrd.stages.known import PLACES, Asked, places_of
from raydrd.stages.score import score_pairs
from raydrd.stages.scorers import CrossEncoderScorer
from tests.recipes import rows
from tests.stage_inputs import open_data, put
from tests.stage_pools import QUERIES, duel, opened, pool


@pytest.fixture
def data(store: Store, toy: Path) -> Artifact:
    return open_data(store, toy / "data")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Every (query, passage ..) row that a cross-encoder was asked for, in order."""
    asked: list[tuple[int, ...]] = []
    plain = CrossEncoderScorer.scores

    def counting(self: CrossEncoderScorer, query_rows: Any, *doc_rows: Any) -> Any:
        asked.extend(zip(query_rows.tolist(), *(d.tolist() for d in doc_rows), strict=True))
        return plain(self, query_rows, *doc_rows)

    monkeypatch.setattr(CrossEncoderScorer, "scores", counting)
    return asked


def candidates(depth: int, seed: int = 0) -> pa.Table:
    return pool(depth, seed=seed).drop(["teacher_scores"]).cast(CANDIDATES)


def other_run(store: Store) -> Store:
    """A later run in the same store."""
    return Store(store.root, store.cluster)


def scores_of(made: Artifact) -> dict[tuple[int, int], float]:
    return {
        (one["query_row"], doc): value
        for one in rows(made)
        for doc, value in zip(one["doc_rows"], one["teacher_scores"], strict=True)
    }


def test_places_of_pairs() -> None:
    assert places_of(np.array([2, 0, 3]), 5).tolist() == [5 * PLACES, 5 * PLACES + 1, *(7 * PLACES + n for n in range(3))]
    assert places_of(np.array([], dtype=np.int64), 5).tolist() == []


@pytest.mark.parametrize("cut", [QUERIES, 3])
def test_deeper_candidates_cost_only_what_is_new(
    store: Store, toy: Path, data: Artifact, calls: list[Any], monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    if cut < QUERIES:  # many lookups, and candidates in several parts
        monkeypatch.setattr(known, "PAIRS_PER_LOOKUP", 5)
    with_ = opened(store, toy, data)
    half = store.run(score_pairs, candidates=put(store, "half", candidates(10), cut), **with_)
    assert len(calls) == QUERIES * 10 == half.metrics["pairs"] and half.metrics["taken"] == 0
    deeper = other_run(store).run(score_pairs, candidates=put(store, "deeper", candidates(20), cut), **with_)
    assert len(calls) == QUERIES * 20 == len(set(calls))
    assert (deeper.metrics["pairs"], deeper.metrics["taken"]) == (QUERIES * 10, QUERIES * 10)
    before, after = scores_of(half), scores_of(deeper)
    assert {pair: after[pair] for pair in before} == before  # to the last bit
    fresh = Store(Folder.of(Path(store.root.uri).parent / "fresh"), store.cluster)
    alone = scores_of(fresh.run(score_pairs, candidates=put(store, "deeper", candidates(20), cut), **with_))
    assert alone.keys() == after.keys()
    np.testing.assert_allclose([alone[pair] for pair in after], list(after.values()), atol=1e-5)


def test_what_decides_a_score_decides_its_book(store: Store, toy: Path, data: Artifact, calls: list[Any]) -> None:
    with_, asked = opened(store, toy, data), put(store, "asked", candidates(5))
    store.run(score_pairs, candidates=asked, **with_)
    for other in ({"max_length": 32}, {"precision": "bf16"}, {**opened(store, toy, data, "teacher")}):
        count = len(calls)
        made = other_run(store).run(score_pairs, candidates=asked, **{**with_, **other})
        assert len(calls) - count == QUERIES * 5 and made.metrics["taken"] == 0
    books = [Book(store.root / "scores" / name) for name in (store.root / "scores").folders()]
    assert len(books) == 4 and {book.rows() for book in books} == {QUERIES * 5}
    assert {book.about()["kind"] for book in books} == {"cross_encoder"}
    assert score.about_scores("prompted", prompt_of("monot5"), 64, "fp32") != score.about_scores("prompted", None, 64, "fp32")


def test_the_same_text_under_another_id_is_known(
    store: Store, toy: Path, data: Artifact, tmp_path: Path, calls: list[Any]
) -> None:
    """A collection whose files were put in another order: rows and ids differ, the texts do not."""
    with_ = opened(store, toy, data)
    first = store.run(score_pairs, candidates=put(store, "asked", candidates(8)), **with_)
    count = len(calls)
    shutil.copytree(toy / "data", tmp_path / "turned")
    lines = (tmp_path / "turned" / "corpus.jsonl").read_text().splitlines()
    (tmp_path / "turned" / "corpus.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    turned = open_data(store, tmp_path / "turned")
    last = len(lines) - 1
    table = candidates(8).to_pylist()
    for one in table:
        one["doc_rows"] = [last - doc for doc in one["doc_rows"]]
    again = other_run(store).run(
        score_pairs,
        candidates=put(store, "turned", pa.Table.from_pylist(table, schema=CANDIDATES)),
        **opened(store, toy, turned),
    )
    assert len(calls) == count and again.metrics["taken"] == QUERIES * 8
    assert {(q, last - doc): s for (q, doc), s in scores_of(again).items()} == scores_of(first)


def test_pairs_compared_before_are_not_compared_again(store: Store, toy: Path, data: Artifact, calls: list[Any]) -> None:
    with_ = opened(store, toy, data)
    pairs = pa.table([list(range(QUERIES)), [[1, 2, 3]] * QUERIES, [[4, 5, 6]] * QUERIES, [[]] * QUERIES], schema=PAIRS)
    once = duel(store, put(store, "pairs", pairs, pairs=QUERIES * 3), with_)
    eighth = len(range(0, QUERIES, 8)) * 3  # whose other order is asked too
    assert len(calls) == QUERIES * 3 + eighth == once.metrics["asked"]
    both = duel(other_run(store), put(store, "pairs", pairs, pairs=QUERIES * 3), with_, symmetrize=True)
    assert len(calls) == QUERIES * 6 == len(set(calls)) and both.metrics["asked"] == QUERIES * 3 - eighth
    # Turned round: a pair's other order has been asked already.
    turned = pa.table([pairs["query_row"], pairs["right"], pairs["left"], pairs["probabilities"]], schema=PAIRS)
    back = duel(other_run(store), put(store, "turned", turned, pairs=QUERIES * 3), with_, symmetrize=True)
    assert len(calls) == QUERIES * 6 and back.metrics["asked"] == 0
    p, q = (np.array([one["probabilities"] for one in rows(made)]) for made in (both, back))
    np.testing.assert_allclose(p, 1 - q, atol=1e-7)
    assert np.ptp(p) > 0.01


def test_both_orders_are_known_to_every_shard(
    store: Store, toy: Path, data: Artifact, tmp_path: Path, calls: list[Any]
) -> None:
    with_ = opened(store, toy, data)
    pairs = put(
        store,
        "pairs",
        pa.table([list(range(QUERIES)), [[1, 2]] * QUERIES, [[4, 5]] * QUERIES, [[]] * QUERIES], schema=PAIRS),
        pairs=QUERIES * 2,
    )
    duel(store, pairs, with_, symmetrize=True)
    count = len(calls)
    assert count == QUERIES * 4
    small = Cluster(Resources(ray="off", pairs_per_shard=14, train_workers=0))
    shutil.rmtree(Path(store.root.uri) / "score_duels")
    again = duel(Store(store.root, small), pairs, with_, symmetrize=True)
    assert len(calls) == count and again.metrics["asked"] == 0


def test_a_killed_stage_leaves_its_scores_to_others_and_goes_on_as_it_began(
    store: Store, toy: Path, data: Artifact, tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_, asked = opened(store, toy, data), put(store, "asked", candidates(10))
    small = Cluster(Resources(ray="off", pairs_per_shard=50, train_workers=0))
    calm = Store(Folder.of(tmp_path / "calm"), small).run(score_pairs, candidates=asked, **with_)
    calls.clear()
    plain, left = Folder.write_table, 2

    def dies(self: Folder, name: str, table: pa.Table) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        plain(self, name, table)

    hit = Store(Folder.of(tmp_path / "hit"), small)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write_table", dies)
        with pytest.raises(KeyboardInterrupt):
            hit.run(score_pairs, candidates=asked, **with_)
    assert len(calls) == 150  # two shards finished, one in flight whose scores are in the book already
    # Another run asks for other candidates: all that was computed is known to it.
    others = other_run(hit).run(score_pairs, candidates=put(store, "less", candidates(10).slice(0, 15)), **with_)
    assert len(calls) == 150 and others.metrics["taken"] == 150
    # The killed one goes on with the batches it had planned, so its scores are those of an undisturbed run, bit by bit.
    again = hit.run(score_pairs, candidates=asked, **with_)
    assert scores_of(again) == scores_of(calm) and again.metrics["pairs"] == QUERIES * 10
    assert len(calls) == QUERIES * 10 + 50  # only the shard in flight was computed twice
    counts = [json.loads(file.read_text()) for file in Path(again.shards.uri).glob("counts/*.json")]
    assert sum(one["pairs"] for one in counts) == QUERIES * 10


@pytest.mark.ray
def test_lookups_and_scores_on_ray(
    ray_store: Store, store: Store, toy: Path, data: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same work on actors: keys never pass through the driver, and the book is shared."""
    monkeypatch.setattr(known, "PAIRS_PER_LOOKUP", 200)
    monkeypatch.setattr(known, "FEW_PAIRS", 0)
    with_ = opened(store, toy, data)
    here = Store(ray_store.root, ray_store.cluster)
    monkeypatch.setattr(Cluster, "_inline", lambda *_: pytest.fail("in this process"))
    wide = [put(store, name, pa.concat_tables([candidates(d)] * 2)) for name, d in (("half", 10), ("deeper", 20))]
    first = here.run(score_pairs, candidates=wide[0], **with_)
    assert first.metrics["pairs"] == QUERIES * 20  # twice the same pair within a stage is asked twice
    second = other_run(here).run(score_pairs, candidates=wide[1], **with_)
    assert (second.metrics["pairs"], second.metrics["taken"]) == (QUERIES * 20, QUERIES * 20)
    after, before = scores_of(second), scores_of(first)
    # Each was computed twice, in two batches: which of the two counts is open, so the last bits are.
    assert {pair: after[pair] for pair in before} == pytest.approx(before, abs=1e-6)


@pytest.mark.parametrize("collide", [False, True])
def test_matches_are_those_of_a_dictionary(monkeypatch: pytest.MonkeyPatch, collide: bool) -> None:
    if collide:  # every key has one of three hashes
        monkeypatch.setattr(known, "_hash", lambda keys: keys[:, 0] % np.uint64(3))
    draw = np.random.default_rng(0)
    kept, wanted = (draw.integers(0, 3, (n, 6)).astype(np.uint64) for n in (300, 500))
    first: dict[bytes, int] = {}
    for row, key in enumerate(kept):
        first.setdefault(key.tobytes(), row)
    expected = [first.get(key.tobytes(), -1) for key in wanted]
    assert -1 in expected and len(first) < len(kept)
    assert known.matches(wanted, kept).tolist() == expected
    assert known.matches(wanted, kept[:0]).tolist() == [-1] * 500 and known.matches(wanted[:0], kept).tolist() == []


def test_known_scores_are_found_by_place(tmp_path: Path) -> None:
    folder = Folder.of(tmp_path)
    folder.write_arrow("a.arrow", pa.table([[1, 5, PLACES + 2], np.array([1.0, 5.0, 9.0], np.float32)], schema=known.FOUND))
    folder.write_arrow("b.arrow", pa.table([[3, 4], np.array([3.0, 4.0], np.float32)], schema=known.FOUND))
    found = known.KnownScores(known.Known(folder, ("a.arrow", "b.arrow")))

    def of(*places: int) -> list[float]:
        rows_ = np.zeros(len(places), dtype=np.int64)
        return [None if np.isnan(x) else float(x) for x in found.of(Asked(rows_, (rows_,), np.array(places, dtype=np.int64)))]

    assert of(1, 2, 3) == [1.0, None, 3.0]
    assert of(2, 5) == [None, 5.0]  # what lies between them is not theirs
    assert of(PLACES, PLACES + 2, PLACES + 3) == [None, 9.0, None]
    assert of() == [] and of(0) == [None]
