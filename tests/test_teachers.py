"""Teachers at work: trained here from any encoder, cut, several as one, or a language model that answers with a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from raydrd.errors import InputError
from raydrd.flow.lab import Lab
from raydrd.flow.retrieve import mine, retrieve
from raydrd.flow.teach import duels, ready, scored_candidates, teach, teacher_run
from raydrd.methods.neighbours import NeighbourPairs
from raydrd.models.answers import AnswerModel, pointwise_scores
from raydrd.models.prompts import DUOT5, MONOT5, assemble
from raydrd.spine.store import Artifact
from raydrd.stages.adopt import model_folder
from tests.language_models import language_model
from tests.recipes import LISTS, SCALE, inputs, open_toy, rows, run_recipe, settings, steps, table_rows

TRAIN = {"lists": {**LISTS, "unlabelled": False}, "train": steps(40, 2.0e-3)}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for the whole file."""
    return tmp_path_factory.mktemp("teachers")


def opened(toy: Path, kept: Path, teacher: dict[str, Any], **more: Any) -> tuple[Lab, Artifact]:
    """A lab with this teacher, and mined candidates with every labelled positive."""
    values = settings(toy, "margin_mse", teacher=teacher, lists=LISTS, train=steps(2), loss=SCALE, preflight="warn")
    _, lab = open_toy(values | more, kept)
    return lab, mine(lab, lab.start, positives=True)


def advantage(lab: Lab, scored: Artifact) -> float:
    """Share of irrelevant passages of the train queries that the teacher puts below the first labelled positive."""
    judged = [row["doc_rows"] for row in table_rows(lab.data, "queries/train")]
    right = []
    for one in rows(scored):
        scores, positives = np.array(one["teacher_scores"]), judged[one["query_row"]]
        first = scores[one["doc_rows"].index(positives[0])]
        right.append((first > scores[~np.isin(one["doc_rows"], positives)]).mean())
    return float(np.mean(right))


def taught(lab: Lab, teacher: Any, candidates: Artifact) -> Artifact:
    return teach(lab, teacher, candidates, lab.train_data, "queries/train")


def searched(lab: Lab) -> Artifact:
    return retrieve(lab, lab.start, lab.data, "queries/test", k=60, label="before")


def test_a_cross_encoder_from_an_encoder_without_a_head(toy: Path, kept: Path) -> None:
    cfg = {"kind": "cross_encoder", "model": str(toy / "student"), "max_length": 64, "train": TRAIN}
    lab, candidates = opened(toy, kept, cfg)
    untrained = lab.teacher
    assert untrained.model is not None and not untrained.is_trained
    trained = ready(lab, untrained, candidates)
    assert trained.is_trained and lab.teacher == trained and trained.model is not None
    assert trained.identity == f"trained:{trained.model.id}" and trained.model.stage == "train_reranker"
    assert inputs(lab.store, trained.model, "start").id == untrained.model.id
    before, after = (advantage(lab, taught(lab, one, candidates)) for one in (untrained, trained))
    assert after > before + 0.2 and after > 0.75
    # Asked again, it is the same one; only a new round's candidates train it anew.
    assert ready(lab, trained, candidates) == trained
    assert [r.name for r in lab.store.journal].count("train_reranker") == 1


def test_a_teacher_is_cut_evenly_and_keeps_its_head(toy: Path, kept: Path) -> None:
    new = {"kind": "cross_encoder", "model": str(toy / "deep"), "max_length": 64, "layers": 2, "train": {"train": steps(1)}}
    lab, _ = opened(toy, kept, new)
    assert lab.teacher.model is not None
    made, whole = load_of(lab.teacher.model), load_file(toy / "deep" / "model.safetensors")
    name = "encoder.layer.{}.output.dense.weight"
    for place, source in ((0, 0), (1, 3)):  # evenly spaced from first to last
        assert torch.equal(made["bert." + name.format(place)], whole[name.format(source)])
    assert config_of(lab.teacher.model)["num_hidden_layers"] == 2 == lab.teacher.metrics["layers"]
    assert "classifier.weight" in made and made["classifier.weight"].shape == (1, 32)
    own = {"kind": "cross_encoder", "model": str(toy / "reranker"), "max_length": 64, "layers": 1}
    lab, _ = opened(toy, kept, own)
    assert lab.teacher.model is not None and lab.teacher.is_trained
    ranked = load_file(toy / "reranker" / "model.safetensors")
    assert torch.equal(load_of(lab.teacher.model)["classifier.weight"], ranked["classifier.weight"])
    assert config_of(lab.teacher.model)["num_hidden_layers"] == 1


def load_of(model: Artifact) -> dict[str, torch.Tensor]:
    return dict(load_file(model_folder(model).local_folder() / "model.safetensors"))


def config_of(model: Artifact) -> dict[str, Any]:
    return dict(json.loads((model_folder(model).local_folder() / "config.json").read_text()))


def test_a_bi_encoder_is_trained_and_searches(toy: Path, kept: Path) -> None:
    cfg = {"kind": "bi_encoder", "model": str(toy / "deep"), "layers": 2, "train": TRAIN}
    lab, candidates = opened(toy, kept, cfg, candidates={"sources": ["student"], "depth": 60})
    untrained = lab.teacher
    scored = scored_candidates(lab, lab.start)
    trained = lab.teacher
    assert trained.is_trained and trained.metrics["layers"] == 2 and scored.stage == "score_vectors"
    before, after = (advantage(lab, taught(lab, one, candidates)) for one in (untrained, trained))
    assert after > before + 0.1 and after > 0.85
    found, how = teacher_run(lab, searched(lab)) or (None, "")
    assert how == "bi-encoder, searching the corpus" and found is not None
    assert inputs(lab.store, inputs(lab.store, found, "passages"), "model").id == trained.identity.removeprefix("trained:")


def test_a_pairwise_teacher_learns_which_of_two_is_better(toy: Path, kept: Path) -> None:
    pairwise = {"kind": "cross_encoder", "model": str(toy / "student"), "max_length": 64, "train": TRAIN}
    oracle = {"kind": "cross_encoder", "model": str(toy / "teacher"), "max_length": 64}
    more = {"pairwise": pairwise, "rounds": [steps(1)], "lists": {"size": 12}}
    values = settings(toy, "pairdistill", teacher=oracle, **more, loss=SCALE)
    cfg, lab = open_toy(values, kept)
    scored = scored_candidates(lab, lab.start, positives=True)
    rule = NeighbourPairs(top_k=20, window=19, pairs=200)
    judged = [row["doc_rows"] for row in table_rows(lab.data, "queries/train")]
    found = []
    for one in rows(duels(lab, lab.teachers[cfg.pairwise], scored, rule, symmetrize=True)):
        positives = judged[one["query_row"]]
        pairs = zip(one["left"], one["right"], one["probabilities"], strict=True)
        found += [p for left, right, p in pairs if left == positives[0] and right not in positives]
    assert len(found) > 100 and np.mean(np.array(found) > 0.5) > 0.75
    trained = lab.teachers[cfg.pairwise]
    assert trained.is_trained and trained.model is not None and trained.model.stage == "train_reranker"
    assert trained.model.manifest["inputs"]["duels"] is True


def test_an_ensemble_is_the_mean_of_standardised_scores(toy: Path, kept: Path) -> None:
    members = [
        {"kind": "cross_encoder", "model": str(toy / "teacher"), "max_length": 64},
        {"kind": "bi_encoder", "model": str(toy / "deep"), "train": TRAIN},
    ]
    lab, candidates = opened(toy, kept, {"kind": "ensemble", "members": members})
    trained = ready(lab, lab.teacher, candidates)
    assert trained.is_trained and [member.is_trained for member in trained.members] == [True, True]
    assert trained.members[1].identity.startswith("trained:") and lab.preflights[0]["ok"]
    blended = rows(taught(lab, trained, candidates))
    each = [rows(taught(lab, member, candidates)) for member in trained.members]
    for one, *own in zip(blended, *each, strict=True):
        raw = np.array([member["teacher_scores"] for member in own])
        expected = ((raw - raw.mean(1, keepdims=True)) / raw.std(1, keepdims=True)).mean(0)
        np.testing.assert_allclose(one["teacher_scores"], expected, atol=1e-5)
    found = teacher_run(lab, searched(lab))
    assert found is not None and found[1] == "ensemble, re-ranking 100 passages of BM25, the start, its own bi-encoder"


def test_dark_examples_are_standardised_as_the_passages_beside_them(toy: Path, kept: Path) -> None:
    """An ensemble's scores of written passages and of mined ones live on one scale."""
    members = [
        {"kind": "cross_encoder", "model": str(toy / "teacher"), "max_length": 64},
        {"kind": "cross_encoder", "model": str(toy / "reranker"), "max_length": 64},
    ]
    ensemble = {"kind": "ensemble", "members": members}
    dark = {"built": 4, "reinforced": 2, "noisy": 2}
    values = settings(toy, "adam", teacher=ensemble, lists=LISTS, dark=dark, train=steps(1), loss=SCALE, preflight="warn")
    _, lab = run_recipe(values, kept)
    blends = [r for r in lab.store.journal if r.label == "blend train, dark, dark examples"]
    plain = [lab.store.find("score_pairs", r.id) for r in lab.store.journal if r.label.startswith("score train, dark examples")]
    written = [r for r in lab.store.journal if r.label.startswith("score train, dark, dark examples")]
    assert len(blends) == 1 and len(plain) == len(written) == 2
    each = [rows(lab.store.find("score_pairs", r.id)) for r in written]
    bases = [rows(one) for one in plain]
    for number, one in enumerate(rows(lab.store.find("blend", blends[0].id))):
        expected = np.zeros(len(one["doc_rows"]))
        for own, base in zip(each, bases, strict=True):
            reference = np.array(base[number]["teacher_scores"])
            expected += (np.array(own[number]["teacher_scores"]) - reference.mean()) / reference.std() / 2
        np.testing.assert_allclose(one["teacher_scores"], expected, atol=1e-4)


def test_a_teacher_cannot_be_trained_without_labels(toy: Path, kept: Path) -> None:
    cfg = {"kind": "cross_encoder", "model": str(toy / "student"), "max_length": 64, "train": TRAIN}
    data = {"path": str(toy / "data"), "train_split": None}
    lab, candidates = opened(toy, kept, cfg, data=data, queries={"count": 8, "sentences": 1})
    with pytest.raises(InputError, match="teacher.train: no train query is labelled"):
        ready(lab, lab.teacher, candidates)


def test_a_language_model_teaches_by_points_and_by_pairs(toy: Path, kept: Path, tmp_path: Path) -> None:
    folder = language_model("t5", tmp_path / "t5")
    point = {"kind": "prompted", "model": str(folder), "prompt": "monot5", "max_length": 96}
    pair = {"kind": "prompted", "model": str(folder), "prompt": "duot5", "max_length": 128}
    values = settings(
        toy, "pairdistill", teacher=point, candidates={"sources": ["student"], "depth": 8}, pairwise=pair,
        pairs={"top_k": 6, "window": 2, "pairs": 3}, lists={"size": 6}, rounds=[steps(2)], loss=SCALE, preflight="warn",
    )  # fmt: skip
    student, lab = run_recipe(values, kept)
    assert student.id != lab.start.id and len(lab.preflights) == 1
    journal = {r.label: lab.store.find(r.name, r.id) for r in lab.store.journal}
    texts = {
        "query": [row["text"] for row in table_rows(lab.data, "queries/train")],
        "passage": [row["text"] for row in table_rows(lab.data, "corpus")],
    }
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(text: str) -> Any:
        return np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)

    model = AnswerModel(folder, prompt=MONOT5, precision="fp32")
    scored = rows(journal["score train, round 1 (t5)"])[3]
    prompts = [
        assemble(model.pieces, {"query": ids(texts["query"][3]), "passage": ids(texts["passage"][doc])}, max_length=96)
        for doc in scored["doc_rows"]
    ]
    np.testing.assert_allclose(scored["teacher_scores"], pointwise_scores(model.logits(prompts)), atol=1e-4)
    assert np.ptp(scored["teacher_scores"]) > 1e-3
    judge = AnswerModel(folder, prompt=DUOT5, precision="fp32")
    compared = rows(journal["compare pairs (round 1)"])[3]
    prompts = [
        assemble(
            judge.pieces,
            {"query": ids(texts["query"][3]), "a": ids(texts["passage"][a]), "b": ids(texts["passage"][b])},
            max_length=128,
        )
        for a, b in zip(compared["left"], compared["right"], strict=True)
    ]
    expected = 1 / (1 + np.exp(-pointwise_scores(judge.logits(prompts)).astype(np.float64)))
    np.testing.assert_allclose(compared["probabilities"], expected, atol=1e-5)
