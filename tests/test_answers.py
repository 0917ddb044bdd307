"""Teachers that answer with a token: the logits of two answers, and scores of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
)

from raydrd.errors import InputError
from raydrd.models.answers import AnswerModel, pairwise_log_p, pointwise_scores, symmetrized
from raydrd.models.prompts import A_OR_B, DUOT5, PROMPTS, YES_NO, Ids, Pieces, Prompt, assemble
from tests.language_models import TEXTS, TOKENIZERS, language_model, texts_of

# -- models -------------------------------------------------------------------------------------------

KINDS = ["t5", "flan", "bart", "llama", "gpt2", "gemma2"]
PROMPT_OF = {"t5": DUOT5, "flan": A_OR_B}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("answers")
    return {kind: language_model(kind, home / kind) for kind in KINDS}


def _load(folder: Path, prompt: Prompt, **more: Any) -> AnswerModel:
    return AnswerModel(folder, prompt=prompt, **{"precision": "fp32", "device": torch.device("cpu"), **more})


def _prompts(folder: Path, pieces: Pieces) -> list[Ids]:
    """Prompts of eight different lengths, in no order."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    long = {**TEXTS, "b": " ".join([TEXTS["b"], "the old tide"] * 4), "passage": "reef " * 9 + "out"}
    made = []
    for n in (3, 40, 7, 1, 25, 12, 5, 2):
        texts = {name: ids[:n] for name, ids in texts_of(tokenizer, long).items()}
        made.append(assemble(pieces, texts, max_length=250))
    assert len({len(ids) for ids in made}) > 3
    return made


@torch.inference_mode()
def _full_logits(folder: Path, model: AnswerModel, prompt: Ids) -> list[float]:
    """One prompt alone, unpadded, by the plain model with its whole vocabulary."""
    kind = AutoModelForSeq2SeqLM if model.seq2seq else AutoModelForCausalLM
    plain = kind.from_pretrained(folder).eval()
    ids = torch.tensor([prompt.tolist()])
    more = {"decoder_input_ids": torch.tensor([[plain.config.decoder_start_token_id]])} if model.seq2seq else {}
    logits = plain(input_ids=ids, **more).logits
    assert logits.shape[-1] == plain.config.vocab_size
    return [float(logits[0, -1, i]) for i in model.answers]


@pytest.mark.parametrize("kind", KINDS)
def test_two_rows_in_padded_batches_equal_full_logits_one_by_one(folders: dict[str, Path], kind: str) -> None:
    model = _load(folders[kind], PROMPT_OF.get(kind, YES_NO))
    prompts = _prompts(folders[kind], model.pieces)
    assert model.seq2seq == (kind in ("t5", "flan", "bart"))
    found = model.logits(prompts)
    assert (found.shape, found.dtype) == ((8, 2), np.float32)
    expected = np.array([_full_logits(folders[kind], model, prompt) for prompt in prompts])
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=2e-4)
    assert np.abs(expected[0] - expected[1]).max() > 0.01 and np.abs(expected[:, 0] - expected[:, 1]).max() > 0.01
    small = _load(folders[kind], PROMPT_OF.get(kind, YES_NO), tokens_per_batch=64)  # mostly one by one
    np.testing.assert_allclose(small.logits(prompts), found, atol=2e-4, rtol=2e-4)
    assert model.logits([]).shape == (0, 2)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "flan"])
def test_a_beginning_that_prompts_share_is_read_once(
    folders: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values of instruction and query are kept for all passages of the query: the same scores, fewer tokens."""
    asked = PROMPTS["yes_no_query_first"]
    model = _load(folders[kind], asked, tokens_per_batch=200)
    tokenizer = AutoTokenizer.from_pretrained(folders[kind])
    prompts, alike = [], []
    for number, query in enumerate(["what is a reef", "old wave and salt", "the tide"]):
        for length in (9, 2, 5, 14, 7)[: 5 if number < 2 else 1]:  # a query with one passage has nobody to share with
            texts = texts_of(tokenizer, {"query": query, "passage": " ".join([TEXTS["passage"], TEXTS["b"]] * 3)})
            prompts.append(assemble(model.pieces, {**texts, "passage": texts["passage"][:length]}, max_length=250))
            alike.append(number)
    order = np.random.default_rng(0).permutation(len(prompts))
    prompts, alike_ = [prompts[i] for i in order], np.array(alike)[order]
    plain = model.logits(prompts)
    read: list[int] = []
    forward = type(model.model).forward

    def counting(self: Any, input_ids: Any = None, **more: Any) -> Any:
        read.append(input_ids.numel())
        return forward(self, input_ids=input_ids, **more)

    monkeypatch.setattr(type(model.model), "forward", counting)
    found = model.logits(prompts, alike=alike_)
    np.testing.assert_allclose(found, plain, atol=1e-4)
    assert np.ptp(plain[:, 0] - plain[:, 1]) > 0.01
    if model.seq2seq:  # an encoder looks both ways: nothing can be kept
        assert sum(read) >= sum(map(len, prompts))
    else:
        assert sum(read) < 0.75 * sum(map(len, prompts))
    few = _load(folders[kind], asked, tokens_per_batch=10_000)  # a batch that one query would not fill
    read.clear()
    np.testing.assert_allclose(few.logits(prompts, alike=alike_), plain, atol=1e-4)
    assert len(read) == 1


def _hybrid(kind: str, folder: Path) -> Path:
    """Models with layers that sum up what was read: a convolution beside attention (LFM2), a linear attention, Mamba."""
    tokenizer = TOKENIZERS["byte"]
    size = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 2, "eos_token_id": tokenizer.eos_token_id}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32, "max_position_embeddings": 256}
    torch.manual_seed(3)
    if kind == "lfm2":
        made: Any = Lfm2ForCausalLM(Lfm2Config(**size, **heads, layer_types=["conv", "full_attention"], block_multiple_of=8))
    elif kind == "qwen3.5":
        linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
        own = Qwen3_5TextConfig(**size, **heads, **linear, head_dim=8, layer_types=["linear_attention", "full_attention"])
        made = Qwen3_5ForCausalLM(own)
    else:
        made = MambaForCausalLM(MambaConfig(**size, state_size=4))
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["lfm2", "qwen3.5", "mamba"])
def test_models_that_sum_up_what_they_read_read_every_prompt_whole(kind: str, tmp_path: Path) -> None:
    model = _load(_hybrid(kind, tmp_path), PROMPTS["yes_no_query_first"], tokens_per_batch=200)
    prompts = _prompts(tmp_path, model.pieces)
    plain = model.logits(prompts)
    found = model.logits(prompts, alike=np.repeat([0, 1], 4))
    np.testing.assert_allclose(found, plain, atol=1e-5)
    assert np.ptp(found[:, 0] - found[:, 1]) > 2e-5 and not model.shares
    one_by_one = [_full_logits(tmp_path, model, prompt) for prompt in prompts]
    np.testing.assert_allclose(found, one_by_one, atol=1e-4)  # what fills up a batch is not summed


def test_a_few_thousand_tokens_are_enough_whatever_the_device_takes_at_once(folders: dict[str, Path]) -> None:
    model = _load(folders["gpt2"], YES_NO, tokens_per_batch=65_536)
    prompts = [np.r_[np.arange(30), n].astype(np.int32) for n in range(200)]

    def groups(count: int) -> list[tuple[int, int]]:
        lengths = np.full(count, 31)
        return [(len(p), begun) for p, begun in model._groups(prompts[:count], lengths, np.zeros(count, np.int64))]

    assert groups(200) == [(200, 30), (0, 0)] and groups(100) == [(100, 0)]


def test_an_output_layer_of_its_own_is_the_one_in_the_file(folders: dict[str, Path]) -> None:
    """Flan-T5: read as if tied, its answers would come from the input embeddings."""
    model = _load(folders["flan"], A_OR_B)
    own = load_file(folders["flan"] / "model.safetensors")["lm_head.weight"]
    assert torch.equal(model.model.get_output_embeddings().weight, own[list(model.answers)])


@pytest.mark.parametrize("kind", ["t5", "flan", "llama", "gpt2"])
def test_bf16_is_finite_and_near_and_its_logits_are_not_rounded(folders: dict[str, Path], kind: str) -> None:
    full, half = (_load(folders[kind], PROMPT_OF.get(kind, YES_NO), precision=p) for p in ("fp32", "bf16"))
    prompts = _prompts(folders[kind], full.pieces)
    exact, found = full.logits(prompts), half.logits(prompts)
    assert np.isfinite(found).all() and found.dtype == np.float32
    assert not np.array_equal(exact, found)
    assert np.abs(exact - found).max() < 0.1 * np.abs(exact).max()
    assert not np.array_equal(found, torch.from_numpy(found).bfloat16().float().numpy())


def test_logits_that_are_not_finite_are_refused(folders: dict[str, Path]) -> None:
    model = _load(folders["t5"], DUOT5)
    prompts = _prompts(folders["t5"], model.pieces)
    with torch.no_grad():
        model.model.get_output_embeddings().weight[1, 0] = float("inf")
    with pytest.raises(ValueError, match="for prompt 0; try precision: fp32"):
        model.logits(prompts)


def test_prompts_longer_than_the_positions_are_refused(folders: dict[str, Path]) -> None:
    long = np.full(257, 5, np.int32)
    with pytest.raises(InputError, match="max_length: a prompt has 257 tokens, the teacher takes 256; lower it"):
        _load(folders["gpt2"], YES_NO).logits([long])
    assert _load(folders["t5"], DUOT5).logits([np.full(700, 5, np.int32)]).shape == (1, 2)  # relative positions


def test_folders_that_hold_no_language_model_are_refused(tmp_path: Path, toy: Path) -> None:
    prompt = Prompt(template="{query}\n{passage}:", positive="sea", negative="law", chat=False)
    with pytest.raises(InputError, match="BertForSequenceClassification gives a score, not words; write kind: cross_encoder"):
        _load(toy / "reranker", prompt)
    with pytest.raises(InputError, match=r"its files lack \d+ weights, first cls.predictions"):
        _load(toy / "student", prompt)


def test_a_decoder_without_a_start_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["t5"].iterdir():
        if file.name != "generation_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in values.items() if k != "decoder_start_token_id"}))
    with pytest.raises(InputError, match="no decoder_start_token_id; add it"):
        _load(tmp_path, DUOT5)


# -- from logits to scores ----------------------------------------------------------------------------


def test_the_vectors_of_the_reference() -> None:
    logits = np.array([[2.5, 0.3], [0.3, 2.5]], dtype=np.float32)
    log_p = pairwise_log_p(pointwise_scores(logits))
    assert log_p.dtype == np.float64
    assert log_p[0] == pytest.approx(-0.1050833, abs=1e-6)
    assert math.exp(log_p[0]) == pytest.approx(0.9002495, abs=1e-6)
    np.testing.assert_allclose(pointwise_scores(logits), [2.2, -2.2], atol=1e-6)
    p, inconsistency = symmetrized(np.log([0.9]), np.log([0.3]))
    np.testing.assert_allclose([p[0], inconsistency[0]], [0.8, 0.2], atol=1e-12)


def test_sure_teachers_stay_finite() -> None:
    logits = np.array([[900.0, -900.0], [-900.0, 900.0]], dtype=np.float32)
    assert pointwise_scores(logits).tolist() == [1800, -1800]
    assert pairwise_log_p(pointwise_scores(logits)).tolist() == [0, -1800]
    p, inconsistency = symmetrized(*pairwise_log_p(pointwise_scores(logits)))
    assert (float(p), float(inconsistency)) == (1.0, 0.0)


def test_swapping_the_documents_gives_one_minus_p_to_the_last_bit() -> None:
    logits = np.random.default_rng(0).normal(scale=4, size=(2, 5000, 2)).astype(np.float32)
    ij, ji = (pairwise_log_p(pointwise_scores(part)) for part in logits)
    p, inconsistency = symmetrized(ij, ji)
    swapped, again = symmetrized(ji, ij)
    assert np.array_equal(swapped, 1 - p) and np.array_equal(p, 1 - swapped)
    assert np.array_equal(inconsistency, again)
    plain_ij, plain_ji = np.exp(ij.astype(np.float64)), np.exp(ji.astype(np.float64))
    np.testing.assert_allclose(p, (plain_ij + 1 - plain_ji) / 2, atol=1e-15)
    assert ((p >= 0) & (p <= 1)).all()
    assert symmetrized([-0.5], [-0.5])[0].tolist() == [0.5]
