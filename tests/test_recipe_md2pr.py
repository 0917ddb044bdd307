"""MD2PR on the toy world: word maps from eager attention, a threshold carried from round to round, hidden positives found."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import raydrd.training.words as words_module
from raydrd.errors import InputError
from raydrd.methods.lists import POSITIVE, SUSPECT
from raydrd.methods.wordmaps import TeacherMaps
from tests.recipes import (
    LISTS,
    SCALE,
    artifact,
    artifact_of,
    assert_found_again,
    assert_learns,
    assert_negatives_are_unlabelled,
    fact,
    inputs,
    open_store,
    refusal,
    retriever,
    rows,
    run_recipe,
    run_toy,
    settings,
    steps,
    table_rows,
)
from tests.worlds import tiny_cross_encoder, toy_collection

SHORT = {"query_max_len": 20, "passage_max_len": 40}


@pytest.fixture(scope="module")
def values(toy: Path) -> dict[str, Any]:
    return settings(
        toy,
        "md2pr",
        student={"model": str(toy / "student"), **SHORT},
        lists=LISTS,
        filter={"keep": 3},
        words={"weight": 0.5, "projection": 16},
        rounds=[steps(15), steps(8), steps(4)],
        loss=SCALE,
    )


@pytest.fixture(scope="module")
def report(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_toy(tmp_path_factory.mktemp("md2pr"), values)


def test_it_learns_and_is_found_again(report: dict[str, Any], tmp_path: Path) -> None:
    assert_learns(report, by=0.25)
    assert_found_again(report, tmp_path)


def test_the_threshold_moves_as_the_formula_says(report: dict[str, Any]) -> None:
    judged = [row["doc_rows"] for row in table_rows(artifact(report, "load"), "queries/train")]
    theta = None
    for number in range(3):
        scored = rows(artifact(report, f"score train, round {number + 1} (teacher)"))
        known = [dict(zip(row["doc_rows"], row["teacher_scores"], strict=True)) for row in scored]
        first = [own[judged[row["query_row"]][0]] for own, row in zip(known, scored, strict=True)]
        assert len(first) == 24
        fresh = float(np.quantile(np.array(first, dtype=np.float64), max(0.2, 0.5 - 0.1 * number)))
        theta = fresh if theta is None else 0.5 * theta + 0.5 * fresh
        assert fact(report, f"round {number + 1}", "filter threshold") == pytest.approx(theta, rel=1e-6)


def test_each_round_mines_anew_and_never_takes_a_positive(report: dict[str, Any]) -> None:
    store = open_store(report["store"])
    before = [artifact(report, label).id for label in ("student before", "train round 1", "train round 2")]
    for number, student in enumerate(before, 1):
        lists = artifact(report, f"lists of round {number}")
        assert retriever(store, lists).id == student
        assert_negatives_are_unlabelled(rows(lists))


def test_the_hidden_positive_check_is_in_the_report(report: dict[str, Any]) -> None:
    for number in (1, 2, 3):
        assert fact(report, f"round {number}", "hidden positives") == 24 * 4
        recall = fact(report, f"round {number}", "hidden positives that it filters")
        assert recall > 2 * fact(report, f"round {number}", "passages of those queries that it filters") > 0


def test_unlabelled_positives_are_filtered_and_others_are_not(values: dict[str, Any], tmp_path: Path) -> None:
    """Four of the five relevant passages of a query lose their labels, and so are mined as negatives."""
    world = toy_collection(tmp_path / "data")
    with (tmp_path / "data" / "qrels" / "train.tsv").open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file, delimiter="\t", lineterminator="\n")
        out.writerow(("query-id", "corpus-id", "score"))
        out.writerows((query, next(iter(grades)), 1) for query, grades in world.qrels["train"].items())
    changed = values | {
        "data": {"path": str(tmp_path / "data")},
        "words": None,
        "rounds": [steps(2)],
        "lists": {**LISTS, "negatives": 20},
    }
    _, lab = run_recipe(changed, tmp_path / "store")
    docs, queries = sorted(world.passages), [row["query_id"] for row in table_rows(lab.data, "queries/train")]
    suspects = others = 0
    for one in rows(artifact_of(lab, "lists of round 1")):
        subject = world.subjects[queries[one["query_row"]]]
        for doc, flag in zip(one["doc_rows"], one["flags"], strict=True):
            same = world.subjects[docs[doc]] == subject
            if flag & SUSPECT:
                assert same and not flag & POSITIVE
                suspects += 1
            others += same and not flag
    found = {name: v for f in lab.facts if f["label"] == "round 1" for name, v in f["values"].items()}
    assert suspects == found["suspected false negatives"] > 10 and found["of so many negatives"] == 24 * 20
    assert "hidden positives" not in found  # no query has a second label to hide
    assert others > 0  # a bar at the median leaves some


def test_the_word_level_reads_the_teachers_eager_attention(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, Any]] = []

    class Watched(TeacherMaps):
        def __call__(self, *texts: Any, **more: Any) -> Any:
            maps = super().__call__(*texts, **more)
            seen.append((self.model.config._attn_implementation, maps))
            return maps

    short = values | {"rounds": [steps(3)]}
    plain, _ = run_recipe(short | {"words": None}, tmp_path)
    monkeypatch.setattr(words_module, "TeacherMaps", Watched)
    student, _ = run_recipe(short, tmp_path)
    assert len(seen) == 3 and {how for how, _ in seen} == {"eager"}
    for _, maps in seen:
        shares = torch.cat([maps.query_to_passage_BQP.sum(2).flatten(), maps.passage_to_query_BPQ.sum(2).flatten()])
        assert 0 < float(shares.max()) <= 1 + 1e-4 and float(shares.min()) >= 0
    # It changes what is learnt, and its projection is left behind.
    assert student.id != plain.id and student.metrics["size_mb"] == plain.metrics["size_mb"]
    assert student.metrics["last_loss"] > plain.metrics["last_loss"]


def test_a_trained_teacher_learns_again_each_round(values: dict[str, Any], toy: Path, tmp_path: Path) -> None:
    teacher = {"kind": "cross_encoder", "model": str(toy / "student"), "max_length": 64, "train": {"train": steps(2)}}
    changed = values | {"teacher": teacher, "rounds": [steps(2), steps(2)], "preflight": "warn"}
    with pytest.raises(InputError, match="^filter: the teacher learns again each round, so its scores of two rounds do not"):
        run_recipe(changed, tmp_path)
    changed |= {"filter": {**values["filter"], "standardise": True}}
    _, lab = run_recipe(changed | {"words": {"negatives": 1}}, tmp_path)
    trained = [lab.store.find(r.name, r.id) for r in lab.store.journal if r.name == "train_reranker"]
    assert len(trained) == 2 == len(lab.preflights)
    assert inputs(lab.store, trained[1], "start").id == trained[0].id
    assert retriever(lab.store, inputs(lab.store, trained[1], "lists")).id == artifact_of(lab, "train round 1").id
    for number, one in enumerate(trained, 1):
        assert inputs(lab.store, artifact_of(lab, f"train round {number}"), "word_teacher").id == one.id
    _, once = run_recipe(changed | {"retrain": False}, tmp_path)
    assert [r.id for r in once.store.journal if r.name == "train_reranker"] == [trained[0].id]


def test_a_word_level_that_cannot_work_is_refused(
    values: dict[str, Any], toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bi = {"kind": "bi_encoder", "model": str(toy / "deep")}
    assert refusal(capsys, tmp_path, values | {"teacher": bi}).startswith("words: the word level reads a cross_encoder's")
    other = tiny_cross_encoder(tmp_path / "other", words=("quay",))
    cross = {"kind": "cross_encoder", "model": str(other)}
    assert "have different tokenizers" in refusal(capsys, tmp_path, values | {"teacher": cross})
    line = refusal(capsys, tmp_path, values, changes=("teacher.max_length=59",))
    assert "up to 60 tokens together, the teacher reads 59; raise teacher.max_length, or lower" in line
    line = refusal(capsys, tmp_path, values, changes=("student.passage_max_len=64", "teacher.max_length=512"))
    assert "up to 84 tokens together, the teacher reads 64; lower student.passage_max_len" in line  # its tokenizer's limit
    assert refusal(capsys, tmp_path, values, changes=("words.layers=2",)).startswith("words.layers: 2 of teacher")
