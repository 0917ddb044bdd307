"""Dark examples: the worked example and vectors of the reference (5.5, 5.6), and properties on random texts."""

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
from raydrd.methods.dark import MASK, Dark, DarkText, band, build, choose, entropy, rebuild

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


# ---- building


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


# ---- choosing

CANDIDATES = [-1.9, -1.2, -0.5, 0.1, 0.9, 2.5, 2.9, 4.4, 5.2, 5.7, 6.3]


def pick(scores: list[float], kinds: list[str] | None = None, **fields: Any) -> list[int]:
    return choose(
        Dark(**fields),
        positive_score=6.0,
        negative_scores=[-5.0, -2.0, -3.0],
        scores=scores,
        kinds=["noisy"] * len(scores) if kinds is None else kinds,
    )


def test_band_of_the_reference() -> None:
    assert band(6.0, -2.0, 0.05) == pytest.approx((-1.6, 5.6))
    assert pick(CANDIDATES, noisy=11, built=11) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_one_of_each_bin() -> None:
    # bins -1.6, 0.2, 2.0, 3.8, 5.6 with middles -0.7, 1.1, 2.9, 4.7
    assert [CANDIDATES[i] for i in pick(CANDIDATES)] == [-0.5, 0.9, 2.9, 4.4]


@pytest.mark.parametrize(
    ("scores", "count", "expected"),
    [
        ([-0.5, 0.9, 2.9, 4.4], 1, [0.9]),  # fewer than four: the middle bins first, the lower before the upper
        ([-0.5, 0.9, 2.9, 4.4], 2, [0.9, 2.9]),
        ([-0.5, 0.9, 2.9, 4.4], 3, [-0.5, 0.9, 2.9]),
        ([-0.5, -0.4, 0.9, 1.0, 2.8, 2.9, 4.4, 4.5], 6, [-0.5, 0.9, 1.0, 2.8, 2.9, 4.5]),  # then round again
        ([-1.0, -0.9, 0.9, 1.3, 4.4], 4, [-0.9, 0.9, 1.3, 4.4]),  # the third bin is empty: its nearest, 1.3 before 0.9
        ([-1.0, -0.8, -0.6, 5.0, 5.4], 4, [-0.8, -0.6, 5.0, 5.4]),  # bins 1 and 2 each from the side that is nearer
        ([-1.5, -1.4, 2.1, 5.0, 5.2], 4, [-1.5, -1.4, 2.1, 5.0]),  # the empty second bin waits: 2.1 is of the third
        ([-1.0, 5.0], 4, [-1.0, 5.0]),  # fewer survivors
        ([-1.6, 5.6, -2.0, 6.0, 7.0], 4, []),  # the ends of the band are outside
        ([1.1, 1.1, 1.1], 1, [1.1]),
    ],
)
def test_spread_over_the_bins(scores: list[float], count: int, expected: list[float]) -> None:
    assert sorted(scores[i] for i in pick(scores, noisy=count)) == expected


def test_equal_scores_are_taken_in_order() -> None:
    assert pick([1.1] * 6, noisy=3) == [0, 1, 2]
    assert pick([4.4, 1.1, 1.1, 1.1], noisy=2) == [0, 1]  # the third bin is empty: 4.4 is nearer to its middle


def test_kinds_are_chosen_by_themselves() -> None:
    kinds = ["noisy", "reinforced"] * 4
    scores = [-0.5, -0.5, 0.9, 0.9, 2.9, 2.9, 4.4, 4.4]
    assert pick(scores, kinds) == list(range(8))
    assert pick(scores, kinds, noisy=0) == [1, 3, 5, 7]
    assert pick(scores, kinds, reinforced=1, noisy=2) == [2, 3, 4]


def test_empty_band() -> None:
    for hardest in (3.0, 4.0):
        low, high = band(3.0, hardest, 0.05)
        assert low >= high
        kept = choose(Dark(), positive_score=3.0, negative_scores=[hardest], scores=[2.0, 3.0, 3.5, 4.0], kinds=["noisy"] * 4)
        assert kept == []
    assert choose(Dark(), positive_score=3.0, negative_scores=[], scores=[1.0], kinds=["noisy"]) == []
    assert choose(Dark(), positive_score=3.0, negative_scores=[1.0], scores=[], kinds=[]) == []


def test_without_the_filter_the_first_built_stay() -> None:
    kinds = ["reinforced"] * 3 + ["noisy"] * 3
    kept = choose(
        Dark(band_filter=False, reinforced=2, noisy=1), positive_score=0, negative_scores=[], scores=[99.0] * 6, kinds=kinds
    )
    assert kept == [0, 1, 3]


@pytest.mark.parametrize("seed", range(50))
def test_properties_of_the_choice(seed: int) -> None:
    rng = np.random.Generator(np.random.PCG64(seed))
    rule = Dark(reinforced=int(rng.integers(0, 7)), noisy=int(rng.integers(0, 7)), band_margin=float(rng.random() * 0.49))
    positive, negatives = float(rng.normal(3, 2)), rng.normal(0, 2, 15)
    size = int(rng.integers(0, 25))
    scores = rng.normal(2, 3, size).astype(np.float32)
    kinds = [str(kind) for kind in rng.choice(["reinforced", "noisy"], size)]
    kept = choose(rule, positive_score=positive, negative_scores=negatives, scores=scores, kinds=kinds)
    margin = rule.band_margin * (positive - negatives.max())
    inside = [i for i in range(size) if negatives.max() + margin < scores[i] < positive - margin]
    assert set(kept) <= set(inside)
    assert kept == sorted(set(kept))
    for kind, count in (("reinforced", rule.reinforced), ("noisy", rule.noisy)):
        own = [i for i in inside if kinds[i] == kind]
        got = [i for i in kept if kinds[i] == kind]
        assert len(got) == min(count, len(own))
        if count >= 4:  # no bin with an example is left without
            width = (positive - negatives.max() - 2 * margin) / 4
            bins = {i: int((scores[i] - negatives.max() - margin) / width) for i in own}
            assert {bins[i] for i in got} == set(bins.values())
    # Other texts in another order: the same scores are kept.
    order = rng.permutation(size)
    again = choose(
        rule, positive_score=positive, negative_scores=negatives, scores=scores[order], kinds=[kinds[i] for i in order]
    )
    assert sorted(order[again].tolist()) == kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kinds": ["noisy"]}, "2 scores of dark examples and 1 kinds"),
        ({"kinds": ["noisy", "grey"]}, r"kinds \['grey'\]"),
        ({"scores": [1.0, np.nan]}, "dark examples: number 1 is not finite"),
        ({"scores": [[1.0, 2.0]]}, r"shape is \(1, 2\)"),
        ({"negative_scores": [-np.inf]}, "negatives: number 0 is not finite"),
        ({"positive_score": np.nan}, "must be finite"),
    ],
)
def test_scores_that_say_nothing_are_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"positive_score": 3.0, "negative_scores": [0.0], "scores": [1.0, 2.0], "kinds": ["noisy"] * 2}
    with pytest.raises(ValueError, match=message):
        choose(Dark(), **(given | change))


def test_a_band_of_nothing_is_refused() -> None:
    for margin in (-0.1, 0.5):
        with pytest.raises(ValueError, match="margin"):
            band(1.0, 0.0, margin)


# ---- entropy


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([6, -3, -4], 0.0017332),
        ([6, -3, -4, 2, 0], 0.1086045),
        ([1, 0.5, -2], 0.7778697),
        ([1, 0.5, -2, 0.8], 1.1552946),
        ([5], 0.0),
        ([-1e4, 1e4], 0.0),
        ([1e4] * 8, np.log(8)),
    ],
)
def test_entropy_of_the_reference(scores: list[float], expected: float) -> None:
    assert entropy(scores) == pytest.approx(expected, abs=1e-7)
    assert entropy(np.array(scores) * 3, temperature=3.0) == pytest.approx(expected, abs=1e-7)
    assert entropy(scores) >= 0


def test_entropy_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        entropy([])
    with pytest.raises(ValueError, match="temperature"):
        entropy([1.0, 2.0], temperature=0.0)
    with pytest.raises(ValueError, match="number 1 is not finite"):
        entropy([1.0, np.nan])


# ---- the rule


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
