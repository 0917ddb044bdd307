"""PairDistill on the toy world: neighbours are compared, scores are kept from round to round, labels are not needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydrd.flow.teach import teach
from raydrd.methods.neighbours import available
from tests.recipes import (
    SCALE,
    artifact,
    artifact_of,
    assert_found_again,
    assert_learns,
    fact,
    open_store,
    open_toy,
    retriever,
    rows,
    run_recipe,
    run_toy,
    settings,
    steps,
)

PAIRS = {"top_k": 10, "window": 3, "pairs": 6}


@pytest.fixture(scope="module")
def values(toy: Path) -> dict[str, Any]:
    pairwise = {"kind": "cross_encoder", "model": str(toy / "deep"), "max_length": 64, "train": {"train": steps(20)}}
    return settings(
        toy,
        "pairdistill",
        candidates={"sources": ["student"], "depth": 25},
        pairwise=pairwise,
        pairs=PAIRS,
        lists={"size": 12},
        rounds=[steps(20), steps(10)],
        loss=SCALE,
    )


@pytest.fixture(scope="module")
def report(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_toy(tmp_path_factory.mktemp("pairdistill"), values)


def test_it_learns_and_is_found_again(report: dict[str, Any], tmp_path: Path) -> None:
    assert_learns(report, by=0.2)
    assert_found_again(report, tmp_path)


def test_each_round_mines_with_the_student_as_it_is_by_then(report: dict[str, Any]) -> None:
    store = open_store(report["store"])
    assert retriever(store, artifact(report, "lists of round 1")).id == artifact(report, "student before").id
    assert retriever(store, artifact(report, "lists of round 2")).id == artifact(report, "train round 1").id


def test_pointwise_scores_are_kept_from_round_to_round(values: dict[str, Any], report: dict[str, Any], tmp_path: Path) -> None:
    first, second = (artifact(report, f"score train, round {n} (teacher)") for n in (1, 2))
    assert (first.metrics["pairs"], first.metrics["taken"]) == (24 * 25, 0)
    assert 0 < second.metrics["pairs"] < 24 * 25 and second.metrics["pairs"] + second.metrics["taken"] == 24 * 25
    # The same as if all were scored anew: in a store that knows no scores.
    _, lab = open_toy(values, tmp_path)
    anew = teach(lab, lab.teacher, artifact(report, "search train (round 2)"), lab.train_data, "queries/train", label="anew")
    assert anew.id == second.id and anew.metrics["taken"] == 0
    for own, other in zip(rows(second), rows(anew), strict=True):
        assert own["doc_rows"] == other["doc_rows"]
        np.testing.assert_allclose(own["teacher_scores"], other["teacher_scores"], atol=1e-5)


def test_neighbours_are_compared_and_found_again_in_their_lists(report: dict[str, Any]) -> None:
    counted = 0
    for number in (1, 2):
        scored = rows(artifact(report, f"score train, round {number} (teacher)"))
        compared = rows(artifact(report, f"compare pairs (round {number})"))
        lists = rows(artifact(report, f"lists of round {number}"))
        assert len(scored) == len(compared) == len(lists) == 24
        for candidates, pairs, made_list in zip(scored, compared, lists, strict=True):
            by_teacher = sorted(
                zip(candidates["teacher_scores"], candidates["doc_rows"], strict=True), key=lambda c: (-c[0], c[1])
            )
            rank = {doc: at for at, (_, doc) in enumerate(by_teacher)}
            asked = list(zip(pairs["left"], pairs["right"], strict=True))
            assert len(asked) == len(set(asked)) == PAIRS["pairs"] <= available(PAIRS["top_k"], PAIRS["window"])
            assert all(0 < rank[b] - rank[a] <= PAIRS["window"] and rank[b] < PAIRS["top_k"] for a, b in asked)
            # A line: the pairs' passages with filler, by the teacher; the first is the teacher's, not the label's.
            docs = made_list["doc_rows"]
            assert len(docs) == 12 and docs == sorted(docs, key=rank.__getitem__)
            places = list(zip(made_list["pair_left"], made_list["pair_right"], made_list["pair_p"], strict=True))
            assert {(docs[a], docs[b]): p for a, b, p in places} == dict(zip(asked, pairs["probabilities"], strict=True))
            counted += len(places)
    assert counted == 2 * 24 * PAIRS["pairs"] == fact(report, "round 1", "pairs compared") * 2
    assert counted == sum(fact(report, f"round {number}", "pairs kept in lists") for number in (1, 2))


def test_the_report_tells_whether_pairs_say_more_than_points(report: dict[str, Any]) -> None:
    for number in (1, 2):
        against = fact(report, f"round {number}", "pairwise teacher against the pointwise order")
        probabilities = [p for row in rows(artifact(report, f"compare pairs (round {number})")) for p in row["probabilities"]]
        assert against == pytest.approx(np.mean(np.array(probabilities) < 0.5))
        assert 0 <= fact(report, f"round {number}", "its inconsistency when asked in the other order") <= 1


@pytest.mark.parametrize("form", ["colbert", "dpr"])
def test_labels_are_not_needed(values: dict[str, Any], toy: Path, tmp_path: Path, form: str) -> None:
    """No train split at all, and fewer candidates than a line or its pairs would take."""
    reranker = {"kind": "cross_encoder", "model": str(toy / "reranker"), "max_length": 64}
    bare = values | {
        "data": {"path": str(toy / "data"), "train_split": None},
        "queries": {"count": 16, "sentences": 1},
        "candidates": {"sources": ["student"], "depth": 3},
        "pairwise": reranker,
        "preflight": "warn",  # a random reranker: the trial of it on dev says so
        "rounds": [steps(2)],
        "loss": {**SCALE, "form": form, "lambda_pair": 1.0},
    }
    student, lab = run_recipe(bare, tmp_path)
    lists = rows(artifact_of(lab, "lists of round 1"))
    assert len(lists) == 16 and all(one["relevant"] == [] and len(one["doc_rows"]) == 3 for one in lists)
    assert all(len(one["pair_p"]) == available(3, 3) for one in lists)
    assert student.stage == "train" and np.isfinite(student.metrics["last_loss"])
    assert student.id != lab.start.id
