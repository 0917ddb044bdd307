"""Prompts as values: what a language model is asked, and how it may answer. Read from files; those of this folder by name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from raydrd.config import Frozen, read_yaml, validate
from raydrd.errors import InputError

SLOT = re.compile(r"\{(\w*)\}")
_POINTWISE, _PAIRWISE = {"query", "passage"}, {"query", "a", "b"}
_LISTED, _ITEM = ("query", "passages", "count"), ("number", "passage")  # in a listwise template, and for one of its passages
CHAT_DATE = datetime(2024, 7, 26)  # "today" in every chat; Llama 3's own where nobody tells it one
_TRUTHS = "YAML reads a bare Yes, No, true or false as a truth value; put it in quotes"


def _identity(prompt: Any) -> dict[str, Any]:
    # Prompts had no name and no version once: the first version is not told, so that scores of that time are still found.
    apart = {"name"} if prompt.edition > 1 else {"name", "edition"}
    told = {name: getattr(prompt, name) for name in type(prompt).model_fields if name not in apart}
    # Chats were once told the day of their run, and scores of that time are not mixed with these.
    return told | {"date": f"{CHAT_DATE:%Y-%m-%d}"} if prompt.chat else told


def _renamed(values: Any) -> Any:
    """`version` as a file writes it: the name is taken by what all config values have."""
    if isinstance(values, dict) and "version" in values:
        values = {name: value for name, value in values.items() if name != "version"} | {"edition": values["version"]}
    return values


class Prompt(Frozen):
    """What a language model is asked, and the two words it may answer with.

    `template` holds {query} and {passage} (pointwise: how relevant), or {query}, {a} and {b} (pairwise: is a more
    relevant than b); the query may come more than once, all other braces are plain text. For models with a byte-level
    vocabulary (Llama 3, Qwen, GPT) put a line break before a placeholder, not a space: the texts' first word then has
    the ids it has in ordinary text. Files write the two words as `answers: [positive, negative]`, `edition` as `version`,
    and may say the `kind`, which is then checked.
    """

    name: str = Field("", description="what messages call it; does not count as part of the question")
    edition: int = Field(1, ge=1, description="`version` in files: scores under one are never taken for another's")
    template: str = Field(description="the question; {query} and {passage}, or {query}, {a} and {b}, stand for the texts")
    positive: str = Field(description="answer for relevant, or for a before b; one token")
    negative: str = Field(description="answer for not relevant, or for b before a; one token")
    chat: bool = Field(False, description="send it as a user's message, in the tokenizer's chat template")

    def identity(self) -> dict[str, Any]:
        return _identity(self)

    @model_validator(mode="before")
    @classmethod
    def _as_in_files(cls, values: Any) -> Any:
        values = _renamed(values)
        if not isinstance(values, dict):
            return values
        values = dict(values)
        kind, answers = values.pop("kind", None), values.pop("answers", None)
        if answers is not None:
            if not isinstance(answers, list | tuple) or len(answers) != 2:
                raise ValueError('answers: write the two words, the positive one first, for example ["Yes", "No"]')
            values |= dict(zip(("positive", "negative"), answers, strict=True))
        found = "pairwise" if "{a}" in str(values.get("template")) else "pointwise"
        if kind is not None and kind != found:
            raise ValueError(f"kind: {kind!r}, but the template is {found}; write kind: {found}, or leave it out")
        return values

    @field_validator("positive", "negative", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(_TRUTHS)
        return value

    @model_validator(mode="after")
    def _sound(self) -> Self:
        slots = SLOT.findall(self.template)
        if set(slots) not in (_POINTWISE, _PAIRWISE):
            found = ", ".join(f"{{{slot}}}" for slot in dict.fromkeys(slots)) or "no placeholder"
            raise ValueError(
                f"the template has {found}; write {{query}} and {{passage}} to score one passage, "
                "or {query}, {a} and {b} to compare two"
            )
        twice = next((slot for slot in slots if slot != "query" and slots.count(slot) > 1), None)
        if twice:
            raise ValueError(f"the template has {{{twice}}} {slots.count(twice)} times; a passage may come once only")
        if self.template.endswith(" "):
            raise ValueError("the template ends with a space, which the answer's token brings along; cut it off")
        for name, answer in (("positive", self.positive), ("negative", self.negative)):
            if not answer or answer != answer.strip():
                raise ValueError(f"{name}={answer!r}: write one word without spaces around it, such as Yes")
        if self.positive == self.negative:
            raise ValueError(f"positive and negative are both {self.positive!r}; the two answers must differ")
        return self

    @property
    def pairwise(self) -> bool:
        """Two passages are compared."""
        return "{a}" in self.template

    @property
    def listwise(self) -> bool:
        return False


@dataclass(frozen=True)
class Question:
    """A template with slots only, ready for a tokenizer, and whether it is a chat's."""

    template: str
    chat: bool


class ListPrompt(Frozen):
    """Asks for the order of several passages at once, to be answered as [2] > [1] > [3].

    `template` holds {query}, {passages} (once) and, if it likes, {count}, how many there are; `passage` is how each stands
    in the list: {number}, counted from 1, and {passage}. All other braces are plain text.
    """

    kind: Literal["listwise"] = "listwise"
    name: str = Field("", description="what messages call it; does not count as part of the question")
    edition: int = Field(1, ge=1, description="`version` in files: orders under one are never taken for another's")
    template: str = Field(description="the question; {query}, {passages} and {count} stand for what is asked about")
    passage: str = Field("[{number}]\n{passage}\n\n", description="one passage of the list")
    chat: bool = Field(False, description="send it as a user's message, in the tokenizer's chat template")

    def identity(self) -> dict[str, Any]:
        return _identity(self)

    @model_validator(mode="before")
    @classmethod
    def _as_in_files(cls, values: Any) -> Any:
        return _renamed(values)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        found = SLOT.findall(self.template)
        if found.count("passages") != 1 or "query" not in found or not set(found) <= set(_LISTED):
            raise ValueError("the template of a listwise prompt needs {query} and, once, {passages}; {count} if it likes")
        if sorted(SLOT.findall(self.passage)) != sorted(_ITEM) or "[{number}]" not in self.passage:
            raise ValueError("passage: write [{number}] and {passage}, once each: the answer names passages so")
        if self.template.endswith(" "):
            raise ValueError("the template ends with a space, which the answer's token brings along; cut it off")
        return self

    @property
    def pairwise(self) -> bool:
        return False

    @property
    def listwise(self) -> bool:
        """An order is asked for."""
        return True

    def question(self, count: int) -> Question:
        """The question about `count` passages: slots query, p1, p2, ..."""

        def item(number: int) -> str:
            return self.passage.replace("{number}", str(number)).replace("{passage}", f"{{p{number}}}")

        items = "".join(item(number) for number in range(1, count + 1))
        return Question(self.template.replace("{count}", str(count)).replace("{passages}", items), self.chat)


AnyPrompt = Prompt | ListPrompt


def prompt_kind(values: Any) -> str:
    """Which class a mapping of a config or a file is meant to be; `str` for a name."""
    if isinstance(values, dict):
        listwise = values.get("kind") == "listwise" or "{passages}" in str(values.get("template"))
        return "ListPrompt" if listwise else "Prompt"
    return type(values).__name__


def read_prompt(path: str | Path) -> AnyPrompt:
    """The prompt in a YAML file: name, version, kind, template, answers (or, listwise, passage), chat.

    Raises:
        InputError: no such file, or whatever is wrong with it, on one line.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such prompt; write the path of a .yaml file, or one of {', '.join(PROMPTS)}")
    values = {"name": Path(path).stem, **read_yaml(path)}
    listwise = prompt_kind(values) == "ListPrompt"
    try:
        return validate(ListPrompt, values, str(path)) if listwise else validate(Prompt, values, str(path))
    except InputError as error:
        raise InputError("; ".join(str(error).splitlines())) from None


def named_or_read(choice: Any) -> Any:
    """What a config says in place of a prompt: the path of a file is read, anything else stays."""
    return read_prompt(choice) if isinstance(choice, str) and choice.endswith((".yaml", ".yml")) else choice


def prompt_of(choice: str | AnyPrompt) -> AnyPrompt:
    """The prompt itself, or the ready-made one of that name.

    Raises:
        InputError: no prompt has this name.
    """
    if not isinstance(choice, str):
        return choice
    if choice not in PROMPTS:
        raise InputError(
            f"prompt: {choice!r} is not known; write one of {', '.join(PROMPTS)}, the path of a .yaml file, or template, "
            "positive, negative"
        )
    return PROMPTS[choice]


_NAMES = (
    "monot5", "duot5", "yes_no", "a_or_b", "yes_no_chat", "a_or_b_chat", "yes_no_query_first",
    "yes_no_query_first_chat", "rank", "rank_chat",
)  # fmt: skip
PROMPTS: dict[str, AnyPrompt] = {name: read_prompt(Path(__file__).with_name(f"{name}.yaml")) for name in _NAMES}
