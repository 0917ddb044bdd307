"""Each stage gives what the plain way of doing it gives, however the work was cut."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from raydrd.data.collect import digest
from raydrd.data.spec import Data
from raydrd.errors import InputError, StageError
from raydrd.methods.lists import GradedList
from raydrd.models.layout import Layout, read_layout
from raydrd.spine.cluster import Cluster
from raydrd.spine.parts import VectorReader, part_name, ranges
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Located, Store, Work, stage
from raydrd.spine.tables import CANDIDATES, SCORED, vectors
from raydrd.stages import search as search_stage
from raydrd.stages.adopt import Student, adopt, located, model_folder, wanted_layout
from raydrd.stages.assemble import assemble
from raydrd.stages.embed import embed
from raydrd.stages.evaluate import evaluate
from raydrd.stages.load import load, make_queries, sample_dev, table
from raydrd.stages.score import import_teacher, rerank, score_pairs, score_vectors
from raydrd.stages.search import bm25_index, bm25_search, join_candidates, search, top_k
from raydrd.stages.shards import parts_of
from raydrd.stages.ship import build_index, verify_export
from raydrd.stages.tokenize import tokenize
from tests.worlds import subject_overlap, tiny_encoder


@stage(version=1)
def given(work: Work, *, name: str, parts: Any, metrics: Any) -> dict[str, Any]:
    """Tables made by a test, as an artifact."""
    for lo, hi, piece in parts.where:
        arrow = "vector" in piece.column_names
        (work.shards.write_arrow if arrow else work.shards.write_table)(
            part_name(lo, hi, "arrow" if arrow else "parquet"), piece
        )
    return dict(metrics)


def put(store: Store, name: str, rows: pa.Table, size: int = 10**9, **metrics: Any) -> Artifact:
    pieces = [(lo, hi, rows.slice(lo, hi - lo)) for lo, hi in ranges(rows.num_rows, size)]
    return store.run(given, name=f"{name}/{size}", parts=Located(rows.num_rows, pieces), metrics=metrics)


def put_vectors(store: Store, name: str, matrix: np.ndarray, size: int = 10**9) -> Artifact:
    column = pa.FixedSizeListArray.from_arrays(pa.array(matrix.astype(np.float32).ravel()), matrix.shape[1])
    return put(store, name, pa.table([column], schema=vectors(matrix.shape[1], "float32")), size, width=matrix.shape[1])


def whole(artifact: Artifact) -> pa.Table:
    return pa.concat_tables(part for _, part in parts_of(artifact).each())


def matrix_of(artifact: Artifact) -> np.ndarray:
    parts = parts_of(artifact)
    return VectorReader(parts).slice(0, parts.rows)


def with_resources(store: Store, root: Path, **changes: Any) -> Store:
    """Another store that runs its stages otherwise."""
    return Store(Folder.of(root), Cluster(store.cluster.resources.model_copy(update=changes)))


def open_data(store: Store, folder: Path) -> Artifact:
    data = Data(path=str(folder))
    return store.run(load, data=Located(digest(data), data))


def open_model(store: Store, folder: Path, **changes: Any) -> Artifact:
    model = Student(model=str(folder), **changes)
    source = located(model)
    return store.run(adopt, source=source, layout=wanted_layout(model, read_layout(source.where)), layers=None)


def open_tokens(store: Store, model: Artifact, data: Artifact, name: str) -> Artifact:
    layout = Layout.model_validate(model.metrics["layout"])
    role = "passage" if name == "corpus" else "query"
    known = Located(model.metrics["tokenizer"], (model_folder(model), layout.folder(role)))
    return store.run(tokenize, data=data, name=name, tokenizer=known, prompt=layout.prompt(role), lowercase=layout.lowercase)


# -- tokenize and embed ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "resources",
    [{}, {"rows_per_shard": 7}, {"tokens_per_batch": 64}, {"rows_per_shard": 13, "tokens_per_batch": 100}],
    ids=str,
)
def test_vectors_are_those_of_plain_sentence_transformers(store: Store, toy: Path, tmp_path: Path, resources: Any) -> None:
    from sentence_transformers import SentenceTransformer

    store = with_resources(store, tmp_path / "s", **resources)
    data = open_data(store, toy / "data")
    model = open_model(store, toy / "student", passage_prompt="the ", passage_max_len=9)
    made = embed_all(store, model, data, "corpus", "float32")
    plain = SentenceTransformer(str(model_folder(model).local_folder()), device="cpu")
    texts = whole_texts(data, "corpus")
    assert max(len(t.split()) for t in texts) > 9 - 3, "some texts must be cut"
    np.testing.assert_allclose(matrix_of(made), plain.encode_document(texts), atol=1e-5)
    assert made.metrics["rows"] == 60 and made.metrics["width"] == 32 and made.metrics["per_second"] > 0


def embed_all(store: Store, model: Artifact, data: Artifact, name: str, storage: str = "float16") -> Artifact:
    role = "passage" if name == "corpus" else "query"
    tokens = open_tokens(store, model, data, name)
    return store.run(embed, model=model, role=role, tokens=tokens, precision="fp32", storage=storage)


def whole_texts(data: Artifact, name: str) -> list[str]:
    parts = table(data, name)
    return list(parts.slice(0, parts.rows, ["text"])["text"].to_pylist())


def test_the_query_side_has_its_own_prompt_and_length(store: Store, toy: Path) -> None:
    from sentence_transformers import SentenceTransformer

    data = open_data(store, toy / "data")
    model = open_model(store, toy / "student", query_prompt="how many ", towers="separate", query_max_len=8)
    made = matrix_of(embed_all(store, model, data, "queries/test", "float32"))
    plain = SentenceTransformer(str(model_folder(model).local_folder()), device="cpu")
    np.testing.assert_allclose(made, plain.encode_query(whole_texts(data, "queries/test")), atol=1e-5)
    assert np.abs(made - plain.encode_document(whole_texts(data, "queries/test"))).max() > 1e-3


def test_half_precision_storage_costs_a_thousandth(store: Store, toy: Path) -> None:
    data, model = open_data(store, toy / "data"), open_model(store, toy / "student")
    half, single = (matrix_of(embed_all(store, model, data, "corpus", s)) for s in ("float16", "float32"))
    assert 0 < np.abs(half - single).max() < 1e-3


def test_token_ids_are_the_tokenizers_without_special_ones(store: Store, toy: Path) -> None:
    from transformers import AutoTokenizer

    data, model = open_data(store, toy / "data"), open_model(store, toy / "student", passage_prompt="old ")
    found = whole(open_tokens(store, model, data, "corpus"))["ids"].to_pylist()
    tokenizer = AutoTokenizer.from_pretrained(toy / "student")
    assert found == [tokenizer("old " + t, add_special_tokens=False)["input_ids"] for t in whole_texts(data, "corpus")]


def test_models_with_one_tokenizer_share_its_tokens_and_each_text_is_tokenised_once(store: Store, toy: Path) -> None:
    data = open_data(store, toy / "data")
    made = [open_tokens(store, open_model(store, toy / name), data, "corpus").id for name in ("student", "deep")]
    assert made[0] == made[1]
    assert [r.name for r in store.journal].count("tokenize") == 1
    assert open_tokens(store, open_model(store, toy / "deep", passage_prompt="new "), data, "corpus").id != made[0]


def test_an_encoder_that_gives_nan_fails_its_stage(store: Store, toy: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tiny_encoder(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    name = next(n for n in weights if n.endswith("word_embeddings.weight"))
    weights[name][:] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    data, model = open_data(store, toy / "data"), open_model(store, broken)
    with pytest.raises(StageError, match="the encoder gave NaN or infinity"):
        embed_all(store, model, data, "corpus")


@pytest.mark.ray
def test_ray_and_this_process_write_the_same_files(
    ray_store: Store, store: Store, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, model = open_data(store, toy / "data"), open_model(store, toy / "student")
    tokens = open_tokens(store, model, data, "corpus")
    cut = {"rows_per_shard": 16, "tokens_per_batch": 128}
    store.cluster = Cluster(store.cluster.resources.model_copy(update=cut))
    ray_store.cluster = Cluster(ray_store.cluster.resources.model_copy(update=cut))
    monkeypatch.setattr("raydrd.stages.embed.FEW_TEXTS", 0)
    here, there = (s.run(embed, model=model, role="passage", tokens=tokens, precision="fp32") for s in (store, ray_store))
    assert here.id == there.id and list(here.manifest["files"]) == list(there.manifest["files"])
    assert len(here.manifest["files"]) == 4
    np.testing.assert_allclose(matrix_of(here), matrix_of(there), atol=1e-3)  # float16's step; cores may differ


# -- search --------------------------------------------------------------------------------------------


def _stable(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


@pytest.mark.parametrize("k", [1, 2, 7, 40, 41])
@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
def test_top_k_equals_a_full_stable_sort(k: int, levels: int) -> None:
    scores = np.random.default_rng(levels).integers(-levels, levels, (50, 40)).astype(np.float32)
    values, columns = top_k(torch.from_numpy(scores), k)
    expected_values, expected_columns = _stable(scores, k)
    np.testing.assert_array_equal(columns.numpy(), expected_columns)
    np.testing.assert_array_equal(values.numpy(), expected_values)


@pytest.mark.parametrize("part", [3, 10, 64, 1000])
@pytest.mark.parametrize("block", [1, 5, 1024])
def test_search_is_exact_with_ties_by_row_whatever_the_blocks(
    store: Store, part: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    # Small integers: their products are exact in any order of summation, and tie by the dozen.
    queries, passages = rng.integers(-2, 3, (11, 4)), rng.integers(-2, 3, (130, 4))
    monkeypatch.setattr(search_stage, "QUERY_BLOCK", block)
    made = store.run(
        search, queries=put_vectors(store, "q", queries, 4), passages=put_vectors(store, "p", passages, part), k=20
    )
    found = whole(made)
    assert found.schema == CANDIDATES
    values, rows = _stable((queries @ passages.T).astype(np.float32), 20)
    assert found["query_row"].to_pylist() == list(range(11))
    np.testing.assert_array_equal(np.array(found["doc_rows"].to_pylist()), rows)
    np.testing.assert_array_equal(np.array(found["scores"].to_pylist()), values)


def test_search_of_real_vectors_and_of_fewer_passages_than_k(store: Store) -> None:
    rng = np.random.default_rng(1)
    queries, passages = rng.standard_normal((9, 16)), rng.standard_normal((30, 16))
    made = whole(
        store.run(search, queries=put_vectors(store, "q", queries), passages=put_vectors(store, "p", passages, 7), k=99)
    )
    values, rows = _stable((queries.astype(np.float32) @ passages.astype(np.float32).T), 99)
    np.testing.assert_array_equal(np.array(made["doc_rows"].to_pylist()), rows)
    np.testing.assert_allclose(np.array(made["scores"].to_pylist()), values, atol=1e-5)
    assert rows.shape == (9, 30)


def test_bm25_puts_shared_rare_words_first_and_the_rest_by_row(store: Store, toy: Path) -> None:
    data = open_data(store, toy / "data")
    index = store.run(bm25_index, data=data)
    found = whole(store.run(bm25_search, index=index, data=data, name="queries/test", k=60))
    texts, queries = whole_texts(data, "corpus"), whole_texts(data, "queries/test")
    from tests.worlds import SUBJECTS

    content = {word for words in SUBJECTS.values() for word in words}
    for query, docs, scores in zip(queries, found["doc_rows"].to_pylist(), found["scores"].to_pylist(), strict=True):
        assert sorted(docs) == list(range(60)) and scores == sorted(scores, reverse=True)
        words = set(query.split()) & content
        sharing = {row for row, text in enumerate(texts) if words & set(text.split())}
        assert sharing and sharing <= set(docs[: sum(s > 0 for s in scores)])
        for a, b in zip(range(59), range(1, 60), strict=True):
            assert scores[a] > scores[b] or docs[a] < docs[b]


def test_bm25_of_queries_without_any_known_word(store: Store, tmp_path: Path, toy: Path) -> None:
    import shutil

    shutil.copytree(toy / "data", tmp_path / "d")
    with (tmp_path / "d" / "queries.jsonl").open("a") as stream:
        stream.write('{"_id": "x1", "text": "zyzzyva qwertz"}\n{"_id": "x2", "text": "the of and"}\n')
    with (tmp_path / "d" / "qrels" / "test.tsv").open("a") as stream:
        stream.write("x1\td00\t1\nx2\td01\t1\n")
    data = open_data(store, tmp_path / "d")
    found = whole(store.run(bm25_search, index=store.run(bm25_index, data=data), data=data, name="queries/test", k=5))
    ids = table(data, "queries/test").slice(0, 14)["query_id"].to_pylist()
    for name in ("x1", "x2"):
        row = found.slice(ids.index(name), 1).to_pylist()[0]
        assert row["doc_rows"] == [0, 1, 2, 3, 4] and row["scores"] == [0.0] * 5


def _candidates(lists: list[list[int]]) -> pa.Table:
    scores = [[1.0 / (n + 1) for n in range(len(rows))] for rows in lists]
    return pa.table([list(range(len(lists))), lists, scores], schema=CANDIDATES)


def test_sources_are_joined_rank_by_rank(store: Store) -> None:
    a = put(store, "a", _candidates([[1, 2, 3], [5], []]))
    b = put(store, "b", _candidates([[2, 9, 1, 4], [6, 5], [7]]))
    found = whole(store.run(join_candidates, sources=[a, b], depth=4))
    assert found["doc_rows"].to_pylist() == [[1, 2, 9, 3], [5, 6], [7]]
    assert found["scores"].to_pylist()[1] == [1.0, 0.5]
    assert whole(store.run(join_candidates, sources=[b, a], depth=2))["doc_rows"].to_pylist() == [[2, 1], [6, 5], [7]]


def test_a_run_that_leaves_queries_out_is_not_joined_by_place(store: Store) -> None:
    full = put(store, "a", _candidates([[1], [2], [3]]))
    part = put(store, "b", _candidates([[4], [5]]))
    with pytest.raises(InputError, match=r"data.run leaves out train queries"):
        store.run(join_candidates, sources=[full, part], depth=4)
    other = put(store, "c", _candidates([[4], [5], [6]]).set_column(0, CANDIDATES.field(0), pa.array([0, 2, 3])))
    with pytest.raises(StageError, match="the sources rank different queries"):
        store.run(join_candidates, sources=[full, other], depth=4)


# -- score -----------------------------------------------------------------------------------------------


def _score(store: Store, teacher: Path, data: Artifact, candidates: Artifact, *, max_length: int = 64) -> Artifact:
    from raydrd.models.layout import folder_digest

    made = store.run(import_teacher, source=Located(folder_digest(teacher), teacher))
    known = Located(made.metrics["tokenizer"], (model_folder(made), ""))
    tokens = {
        name: store.run(tokenize, data=data, name=name, tokenizer=known, prompt="", lowercase=False)
        for name in ("queries/train", "corpus")
    }
    return store.run(
        score_pairs,
        candidates=candidates,
        query_tokens=tokens["queries/train"],
        passage_tokens=tokens["corpus"],
        teacher=Located(folder_digest(teacher), model_folder(made)),
        max_length=max_length,
        precision="fp32",
    )


@pytest.mark.parametrize("max_length", [64, 14])
@pytest.mark.parametrize("budget", [None, 64])
def test_scores_are_the_raw_logits_of_a_plain_cross_encoder(
    store: Store, toy: Path, max_length: int, budget: int | None
) -> None:
    from sentence_transformers import CrossEncoder

    store.cluster = Cluster(store.cluster.resources.model_copy(update={"tokens_per_batch": budget, "pairs_per_shard": 5}))
    data = open_data(store, toy / "data")
    rng = np.random.default_rng(0)
    lists = [rng.permutation(60)[: 1 + n % 9].tolist() for n in range(24)]
    made = _score(store, toy / "reranker", data, put(store, "c", _candidates(lists), 7), max_length=max_length)
    found = whole(made)
    assert found.schema == SCORED and found["doc_rows"].to_pylist() == lists and made.metrics["pairs"] == sum(map(len, lists))
    queries, texts = whole_texts(data, "queries/train"), whole_texts(data, "corpus")
    plain = CrossEncoder(str(toy / "reranker"), max_length=max_length, activation_fn=torch.nn.Identity(), device="cpu")
    pairs = [(queries[q], texts[d]) for q, rows in enumerate(lists) for d in rows]
    expected = plain.predict(pairs, show_progress_bar=False)
    got = np.concatenate([np.array(s) for s in found["teacher_scores"].to_pylist()])
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert expected.std() > 0.05


def test_the_oracle_ranks_by_subject_and_rerank_follows_it(store: Store, toy: Path) -> None:
    data = open_data(store, toy / "data")
    candidates = put(store, "c", _candidates([list(range(60))] * 24))
    scored = _score(store, toy / "teacher", data, candidates)
    best = whole(store.run(rerank, scored=scored, k=5))
    queries, texts = whole_texts(data, "queries/train"), whole_texts(data, "corpus")
    for query, rows, scores in zip(queries, best["doc_rows"].to_pylist(), best["scores"].to_pylist(), strict=True):
        assert {row for row, text in enumerate(texts) if subject_overlap(query, text) >= 4} == set(rows)
        assert scores == sorted(scores, reverse=True)


def test_a_teacher_with_several_outputs_is_refused(store: Store, toy: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(toy / "reranker", num_labels=3, ignore_mismatched_sizes=True)
    model.save_pretrained(tmp_path / "three")
    AutoTokenizer.from_pretrained(toy / "reranker").save_pretrained(tmp_path / "three")
    data = open_data(store, toy / "data")
    with pytest.raises(InputError, match="teacher: it has 3 outputs, a reranker has 1"):
        _score(store, tmp_path / "three", data, put(store, "c", _candidates([[0]] * 24)))


def test_a_bi_encoder_teachers_scores_are_inner_products(store: Store) -> None:
    rng = np.random.default_rng(2)
    q, p = rng.standard_normal((6, 8)).astype(np.float32), rng.standard_normal((50, 8)).astype(np.float32)
    lists = [rng.permutation(50)[: 3 * n].tolist() for n in range(6)]
    made = store.run(
        score_vectors,
        candidates=put(store, "c", _candidates(lists), 2),
        queries=put_vectors(store, "q", q, 4),
        passages=put_vectors(store, "p", p, 7),
    )
    for query, (rows, scores) in enumerate(
        zip(whole(made)["doc_rows"].to_pylist(), whole(made)["teacher_scores"].to_pylist(), strict=True)
    ):
        assert rows == lists[query]
        np.testing.assert_allclose(scores, [float(q[query] @ p[row]) for row in rows], atol=1e-5)


def test_a_score_that_is_not_finite_fails_its_stage(store: Store) -> None:
    q, p = np.ones((1, 2)), np.array([[1, 1], [np.inf, 0]])
    with pytest.raises(StageError, match=r"the teacher gave inf for pair 1"):
        store.run(
            score_vectors,
            candidates=put(store, "c", _candidates([[0, 1]])),
            queries=put_vectors(store, "q", q),
            passages=put_vectors(store, "p", p),
        )


# -- lists, evaluation, smaller collections ------------------------------------------------------------


def _scored(store: Store, queries: int, size: int) -> Artifact:
    rng = np.random.default_rng(3)
    rows = [rng.permutation(60)[:40].tolist() for _ in range(queries)]
    scores = rng.standard_normal((queries, 40)).astype(np.float32)
    made = pa.table([list(range(queries)), rows, scores.tolist(), (scores + 1).tolist()], schema=SCORED)
    return put(store, "scored", made, size)


def test_lists_do_not_depend_on_how_the_work_was_cut(
    store: Store, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import raydrd.stages.assemble as module

    data = open_data(store, toy / "data")
    rule = GradedList(graded=3, hard=4, rest=5, hard_until=20)
    plan = module.pending
    found = []
    for size in (1, 5, 10_000):
        monkeypatch.setattr(module, "pending", lambda work, rows, _, ending, n=size: plan(work, rows, n, ending))
        other = with_resources(store, tmp_path / str(size))
        made = other.run(assemble, scored=_scored(other, 24, 10), data=data, rule=rule)
        assert made.metrics["rows"] == 24
        found.append(str(whole(made).to_pylist()))  # as text: an unscored positive's NaN equals itself
    assert found[0] == found[1] == found[2]
    reseeded = store.run(assemble, scored=_scored(store, 24, 10), data=data, rule=rule.model_copy(update={"seed": 1}))
    assert str(whole(reseeded).to_pylist()) != found[0]


def test_judged_positives_lead_the_lists(store: Store, toy: Path) -> None:
    data = open_data(store, toy / "data")
    made = whole(store.run(assemble, scored=_scored(store, 24, 10), data=data, rule=GradedList(graded=6, hard=2, rest=2)))
    judged = table(data, "queries/train").slice(0, 24)["doc_rows"].to_pylist()
    for row in made.to_pylist():
        positives = judged[row["query_row"]]
        assert row["doc_rows"][: len(positives)] == positives
        assert not set(row["doc_rows"][6:]) & set(positives)
        assert row["labels"] == sorted(row["labels"], reverse=True)


def test_evaluation_of_a_perfect_and_of_an_empty_run(store: Store, toy: Path) -> None:
    data = open_data(store, toy / "data")
    judged = table(data, "queries/test").slice(0, 12)["doc_rows"].to_pylist()
    for lists, expected in [(judged, 1.0), ([[d for d in range(60) if d not in j] for j in judged], 0.0)]:
        run = put(store, f"run {expected}", _candidates(lists))
        made = store.run(evaluate, run=run, data=data, name="queries/test", metrics=["nDCG@10", "RR@10"])
        assert made.metrics["means"] == {"nDCG@10": expected, "RR@10": expected}
        assert whole(made)["query_row"].to_pylist() == list(range(12))


def test_a_dev_sample_keeps_all_judged_passages_under_their_new_numbers(store: Store, toy: Path) -> None:
    data = open_data(store, toy / "data")
    made = store.run(sample_dev, data=data, passages=20, queries=3, seed=0)
    corpus, dev = table(made, "corpus"), table(made, "queries/dev")
    assert corpus.rows == 20 and dev.rows == 3
    texts = {row["doc_id"]: row["text"] for row in table(data, "corpus").slice(0, 60).to_pylist()}
    small = corpus.slice(0, 20).to_pylist()
    assert all(texts[row["doc_id"]] == row["text"] for row in small)
    full = {q["query_id"]: q for q in table(data, "queries/dev").slice(0, 12).to_pylist()}
    ids = table(data, "corpus").slice(0, 60)["doc_id"].to_pylist()
    for query in dev.slice(0, 3).to_pylist():
        assert [small[r]["doc_id"] for r in query["doc_rows"]] == [ids[r] for r in full[query["query_id"]]["doc_rows"]]
    again = store.run(sample_dev, data=data, passages=20, queries=3, seed=1)
    assert table(again, "corpus").slice(0, 20).to_pylist() != small


def test_a_collection_without_dev_queries_has_an_empty_dev_sample(store: Store, toy: Path) -> None:
    data = Data(path=str(toy / "data"), dev_split=None)
    made = store.run(sample_dev, data=store.run(load, data=Located(digest(data), data)), passages=20, queries=3, seed=0)
    assert table(made, "queries/dev").rows == 0 and table(made, "corpus").rows == 20


def test_made_queries_come_after_the_labelled_ones_without_positives(store: Store, toy: Path) -> None:
    data = open_data(store, toy / "data")
    made = store.run(make_queries, data=data, labelled=data, count=10, sentences=1, seed=0)
    rows = table(made, "queries/train").slice(0, made.metrics["rows"]).to_pylist()
    assert len(rows) == 34 and made.metrics["made"] == 10
    assert rows[:24] == table(data, "queries/train").slice(0, 24).to_pylist()
    texts = set(whole_texts(data, "corpus"))
    assert all(r["text"] in texts and r["doc_rows"] == [] and r["query_id"].startswith("made:") for r in rows[24:])


# -- ship --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "HNSW8"])
def test_the_index_finds_what_search_finds(store: Store, toy: Path, factory: str) -> None:
    import faiss

    data, model = open_data(store, toy / "data"), open_model(store, toy / "student")
    made = embed_all(store, model, data, "corpus")
    index = store.run(build_index, vectors=made, data=data, factory=factory)
    home = index.folder / "index"
    loaded = faiss.read_index(str(home.local("index.faiss")))
    assert loaded.ntotal == 60 and loaded.metric_type == faiss.METRIC_INNER_PRODUCT
    assert home.read_table("ids.parquet")["doc_id"].to_pylist() == [f"d{n:02d}" for n in range(60)]
    vectors_ = matrix_of(made)
    if factory.startswith("IVF"):
        loaded.nprobe = 4  # all lists: exact
    scores, rows = loaded.search(vectors_[:20], 3)
    exact = np.sort(vectors_[:20] @ vectors_.T, axis=1)[:, ::-1][:, :3]
    if factory == "HNSW8":
        assert (rows[:, 0] == np.arange(20)).mean() > 0.9
    else:
        np.testing.assert_allclose(scores, exact, atol=1e-5)
        assert rows[:, 0].tolist() == list(range(20))


def test_an_index_that_faiss_does_not_know_is_the_users_mistake(store: Store, toy: Path) -> None:
    data, model = open_data(store, toy / "data"), open_model(store, toy / "student")
    with pytest.raises(InputError, match="index: FAISS cannot make 'Flatt' for width 32"):
        store.run(build_index, vectors=embed_all(store, model, data, "corpus"), data=data, factory="Flatt")


def _verify(store: Store, model: Artifact, data: Artifact) -> Artifact:
    tokens = {name: open_tokens(store, model, data, name) for name in ("queries/test", "corpus")}
    return store.run(
        verify_export, model=model, data=data, query_tokens=tokens["queries/test"], passage_tokens=tokens["corpus"]
    )


@pytest.mark.parametrize(
    "changes", [{}, {"towers": "separate", "query_prompt": "how "}, {"pooling": "cls", "normalize": False}]
)
def test_an_export_that_does_what_was_measured_passes(store: Store, toy: Path, changes: dict[str, Any]) -> None:
    data, model = open_data(store, toy / "data"), open_model(store, toy / "student", **copy.deepcopy(changes))
    made = _verify(store, model, data)
    assert made.metrics["difference"] < 1e-5 and made.metrics["rows"] == 44


def test_an_export_that_plain_tools_read_otherwise_fails(store: Store, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, model = open_data(store, toy / "data"), open_model(store, toy / "student")
    _verify(with_resources(store, Path(store.root.uri).parent / "good"), model, data)
    # Whatever goes wrong between the two, here our own pooling is another one than the folder tells the world.
    import raydrd.models.encoders as module

    monkeypatch.setattr(module, "pool", lambda states, mask, how: states[:, 0])
    with pytest.raises(StageError, match=r"export: plain sentence-transformers gives other vectors \(difference"):
        _verify(store, model, data)
    assert not [r for r in store.journal if r.name == "verify_export"]


def test_a_tampered_export_fails(store: Store, toy: Path) -> None:
    import json

    data, model = open_data(store, toy / "data"), open_model(store, toy / "student")
    tokens = {name: open_tokens(store, model, data, name) for name in ("queries/test", "corpus")}
    card = Path(model_folder(model).uri) / "config_sentence_transformers.json"
    values = json.loads(card.read_text())
    values["prompts"]["document"] = "the old "  # the tokens were made without it
    card.write_text(json.dumps(values))
    with pytest.raises(StageError, match="plain sentence-transformers gives other vectors"):
        store.run(verify_export, model=model, data=data, query_tokens=tokens["queries/test"], passage_tokens=tokens["corpus"])


def test_a_cut_and_an_uncut_student_are_two_models(store: Store, toy: Path) -> None:
    source = located(Student(model=str(toy / "deep")))
    layout = read_layout(source.where)
    uncut, cut = (store.run(adopt, source=source, layout=layout, layers=layers) for layers in (None, 2))
    assert uncut.id != cut.id and (uncut.metrics["layers"], cut.metrics["layers"]) == (4, 2)
    assert cut.metrics["size_mb"] < uncut.metrics["size_mb"] and cut.metrics["tokenizer"] == uncut.metrics["tokenizer"]
    with pytest.raises(InputError, match=r"student.layers: 9: the model has 4 layers"):
        store.run(adopt, source=source, layout=layout, layers=9)
