"""Teachers that answer with a token: prompts in ids, what is cut, and the logits of two answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from raydrd.config import validate
from raydrd.errors import InputError
from raydrd.models.answers import AnswerModel, pairwise_log_p, pointwise_scores, symmetrized
from raydrd.models.prompts import (
    A_OR_B,
    DUOT5,
    MONOT5,
    PROMPTS,
    YES_NO,
    Ids,
    Pieces,
    Prompt,
    answer_ids,
    assemble,
    pieces_of,
    prompt_of,
    shares,
)

TEXTS = {
    "query": "what is a reef",
    "passage": "a reef keeps the tide out",
    "a": "a reef keeps the tide out",
    "b": "old wave and salt",
}
LINES = [*TEXTS.values(), *(p.template.format(**TEXTS) for p in PROMPTS.values())] * 3
SLOTS = ("query", "a", "b")
ANSWERS = ["Relevant: true", "Relevant: false", "Answer: Yes", "Answer: No", "Answer: A", "Answer: B", "Yes", "No"] * 3
CHAT = (
    "{% for m in messages %}<u>{{ m.role }}\n{{ m.content | trim }}</u>\n{% endfor %}"
    "{% if add_generation_prompt %}<u>assistant\n{% endif %}"
)


def _t5() -> Any:
    """The real T5 class with words and, for the rest, letters."""
    words = sorted({word.strip(".:?,") for line in LINES + ANSWERS for word in line.split()})
    pieces = [(f"▁{word}", -3.0) for word in words if len(word) > 1 or word in "AB"]
    letters = [(letter, -9.0) for letter in sorted(set("".join(LINES + ANSWERS)) - {" ", "\n"})]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -6.0)]
    return T5Tokenizer(vocab=[*special, *pieces, *letters], extra_ids=0)


def _byte_level() -> Any:
    """As GPT-2, Llama 3 and Qwen tokenise: spaces belong to words; special tokens only in chats."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<end>", "<u>", "</u>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(LINES + ANSWERS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>", chat_template=CHAT)


def _metaspace() -> Any:
    """As Llama 1 and 2 and Mistral tokenise: a text starts with a space of its own; <s> before, no padding token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=True)
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(LINES + ANSWERS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


TOKENIZERS = {"t5": _t5(), "byte": _byte_level(), "space": _metaspace()}


def _ids(tokenizer: Any, text: str) -> Ids:
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)


def _texts(tokenizer: Any, texts: dict[str, str] = TEXTS) -> dict[str, Ids]:
    return {name: _ids(tokenizer, text) for name, text in texts.items()}


# ---- prompts as values


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"template": "Query: {query}"}, r"has {query}; write {query} and {passage} .*, or {query}, {a} and {b}"),
        ({"template": "{query} {passage} {a}"}, "has {query}, {passage}, {a}; write"),
        ({"template": "{query} {text}"}, "has {query}, {text}; write"),
        ({"template": "Relevant:"}, "has no placeholder; write"),
        ({"template": "{query} {a} {b} {a}"}, r"has {a} 2 times; a passage may come once only"),
        ({"template": "{query} {passage} Relevant: "}, "ends with a space"),
        ({"positive": "no"}, "both 'no'; the two answers must differ"),
        ({"positive": " yes"}, "positive=' yes': write one word without spaces"),
        ({"negative": ""}, "negative='': write one word"),
    ],
)
def test_prompts_that_cannot_work_are_refused(fields: dict[str, str], message: str) -> None:
    good = {"template": "{query} {passage}:", "positive": "yes", "negative": "no"}
    with pytest.raises(InputError, match=message):
        validate(Prompt, {**good, **fields}, "toy.yaml")


def test_ready_made_prompts_by_name() -> None:
    assert prompt_of("duot5") is DUOT5
    assert prompt_of(MONOT5) is MONOT5
    assert {name for name, prompt in PROMPTS.items() if prompt.pairwise} == {"duot5", "a_or_b", "a_or_b_chat"}
    assert {name for name, prompt in PROMPTS.items() if prompt.chat} == {"yes_no_chat", "a_or_b_chat"}
    for prompt in PROMPTS.values():  # they pass their own checks
        assert validate(Prompt, prompt.model_dump(), "here") == prompt
    assert MONOT5.template.format(query="q", passage="p") == "Query: q Document: p Relevant:"
    assert DUOT5.template.format(query="q", a="x", b="y") == "Query: q Document0: x Document1: y Relevant:"
    with pytest.raises(InputError, match="prompt: 'monot6' is not known; write one of monot5, duot5, yes_no"):
        prompt_of("monot6")


# ---- from a prompt to ids


@pytest.mark.parametrize("prompt", [MONOT5, DUOT5, YES_NO, A_OR_B])
def test_t5_prompts_are_the_ids_of_the_whole_string(prompt: Prompt) -> None:
    tokenizer = TOKENIZERS["t5"]
    made = assemble(pieces_of(tokenizer, prompt, closed=True), _texts(tokenizer), max_length=512)
    assert made.dtype == np.int32
    assert made.tolist() == tokenizer(prompt.template.format(**TEXTS))["input_ids"]
    assert made[-1] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id not in made


@pytest.mark.parametrize("prompt", [YES_NO, A_OR_B])
def test_byte_level_prompts_with_line_breaks_are_the_ids_of_the_whole_string(prompt: Prompt) -> None:
    tokenizer = TOKENIZERS["byte"]
    made = assemble(pieces_of(tokenizer, prompt, closed=False), _texts(tokenizer), max_length=512)
    assert made.tolist() == tokenizer(prompt.template.format(**TEXTS))["input_ids"]


@pytest.mark.parametrize("name", ["byte", "space"])
@pytest.mark.parametrize("prompt", [MONOT5, DUOT5])
def test_no_space_is_lost_or_doubled(name: str, prompt: Prompt) -> None:
    tokenizer = TOKENIZERS[name]
    made = assemble(pieces_of(tokenizer, prompt, closed=False), _texts(tokenizer), max_length=512)
    assert tokenizer.decode(made, skip_special_tokens=True) == prompt.template.format(**TEXTS)
    if name == "space":
        assert made.tolist() == tokenizer(prompt.template.format(**TEXTS))["input_ids"]
        assert made[0] == tokenizer.bos_token_id


def test_a_causal_prompt_is_not_closed() -> None:
    tokenizer = TOKENIZERS["t5"]
    opened, closed = (pieces_of(tokenizer, MONOT5, closed=closed) for closed in (False, True))
    assert closed.fixed[-1].tolist() == [*opened.fixed[-1], tokenizer.eos_token_id]


def test_a_query_may_come_twice_and_other_braces_are_text() -> None:
    tokenizer = TOKENIZERS["byte"]
    prompt = Prompt(template='{ "x": [1] }\n{query}\n{passage}\n{query}\n?', positive="Yes", negative="No", chat=False)
    texts = _texts(tokenizer)
    made = assemble(pieces_of(tokenizer, prompt, closed=False), texts, max_length=512)
    assert tokenizer.decode(made) == '{ "x": [1] }\nwhat is a reef\na reef keeps the tide out\nwhat is a reef\n?'
    pieces = pieces_of(tokenizer, prompt, closed=False)
    long = {"query": np.zeros(99, np.int32), "passage": np.zeros(99, np.int32)}
    assert len(assemble(pieces, long, max_length=pieces.overhead + 80)) == pieces.overhead + 80


def test_chat_prompts_use_the_chat_template() -> None:
    tokenizer, prompt = TOKENIZERS["byte"], PROMPTS["a_or_b_chat"]
    made = assemble(pieces_of(tokenizer, prompt, closed=False), _texts(tokenizer), max_length=512)
    whole = f"<u>user\n{A_OR_B.template.format(**TEXTS)}</u>\n<u>assistant\n"
    assert made.tolist() == tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert made[0] == tokenizer.convert_tokens_to_ids("<u>")
    with pytest.raises(InputError, match="no chat template; write chat: false"):
        pieces_of(TOKENIZERS["t5"], prompt, closed=True)


# ---- what is cut


@pytest.mark.parametrize("name", list(TOKENIZERS))
@pytest.mark.parametrize("sizes", [(300, 300, 300), (3, 500, 500), (500, 4, 500), (9, 500, 6), (400, 3, 3)])
def test_long_texts_leave_both_documents_and_the_end_of_the_prompt(name: str, sizes: tuple[int, int, int]) -> None:
    pieces = pieces_of(TOKENIZERS[name], DUOT5, closed=name == "t5")
    # Texts of ids that no vocabulary here has, so that every token of the prompt tells where it is from.
    texts = {slot: np.full(size, 100_000 * n, np.int32) for n, (slot, size) in enumerate(zip(SLOTS, sizes, strict=True), 1)}
    room = 120
    made = assemble(pieces, texts, max_length=pieces.overhead + room)
    counts = [int((made == 100_000 * n).sum()) for n in (1, 2, 3)]
    assert made[made < 100_000].tolist() == np.concatenate(pieces.fixed).tolist()
    assert made[-len(pieces.fixed[-1]) :].tolist() == pieces.fixed[-1].tolist()
    assert len(pieces.fixed[-1]) > 0
    assert min(counts) >= min(3, *sizes) and all(c <= s for c, s in zip(counts, sizes, strict=True))
    odd = counts[1] == counts[2] < min(sizes[1:])  # both documents are cut alike
    assert room - odd <= sum(counts) <= room  # nothing is cut for nothing
    assert counts[0] <= max(room // 4, room - sizes[1] - sizes[2])


@pytest.mark.parametrize(
    ("query", "passages", "room", "expected"),
    [
        (10, [100], 50, (10, (40,))),
        (40, [100], 50, (12, (38,))),  # a quarter
        (40, [20], 50, (30, (20,))),  # what the passage leaves
        (40, [100, 100], 81, (20, (30, 30))),  # the odd token stays unused: both are cut alike
        (40, [10, 100], 80, (20, (10, 50))),
        (40, [100, 10], 80, (20, (50, 10))),
        (0, [9, 9], 80, (0, (9, 9))),
        (40, [100, 100], 3, (1, (1, 1))),
    ],
)
def test_shares(query: int, passages: list[int], room: int, expected: Any) -> None:
    assert shares(query, passages, room=room) == expected


def test_shares_on_all_small_sizes() -> None:
    for room in range(3, 14):
        for query in range(9):
            for a in range(9):
                for b in range(9):
                    kept_query, kept = shares(query, [a, b], room=room)
                    total = kept_query + sum(kept)
                    assert total <= room
                    assert total >= min(room, query + a + b) - (kept[0] == kept[1] and kept[0] < min(a, b))
                    assert shares(query, [b, a], room=room) == (kept_query, kept[::-1])
                    assert kept_query <= query and kept[0] <= a and kept[1] <= b
                    assert (kept_query > 0) == (query > 0) and (kept[0] > 0) == (a > 0)


def test_a_length_without_room_says_what_is_needed() -> None:
    tokenizer = TOKENIZERS["t5"]
    pieces = pieces_of(tokenizer, DUOT5, closed=True)
    least = pieces.overhead + 3
    assert len(assemble(pieces, _texts(tokenizer), max_length=least)) == least
    with pytest.raises(InputError, match=f"max_length: {least - 1} has no room .* at least {least}"):
        assemble(pieces, _texts(tokenizer), max_length=least - 1)


# ---- answers


@pytest.mark.parametrize(
    ("name", "prompt", "closed", "expected"),
    [
        ("t5", MONOT5, True, ["▁true", "▁false"]),
        ("t5", A_OR_B, True, ["▁A", "▁B"]),
        ("byte", YES_NO, False, ["ĠYes", "ĠNo"]),  # after "Answer:" comes a space
        ("byte", PROMPTS["yes_no_chat"], False, ["Yes", "No"]),  # after a line break none
        ("space", YES_NO, False, ["▁Yes", "▁No"]),
    ],
)
def test_answers_are_the_tokens_that_would_follow(name: str, prompt: Prompt, closed: bool, expected: list[str]) -> None:
    tokenizer = TOKENIZERS[name]
    assert tokenizer.convert_ids_to_tokens(list(answer_ids(tokenizer, prompt, closed=closed))) == expected


def test_a_chat_template_that_puts_a_space_before_an_answer_is_followed() -> None:
    tokenizer = _byte_level()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}<u>{{ m.content }}</u>"
        "{% else %} {{ m.content }}<end>{% endif %}{% endfor %}"
    )
    ids = answer_ids(tokenizer, PROMPTS["yes_no_chat"], closed=False)
    assert tokenizer.convert_ids_to_tokens(list(ids)) == ["ĠYes", "ĠNo"]
    tokenizer.chat_template = tokenizer.chat_template.replace("{% else %} ", "{% else %}")
    ids = answer_ids(tokenizer, PROMPTS["yes_no_chat"], closed=False)
    assert tokenizer.convert_ids_to_tokens(list(ids)) == ["Yes", "No"]


@pytest.mark.parametrize(
    ("name", "positive", "negative", "message"),
    [
        ("t5", "untrue", "false", "the answer 'untrue' is '▁', 'u', 'n', .* not one known token"),
        ("byte", "Yes", "impossible", "the answer 'impossible' is .*, not one known token"),
        ("t5", "true", "µ", "the answer 'µ' is .*, not one known token"),
    ],
)
def test_answers_of_several_tokens_are_refused(name: str, positive: str, negative: str, message: str) -> None:
    prompt = Prompt(template="{query}\n{passage}:", positive=positive, negative=negative, chat=False)
    with pytest.raises(InputError, match=message):
        answer_ids(TOKENIZERS[name], prompt, closed=name == "t5")


def test_answers_that_a_tokenizer_cannot_tell_apart_are_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "yes": 1, "a": 2}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folded = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    with pytest.raises(InputError, match="'Yes' and 'yes' are the same token"):
        answer_ids(folded, YES_NO.model_copy(update={"negative": "yes"}), closed=True)
    with pytest.raises(InputError, match="the answer 'No' is '<unk>', not one known token"):
        answer_ids(folded, YES_NO, closed=True)


# ---- models


def _sharpen(folder: Path) -> None:
    """Larger matrices, so that prompts get clearly different logits. T5's are large as they are."""
    file = folder / "model.safetensors"
    save_file({name: 6 * t if t.ndim > 1 else t for name, t in load_file(file).items()}, file, metadata={"format": "pt"})


def _model(kind: str, folder: Path) -> Path:
    """A random model of about ten thousand weights, with the tokenizer that its kind has."""
    tokenizer = TOKENIZERS[{"t5": "t5", "flan": "t5", "llama": "space"}.get(kind, "byte")]
    size, two = len(tokenizer) + 3, {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(3)
    if kind in ("t5", "flan"):
        made: Any = T5ForConditionalGeneration(
            T5Config(
                vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0,
                tie_word_embeddings=kind == "t5", feed_forward_proj="relu" if kind == "t5" else "gated-gelu",
            )
        )  # fmt: skip
        if kind == "flan":  # its output layer is its own
            made.lm_head.weight = torch.nn.Parameter(torch.randn(size, 16))
    elif kind == "bart":
        layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
        dims = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 256}
        made = BartForConditionalGeneration(
            BartConfig(vocab_size=size, decoder_start_token_id=1, forced_eos_token_id=0, **layers, **dims, **ends)
        )
        made.final_logits_bias.normal_()
    elif kind == "llama":
        made = LlamaForCausalLM(LlamaConfig(vocab_size=size, intermediate_size=32, max_position_embeddings=256, **two, **ends))
    elif kind == "gemma2":  # a soft cap around tied logits
        more = {"num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32, "final_logit_softcapping": 3.0}
        made = Gemma2ForCausalLM(Gemma2Config(vocab_size=size, max_position_embeddings=256, **two, **more, **ends))
    else:
        made = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=16, n_layer=2, n_head=2, n_positions=256, **ends))
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if kind not in ("t5", "flan"):
        _sharpen(folder)
    return folder


KINDS = ["t5", "flan", "bart", "llama", "gpt2", "gemma2"]
PROMPT_OF = {"t5": DUOT5, "flan": A_OR_B}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("answers")
    return {kind: _model(kind, home / kind) for kind in KINDS}


def _load(folder: Path, prompt: Prompt, **more: Any) -> AnswerModel:
    return AnswerModel(folder, prompt=prompt, **{"precision": "fp32", "device": torch.device("cpu"), **more})


def _prompts(folder: Path, pieces: Pieces) -> list[Ids]:
    """Prompts of eight different lengths, in no order."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    long = {**TEXTS, "b": " ".join([TEXTS["b"], "the old tide"] * 4), "passage": "reef " * 9 + "out"}
    made = []
    for n in (3, 40, 7, 1, 25, 12, 5, 2):
        texts = {name: ids[:n] for name, ids in _texts(tokenizer, long).items()}
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


# ---- from logits to scores


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
