"""Dark examples: how they are built (reference 5.6), and which rules are possible."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydrd.config import validate
from raydrd.errors import InputError
from raydrd.methods.dark import MASK, Dark, DarkText, build, rebuild

NEGATIVE = "the bank raised fees on all student accounts in march this year"
POSITIVE = "students can avoid the monthly fee by keeping a balance of 500 dollars in the account"
QUERY = "How do students avoid the monthly FEE?"
REPLACED = {"kind": "reinforced", "mode": "replace", "ratio": 0.5, "negative": 0, "chunks": [[0, 8]], "places": [[2, 10]]}

MODES = ("replace", "concat", "interleave")
MASKS = ("random", "query_overlap_first", "delete")


def texts(rule: Dark, *, negatives: list[str] | None = None, positive: str = POSITIVE, query_id: str = "q1") -> list[DarkText]:
    sources = [f"{NEGATIVE} number {i}" for i in range(20)] if negatives is None else negatives
    return build(rule, query_id=query_id, query=QUERY, positive=positive, negatives=sources)


def of(kind: str, made: list[DarkText]) -> list[DarkText]:
    return [dark for dark in made if dark.kind == kind]


# -- building -----------------------------------------------------------------------------------------


def test_worked_example() -> None:
    text = rebuild(REPLACED, POSITIVE, [NEGATIVE])
    assert text == "the bank students can avoid the monthly fee by keeping this year"
    assert len(text.split()) == len(NEGATIVE.split()) == 12


def test_other_modes_of_the_worked_example() -> None:
    assert rebuild(REPLACED | {"mode": "concat", "places": [[0, 0]]}, POSITIVE, [NEGATIVE]) == (
        "students can avoid the monthly fee by keeping " + NEGATIVE
    )
    between = REPLACED | {"mode": "interleave", "chunks": [[0, 2], [14, 16]], "places": [[4, 4], [8, 8]]}
    assert rebuild(between, POSITIVE, [NEGATIVE]) == (
        "the bank raised fees students can on all student accounts the account in march this year"
    )
    noisy = {"kind": "noisy", "mode": "random", "ratio": 0.25, "masked": [0, 4, 5, 15]}
    assert rebuild(noisy, POSITIVE, []) == (
        f"{MASK} can avoid the {MASK} {MASK} by keeping a balance of 500 dollars in the {MASK}"
    )
    assert rebuild(noisy | {"mode": "delete"}, POSITIVE, []) == ("can avoid the by keeping a balance of 500 dollars in the")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "grey"}, "kind 'grey'"),
        ({"negative": 1}, "negative 1, there are 1"),
        ({"chunks": [[9, 17]]}, r"words 9\.\.17 of the positive, which has 16"),
        ({"places": [[5, 13]]}, r"words 5\.\.13 of the negative, which has 12"),
        ({"chunks": [[0, 2], [2, 4]], "places": [[4, 6], [5, 7]]}, "used up to 6"),
        ({"kind": "noisy", "masked": [3, 16]}, r"masks words \[3, 16\], the positive has 16"),
    ],
)
def test_a_recipe_of_other_texts_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rebuild(REPLACED | change, POSITIVE, [NEGATIVE])


def test_mask_is_one_word_that_no_text_has() -> None:
    assert len(MASK) == 1
    assert MASK.split() == [MASK]  # not white space
    assert 0xFDD0 <= ord(MASK) <= 0xFDEF  # Unicode's noncharacters
    assert MASK.encode().decode() == MASK == json.loads(json.dumps(MASK))


def test_counts_numbers_and_kinds() -> None:
    made = texts(Dark())
    assert [dark.kind for dark in made] == ["reinforced"] * 12 + ["noisy"] * 12
    assert [dark.number for dark in made] == [*range(12), *range(12)]
    assert texts(Dark(noisy=0)) == of("reinforced", made)
    assert texts(Dark(reinforced=0)) == of("noisy", made)
    assert texts(Dark(reinforced=0, noisy=0)) == []


def test_replace_takes_out_as_many_words_as_it_puts_in() -> None:
    made = of("reinforced", texts(Dark()))
    assert {len(dark.text.split()) for dark in made} == {14}
    for dark in made:
        inserted = [end - start for start, end in dark.recipe["chunks"]]
        assert inserted == [end - start for start, end in dark.recipe["places"]]
        assert 0.15 <= dark.recipe["ratio"] <= 0.5
        assert sum(inserted) == int(dark.recipe["ratio"] * 16)
    assert len({start for dark in made for start, _ in dark.recipe["places"]}) > 3  # not always in the same place
    assert len({start for dark in made for start, _ in dark.recipe["chunks"]}) > 3


def test_a_long_positive_is_cut_into_chunks_of_eight_words() -> None:
    positive = " ".join(f"p{i}" for i in range(100))
    negative = [" ".join(f"n{j}" for j in range(80))] * 15
    for dark in of("reinforced", texts(Dark(), positive=positive, negatives=negative)):
        sizes = [end - start for start, end in dark.recipe["chunks"]]
        assert all(start % 8 == 0 for start, _ in dark.recipe["chunks"])
        assert max(sizes) == 8
        assert dark.recipe["chunks"] == sorted(dark.recipe["chunks"])  # and the positive its own
        assert sum(size < 8 for size in sizes) <= 2  # the last of the passage, and the one cut to the share
        assert sum(sizes) == int(dark.recipe["ratio"] * 100)
        kept = [word for word in dark.text.split() if word[0] == "n"]
        assert kept == sorted(kept, key=lambda word: int(word[1:]))  # the negative keeps its order
        assert len(kept) == 80 - sum(sizes)


def test_concat_and_interleave_keep_the_whole_negative() -> None:
    negatives = [" ".join(f"n{j}" for j in range(20))] * 15
    for mode in ("concat", "interleave"):
        for dark in of("reinforced", texts(Dark(reinforce=mode, chunk_words=3), negatives=negatives)):
            added = int(dark.recipe["ratio"] * 16)
            assert len(dark.text.split()) == 20 + added
            assert [word for word in dark.text.split() if word[0] == "n" and word[1:].isdigit()] == negatives[0].split()
            assert dark.text.endswith("n19")
            assert dark.text.startswith("n0") == (mode == "interleave")


@pytest.mark.parametrize("mask", MASKS)
def test_masked_words(mask: Any) -> None:
    made = of("noisy", texts(Dark(mask=mask)))
    assert len(made) == 12 or (mask == "query_overlap_first" and len(made) >= 8)  # the words asked for come out the same
    for dark in made:
        masked = dark.recipe["masked"]
        assert 0.2 <= dark.recipe["ratio"] <= 0.6
        assert abs(len(masked) - dark.recipe["ratio"] * 16) <= 1
        if mask == "delete":
            assert len(dark.text.split()) == 16 - len(masked)
            assert MASK not in dark.text
        else:
            assert [i for i, word in enumerate(dark.text.split()) if word == MASK] == masked
    assert len({tuple(dark.recipe["masked"]) for dark in made}) == len(made)


def test_query_words_are_masked_first() -> None:
    shared = {0, 2, 3, 4, 5, 14}  # students avoid the monthly fee, and the other "the": no case, no question mark
    for dark in of("noisy", texts(Dark(mask="query_overlap_first"))):
        masked = set(dark.recipe["masked"])
        assert masked <= shared or shared <= masked
    assert any(
        not (set(dark.recipe["masked"]) <= shared or shared <= set(dark.recipe["masked"]))
        for dark in of("noisy", texts(Dark(mask="random")))
    )


def test_each_negative_is_used_at_most_twice_and_the_hardest_most() -> None:
    used: Counter[int] = Counter()
    for q in range(200):
        per_query = Counter(dark.recipe["negative"] for dark in of("reinforced", texts(Dark(noisy=0), query_id=f"q{q}")))
        assert max(per_query.values()) <= 2
        used += per_query
    assert set(used) == set(range(15))  # the first 15 of 20
    assert used[0] > used[4] > used[14]
    first = Counter(texts(Dark(noisy=0), query_id=f"q{q}")[0].recipe["negative"] for q in range(2000))
    share = 1 / sum(1 / rank for rank in range(1, 16))
    for place in (0, 1, 4):
        expected = share / (place + 1)
        assert abs(first[place] / 2000 - expected) < 4 * (expected * (1 - expected) / 2000) ** 0.5


def test_few_negatives_give_few_texts() -> None:
    made = of("reinforced", texts(Dark(), negatives=[NEGATIVE, NEGATIVE + " again"]))
    assert Counter(dark.recipe["negative"] for dark in made) == {0: 2, 1: 2}
    once = of("reinforced", texts(Dark(reuse=1), negatives=[NEGATIVE]))
    assert len(once) == 1
    assert [dark.kind for dark in texts(Dark(), negatives=[])] == ["noisy"] * 12


@pytest.mark.parametrize(
    ("positive", "negatives", "expected"),
    [
        ("", [NEGATIVE], {}),
        ("  \n\u3000", [NEGATIVE], {}),
        ("fee", [NEGATIVE], {"reinforced": 1}),  # one word cannot be masked; both draws hit the same word of the negative
        ("fee", ["fee fee"], {}),  # what comes out is the negative itself
        ("two words", [], {"noisy": 2}),  # only two maskings differ
        (POSITIVE, ["", "bank", "  "], {"noisy": 12}),  # one word: nothing of it would stay
        (POSITIVE, ["bank fees"], {"reinforced": 2, "noisy": 12}),
    ],
)
def test_little_to_build_from(positive: str, negatives: list[str], expected: dict[str, int]) -> None:
    made = texts(Dark(), positive=positive, negatives=negatives)
    assert Counter(dark.kind for dark in made) == expected


def test_a_word_goes_into_many_negatives() -> None:
    made = texts(Dark(), positive="fee")
    assert len(made) >= 10
    assert all(dark.text.split().count("fee") == 1 for dark in made)


def test_two_words_put_one_word_in() -> None:
    for dark in of("reinforced", texts(Dark(), negatives=["bank fees"])):
        first, second = dark.text.split()
        assert (first == "bank") != (second == "fees")


GOLDEN = "63345d49465f17b3"  # written down once: a change here changes every dark example ever made


def fingerprint(made: list[DarkText]) -> str:
    rows = [[dark.kind, dark.number, dark.text, dark.recipe] for dark in made]
    return sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


def test_the_same_texts_in_any_process() -> None:
    assert fingerprint(texts(Dark())) == GOLDEN
    here = Path(__file__).parent
    code = "import test_dark as t; print(t.fingerprint(t.texts(t.Dark())))"
    for hash_seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        assert done.stdout.strip() == GOLDEN


def test_what_a_text_depends_on() -> None:
    made = texts(Dark())
    assert texts(Dark(built=5)) == [dark for dark in made if dark.number < 5]
    assert of("noisy", texts(Dark(), negatives=[])) == of("noisy", made)
    assert texts(Dark(beta=(0.3, 0.3)))[:12] == made[:12]
    others = [texts(Dark(seed=1)), texts(Dark(), query_id="q2")]
    for other in others:
        assert len({dark.text for dark in other} & {dark.text for dark in made}) < 4
    same_number = [dark.recipe["ratio"] for dark in texts(Dark(alpha=(0.2, 0.6))) if dark.number == 0]
    assert same_number[0] != same_number[1]  # the kind enters the draw


WORDS = ["fee", "Zürich", "e\u0301te", "数据库", "😀😀", "a", "ﬁne", "ß", "данные", "(x)", "'", "عربى", "x" * 300]
SPACES = [" ", "  ", "\n", "\t ", "\u00a0", "\u3000", "\r\n\r\n"]


def random_text(rng: np.random.Generator, longest: int) -> str:
    parts = [str(rng.choice(SPACES)) if rng.random() < 0.3 else ""]
    for _ in range(int(rng.integers(0, longest + 1))):
        parts += [str(rng.choice(WORDS)) + str(rng.integers(100)), str(rng.choice(SPACES))]
    return "".join(parts)


@pytest.mark.parametrize("seed", range(40))
def test_properties_on_random_texts(seed: int) -> None:
    rng = np.random.Generator(np.random.PCG64(seed))
    longest = [1, 3, 12, 80][seed % 4]
    rule = Dark(
        reinforce=MODES[seed % 3],
        mask=MASKS[seed % 3],
        beta=[(0.2, 0.6), (0.05, 0.95), (0.9, 0.99)][seed % 3],
        chunk_words=int(rng.integers(1, 12)),
        built=int(rng.integers(4, 16)),
        sources=8,
        reuse=2,
    )
    positive = random_text(rng, longest)
    negatives = [random_text(rng, longest) for _ in range(int(rng.integers(0, 12)))]
    made = build(rule, query_id=f"q\u2028{seed}", query=random_text(rng, 5), positive=positive, negatives=negatives)
    words = positive.split()
    assert len({dark.text for dark in made}) == len(made)
    assert " ".join(words) not in {dark.text for dark in made}
    used = Counter(dark.recipe["negative"] for dark in of("reinforced", made))
    assert max(used.values(), default=0) <= 2
    for dark in made:
        stored = json.loads(json.dumps(dark.recipe))
        assert stored == dark.recipe
        assert rebuild(stored, positive, negatives) == dark.text
        assert 0 <= dark.number < rule.built
        found = dark.text.split()
        assert " ".join(found) == dark.text
        if dark.kind == "noisy":
            hidden = len(dark.recipe["masked"])
            assert 1 <= hidden < len(words)
            assert abs(hidden - dark.recipe["ratio"] * len(words)) <= 1
            assert Counter(found) - Counter([MASK] * hidden) <= Counter(words)
        else:
            source = negatives[dark.recipe["negative"]].split()
            assert dark.recipe["negative"] < 8
            added = sum(end - start for start, end in dark.recipe["chunks"])
            share = max(1, int(dark.recipe["ratio"] * len(words)))
            assert added == (min(share, len(source) - 1) if rule.reinforce == "replace" else share)
            assert len(found) == len(source) + (0 if rule.reinforce == "replace" else added)
            assert Counter(found) <= Counter(source) + Counter(words)
            assert all(1 <= end - start <= rule.chunk_words for start, end in dark.recipe["chunks"])
    assert bool(of("noisy", made)) == (len(words) > 1)
    useful = sum(len(text.split()) > (rule.reinforce == "replace") for text in negatives[:8])
    if words:
        assert len(of("reinforced", made)) <= min(rule.built, 2 * useful)
        assert bool(of("reinforced", made)) == bool(useful)


# -- the rule -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": [0.5, 0.15]}, r"alpha: .*least first.*got \[0\.5, 0\.15\]"),
        ({"alpha": [0.0, 0.5]}, "alpha: .*above 0"),
        ({"beta": [0.2, 1.0]}, "beta: .*below 1"),
        ({"beta": [0.2]}, "beta"),
        ({"reinforced": 13}, "reinforced=13 are kept of built=12; set built to 13 or more"),
        ({"noisy": 5, "built": 4}, "noisy=5 are kept of built=4"),
        ({"sources": 5}, "sources=5 negatives used reuse=2 times make 10 texts, fewer than built=12"),
        ({"band_margin": 0.5}, "band_margin: .*less than 0.5"),
        ({"chunk_words": 0}, "chunk_words"),
        ({"mask": "query_overlap"}, "mask: .*'query_overlap_first'"),
        ({"chunkwords": 8}, "did you mean 'chunk_words'"),
    ],
)
def test_impossible_rules_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        validate(Dark, fields, "toy.yaml")


def test_rules_that_are_possible() -> None:
    assert validate(Dark, {"alpha": [0.2, 0.2], "beta": [0.1, 0.9]}, "toy.yaml").alpha == (0.2, 0.2)
    assert Dark(reinforced=0, sources=1).sources == 1  # nothing is reinforced, so sources do not matter
    assert hash(Dark()) == hash(Dark(built=12))
