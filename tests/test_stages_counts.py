"""What stages count: with scores that are known, by shards of a fair size, and after a kill in the middle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raydrd.methods.dark import Dark
from raydrd.methods.filters import Filter
from raydrd.methods.lists import TopAndSampled
from raydrd.methods.neighbours import NeighbourPairs
from raydrd.spine.parts import part_name, ranges
from raydrd.spine.store import Artifact, Store, Work
from raydrd.spine.tables import CANDIDATES, SCORED
from raydrd.stages.assemble import COUNTS, ENTROPIES, Assembler, assemble
from raydrd.stages.combine import Completer, with_positives
from raydrd.stages.dark import Writer, dark_candidates, write_dark
from raydrd.stages.duel import Duellist, PairSampler, sample_pairs, score_duels
from raydrd.stages.score import PairScorer, VectorScorer, queries_per_shard, score_pairs, score_vectors
from raydrd.stages.scorers import CrossEncoderScorer
from raydrd.stages.shards import parts_of, pending
from tests.recipes import rows
from tests.stage_inputs import open_data, put, put_vectors, with_resources
from tests.stage_pools import PASSAGES, QUERIES, judged, opened, pool


@pytest.fixture
def data(store: Store, toy: Path) -> Artifact:
    return open_data(store, toy / "data")


# -- scores that are known ----------------------------------------------------------------------------


@pytest.mark.parametrize("pairs_per_shard", [None, 50])
def test_known_scores_are_taken_and_the_others_made(
    store: Store, toy: Path, data: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs_per_shard: int | None
) -> None:
    with_ = opened(store, toy, data)
    bare = pool(12).drop(["teacher_scores"]).cast(CANDIDATES)
    apart = with_resources(store, tmp_path / "apart", pairs_per_shard=pairs_per_shard)
    anew = apart.run(score_pairs, candidates=put(apart, "wanted", bare), **with_)
    assert (anew.metrics["pairs"], anew.metrics["taken"]) == (QUERIES * 12, 0)
    # Marked values, so that taking one shows: other passages, another order, another number of them.
    here = with_resources(store, tmp_path / "here", pairs_per_shard=pairs_per_shard)
    earlier = pool(20, seed=5).drop(["teacher_scores"]).cast(CANDIDATES)
    with monkeypatch.context() as patch:
        patch.setattr(CrossEncoderScorer, "scores", lambda self, _, docs: (1000 + docs).astype(np.float32))
        here.run(score_pairs, candidates=put(here, "earlier", earlier, 7), **with_)
    again = here.run(score_pairs, candidates=put(here, "wanted", bare), **with_)
    taken = 0
    for one, plain, before in zip(rows(again), rows(anew), earlier["doc_rows"].to_pylist(), strict=True):
        assert one["doc_rows"] == plain["doc_rows"]
        known = np.isin(one["doc_rows"], before)
        found = np.array(one["teacher_scores"])
        assert (found[known] == 1000.0 + np.array(one["doc_rows"])[known]).all()
        np.testing.assert_allclose(found[~known], np.array(plain["teacher_scores"])[~known], atol=1e-5)
        taken += int(known.sum())
    assert 0 < taken == again.metrics["taken"] and again.metrics["pairs"] == QUERIES * 12 - taken


def test_shards_are_sized_by_the_mean_length_of_lists(store: Store) -> None:
    """The first query of a ready-made run, or of dark examples, may have no passage at all."""
    docs = [[], *[[1, 2, 3, 4]] * 9, *[[1]] * 10]
    uneven = pa.table([list(range(20)), docs, [[0.0] * len(one) for one in docs]], schema=CANDIDATES)
    here = with_resources(store, Path(store.root.uri), pairs_per_shard=36)
    work = Work(store.root, store.root, here.cluster, "", "", store.root)
    assert queries_per_shard(work, parts_of(put(store, "uneven", uneven, 10))) == 10  # 36 pairs, 3.6 a query
    assert queries_per_shard(work, parts_of(put(store, "empty", uneven.slice(0, 1)))) == 36


# -- a kill in the middle -----------------------------------------------------------------------------


def whole_inputs(store: Store, toy: Path, data: Artifact) -> dict[str, tuple[type, Any, dict[str, Any], tuple[str, ...]]]:
    """Every stage that counts: its worker, its inputs, and what it counts."""
    bare = pool().drop(["teacher_scores"]).cast(CANDIDATES)
    docs = [[p[0], *[d for d in range(PASSAGES) if d not in p][: 8 + n % 3]] for n, p in enumerate(judged(data))]
    own = [[float(-n) for n in range(len(one))] for one in docs]
    taught = [[6.0, *np.random.default_rng(n).normal(size=len(one) - 1).tolist()] for n, one in enumerate(docs)]
    scored = put(store, "labelled", pa.table([list(range(QUERIES)), docs, own, taught], schema=SCORED))
    dark_rule, pair_rule = Dark(built=4, reinforced=2, noisy=2), NeighbourPairs(top_k=6, window=2, pairs=3)
    dark = store.run(write_dark, scored=scored, data=data, corpus=data, rule=dark_rule)
    written = pa.Table.from_pylist(rows(dark_candidates(dark)), schema=CANDIDATES)
    logits = [np.random.default_rng(n).uniform(0, 8, len(one)).tolist() for n, one in enumerate(written["doc_rows"])]
    dark_scored = put(store, "dark scored", written.append_column(SCORED.field(3), pa.array(logits, SCORED.field(3).type)))
    asked = store.run(sample_pairs, scored=scored, data=data, rule=pair_rule)
    with_ = opened(store, toy, data)
    duels = {"pairs": asked, "kind": "cross_encoder", "prompt": None, "symmetrize": False, **with_}
    compared = store.run(score_duels, **duels)
    vectors = np.random.default_rng(0).normal(size=(QUERIES + PASSAGES, 8)).astype(np.float32)
    lists = {
        "scored": scored, "data": data, "rule": TopAndSampled(negatives=6, pool=8, ranking="student"), "pairs": compared,
        "dark": dark, "dark_scored": dark_scored, "dark_rule": dark_rule,
        "filter": Filter(mode="per_query", margin=5.0, keep=0),
    }  # fmt: skip
    pool_ = put(store, "bare", bare)
    return {
        "with_positives": (Completer, with_positives, {"candidates": pool_, "data": data}, ("added",)),
        "write_dark": (Writer, write_dark, {"scored": scored, "data": data, "corpus": data, "rule": dark_rule}, ("made",)),
        "sample_pairs": (PairSampler, sample_pairs, {"scored": scored, "data": data, "rule": pair_rule}, ("pairs",)),
        "score_duels": (Duellist, score_duels, duels, ("pairs", "against", "inconsistency")),
        "score_pairs": (PairScorer, score_pairs, {"candidates": pool_, **with_}, ("pairs",)),
        "score_vectors": (
            VectorScorer,
            score_vectors,
            {
                "candidates": pool_,
                "queries": put_vectors(store, "queries", vectors[:QUERIES]),
                "passages": put_vectors(store, "passages", vectors[QUERIES:]),
            },
            ("pairs",),
        ),
        "assemble": (Assembler, assemble, lists, (*COUNTS, *ENTROPIES)),
    }


@pytest.mark.parametrize(
    "name", ["with_positives", "write_dark", "sample_pairs", "score_duels", "score_pairs", "score_vectors", "assemble"]
)
def test_counts_after_a_kill_are_those_of_an_undisturbed_run(
    store: Store, toy: Path, data: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    worker, made_by, given, names = whole_inputs(store, toy, data)[name]
    for module in ("assemble", "combine", "duel", "score"):
        path = f"raydrd.stages.{module}.pending"
        monkeypatch.setattr(path, lambda work, rows, size, ending: pending(work, rows, 5, ending))
    monkeypatch.setattr("raydrd.stages.dark.ranges", lambda rows, size: ranges(rows, 5))
    calm = with_resources(store, tmp_path / "calm").run(made_by, **given)
    assert all(calm.metrics[one] > 0 for one in names)
    assert len([file for file in calm.manifest["files"] if file.startswith("shards/counts/")]) == 5

    killed, plain, calls = with_resources(store, tmp_path / "killed"), worker.__call__, 0

    def cut(self: Any, shard: dict[str, Any]) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return dict(plain(self, shard))

    with monkeypatch.context() as patch:
        patch.setattr(worker, "__call__", cut)
        with pytest.raises(KeyboardInterrupt):
            killed.run(made_by, **given)
        calls = 10
        after = killed.run(made_by, **given)
    assert calls == 13, "what was finished is not made again"
    told = [{key: one.metrics[key] for key in ("rows", "unit", *names)} for one in (after, calm)]
    assert told[0] == told[1]
    assert {file for file in after.manifest["files"] if file.startswith("shards/")} == {
        file for file in calm.manifest["files"] if file.startswith("shards/")
    }


def test_shards_without_counts_are_left_out_and_told(
    store: Store, data: Artifact, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A version that kept no counts began them."""
    found = put(store, "bare", pool().drop(["teacher_scores"]).cast(CANDIDATES))
    monkeypatch.setattr("raydrd.stages.combine.pending", lambda work, rows, size, ending: pending(work, rows, 12, ending))
    whole = store.run(with_positives, candidates=found, data=data)
    first = whole.shards.read_json(f"counts/{part_name(0, 12, 'parquet')}.json")["added"]
    whole.shards.delete_file(f"counts/{part_name(0, 12, 'parquet')}.json")
    whole.home.delete_file("manifest.json")
    again = Store(store.root, store.cluster).run(with_positives, candidates=found, data=data)
    assert 0 < again.metrics["added"] == whole.metrics["added"] - first
    assert "1 of 2 shards were begun by an earlier version that kept no counts" in "".join(capsys.readouterr())
