"""vLLM as the engine: the same prompts to the last token, what is asked, how answers are read, and the whole road through
`ray.data.llm` with a stand-in for vLLM itself. With a GPU and the real one, the last test compares real scores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from raydrd.config import validate
from raydrd.errors import InputError, StageError
from raydrd.flow.lab import check_setting
from raydrd.flow.teach import scored_candidates
from raydrd.models.answers import AnswerModel
from raydrd.models.prompts import PROMPTS, assemble
from raydrd.models.requests import engine_options, request, score_of
from raydrd.recipes import RECIPES
from raydrd.spine.cluster import Cluster
from raydrd.spine.scorebook import Book
from raydrd.spine.storage import Folder
from raydrd.spine.store import Located
from raydrd.stages.adopt import model_folder
from raydrd.stages.engine import Keeper, Requester, read_answer
from raydrd.stages.known import Known
from raydrd.stages.score import asked_pairs, import_teacher, score_pairs
from raydrd.stages.shards import parts_of
from raydrd.stages.tokenize import tokenize
from tests.language_models import language_model
from tests.recipes import LISTS, open_toy, refusal, settings, steps
from tests.stage_inputs import candidate_lists, open_data, put, whole, whole_texts

HOME = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model("gpt2", tmp_path_factory.mktemp("vllm") / "gpt2")


# -- requests and answers -----------------------------------------------------------------------------


def test_what_is_asked() -> None:
    asked = request(np.array([5, 6, 7], dtype=np.int32), (11, 12))
    assert asked["tokenized_prompt"] == [5, 6, 7] and all(type(one) is int for one in asked["tokenized_prompt"])
    params = asked["sampling_params"]
    assert params["max_tokens"] == 1 and params["temperature"] == 0.0
    assert params["logprob_token_ids"] == [11, 12] and params["logprobs"] == 2  # vLLM refuses another number
    options = engine_options(max_length=96, precision="bf16", gpus=2)
    assert (options["max_model_len"], options["dtype"], options["tensor_parallel_size"]) == (97, "bfloat16", 2)
    assert options["load_format"] == "safetensors" and options["enable_prefix_caching"] and not options["trust_remote_code"]
    assert engine_options(max_length=96, precision="fp32", gpus=1)["dtype"] == "float32"


# An answer as `ray.data.llm` of Ray 2.60 hands it on: log probabilities by token id, the sampled token's among them.
RECORDED = {
    "prompt": "", "prompt_token_ids": [9, 8], "num_input_tokens": 2, "generated_tokens": [42], "generated_text": "",
    "num_generated_tokens": 1, "embeddings": None, "metrics": {}, "prompt_logprobs": None, "request_id": 0,
    "batch_uuid": "0", "time_taken_llm": 0.1, "params": "", "__inference_error__": "",
    "logprobs": [
        {
            42: {"logprob": -0.25, "rank": 1, "decoded_token": None},
            11: {"logprob": -2.0, "rank": 3, "decoded_token": None},
            12: {"logprob": -5.5, "rank": 90, "decoded_token": None},
        }
    ],
}  # fmt: skip


def test_an_answer_is_the_difference_of_two_log_probabilities() -> None:
    assert score_of(RECORDED, (11, 12)) == 3.5 == -score_of(RECORDED, (12, 11))
    keys = {str(token): value for token, value in RECORDED["logprobs"][0].items()}  # through JSON or Arrow they are words
    assert score_of({"logprobs": [keys]}, (11, 12)) == 3.5
    assert score_of({"logprobs": [{11: -1.0, 12: -1.5}]}, (11, 12)) == 0.5


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({}, "no log probabilities came back"),
        ({"logprobs": []}, "no log probabilities came back"),
        ({"logprobs": [{11: {"logprob": -1.0}, 42: {"logprob": -0.1}}]}, r"of token 12 did not come back, only of \[11, 42\]"),
        ({"logprobs": [{11: {"logprob": -1.0}, 12: {"logprob": float("-inf")}}]}, "log probabilities are -1.0 and -inf"),
    ],
)
def test_answers_without_a_score_are_not_guessed(answer: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_of(answer, (11, 12))
    row = {**answer, "query": b"q", "left": b"l", "right": b"r", "pair": "query row 1, passage row 2", "answers": [11, 12]}
    read = read_answer(row)
    assert np.isnan(read["score"]) and read["problem"] and read["pair"] == "query row 1, passage row 2"


class Kept:
    def __init__(self) -> None:
        self.tables: dict[str, Any] = {}

    def add(self, name: str, found: Any) -> None:
        self.tables[name] = found.to_pylist()


def test_good_answers_are_kept_and_bad_ones_name_their_pair() -> None:
    book: Any = Kept()
    key = {"query": b"q" * 16, "left": b"l" * 16, "right": bytes(16)}
    rows = [
        {**key, "pair": "query row 1, passage row 2", "score": 1.5, "problem": "", "__inference_error__": ""},
        {**key, "pair": "query row 1, passage row 3", "prompt": "", "__inference_error__": "ValueError: too long"},
        {**key, "pair": "query row 1, passage row 4", "score": float("nan"), "problem": "nothing came back"},
    ]
    told = Keeper(book=book, label="abc")(rows)
    assert told == {"kept": 1, "failed": 2, "told": "query row 1, passage row 3: ValueError: too long"}
    assert list(book.tables.values()) == [[{**key, "score": 1.5}]]
    assert all(name.startswith("abc-") for name in book.tables)


# -- the same prompts ---------------------------------------------------------------------------------


def test_both_engines_read_the_same_tokens(store: Any, toy: Path, llama: Path) -> None:

    data = open_data(store, toy / "data")
    made = store.run(import_teacher, source=Located("toy", llama))
    known = Located(made.metrics["tokenizer"], (model_folder(made), ""))
    parts = {
        name: parts_of(store.run(tokenize, data=data, name=table_, tokenizer=known, prompt="", lowercase=False))
        for name, table_ in (("queries", "queries/train"), ("passages", "corpus"))
    }
    lists = [[(7 * n + 11 * k) % 60 for k in range(3)] for n in range(24)]
    prompt = PROMPTS["yes_no_chat"]
    requester = Requester(
        asked=parts_of(put(store, "c", candidate_lists(lists), 7)), ask=asked_pairs, known=Known(Folder.of("none"), ()),
        model=Folder.of(llama), prompt=prompt, max_length=110, **parts,
    )  # fmt: skip
    rows = [row for lo in (0, 12) for row in requester({"lo": lo, "hi": lo + 12})]
    model = AnswerModel(llama, prompt=prompt, precision="fp32", device=torch.device("cpu"))
    tokenizer = AutoTokenizer.from_pretrained(llama)
    queries, passages = whole_texts(data, "queries/train"), whole_texts(data, "corpus")
    cut = 0
    for row, (query, doc) in zip(rows, [(n, doc) for n, docs in enumerate(lists) for doc in docs], strict=True):
        texts = {"query": queries[query], "passage": passages[doc]}
        ids = {name: np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32) for name, text in texts.items()}
        expected = assemble(model.pieces, ids, max_length=110)
        assert row["tokenized_prompt"] == expected.tolist() and row["answers"] == list(model.answers)
        assert row["sampling_params"]["logprob_token_ids"] == list(model.answers)
        assert row["pair"] == f"query row {query}, passage row {doc}"
        cut += len(expected) == 110
    assert 0 < cut < len(rows)  # some were cut, alike


# -- what is refused ----------------------------------------------------------------------------------


def prompted(toy: Path, model: Path, **more: Any) -> dict[str, Any]:
    teacher = {"kind": "prompted", "model": str(model), "prompt": "yes_no", "max_length": 96, "engine": "vllm", **more}
    values = settings(toy, "margin_mse", teacher=teacher, lists=LISTS, train=steps(1))
    values["resources"] = {"ray": "local", "train_workers": 0}
    return values


def test_without_vllm_a_run_is_refused_in_one_line(
    toy: Path, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_spec("vllm") is not None:
        pytest.skip("vLLM is installed here")
    line = refusal(capsys, tmp_path, prompted(toy, llama))
    assert line == "teacher.engine: vllm is not installed; pip install 'raydrd[llm]', or write engine: transformers"


def test_what_vllm_cannot_do_is_refused(toy: Path, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydrd.flow.teachers.find_spec", lambda name: name)
    t5 = language_model("t5", tmp_path / "t5")
    with pytest.raises(InputError, match="teacher.engine: vllm runs no encoder-decoder models such as .*t5; write"):
        open_toy(prompted(toy, t5, prompt="monot5"), tmp_path / "store")
    with pytest.raises(
        InputError, match="max_length: 256 tokens, but the teacher has 256 positions, and 1 of them for its answer"
    ):
        open_toy(prompted(toy, llama, max_length=256), tmp_path / "store")
    values = prompted(toy, llama)
    values["resources"]["ray"] = "off"
    cfg = validate(RECIPES["margin_mse"].Config, values, "toy")
    with pytest.raises(InputError, match="resources.ray: off, but teacher.engine: vllm runs on Ray; write ray: auto"):
        check_setting(cfg)
    with pytest.raises(InputError, match="engine: vllm scores pairs, and this prompt asks for an order"):
        validate(RECIPES["margin_mse"].Config, prompted(toy, llama, prompt="rank", max_length=4000), "toy")


# -- the whole road -----------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_pairs_and_duels_by_way_of_ray_data_llm(toy: Path, llama: Path, tmp_path: Path) -> None:
    """Ray's own processor from end to end, in a process of its own; only vLLM itself is a stand-in."""
    fails = tmp_path / "fails"
    fails.write_text("0")
    environment = {
        **os.environ, "STANDIN_FAILS": str(fails), "PYTHONPATH": os.pathsep.join([str(HOME), str(HOME / "tests" / "standins")])
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.vllm_run", str(toy / "data"), str(llama), str(tmp_path / "store")],
        env=environment, capture_output=True, text=True, cwd=HOME,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.rpartition("REPORT ")[2])
    (plain, _), (found, told) = report["plain"], report["vllm"]
    np.testing.assert_allclose(found, plain, atol=1e-4)
    assert np.ptp(plain) > 0.1
    assert told["pairs"] == 120 and told["taken"] == 0 and fails.read_text() == "0"  # those that failed were asked again
    (duels, _), (compared, asked) = report["plain_duels"], report["duels"]
    np.testing.assert_allclose(compared, duels, atol=1e-4)
    assert asked["asked"] == 96 and asked["pairs"] == 48
    # Scores of the two engines are never mixed: a book of its own for each, here of pairs and of duels.
    assert report["books"] == [["", 96], ["", 120], ["vllm", 96], ["vllm", 120]]


class Engine:
    """In the place of `Cluster.ask`: the same workers and keepers, in this process, and answers out of nothing."""

    def __init__(self, fails: int = 0) -> None:
        self.fails, self.prompts, self.starts = fails, list[str](), 0

    def __call__(self, worker: type, arguments: dict[str, Any], shards: list[Any], **more: Any) -> list[dict[str, Any]]:
        self.starts += 1
        make, keep = worker(**arguments), more["keeper"](**more["kept"])
        return [keep(answers) for shard in shards if (answers := [self.answer(row, more["read"]) for row in make(shard)])]

    def answer(self, row: dict[str, Any], read: Any) -> dict[str, Any]:
        self.prompts.append(row["pair"])
        if self.fails:
            self.fails -= 1
            return {**row, "__inference_error__": "ValueError: no luck"}
        positive, negative = row["answers"]
        return dict(read({**row, "logprobs": [{positive: {"logprob": -1.0}, negative: {"logprob": -float(len(row["pair"]))}}]}))


def test_what_the_book_lacks_is_asked_and_what_fails_is_asked_again(
    store: Any, toy: Path, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(fails=3)
    monkeypatch.setattr(Cluster, "ask", lambda self, *args, **more: engine(*args, **more))
    data = open_data(store, toy / "data")
    made = store.run(import_teacher, source=Located("toy", llama))
    known = Located(made.metrics["tokenizer"], (model_folder(made), ""))
    texts = {
        name: store.run(tokenize, data=data, name=table, tokenizer=known, prompt="", lowercase=False)
        for name, table in (("query_tokens", "queries/train"), ("passage_tokens", "corpus"))
    }
    about = {**texts, "kind": "prompted", "teacher": Located("toy", model_folder(made)), "max_length": 96, "precision": "fp32"}
    lists = [[(7 * n + 11 * k) % 60 for k in range(5)] for n in range(24)]

    def scored(name: str, docs: list[list[int]], **changes: Any) -> Any:
        asked = {**about, "prompt": PROMPTS["yes_no"], "engine": "vllm", **changes}
        return store.run(score_pairs, candidates=put(store, name, candidate_lists(docs), 7), **asked)

    first = scored("first", lists)
    assert len(engine.prompts) == 123 and engine.prompts[120:] == engine.prompts[:3] and len(set(engine.prompts)) == 120
    assert (first.metrics["pairs"], first.metrics["taken"]) == (120, 0)
    rows = [(n, doc) for n, docs in enumerate(lists) for doc in docs]
    expected = [len(f"query row {n}, passage row {doc}") - 1.0 for n, doc in rows]
    assert np.concatenate(whole(first)["teacher_scores"].to_pylist()).tolist() == expected
    deeper = scored("deeper", [[*docs, (7 * n + 55) % 60] for n, docs in enumerate(lists)])
    assert len(engine.prompts) == 123 + 24 and (deeper.metrics["pairs"], deeper.metrics["taken"]) == (24, 120)
    starts = engine.starts
    fewer = scored("fewer", [docs[1:] for docs in lists])  # all known: no engine is started
    assert engine.starts == starts == 2 + 1 and (fewer.metrics["pairs"], fewer.metrics["taken"]) == (0, 96)
    engine.fails = 10**9
    with pytest.raises(
        StageError, match="score_pairs: prompts failed 3 times; query row 0, passage row 0: ValueError: no luck"
    ):
        scored("first", lists, prompt=PROMPTS["yes_no"].model_copy(update={"edition": 2}))
    books = [Book(store.root / "scores" / name) for name in (store.root / "scores").folders()]
    assert sorted((book.about()["engine"], book.rows()) for book in books) == [("vllm", 0), ("vllm", 144)]


@pytest.mark.gpu
def test_real_scores_on_a_gpu(toy: Path, llama: Path, tmp_path: Path) -> None:
    if not torch.cuda.is_available() or find_spec("vllm") is None:
        pytest.skip("needs an NVIDIA GPU and vLLM")
    values = prompted(toy, llama)
    values["precision"] = "fp32"
    found = []
    for engine in ("vllm", "transformers"):
        values["teacher"]["engine"] = engine
        _, lab = open_toy(values | {"preflight": "off"}, tmp_path / engine)
        found.append(np.concatenate(whole(scored_candidates(lab, lab.start))["teacher_scores"].to_pylist()))
    np.testing.assert_allclose(found[0], found[1], atol=2e-3)
