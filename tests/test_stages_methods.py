"""The stages of the papers' methods give what the plain way of doing it gives, however the work was cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from transformers import AutoModelForSequenceClassification

from raydrd.errors import InputError
from raydrd.methods.dark import MASK, Dark, rebuild
from raydrd.methods.filters import Filter
from raydrd.methods.lists import Confusing, TopAndSampled
from raydrd.methods.neighbours import NeighbourPairs
from raydrd.models.batching import SpecialTokens
from raydrd.models.layout import folder_digest
from raydrd.spine.parts import Parts, part_name, ranges
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Located, Store, Work, canonical
from raydrd.spine.tables import CANDIDATES, PAIRS, SCORED
from raydrd.stages.assemble import COUNTS, ENTROPIES, Assembler, anchor, assemble
from raydrd.stages.combine import NOT_FOUND, Completer, blend, learn_threshold, with_positives
from raydrd.stages.dark import Writer, dark_candidates, write_dark
from raydrd.stages.duel import Duellist, PairSampler, sample_pairs, score_duels
from raydrd.stages.load import table
from raydrd.stages.score import PairScorer, VectorScorer, import_teacher, queries_per_shard, score_pairs, score_vectors
from raydrd.stages.shards import parts_of, pending
from raydrd.stages.tokenize import tokenize
from tests.recipes import inputs, rows, table_rows
from tests.test_stages import open_data, put, put_vectors, with_resources
from tests.worlds import tiny_tokenizer

QUERIES, PASSAGES = 24, 60


@pytest.fixture
def data(store: Store, toy: Path) -> Artifact:
    return open_data(store, toy / "data")


def pool(depth: int = 12, *, queries: int = QUERIES, seed: int = 0) -> pa.Table:
    """Candidates drawn at random, by descending score, with teacher scores that say something else."""
    rng = np.random.default_rng(seed)
    docs = [rng.permutation(PASSAGES)[:depth].tolist() for _ in range(queries)]
    own = [np.sort(rng.normal(size=depth))[::-1].astype(np.float32).tolist() for _ in range(queries)]
    teacher = [rng.normal(size=depth).astype(np.float32).tolist() for _ in range(queries)]
    return pa.table([list(range(queries)), docs, own, teacher], schema=SCORED)


def judged(data: Artifact) -> list[list[int]]:
    return [row["doc_rows"] for row in table_rows(data, "queries/train")]


# -- labelled positives join ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [24, 5])
def test_missing_positives_join_at_the_end(store: Store, data: Artifact, size: int) -> None:
    found = pool().drop(["teacher_scores"]).cast(CANDIDATES)
    made = store.run(with_positives, candidates=put(store, "pool", found, size), data=data)
    before, after, added = found.to_pylist(), rows(made), 0
    for one, other, positives in zip(before, after, judged(data), strict=True):
        missing = [doc for doc in positives if doc not in one["doc_rows"]]
        assert other["doc_rows"] == one["doc_rows"] + missing
        assert other["scores"] == one["scores"] + [NOT_FOUND] * len(missing)
        added += len(missing)
    assert 0 < added == made.metrics["added"]


# -- dark examples --------------------------------------------------------------------------------


def test_dark_texts_are_the_same_however_the_work_is_cut(store: Store, data: Artifact, tmp_path: Path) -> None:
    rule, scored = Dark(built=5, reinforced=3, noisy=3), pool()
    whole = store.run(write_dark, scored=put(store, "scored", scored), data=data, corpus=data, rule=rule)
    texts, listed = table_rows(whole, "corpus"), table_rows(whole, "dark")
    assert (len(texts), len(listed)) == (QUERIES * 10, QUERIES)
    assert whole.metrics["made"] == sum(len(one["doc_rows"]) for one in listed) == sum(bool(t["doc_id"]) for t in texts) > 200
    # Candidates in other parts, and blocks of other sizes in another order, as several workers would do them.
    cut = store.run(write_dark, scored=put(store, "scored", scored, 7), data=data, corpus=data, rule=rule)
    assert (table_rows(cut, "corpus"), table_rows(cut, "dark")) == (texts, listed) and cut.id != whole.id
    out = Folder.of(tmp_path / "blocks")
    writer = Writer(
        scored=parts_of(put(store, "scored", scored)), queries=table(data, "queries/train"), corpus=table(data, "corpus"),
        out=out, rule=rule,
    )  # fmt: skip
    for lo, hi in reversed(ranges(QUERIES, 5)):
        writer({"name": part_name(lo, hi, "parquet"), "lo": lo, "hi": hi, "rows": hi - lo})
    for name, expected in (("corpus", texts), ("dark", listed)):
        blocks = Parts.of(out / name, list((out / name).files()))
        assert blocks.slice(0, blocks.rows).to_pylist() == expected
    other = store.run(
        write_dark, scored=put(store, "scored", scored), data=data, corpus=data, rule=rule.model_copy(update={"seed": 1})
    )
    assert table_rows(other, "corpus") != texts


def test_dark_texts_can_be_built_again_from_their_recipes(store: Store, data: Artifact) -> None:
    scored, rule = pool(), Dark(built=5, reinforced=3, noisy=3)
    written = store.run(write_dark, scored=put(store, "scored", scored), data=data, corpus=data, rule=rule)
    corpus = [row["text"] for row in table_rows(data, "corpus")]
    texts, queries = table_rows(written, "corpus"), table_rows(data, "queries/train")
    masked = 0
    for one, candidates, query in zip(table_rows(written, "dark"), scored.to_pylist(), queries, strict=True):
        positives = query["doc_rows"]
        negatives = [corpus[doc] for doc in candidates["doc_rows"] if doc not in positives]
        for doc, kind, recipe in zip(one["doc_rows"], one["kinds"], map(json.loads, one["recipes"]), strict=True):
            found = texts[doc - PASSAGES]
            assert found["text"] == rebuild(recipe, positive=corpus[positives[0]], negatives=negatives)
            assert found["doc_id"].startswith(f"dark:{query['query_id']}:{kind}:")
            if kind == "reinforced":  # as long as the negative it was made of, so that length says nothing
                assert len(found["text"].split()) == len(negatives[recipe["negative"]].split())
            masked += MASK in found["text"]
    assert masked > 50
    seen = dark_candidates(written)
    assert rows(seen) == [{name: one[name] for name in CANDIDATES.names} for one in table_rows(written, "dark")]
    assert seen.id == written.id and canonical(seen) == canonical(written)  # no other artifact, and not of another identity


# -- several teachers as one ----------------------------------------------------------------------


def scored_as(table_: pa.Table, scores: list[list[float]]) -> pa.Table:
    return table_.set_column(3, SCORED.field(3), pa.array(scores, SCORED.field(3).type))


@pytest.mark.parametrize("size", [24, 7])
def test_blended_scores(store: Store, size: int) -> None:
    base = pool()
    own = [base["teacher_scores"].to_pylist(), pool(seed=1)["teacher_scores"].to_pylist(), [[3.0] * 12] * QUERIES]
    members = [put(store, f"member {n}", scored_as(base, scores), size) for n, scores in enumerate(own)]
    for one, *each in zip(rows(store.run(blend, members=members)), *own, strict=True):
        raw = np.array(each[:2])  # a member that says the same of all passages adds nothing
        expected = ((raw - raw.mean(1, keepdims=True)) / raw.std(1, keepdims=True)).sum(0) / 3
        np.testing.assert_allclose(one["teacher_scores"], expected, atol=1e-6)
    # Standardised by what they are compared with: a member's scores times ten and plus five change nothing.
    moved = [[10 * score + 5 for score in query] for query in own[0]]
    scaled = put(store, "moved", scored_as(base, moved), size)
    few = [query[:2] for query in own[0]]
    few_docs = base.set_column(1, "doc_rows", pa.array([d[:2] for d in base["doc_rows"].to_pylist()]))
    few_docs = few_docs.set_column(2, "scores", pa.array([d[:2] for d in base["scores"].to_pylist()])).cast(SCORED)
    part = put(store, "few", scored_as(few_docs, few), size)
    big = put(store, "few moved", scored_as(few_docs, [q[:2] for q in moved]), size)
    plain = rows(store.run(blend, members=[part, part], references=[members[0], members[0]]))
    for one, other in zip(plain, rows(store.run(blend, members=[part, big], references=[members[0], scaled])), strict=True):
        np.testing.assert_allclose(one["teacher_scores"], other["teacher_scores"], atol=1e-5)


# -- the filter's threshold -----------------------------------------------------------------------


def with_first_positives(data: Artifact, scores: list[float]) -> pa.Table:
    """Candidates of the first queries: their first positive with this teacher score, and two others far below."""
    docs = [[positives[0], *[d for d in range(PASSAGES) if d not in positives][:2]] for positives in judged(data)][
        : len(scores)
    ]
    teacher = [[score, -50.0, -60.0] for score in scores]
    return pa.table([list(range(len(scores))), docs, [[3.0, 2.0, 1.0]] * len(scores), teacher], schema=SCORED)


def test_the_threshold_moves_as_in_the_reference(store: Store, data: Artifact) -> None:
    """Methods 6.5: positives' scores 0..10, r = .5, .4, .3, .2, .2."""
    scored, previous, found = put(store, "positives", with_first_positives(data, [float(n) for n in range(11)]), 4), None, []
    for number in range(5):
        previous = store.run(learn_threshold, scored=scored, data=data, rule=Filter(), round=number, previous=previous)
        found.append(previous.metrics["theta"])
    assert found == pytest.approx([5, 4.5, 3.75, 2.875, 2.4375], abs=1e-6)
    assert previous is not None and "hidden" not in previous.metrics and previous.metrics["rows"] == 11
    alone = store.run(learn_threshold, scored=scored, data=data, rule=Filter(smoothing=0), round=2, previous=None)
    assert alone.metrics["theta"] == pytest.approx(3)
    standard = store.run(learn_threshold, scored=scored, data=data, rule=Filter(standardise=True), round=0)
    assert [standard.metrics[name] for name in ("theta", "mean", "std")] == pytest.approx([0, 5, 10**0.5])


def test_a_threshold_needs_a_scored_positive(store: Store, data: Artifact) -> None:
    bare = with_first_positives(data, [1.0, 2.0])
    bare = bare.set_column(1, "doc_rows", pa.array([[50, 51, 52], [53, 54, 55]])).cast(SCORED)
    assert not set(judged(data)[0]) & {50, 51, 52} and not set(judged(data)[1]) & {53, 54, 55}
    with pytest.raises(InputError, match="filter: no labelled positive has a teacher score; labels are needed"):
        store.run(learn_threshold, scored=put(store, "bare", bare), data=data, rule=Filter(), round=0)


# -- the anchor -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [24, 5])
def test_anchor_scores_are_inner_products(store: Store, data: Artifact, size: int) -> None:
    rng = np.random.default_rng(3)
    queries, passages = (rng.normal(size=(n, 8)).astype(np.float32) for n in (QUERIES, PASSAGES))
    # The rule drops queries, so that lists are fewer than the rows that the parts of lists are named by.
    rule = Confusing(student_to=60, teacher_to=60, negatives=4)
    lists = store.run(assemble, scored=put(store, "scored", pool(), size), data=data, rule=rule)
    # Passages of two collections, one after the other: the corpus, and what was written beside it.
    both = [put_vectors(store, "first", passages[:40], 13), put_vectors(store, "second", passages[40:], 13)]
    made = store.run(anchor, lists=lists, queries=put_vectors(store, "queries", queries, 9), passages=both)
    assert 0 < made.metrics["rows"] == len(rows(made)) == len(rows(lists)) < QUERIES
    for one, plain in zip(rows(made), rows(lists), strict=True):
        scores = one.pop("anchor_scores")
        np.testing.assert_allclose(scores, passages[one["doc_rows"]] @ queries[one["query_row"]], atol=1e-5)
        assert plain.pop("anchor_scores") == [] and str(one) == str(plain)  # as text: a NaN is not equal to itself


# -- pairs ----------------------------------------------------------------------------------------


def test_pairs_are_the_same_however_the_work_is_cut(store: Store, data: Artifact) -> None:
    rule, scored = NeighbourPairs(top_k=8, window=3, pairs=5), pool()
    whole = store.run(sample_pairs, scored=put(store, "scored", scored), data=data, rule=rule)
    cut = store.run(sample_pairs, scored=put(store, "scored", scored, 5), data=data, rule=rule)
    assert rows(whole) == rows(cut) and whole.metrics["pairs"] == QUERIES * 5
    other = store.run(sample_pairs, scored=put(store, "scored", scored), data=data, rule=rule.model_copy(update={"seed": 1}))
    assert rows(other) != rows(whole)
    short = store.run(sample_pairs, scored=put(store, "one", pool(1)), data=data, rule=rule)
    assert [one["left"] for one in rows(short)] == [[]] * QUERIES and short.metrics["pairs"] == 0


def opened(store: Store, toy: Path, data: Artifact, name: str = "reranker") -> dict[str, Any]:
    """A reranker as stages take it, with the tokens it reads."""
    folder = toy / name
    model = store.run(import_teacher, source=Located(folder_digest(folder), folder))
    known = Located(model.metrics["tokenizer"], (model.folder / "model", ""))
    tokens = {
        f"{role}_tokens": store.run(tokenize, data=data, name=table_, tokenizer=known, prompt="", lowercase=False)
        for role, table_ in (("query", "queries/train"), ("passage", "corpus"))
    }
    return {**tokens, "teacher": Located(folder_digest(folder), model.folder / "model"), "max_length": 64, "precision": "fp32"}


def duel(store: Store, pairs: Artifact, with_: dict[str, Any], **more: Any) -> Artifact:
    return store.run(score_duels, pairs=pairs, kind="cross_encoder", prompt=None, **{"symmetrize": False, **more}, **with_)


def test_swapping_the_documents_gives_one_minus_p(store: Store, toy: Path, data: Artifact, tmp_path: Path) -> None:
    asked = store.run(
        sample_pairs, scored=put(store, "scored", pool()), data=data, rule=NeighbourPairs(top_k=8, window=3, pairs=5)
    )
    table_ = pa.Table.from_pylist(rows(asked), schema=PAIRS)
    turned = table_.set_column(1, PAIRS.field(1), table_["right"]).set_column(2, PAIRS.field(2), table_["left"])
    count = {"pairs": QUERIES * 5}
    pairs, swapped = put(store, "pairs", table_, **count), put(store, "swapped", turned, **count)
    with_ = opened(store, toy, data)

    def p(made: Artifact) -> np.ndarray:
        return np.array([one["probabilities"] for one in rows(made)], dtype=np.float64)

    both = p(duel(store, pairs, with_, symmetrize=True))
    # p is stored in 32 bits: 1 - p differs from what is stored for the swapped pair in the last of them only.
    np.testing.assert_allclose(p(duel(store, swapped, with_, symmetrize=True)), 1 - both, atol=2**-24, rtol=0)
    once, back = (duel(store, one, with_) for one in (pairs, swapped))
    assert np.abs(p(once) + p(back) - 1).max() > 1e-3, "one order alone is not symmetric"
    np.testing.assert_allclose(both, (p(once) + 1 - p(back)) / 2, atol=1e-6)
    # How far apart the two orders are is told also where only some are asked twice: every eighth query's.
    off = np.abs(p(once) + p(back) - 1)
    assert once.metrics["inconsistency"] == pytest.approx(off[::8].mean(), abs=1e-5)
    assert duel(store, pairs, with_, symmetrize=True).metrics["inconsistency"] == pytest.approx(off.mean(), abs=1e-5)
    assert once.metrics["against"] == pytest.approx((p(once) < 0.5).mean()) and once.metrics["pairs"] == QUERIES * 5
    other = with_resources(store, tmp_path / "cut", pairs_per_shard=15)
    cut = duel(other, pairs, with_)
    np.testing.assert_allclose(p(cut), p(once), atol=1e-6)
    assert cut.metrics["inconsistency"] == pytest.approx(once.metrics["inconsistency"], abs=1e-6)


def test_a_duel_reads_query_and_both_passages(store: Store, toy: Path, data: Artifact) -> None:
    pairs = pa.table([[7], [[3, 3]], [[9, 40]], [[]]], schema=PAIRS)
    made = duel(store, put(store, "two", pairs, pairs=2), opened(store, toy, data))
    model = AutoModelForSequenceClassification.from_pretrained(toy / "reranker").eval()
    special, tokenizer = SpecialTokens.of(tiny_tokenizer()), tiny_tokenizer()
    query, corpus = table_rows(data, "queries/train")[7]["text"], [row["text"] for row in table_rows(data, "corpus")]
    for p, other in zip(rows(made)[0]["probabilities"], (9, 40), strict=True):
        ids = [
            np.array(tokenizer(t, add_special_tokens=False)["input_ids"], np.int32) for t in (query, corpus[3], corpus[other])
        ]
        encoded = special.duel(*ids, 64)
        words = tokenizer.decode(encoded.ids)
        assert words.split("[SEP]")[:3] == [f"[CLS] {query} ", f" {corpus[3]} ", f" {corpus[other]} "]
        logit = model(**special.model_inputs([encoded])).logits[0, 0].item()
        assert p == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)


# -- scores that are known ------------------------------------------------------------------------


@pytest.mark.parametrize("pairs_per_shard", [None, 50])
def test_known_scores_are_taken_and_the_others_made(
    store: Store, toy: Path, data: Artifact, tmp_path: Path, pairs_per_shard: int | None
) -> None:
    with_ = opened(store, toy, data)
    here = with_resources(store, tmp_path / "here", pairs_per_shard=pairs_per_shard)
    wanted = put(here, "wanted", pool(12).drop(["teacher_scores"]).cast(CANDIDATES))
    anew = here.run(score_pairs, candidates=wanted, **with_)
    assert (anew.metrics["pairs"], anew.metrics["taken"]) == (QUERIES * 12, 0)
    # Marked values, so that taking one shows: other passages, another order, another number of them.
    earlier = pool(20, seed=5)
    marked = scored_as(earlier, [[1000.0 + doc for doc in docs] for docs in earlier["doc_rows"].to_pylist()])
    again = here.run(score_pairs, candidates=wanted, known=put(here, "earlier", marked, 7), **with_)
    taken = 0
    for one, plain, before in zip(rows(again), rows(anew), earlier["doc_rows"].to_pylist(), strict=True):
        assert one["doc_rows"] == plain["doc_rows"]
        known = np.isin(one["doc_rows"], before)
        found = np.array(one["teacher_scores"])
        assert (found[known] == 1000.0 + np.array(one["doc_rows"])[known]).all()
        np.testing.assert_allclose(found[~known], np.array(plain["teacher_scores"])[~known], atol=1e-5)
        taken += int(known.sum())
    assert 0 < taken == again.metrics["taken"] and again.metrics["pairs"] == QUERIES * 12 - taken
    assert inputs(here, again, "known").stage == "given"


def test_shards_are_sized_by_the_mean_length_of_lists(store: Store) -> None:
    """The first query of a ready-made run, or of dark examples, may have no passage at all."""
    docs = [[], *[[1, 2, 3, 4]] * 9, *[[1]] * 10]
    uneven = pa.table([list(range(20)), docs, [[0.0] * len(one) for one in docs]], schema=CANDIDATES)
    here = with_resources(store, Path(store.root.uri), pairs_per_shard=36)
    work = Work(store.root, store.root, here.cluster, "", "")
    assert queries_per_shard(work, parts_of(put(store, "uneven", uneven, 10))) == 10  # 36 pairs, 3.6 a query
    assert queries_per_shard(work, parts_of(put(store, "empty", uneven.slice(0, 1)))) == 36


# -- a kill in the middle -------------------------------------------------------------------------


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
        "score_pairs": (PairScorer, score_pairs, {"candidates": pool_, "known": scored, **with_}, ("pairs", "taken")),
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
