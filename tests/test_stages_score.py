"""Teachers' scores are those of the plain model, and a bad one fails its stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raydrd.errors import InputError, StageError
from raydrd.spine.cluster import Cluster
from raydrd.spine.store import Artifact, Located, Store
from raydrd.spine.tables import SCORED
from raydrd.stages.adopt import model_folder
from raydrd.stages.score import import_teacher, rerank, score_pairs, score_vectors
from raydrd.stages.tokenize import tokenize
from tests.stage_inputs import candidate_lists, open_data, put, put_vectors, whole, whole_texts
from tests.worlds import subject_overlap


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
    made = _score(store, toy / "reranker", data, put(store, "c", candidate_lists(lists), 7), max_length=max_length)
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
    candidates = put(store, "c", candidate_lists([list(range(60))] * 24))
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
        _score(store, tmp_path / "three", data, put(store, "c", candidate_lists([[0]] * 24)))


def test_a_bi_encoder_teachers_scores_are_inner_products(store: Store) -> None:
    rng = np.random.default_rng(2)
    q, p = rng.standard_normal((6, 8)).astype(np.float32), rng.standard_normal((50, 8)).astype(np.float32)
    lists = [rng.permutation(50)[: 3 * n].tolist() for n in range(6)]
    made = store.run(
        score_vectors,
        candidates=put(store, "c", candidate_lists(lists), 2),
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
            candidates=put(store, "c", candidate_lists([[0, 1]])),
            queries=put_vectors(store, "q", q),
            passages=put_vectors(store, "p", p),
        )
