"""Prompts as token ids: what is cut, and which tokens are the two answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from raydrd.config import validate
from raydrd.errors import InputError
from raydrd.models.layout import _WANTED, folder_digest, tokenizer_digest
from raydrd.models.prompts import (
    A_OR_B,
    DUOT5,
    MONOT5,
    PROMPTS,
    YES_NO,
    Prompt,
    answer_ids,
    assemble,
    pieces_of,
    prompt_of,
    shares,
)
from raydrd.spine.store import canonical
from tests.language_models import TEXTS, TOKENIZERS, byte_level, texts_of

SLOTS = ("query", "a", "b")


# -- prompts as values --------------------------------------------------------------------------------


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
    assert {name for name, prompt in PROMPTS.items() if prompt.listwise} == {"rank", "rank_chat"}
    assert {name for name, prompt in PROMPTS.items() if prompt.chat} == {
        "yes_no_chat", "a_or_b_chat", "yes_no_query_first_chat", "rank_chat"
    }  # fmt: skip
    for name, prompt in PROMPTS.items():  # they pass their own checks
        assert validate(type(prompt), prompt.model_dump(), "here") == prompt and prompt.name == name
    assert MONOT5.template.format(query="q", passage="p") == "Query: q Document: p Relevant:"
    assert DUOT5.template.format(query="q", a="x", b="y") == "Query: q Document0: x Document1: y Relevant:"
    with pytest.raises(InputError, match="prompt: 'monot6' is not known; write one of monot5, duot5, yes_no"):
        prompt_of("monot6")


# -- from a prompt to ids -----------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [MONOT5, DUOT5, YES_NO, A_OR_B])
def test_t5_prompts_are_the_ids_of_the_whole_string(prompt: Prompt) -> None:
    tokenizer = TOKENIZERS["t5"]
    made = assemble(pieces_of(tokenizer, prompt, closed=True), texts_of(tokenizer), max_length=512)
    assert made.dtype == np.int32
    assert made.tolist() == tokenizer(prompt.template.format(**TEXTS))["input_ids"]
    assert made[-1] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id not in made


@pytest.mark.parametrize("prompt", [YES_NO, A_OR_B])
def test_byte_level_prompts_with_line_breaks_are_the_ids_of_the_whole_string(prompt: Prompt) -> None:
    tokenizer = TOKENIZERS["byte"]
    made = assemble(pieces_of(tokenizer, prompt, closed=False), texts_of(tokenizer), max_length=512)
    assert made.tolist() == tokenizer(prompt.template.format(**TEXTS))["input_ids"]


@pytest.mark.parametrize("name", ["byte", "space"])
@pytest.mark.parametrize("prompt", [MONOT5, DUOT5])
def test_no_space_is_lost_or_doubled(name: str, prompt: Prompt) -> None:
    tokenizer = TOKENIZERS[name]
    made = assemble(pieces_of(tokenizer, prompt, closed=False), texts_of(tokenizer), max_length=512)
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
    texts = texts_of(tokenizer)
    made = assemble(pieces_of(tokenizer, prompt, closed=False), texts, max_length=512)
    assert tokenizer.decode(made) == '{ "x": [1] }\nwhat is a reef\na reef keeps the tide out\nwhat is a reef\n?'
    pieces = pieces_of(tokenizer, prompt, closed=False)
    long = {"query": np.zeros(99, np.int32), "passage": np.zeros(99, np.int32)}
    assert len(assemble(pieces, long, max_length=pieces.overhead + 80)) == pieces.overhead + 80


def test_chat_prompts_use_the_chat_template() -> None:
    tokenizer, prompt = TOKENIZERS["byte"], PROMPTS["a_or_b_chat"]
    made = assemble(pieces_of(tokenizer, prompt, closed=False), texts_of(tokenizer), max_length=512)
    whole = f"<u>user\n{A_OR_B.template.format(**TEXTS)}</u>\n<u>assistant\n"
    assert made.tolist() == tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert made[0] == tokenizer.convert_tokens_to_ids("<u>")
    with pytest.raises(InputError, match="no chat template; write chat: false"):
        pieces_of(TOKENIZERS["t5"], prompt, closed=True)


def test_a_chat_is_told_the_same_day_every_day(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = "{% set today = strftime_now('%d %b %Y') %}today {{ today }}\n" + tokenizer.chat_template
    made = assemble(pieces_of(tokenizer, PROMPTS["yes_no_chat"], closed=False), texts_of(tokenizer), max_length=512)
    assert tokenizer.decode(made).startswith("today 26 Jul 2024\n<u>user\n")
    told = {name for name, prompt in PROMPTS.items() if "date" in canonical(prompt)["fields"]}
    assert told == {name for name, prompt in PROMPTS.items() if prompt.chat}  # others are known as they were


def test_another_chat_template_is_another_teacher_and_is_fetched_with_it(tmp_path: Path) -> None:
    byte_level().save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").exists()
    before = folder_digest(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert folder_digest(tmp_path) != before
    assert list(filter_repo_objects(["chat_template.jinja", "more/x.jinja", "README.md"], allow_patterns=list(_WANTED))) == [
        "chat_template.jinja", "more/x.jinja"
    ]  # fmt: skip


def test_tokenizers_in_files_of_any_name_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of tokenizer.json, .* is there; save its tokenizer beside it"):
        tokenizer_digest(tmp_path)
    found = set()
    for name in ("tokenizer_config.json", "tokenizer.model", "spm.model", "tekken.json"):
        for content in ("a", "b"):
            (tmp_path / name).write_text(content)
            found.add(tokenizer_digest(tmp_path))
        (tmp_path / name).unlink()
    assert len(found) == 8


# -- what is cut --------------------------------------------------------------------------------------


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
    assert len(assemble(pieces, texts_of(tokenizer), max_length=least)) == least
    with pytest.raises(InputError, match=f"max_length: {least - 1} has no room .* at least {least}"):
        assemble(pieces, texts_of(tokenizer), max_length=least - 1)


# -- answers ------------------------------------------------------------------------------------------


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
    tokenizer = byte_level()
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
