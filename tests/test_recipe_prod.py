"""PROD on the toy world: teachers in turn on fresh negatives, an anchor that stays as it is, and confusing queries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from raydrd.config import validate
from raydrd.flow.lab import check_setting, open_lab
from raydrd.recipes import prod
from raydrd.stages.adopt import model_folder
from tests.recipes import (
    SCALE,
    artifact,
    artifact_of,
    assert_found_again,
    assert_learns,
    assert_negatives_are_unlabelled,
    digest,
    dry_run,
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

CONFUSING = "confusing queries"
LISTS = {"negatives": 7, "pool": 30, "ranking": "student", "unlabelled": False}


@pytest.fixture(scope="module")
def values(toy: Path) -> dict[str, Any]:
    bi = {"kind": "bi_encoder", "model": str(toy / "deep"), "train": {"train": steps(30)}}
    small = {"kind": "cross_encoder", "model": str(toy / "student"), "max_length": 64, "train": {"train": steps(10)}}
    return settings(
        toy,
        "prod",
        progress=[
            {"teacher": bi, "anchor": False, "lists": LISTS, "train": steps(10)},
            {"teacher": small, "mined_by": "teacher", "lists": LISTS, "train": steps(3, 1.0e-3)},
            {"lists": LISTS, "train": steps(8)},
        ],
        # No query's positive is that deep: the step is left out. Another test has some.
        data_progressive={"train": steps(5, 1.0e-3), "select": {"student_from": 59, "student_to": 60}},
        loss=SCALE,
        preflight="warn",  # the small cross-encoder is a bad one
    )


@pytest.fixture(scope="module")
def report(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_toy(tmp_path_factory.mktemp("prod"), values)


def test_it_learns_and_is_found_again(report: dict[str, Any], tmp_path: Path) -> None:
    assert_learns(report, by=0.25)
    assert_found_again(report, tmp_path)


def test_no_confusing_query_is_a_note(report: dict[str, Any]) -> None:
    assert [note for note in report["data"]["notes"] if "no query is confusing" in note]
    assert report["artifacts"]["student"] == f"train/{artifact(report, f'train {labels(report)[-1]}').id}"


def labels(report: dict[str, Any]) -> list[str]:
    """Of the three teachers' turns."""
    return [segment["label"] for segment in report["curve"]["segments"]]


def test_each_teacher_is_trained_on_freshly_mined_candidates(report: dict[str, Any], values: dict[str, Any]) -> None:
    store, (_, second, third) = open_store(report["store"]), labels(report)
    models = [step["teacher"]["model"] for step in values["progress"][:2]]
    bi, cross = (artifact(report, f"train teacher {model}") for model in models)
    assert (bi.stage, cross.stage) == ("train", "train_reranker")
    # The bi-encoder learns what the start confuses; the cross-encoder what the trained bi-encoder does (mined_by: teacher).
    assert retriever(store, inputs(store, bi, "lists")).id == artifact(report, "student before").id
    assert retriever(store, inputs(store, cross, "lists")).id == bi.id
    scored = artifact(report, f"score train, {second} (student)")
    assert scored.manifest["inputs"]["teacher"] == f"trained:{cross.id}"
    # Later steps mine with the student as it is by then.
    assert retriever(store, artifact(report, f"lists of {third}")).id == artifact(report, f"train {second}").id
    assert retriever(store, artifact(report, f"lists of {CONFUSING}")).id == artifact(report, f"train {third}").id


def test_mined_negatives_are_no_labelled_positives(report: dict[str, Any]) -> None:
    for label in labels(report):
        lists = rows(artifact(report, f"lists of {label}"))
        assert len(lists) == 24 and all(len(one["doc_rows"]) == 8 for one in lists)
        assert_negatives_are_unlabelled(lists)


def test_the_anchor_is_the_student_of_just_before(report: dict[str, Any]) -> None:
    store, turns = open_store(report["store"]), labels(report)
    anchored = [artifact(report, s["label"]) for s in report["stages"] if s["name"] == "anchor"]
    assert [s["label"] for s in report["stages"] if s["name"] == "anchor"] == [
        f"anchor scores ({label})" for label in (*turns[1:], CONFUSING)
    ]
    for one, before in zip(anchored, turns, strict=True):
        for side in ("queries", "passages"):
            model = inputs(store, inputs(store, one, side), "model")
            assert model.id == artifact(report, f"train {before}").id
    plain = SentenceTransformer(str(model_folder(artifact(report, f"train {turns[1]}")).local_folder()), device="cpu")
    data = artifact(report, "load")
    queries = plain.encode_query([row["text"] for row in table_rows(data, "queries/train")])
    passages = plain.encode_document([row["text"] for row in table_rows(data, "corpus")])
    for one in rows(anchored[1]):
        expected = passages[one["doc_rows"]] @ queries[one["query_row"]]
        np.testing.assert_allclose(one["anchor_scores"], expected, atol=3e-3)  # vectors are stored in half precision


def test_confusing_queries_and_an_anchor_that_no_stage_touches(values: dict[str, Any], tmp_path: Path) -> None:
    """One short step, after which the student still errs; then it again, with the confusing queries behind it."""
    short = values | {"progress": [{"lists": LISTS, "anchor": False, "train": steps(4)}], "data_progressive": None}
    before, _ = run_recipe(short, tmp_path)
    files = digest(before)
    chosen = {"train": steps(5, 1.0e-3), "select": {"student_to": 60, "negatives": 7}}
    after, lab = run_recipe(short | {"data_progressive": chosen}, tmp_path)
    assert inputs(lab.store, after, "start").id == before.id != after.id
    anchored = artifact_of(lab, f"anchor scores ({CONFUSING})")
    assert inputs(lab.store, inputs(lab.store, anchored, "passages"), "model").id == before.id
    assert digest(before) == files

    judged = [row["doc_rows"] for row in table_rows(lab.data, "queries/train")]
    expected = {}
    for one in rows(artifact_of(lab, f"score train, {CONFUSING} (teacher)")):
        positives = judged[one["query_row"]]
        every = zip(one["doc_rows"], one["scores"], one["teacher_scores"], strict=True)
        known = [(doc, score, teacher) for doc, score, teacher in every if np.isfinite(score)]
        student = [doc for doc, _, _ in sorted(known, key=lambda row: (-row[1], row[0]))]
        teacher = [doc for doc, _, _ in sorted(known, key=lambda row: (-row[2], row[0]))]
        own, others = (next(rank for rank, d in enumerate(order, 1) if d in positives) for order in (student, teacher))
        if own >= 2 and others == 1:
            # The labelled positive, then what beats it, in the student's order.
            expected[one["query_row"]] = [positives[0], *[doc for doc in student if doc not in positives][:7]]
    assert 0 < len(expected) < 24
    assert {one["query_row"]: one["doc_rows"] for one in rows(anchored)} == expected


def test_a_teacher_that_no_step_has_used_is_trained_for_the_confusing_queries(
    values: dict[str, Any], toy: Path, tmp_path: Path
) -> None:
    large = {"kind": "cross_encoder", "model": str(toy / "deep"), "max_length": 64, "train": {"train": steps(2)}}
    small = {**values["progress"][0], "train": steps(2)}
    _, lab = run_recipe(values | {"teacher": large, "progress": [small]}, tmp_path)
    assert lab.teacher.is_trained and [one["identity"] for one in lab.preflights][-1] == lab.teacher.identity
    scored = artifact_of(lab, f"score train, {CONFUSING} (deep)")
    assert scored.manifest["inputs"]["teacher"] == lab.teacher.identity


def test_mining_by_a_teacher_needs_a_bi_encoder(
    values: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = refusal(capsys, tmp_path, values | {"progress": values["progress"][1:]})
    assert line.startswith("progress: mined_by: teacher needs a bi_encoder")


STRAIGHT = "progressive teachers: straight to the strongest"


def test_without_weaker_teachers_the_same_bi_encoder_mines(
    report: dict[str, Any], values: dict[str, Any], tmp_path: Path
) -> None:
    cfg = validate(prod.Config, values, "toy")
    straight = prod.variants(cfg)[STRAIGHT]
    assert straight.miner == cfg.progress[0].teacher and {step.teacher for step in straight.progress} == {None}
    store = open_store(report["store"])
    lab = open_lab(straight, store)
    prod.run(straight, lab)
    named = f"train teacher {values['progress'][0]['teacher']['model']}"
    bi = artifact(report, named)
    trained = [record for record in store.journal if record.label == named]
    assert [(one.id, one.reused) for one in trained] == [(bi.id, True)]  # on the same lists, though it teaches nothing here
    label = labels(report)[1]
    assert retriever(store, artifact_of(lab, f"lists of {label}")).id == bi.id
    assert artifact_of(lab, f"lists of {label}").id != artifact(report, f"lists of {label}").id  # scored by the strongest


def test_without_the_anchor_no_step_has_one(values: dict[str, Any]) -> None:
    cfg = validate(prod.Config, values, "toy")
    anchored = [label for label in dry_run(cfg)[0] if label.startswith("anchor scores")]
    assert len(anchored) == 3
    loose = prod.variants(cfg)["anchor: none"]
    found, lab = dry_run(loose)
    assert not [label for label in found if label.startswith("anchor scores")]
    assert found[f"train {CONFUSING}"] != dry_run(cfg)[0][f"train {CONFUSING}"] and lab.segments[-1]["label"] == CONFUSING
    only = validate(prod.Config, values | {"progress": values["progress"][:1]}, "toy")
    assert prod.variants(only)["anchor: none"].data_progressive.anchor is False


def test_a_miner_is_chosen_among_the_steps_unless_named(values: dict[str, Any]) -> None:
    cfg = validate(prod.Config, values, "toy")
    assert cfg.mining == cfg.progress[0].teacher and len(cfg.teachers()) == 3
    other = {"kind": "bi_encoder", "model": "other"}
    named = validate(prod.Config, values | {"miner": other}, "toy")
    assert named.mining.model == "other" and named.mining in named.teachers() and len(named.teachers()) == 4
    plain, changed = dry_run(cfg)[0], dry_run(named)[0]
    same = {label for label in plain if plain[label] == changed.get(label)}
    assert "search train (teacher 1)" in same and "search train (teacher 2)" in plain.keys() - same
    # The config's own comes last if the last step has it, so that it does not mine for the others.
    first = values | {"teacher": {"kind": "bi_encoder", "model": "strongest"}}
    assert validate(prod.Config, first, "toy").mining == cfg.mining


@pytest.mark.parametrize("case", ["no use", "untrained", "unmined", "sources", "warm-up"])
def test_teachers_without_a_use_or_before_their_training_are_refused(
    values: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path, case: str
) -> None:
    bi, small = (step["teacher"] for step in values["progress"][:2])
    first, second, third = values["progress"]
    trained = {**small, "model": values["teacher"]["model"], "train": {"train": steps(2)}}
    changes, message = {
        "no use": ({"teacher": trained, "progress": [first, second], "data_progressive": None}, "teacher: every step of progr"),
        "untrained": (
            {"progress": [{**first, "mined_by": "teacher"}, third]},
            f"progress.0.mined_by: bi_encoder {bi['model']} would mine before its training, in step 1; write mined_by: student",
        ),
        "unmined": ({"progress": [first, third], "miner": bi}, "miner: no step is mined by it; write mined_by: teacher"),
        "sources": (
            {"teacher": bi, "candidates": {"sources": ["student", "teacher"]}},
            f"candidates.sources: bi_encoder teacher {bi['model']} would search before its training; write [student]",
        ),
        "warm-up": (
            {"teacher": bi, "warm_up": [{"sources": ["teacher"], "train": steps(1)}]},
            "warm_up.0.sources: bi_encoder teacher",
        ),
    }[case]
    assert refusal(capsys, tmp_path, values | changes).startswith(message)


def test_a_trained_teacher_of_the_confusing_queries_only(values: dict[str, Any]) -> None:
    large = {**values["progress"][1]["teacher"], "model": values["teacher"]["model"]}
    cfg = validate(prod.Config, values | {"teacher": large, "progress": values["progress"][:2]}, "toy")
    check_setting(cfg)
    without = prod.variants(cfg)["data progressive: none"]
    check_setting(without)  # the last step's teacher is the strongest then, and the other one is not opened
    assert without.teacher == cfg.progress[-1].teacher and cfg.teacher not in without.teachers()


def test_sources_without_the_student_are_told(values: dict[str, Any]) -> None:
    line = "candidates.sources has no student: rounds do not mine anew"
    for sources in (["bm25"], ["bm25", "student"]):
        _, lab = dry_run(validate(prod.Config, values | {"candidates": {"sources": sources}}, "toy"))
        assert lab.notes == ([line] if "student" not in sources else [])
