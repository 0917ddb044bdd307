"""Prompts as token ids, with texts put in.

Pure: no torch, no files. A tokenizer is any Hugging Face one. Texts come as ids made without special tokens, and only
they are cut to fit, never the prompt's own words: cutting a joint prompt on the right removes the second document and
the question at the end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydrd.errors import InputError
from raydrd.models.prompts.form import CHAT_DATE, SLOT, Prompt, Question

Ids = NDArray[np.int32]

_TODAY = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
_SPARE = 8  # tokens of an answer beyond the bare order
_QUERY_SHARE = 4  # a query may take a quarter of the room, more only where the passages leave it


@dataclass(frozen=True, eq=False)
class Pieces:
    """A prompt in one tokenizer's ids: `fixed` runs, special tokens included, with the `slots` between them."""

    fixed: tuple[Ids, ...]  # one more than slots
    slots: tuple[str, ...]  # names of the texts, in the template's order

    @property
    def overhead(self) -> int:
        """Tokens of everything but the texts."""
        return sum(map(len, self.fixed))


def pieces_of(tokenizer: Any, prompt: Prompt | Question, *, closed: bool) -> Pieces:
    """The fixed part of `prompt`, with the special tokens that `tokenizer(text)` adds or the chat template writes.

    `closed`: tokens at the end (T5's </s>) stay. True for an encoder; a causal model goes on from the prompt's last
    word, so nothing may close it.

    Raises:
        InputError: `chat` and the tokenizer has no chat template, or one that loses the placeholders.
    """
    text = _rendered(tokenizer, prompt)
    first, *others = SLOT.split(text)[::2]
    slots = tuple(SLOT.findall(text))
    if _carries_space(tokenizer):
        first, others = first.removesuffix(" "), [*(part.removesuffix(" ") for part in others[:-1]), *others[-1:]]
    before, after = ([], []) if prompt.chat else _special_tokens(tokenizer)
    runs = [before + _ids(tokenizer, first), *(_after_text(tokenizer, part) for part in others)]
    if closed:
        runs[-1] = runs[-1] + after
    return Pieces(tuple(np.array(run, dtype=np.int32) for run in runs), slots)


def assemble(pieces: Pieces, texts: Mapping[str, Ids], *, max_length: int) -> Ids:
    """One prompt with its texts, int32, at most `max_length` long; only texts are cut, at their end. See `shares`.

    Raises:
        InputError: `max_length` has no room for a token of every text.
    """
    query, *passages = dict.fromkeys(("query", *pieces.slots))
    room, repeats = max_length - pieces.overhead, pieces.slots.count(query)
    if room < repeats + len(passages):
        least = pieces.overhead + repeats + len(passages)
        raise InputError(
            f"max_length: {max_length} has no room for texts in this prompt; write at least {least}, better far more"
        )
    kept_query, kept = shares(len(texts[query]), [len(texts[name]) for name in passages], room=room, repeats=repeats)
    keep = {query: kept_query, **dict(zip(passages, kept, strict=True))}
    parts = [pieces.fixed[0]]
    for slot, run in zip(pieces.slots, pieces.fixed[1:], strict=True):
        parts += [texts[slot][: keep[slot]], run]
    return np.concatenate(parts, dtype=np.int32)


def shares(query: int, passages: Sequence[int], *, room: int, repeats: int = 1) -> tuple[int, tuple[int, ...]]:
    """Tokens that a query (there `repeats` times) and its passages keep of `room`.

    The query keeps up to a quarter, or what the passages do not need if that is more. Passages share the rest
    equally; what one does not need goes to the others. Those that are cut are cut alike, whatever their order, so an odd
    token is left unused.
    """
    kept_query = min(query, max(1, max(room // _QUERY_SHARE, room - sum(passages)) // repeats))
    most = _level(passages, room - kept_query * repeats)
    return kept_query, tuple(min(own, most) for own in passages)


def _level(lengths: Sequence[int], room: int) -> int:
    """The most that each may keep, so that all together fit into `room`."""
    for place, length in enumerate(sorted(lengths)):
        left = len(lengths) - place
        if length * left > room:
            return room // left
        room -= length
    return max(lengths, default=0)


def answer_ids(tokenizer: Any, prompt: Prompt, *, closed: bool) -> tuple[int, int]:
    """Vocabulary ids of the positive and the negative answer, each one token.

    `closed`: a decoder that starts anew (seq2seq) answers, so the words are taken alone, then with a space before.
    Else they are taken as they follow the prompt's end: in a chat as the chat template writes an assistant's message;
    otherwise after a space, then directly (the other way round where the prompt ends with a line break).

    Raises:
        InputError: an answer is several tokens or unknown, or both are the same token.
    """
    glues, end = ("", " "), ""
    if not closed:
        text = _rendered(tokenizer, prompt)
        glues, end = _glues(tokenizer, prompt, text), SLOT.split(text)[-1]
    found = {}
    for glue in glues:
        positive, negative = (_continued(tokenizer, end, glue + word) for word in (prompt.positive, prompt.negative))
        if len(positive) == len(negative) == 1 and tokenizer.unk_token_id not in (*positive, *negative):
            if positive == negative:
                raise InputError(f"prompt: {prompt.positive!r} and {prompt.negative!r} are the same token; write other answers")
            return positive[0], negative[0]
        found[glue] = (positive, negative)
    tried = found[glues[0]]
    wrong = 0 if len(tried[0]) != 1 or tried[0][0] == tokenizer.unk_token_id else 1
    word, pieces = (prompt.positive, prompt.negative)[wrong], tokenizer.convert_ids_to_tokens(tried[wrong])
    raise InputError(
        f"prompt: to this tokenizer the answer {word!r} is {', '.join(map(repr, pieces)) or 'nothing'}, not one known token; "
        "write positive and negative answers of one token each, such as Yes and No"
    )


def order_length(tokenizer: Any, count: int) -> int:
    """Tokens that an order of `count` passages takes, and a few more."""
    order = " > ".join(f"[{number}]" for number in range(1, count + 1))
    return len(_ids(tokenizer, order)) + _SPARE


def _glues(tokenizer: Any, prompt: Prompt, text: str) -> tuple[str, str]:
    """What stands between a prompt's end and the answer: the likelier first."""
    bare_first = text[-1].isspace()
    if prompt.chat:
        # Some families write "[/INST] Yes", others "assistant\nYes": their own template knows. One that rewrites the
        # opening of a turn (thinking models) tells nothing, and none of those writes a space.
        message = {"role": "assistant", "content": prompt.positive}
        full = _chat(tokenizer, [{"role": "user", "content": prompt.template}, message], open_turn=False)
        bare_first = not (full.startswith(text) and full[len(text) :].startswith(" "))
    return ("", " ") if bare_first else (" ", "")


def _rendered(tokenizer: Any, prompt: Prompt | Question) -> str:
    """The text that is tokenised, placeholders still in it."""
    if not prompt.chat:
        return prompt.template
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("prompt: this model's tokenizer has no chat template; write chat: false, or choose an instruct model")
    text = _chat(tokenizer, [{"role": "user", "content": prompt.template}], open_turn=True)
    if SLOT.findall(text) != SLOT.findall(prompt.template):
        raise InputError("prompt: this tokenizer's chat template changes the placeholders; write chat: false")
    return text


def _chat(tokenizer: Any, messages: list[dict[str, str]], *, open_turn: bool) -> str:
    # Templates of thinking models read `enable_thinking`, others ignore it: the first token must be the answer.
    text = tokenizer.apply_chat_template(
        messages, chat_template=_of_one_day(tokenizer.get_chat_template()), tokenize=False, add_generation_prompt=open_turn,
        enable_thinking=False,
    )  # fmt: skip
    return str(text)


def _of_one_day(template: str) -> str:
    """A chat template that names today's date (Llama 3's) would ask another question every day."""
    return _TODAY.sub(lambda call: f"{call[1]}{CHAT_DATE.strftime(call[2])}{call[1]}", template)


# Pieces tokenised apart may differ from the whole string tokenised: a merge across a border (".\n" as one token) is
# lost, a lone space stays a token before a byte-level text, and a sentencepiece text after a line break brings the
# space it always starts with. The words, their order and T5's ids are the same; what is kept right here are the spaces.


def _ids(tokenizer: Any, text: str) -> list[int]:
    return [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]] if text else []


def _carries_space(tokenizer: Any) -> bool:
    """A text's ids start with a space of their own (sentencepiece), so that the one before it must go."""
    return _ids(tokenizer, "a") + _ids(tokenizer, "a") == _ids(tokenizer, "a a")


def _after_text(tokenizer: Any, piece: str) -> list[int]:
    """Ids of a piece that follows a text: a sentencepiece tokenizer alone with it would put a space before it."""
    return _continued(tokenizer, "a", piece) if piece else []


def _continued(tokenizer: Any, before: str, text: str) -> list[int]:
    """Ids that `text` adds to those of `before`; its own ids if the two melt into one token."""
    head, whole = _ids(tokenizer, before), _ids(tokenizer, before + text)
    return whole[len(head) :] if whole[: len(head)] == head else _ids(tokenizer, text)


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What `tokenizer(text)` puts before and after a text."""
    bare, full = _ids(tokenizer, "a"), [int(i) for i in tokenizer("a")["input_ids"]]
    start = next((at for at in range(len(full)) if full[at : at + len(bare)] == bare), None)
    if start is None or not bare:
        raise ValueError(f"cannot tell text from special tokens in {full} (text {bare})")
    return full[:start], full[start + len(bare) :]
