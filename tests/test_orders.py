"""Language models that write orders: their words are those of the plain model, and their orders teach."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from raydrd.errors import InputError
from raydrd.models.orders import OrderModel, greedy
from raydrd.models.prompts import PROMPTS, ListPrompt, assemble
from raydrd.spine.store import Artifact, Located, Store
from raydrd.stages.adopt import model_folder
from raydrd.stages.order import score_lists
from raydrd.stages.score import import_teacher
from raydrd.stages.tokenize import tokenize
from tests.language_models import TEXTS, language_model, texts_of
from tests.recipes import LISTS, fact, refusal, run_recipe, run_toy, settings, steps
from tests.stage_inputs import candidate_lists, open_data, put, whole, whole_texts, with_resources
from tests.worlds import subject_overlap

SHORT = ListPrompt(template="{query}\n{passages}order {count}:", passage="[{number}]\n{passage}\n")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("orders")
    return {kind: language_model(kind, home / kind) for kind in ("flan", "llama", "gpt2")}


@pytest.mark.parametrize("kind", ["flan", "llama", "gpt2"])
def test_answers_in_padded_batches_are_those_of_one_prompt_alone(folders: dict[str, Path], kind: str) -> None:
    model = OrderModel(folders[kind], prompt=SHORT, precision="fp32", device=torch.device("cpu"))
    tokenizer = AutoTokenizer.from_pretrained(folders[kind])
    prompts = []
    for length in (3, 40, 7, 1, 25):
        texts = texts_of(tokenizer, {"query": TEXTS["query"], "p1": TEXTS["a"], "p2": " ".join([TEXTS["b"]] * 9)})
        prompts.append(assemble(model.pieces(2), {n: ids[:length] for n, ids in texts.items()}, max_length=200))
    assert len({len(one) for one in prompts}) == 5
    found = model.answers(prompts, count=2)
    plain = (AutoModelForSeq2SeqLM if model.seq2seq else AutoModelForCausalLM).from_pretrained(folders[kind]).eval()
    new = len(tokenizer("[1] > [2]", add_special_tokens=False)["input_ids"]) + 8
    assert model.answer_length(2) == new
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt.tolist()])
        written = plain.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new)
        expected.append(tokenizer.decode(written[0] if model.seq2seq else written[0, ids.shape[1] :], skip_special_tokens=True))
    assert found == expected
    assert len(set(found)) > 1 and max(map(len, found)) > 3  # not the same few letters after every prompt
    assert model.answers([], count=2) == []


def test_how_the_makers_would_have_it_write_changes_no_order(folders: dict[str, Path], tmp_path: Path) -> None:
    """Qwen2.5 comes with a penalty for repetition, others with bans: brackets and numbers stand in every question."""
    folder = Path(shutil.copytree(folders["gpt2"], tmp_path / "gpt2"))
    file = folder / "generation_config.json"
    values = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 2, "min_new_tokens": 3, "temperature": 0.7, "num_beams": 3}
    file.write_text(json.dumps(json.loads(file.read_text()) | values | {"suppress_tokens": [60, 62], "do_sample": True}))
    prompts = [np.arange(20, 60, dtype=np.int32), np.arange(100, 130, dtype=np.int32)]
    found = [
        OrderModel(path, prompt=SHORT, precision="fp32", device=torch.device("cpu")).answers(prompts, count=2)
        for path in (folders["gpt2"], folder)
    ]
    assert found[0] == found[1] and max(map(len, found[0])) > 3
    kept = greedy(GenerationConfig.from_pretrained(folder))
    assert kept.eos_token_id == GenerationConfig.from_pretrained(folders["gpt2"]).eos_token_id is not None


def test_a_prompt_and_its_answer_must_fit_the_positions(folders: dict[str, Path]) -> None:
    model = OrderModel(folders["gpt2"], prompt=SHORT, precision="fp32", device=torch.device("cpu"))
    room = 256 - model.answer_length(3)
    assert len(model.answers([np.full(room, 5, np.int32)], count=3)) == 1
    with pytest.raises(InputError, match="a prompt and its answer have 257 tokens, the teacher takes 256; lower it, or take"):
        model.answers([np.full(room + 1, 5, np.int32)], count=3)


# -- the stage ----------------------------------------------------------------------------------------


def order(store: Store, folder: Path, data: Artifact, candidates: Artifact, **changes: Any) -> Artifact:
    made = store.run(import_teacher, source=Located("toy", folder))
    known = Located(made.metrics["tokenizer"], (model_folder(made), ""))
    tokens = {
        name: store.run(tokenize, data=data, name=name, tokenizer=known, prompt="", lowercase=False)
        for name in ("queries/train", "corpus")
    }
    asked = {"prompt": SHORT, "window": 4, "stride": 2, "max_length": 200, "precision": "fp32", **changes}
    return store.run(
        score_lists, candidates=candidates, query_tokens=tokens["queries/train"], passage_tokens=tokens["corpus"],
        teacher=Located("toy", model_folder(made)), **asked,
    )  # fmt: skip


@pytest.fixture
def sorts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A model that puts the passages of its prompt in the order of the oracle; how many prompts each call had."""
    calls: list[int] = []

    def answers(self: OrderModel, prompts: list[Any], *, count: int) -> list[str]:
        calls.append(len(prompts))
        found = []
        for ids in prompts:
            query, *texts = re.split(r"\[\d+\]\n", self.tokenizer.decode(ids, skip_special_tokens=True))
            passages = [text.rpartition("order")[0] or text for text in texts]
            assert len(passages) == count
            worth = [subject_overlap(query, text) for text in passages]
            found.append(" > ".join(f"[{n + 1}]" for n in sorted(range(count), key=lambda n: -worth[n])))
        return found

    monkeypatch.setattr(OrderModel, "answers", answers)
    return calls


def test_the_best_passages_of_a_list_come_to_its_front(
    store: Store, toy: Path, folders: dict[str, Path], sorts: list[int]
) -> None:
    data = open_data(store, toy / "data")
    rng = np.random.default_rng(0)
    lists = [rng.permutation(60)[: (11, 4, 3, 1, 0)[n % 5]].tolist() for n in range(24)]
    made = order(store, folders["gpt2"], data, put(store, "c", candidate_lists(lists), 7))
    queries, texts = whole_texts(data, "queries/train"), whole_texts(data, "corpus")
    deep = 0
    for query, docs, scores in zip(queries, lists, whole(made)["teacher_scores"].to_pylist(), strict=True):
        assert sorted(scores) == list(range(len(docs)))  # grades
        worth = {doc: subject_overlap(query, texts[doc]) for doc in docs}
        best = sorted(docs, key=lambda d: -worth[d])[:2]
        ranked = [docs[n] for n in np.argsort(-np.array(scores))]
        # Of windows of four by two, the first two places are those of the whole list's best.
        assert [worth[doc] for doc in ranked[:2]] == [worth[doc] for doc in best]
        deep += bool(docs) and docs.index(best[0]) > 3
    assert deep > 2  # they were not all in the first window
    # 11 passages: windows at 7, 5, 3, 1, 0; four and three: one; fewer than two: none.
    lengths = [len(docs) for docs in lists]
    assert made.metrics["windows"] == 5 * lengths.count(11) + lengths.count(4) + lengths.count(3) == sum(sorts)
    assert made.metrics["unread"] == made.metrics["missing"] == 0
    assert len(sorts) < 12  # all lists of a shard at once


def test_how_the_lists_are_cut_into_shards_changes_nothing(
    store: Store, toy: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    """By the model's own words, whatever they are worth."""
    data = open_data(store, toy / "data")
    lists = [[(7 * n + 11 * k) % 60 for k in range(5)] for n in range(24)]
    found = []
    for number, pairs in enumerate((10**6, 25)):
        own = with_resources(store, tmp_path / str(number), pairs_per_shard=pairs)
        made = order(own, folders["llama"], data, put(own, "c", candidate_lists(lists)))
        found.append((whole(made)["teacher_scores"].to_pylist(), {n: v for n, v in made.metrics.items() if n != "per_second"}))
    assert found[0] == found[1]
    assert found[0][1]["windows"] == 48 and found[0][1]["pairs"] == 120


# -- a run --------------------------------------------------------------------------------------------


def listed(toy: Path, folder: Path, **more: Any) -> dict[str, Any]:
    teacher = {"kind": "prompted", "model": str(folder), "prompt": SHORT.model_dump(), "window": 4, "stride": 2}
    return settings(toy, "cldrd", teacher={**teacher, "max_length": 200}, **more)


def test_a_student_learns_the_order(toy: Path, folders: dict[str, Path], tmp_path: Path, sorts: list[int]) -> None:
    curriculum = [{"lists": {"graded": 5, "hard": 5, "hard_until": 10, "rest": 0}, "train": steps(30)}]
    candidates = {"sources": ["student"], "depth": 12}
    values = listed(toy, folders["gpt2"], curriculum=curriculum, loss={"score_scale": 20}, candidates=candidates)
    report = run_toy(tmp_path, values)
    assert report["preflight"][0]["ok"] and report["preflight"][0]["scale"] is None
    assert report["systems"]["teacher"]["nDCG@10"] > report["systems"]["student_before"]["nDCG@10"] + 0.2
    assert report["systems"]["student"]["nDCG@10"] > report["systems"]["student_before"]["nDCG@10"] + 0.1
    assert report["systems"]["teacher"]["description"].startswith("prompted, re-ranking")
    assert fact(report, "order of train", "windows put in order") == 24 * 5
    assert fact(report, "order of train", "answers that named no passage") == 0
    assert not (Path(report["store"]) / "scores").exists()  # grades are no pair's own


def test_recipes_that_learn_scores_refuse_an_order(
    toy: Path, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = listed(toy, folders["gpt2"])["teacher"]
    values = settings(toy, "margin_mse", teacher=teacher, lists=LISTS, train=steps(1))
    line = refusal(capsys, tmp_path, values)
    assert line.startswith(
        "teacher.prompt: it gives an order, and recipe margin_mse learns scores with this config; write cldrd"
    )
    members = [teacher, {"kind": "cross_encoder", "model": str(toy / "teacher"), "max_length": 64}]
    line = refusal(capsys, tmp_path, values | {"teacher": {"kind": "ensemble", "members": members}})
    assert line.startswith("teacher.prompt: it gives an order")
    step = {"lists": {"kind": "graded", "graded": 4, "hard": 0, "rest": 0}, "terms": [{"kind": "ordered"}], "train": steps(1)}
    mixed = settings(
        toy, "mix", teacher=teacher, steps=[step], candidates={"sources": ["student"], "depth": 6}, preflight="off"
    )
    student, lab = run_recipe(mixed, tmp_path / "mixed")
    assert student.id != lab.start.id
    step["terms"] = [{"kind": "ordered"}, {"kind": "distil"}]
    assert "learns scores" in refusal(capsys, tmp_path, {**mixed, "steps": [step]})
    pairwise = {"recipe": "pairdistill", "pairwise": teacher, "rounds": [steps(1)], "teacher": settings(toy, "mix")["teacher"]}
    line = refusal(capsys, tmp_path, settings(toy, "pairdistill") | pairwise)
    assert line.startswith("pairwise.prompt: it puts a list in order")


def test_the_shipped_prompt_asks_for_what_is_read() -> None:
    asked = PROMPTS["rank"].question(3).template
    assert [f"[{n}]\n{{p{n}}}" in asked for n in (1, 2, 3, 4)] == [True, True, True, False]
    assert "[2] > [1] > [3]" in asked and "all 3 passages" in asked
