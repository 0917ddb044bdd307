"""Dark examples: which are kept, and the entropy of a list (reference 5.5)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raydrd.methods.dark import Dark, band, choose, entropy

# -- choosing -----------------------------------------------------------------------------------------

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


# -- entropy ------------------------------------------------------------------------------------------


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
