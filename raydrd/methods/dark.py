"""Dark examples (ADAM): texts of moderate relevance, built from a query's positive and its mined negatives.

A *reinforced negative* is a negative with chunks of the positive in it; a *noisy positive* is the positive with
words masked. Many are built, the teacher scores them, and `choose` keeps those whose score lies between the
hardest negative and the positive. Pure: no files, no Ray, no clock, no model.

ADAM (ACL Findings 2024, arXiv 2212.10192) has no public code: this is implemented from the abstract. That there
are strengthened negatives and masked positives is the paper's; every number and rule below is this project's
choice, which is why each is a field. Texts are worked on as words parted by white space, so that a teacher and
a student with different tokenizers read the same example. A script without spaces has one word a passage and
gets no dark examples.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, field_validator, model_validator

from raydrd.config import Frozen

Kind = Literal["reinforced", "noisy"]
Recipe = dict[str, Any]

# Stands for one masked word; each reading model's own mask token takes its place before it is tokenised. U+FDD0
# is a Unicode noncharacter: set aside for use inside programs, valid in UTF-8, in no alphabet, no white space.
MASK = "\ufdd0"

_BINS = 4  # equal parts of the band that the kept examples are spread over
_MIDDLE_FIRST = (1, 2, 0, 3)  # what a count below four takes: moderate relevance before the ends of the band


class Dark(Frozen):
    """How dark examples are built and which are kept."""

    reinforced: int = Field(4, ge=0, description="reinforced negatives kept a query; 0: none are built")
    noisy: int = Field(4, ge=0, description="noisy positives kept a query; 0: none are built")
    built: int = Field(12, ge=1, description="examples built of each kind, for the teacher to choose from")
    alpha: tuple[float, float] = Field((0.15, 0.5), description="least and largest share of the positive put into a negative")
    beta: tuple[float, float] = Field((0.2, 0.6), description="least and largest share of the positive's words masked")
    chunk_words: int = Field(8, ge=1, description="words the positive is cut into chunks of")
    reinforce: Literal["replace", "concat", "interleave"] = Field(
        "replace", description="how chunks enter a negative; only replace keeps its length"
    )
    mask: Literal["random", "query_overlap_first", "delete"] = Field(
        "random", description="which words are masked; delete takes them out, for models without a mask token"
    )
    band_filter: bool = Field(True, description="keep only what scores between hardest negative and positive; false: no choice")
    band_margin: float = Field(0.05, ge=0, lt=0.5, description="share of that gap left free at each end")
    sources: int = Field(15, ge=1, description="first mined negatives that are reinforced")
    reuse: int = Field(2, ge=1, description="times one negative may be reinforced")
    join: Literal["join", "replace"] = Field("join", description="dark examples join the negatives, or replace as many of them")
    seed: int = Field(4680, description="seed of the draws; the same texts for the same seed on any machine")

    def writing(self) -> Dark:
        """This rule as far as it decides the texts: rules that keep others of the same ones write (and score) them once."""
        kept = {name: self.built if getattr(self, name) else 0 for name in ("reinforced", "noisy")}
        plain = {name: type(self).model_fields[name].default for name in ("band_filter", "band_margin", "join")}
        return self.model_copy(update={**kept, **plain})

    @field_validator("alpha", "beta")
    @classmethod
    def _share(cls, value: tuple[float, float]) -> tuple[float, float]:
        low, high = value
        if not 0 < low <= high < 1:
            raise ValueError(
                "two shares of the positive's words, least first, above 0 and below 1; write for example [0.2, 0.5]"
            )
        return value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for name, kept in (("reinforced", self.reinforced), ("noisy", self.noisy)):
            if kept > self.built:
                raise ValueError(f"{name}={kept} are kept of built={self.built}; set built to {kept} or more")
        if self.reinforced and self.sources * self.reuse < self.built:
            raise ValueError(
                f"sources={self.sources} negatives used reuse={self.reuse} times make {self.sources * self.reuse} texts, "
                f"fewer than built={self.built}; raise sources or reuse, or lower built"
            )
        return self


@dataclass(frozen=True)
class DarkText:
    """One built example: its `number` k among those of its `kind`, its `text`, and the `recipe` of it.

    The recipe holds plain JSON values; positions are 0-based and spans are [start, end) in words.
    Reinforced: `kind`, `mode`, `ratio`, `negative` (place in the given negatives), `chunks` (spans of the
    positive) and `places` (the span of the negative that each chunk stands for). Noisy: `kind`, `mode`,
    `ratio`, `masked` (the positive's words).
    """

    kind: Kind
    number: int
    text: str
    recipe: Recipe


def build(rule: Dark, *, query_id: str, query: str, positive: str, negatives: Sequence[str]) -> list[DarkText]:
    """Up to `rule.built` texts of each kind that is kept, reinforced first, by number.

    `negatives` stand in mined order, hardest first, other positives already taken out. A negative is drawn with
    weight 1/rank from the first `rule.sources`, at most `rule.reuse` times. All draws for a text come from
    (rule.seed, query_id, kind, number), so a kind does not depend on the other, nor a text on a larger `built`.

    Fewer are built where there is nothing to build from: no negative of two words (one, for concat and
    interleave), a positive without words; a positive of one word is never masked. `replace` leaves at least one
    word of the negative, so a long positive gives a short negative less than its share. A text that says the
    same as the positive, a source or an earlier text is left out, and its number with it.
    """
    seen = {" ".join(text.split()) for text in (positive, *negatives[: rule.sources])}
    made: list[DarkText] = []
    recipes = [*_reinforced(rule, query_id, positive, negatives), *_noisy(rule, query_id, query, positive)]
    for number, recipe in recipes:
        text = rebuild(recipe, positive=positive, negatives=negatives)
        if text not in seen:
            seen.add(text)
            made.append(DarkText(kind=recipe["kind"], number=number, text=text, recipe=recipe))
    return made


def rebuild(recipe: Recipe, positive: str, negatives: Sequence[str]) -> str:
    """The text of a recipe, from the same positive and negatives it was made with. White space becomes one space.

    Raises:
        ValueError: the recipe is of no known kind, or speaks of words or negatives that these texts do not have.
    """
    words = positive.split()
    if recipe["kind"] == "noisy":
        masked = set(recipe["masked"])
        if not masked <= set(range(len(words))):
            raise ValueError(f"recipe masks words {sorted(masked)}, the positive has {len(words)}")
        if recipe["mode"] == "delete":
            return " ".join(word for i, word in enumerate(words) if i not in masked)
        return " ".join(MASK if i in masked else word for i, word in enumerate(words))
    if recipe["kind"] != "reinforced":
        raise ValueError(f"recipe of kind {recipe['kind']!r}; known are reinforced and noisy")
    if not 0 <= recipe["negative"] < len(negatives):
        raise ValueError(f"recipe uses negative {recipe['negative']}, there are {len(negatives)}")
    source = negatives[recipe["negative"]].split()
    text: list[str] = []
    done = 0
    for (chunk_start, chunk_end), (start, end) in zip(recipe["chunks"], recipe["places"], strict=True):
        if not (0 <= chunk_start < chunk_end <= len(words) and done <= start <= end <= len(source)):
            raise ValueError(
                f"recipe puts words {chunk_start}..{chunk_end} of the positive, which has {len(words)}, "
                f"in place of words {start}..{end} of the negative, which has {len(source)} and is used up to {done}"
            )
        text += source[done:start] + words[chunk_start:chunk_end]
        done = end
    return " ".join(text + source[done:])


def band(positive_score: float, hardest_negative: float, margin: float) -> tuple[float, float]:
    """(low, high) of moderate relevance in teacher logits, both ends outside; `low >= high` is the empty band.

    The gap between the two scores, less `margin` of it at each end. It is empty where the teacher puts the
    hardest negative as high as the positive or higher.

    Raises:
        ValueError: a margin outside [0, 0.5), or a score that is not finite.
    """
    if not 0 <= margin < 0.5:
        raise ValueError(f"band margin {margin}: from 0 to below 0.5, as nothing is left between two halves")
    if not np.isfinite([positive_score, hardest_negative]).all():
        raise ValueError(f"band between scores {hardest_negative} and {positive_score}: both must be finite")
    gap = positive_score - hardest_negative
    return hardest_negative + margin * gap, positive_score - margin * gap


def choose(
    rule: Dark, *, positive_score: float, negative_scores: ArrayLike, scores: ArrayLike, kinds: Sequence[str]
) -> list[int]:
    """Which built examples are kept: their places in `scores`, ascending.

    `scores` [D] are the teacher's raw logits of the built examples, `kinds` [D] their kinds, `negative_scores`
    the logits of the query's hard negatives. Only scores inside the band stay. Each kind then fills its count
    by itself: the band is cut into four equal bins (a score on an edge is in the upper one); the count's slots
    go to the bins one each, the two middle bins first, then round again. A slot takes, of its own bin, what is
    closest to the bin's middle, ties by place. Slots that found their bin used up are then served, in the
    same order, from the nearest bin that has any left, again by closeness to the middle of the wanted bin.

    Too few survivors: fewer are kept, never one from outside. No negative, or an empty band: none. With
    `band_filter=False` the first of each kind are kept, whatever they score.

    Raises:
        ValueError: lengths differ, an unknown kind, or a score that is not finite.
    """
    counts = {"reinforced": rule.reinforced, "noisy": rule.noisy}
    scores_D, negatives = _finite(scores, "dark examples"), _finite(negative_scores, "negatives")
    if len(kinds) != len(scores_D):
        raise ValueError(f"{len(scores_D)} scores of dark examples and {len(kinds)} kinds; one kind a score")
    if unknown := sorted(set(kinds) - set(counts)):
        raise ValueError(f"kinds {unknown} of dark examples are unknown; known are {sorted(counts)}")
    members = {kind: [i for i, other in enumerate(kinds) if other == kind] for kind in counts}
    if not rule.band_filter:
        return sorted(i for kind, count in counts.items() for i in members[kind][:count])
    if not len(negatives):
        return []
    low, high = band(positive_score, float(negatives.max()), rule.band_margin)
    inside = (low < scores_D) & (scores_D < high)
    if not inside.any():
        return []
    places = {i: float((scores_D[i] - low) / (high - low)) * _BINS for i in np.flatnonzero(inside).tolist()}
    return sorted(
        i for kind, count in counts.items() for i in _spread({i: places[i] for i in members[kind] if i in places}, count)
    )


def entropy(scores: ArrayLike, temperature: float = 1.0) -> float:
    """Entropy in nats of softmax(scores / temperature) over one list: how much a soft label says beside its first.

    Raises:
        ValueError: an empty list, a score that is not finite, or a temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature}: must be positive")
    values = _finite(scores, "the list") / temperature
    if not len(values):
        raise ValueError("entropy of an empty list")
    shifted = values - values.max()
    logs = shifted - np.log(np.exp(shifted).sum())
    return max(0.0, float(-(np.exp(logs) * logs).sum()))


def _reinforced(rule: Dark, query_id: str, positive: str, negatives: Sequence[str]) -> list[tuple[int, Recipe]]:
    size = len(positive.split())
    lengths = [len(text.split()) for text in negatives[: rule.sources]]
    spare = 1 if rule.reinforce == "replace" else 0  # a word of the negative that must stay, or it is none of it
    left = [rule.reuse if length > spare else 0 for length in lengths]
    recipes: list[tuple[int, Recipe]] = []
    for number in range(rule.built if rule.reinforced and size else 0):
        if not any(left):
            break
        stream = _stream(rule.seed, query_id, "reinforced", number)
        source = _weighted(stream, [(uses > 0) / (place + 1) for place, uses in enumerate(left)])
        left[source] -= 1
        ratio = _uniform(stream, *rule.alpha)
        wanted = max(1, int(ratio * size))
        if rule.reinforce == "replace":
            wanted = min(wanted, lengths[source] - 1)
        chunks = _chunks(stream, size, wanted, min(rule.chunk_words, wanted))
        recipe = {
            "kind": "reinforced",
            "mode": rule.reinforce,
            "ratio": ratio,
            "negative": source,
            "chunks": chunks,
            "places": _places(stream, rule.reinforce, lengths[source], [end - start for start, end in chunks]),
        }
        recipes.append((number, recipe))
    return recipes


def _noisy(rule: Dark, query_id: str, query: str, positive: str) -> list[tuple[int, Recipe]]:
    words = positive.split()
    asked = {_bare(word) for word in query.split()} - {""}
    recipes: list[tuple[int, Recipe]] = []
    for number in range(rule.built if rule.noisy and len(words) > 1 else 0):
        stream = _stream(rule.seed, query_id, "noisy", number)
        ratio = _uniform(stream, *rule.beta)
        count = min(max(1, round(ratio * len(words))), len(words) - 1)
        order = _shuffled(stream, len(words))
        if rule.mask == "query_overlap_first":
            order.sort(key=lambda i: _bare(words[i]) not in asked)
        recipes.append((number, {"kind": "noisy", "mode": rule.mask, "ratio": ratio, "masked": sorted(order[:count])}))
    return recipes


def _chunks(stream: np.random.PCG64, size: int, wanted: int, length: int) -> list[list[int]]:
    """Spans of `wanted` words in all, in reading order: random chunks, the last one picked cut to what is missing."""
    chunks: list[list[int]] = []
    for chunk in _shuffled(stream, -(-size // length)):
        if wanted <= 0:
            break
        start = chunk * length
        end = min(start + length, size, start + wanted)
        chunks.append([start, end])
        wanted -= end - start
    return sorted(chunks)


def _places(stream: np.random.PCG64, mode: str, size: int, lengths: list[int]) -> list[list[int]]:
    """The span of a negative of `size` words that each chunk takes the place of, ascending, none overlapping."""
    if mode == "concat":
        return [[0, 0] for _ in lengths]
    if mode == "interleave":  # between equal pieces of the negative
        cuts = [(i + 1) * size // (len(lengths) + 1) for i in range(len(lengths))]
        return [[cut, cut] for cut in cuts]
    # All ways to lay the chunks among the words that stay are equally likely: choose which of the
    # (words that stay + chunks) things in a row are chunks.
    row = sorted(_shuffled(stream, size - sum(lengths) + len(lengths))[: len(lengths)])
    starts = [at - i + sum(lengths[:i]) for i, at in enumerate(row)]
    return [[start, start + length] for start, length in zip(starts, lengths, strict=True)]


def _spread(places: dict[int, float], count: int) -> list[int]:
    """Up to `count` of the examples, whose places in the band are 0..4 and so floor to their bin."""
    left = dict(places)
    waiting = [_MIDDLE_FIRST[i % _BINS] for i in range(count)]
    for reach in (0, _BINS):  # the own bin of every slot first, so that no refill takes what another slot would have had
        unserved = []
        for wanted in waiting:
            ranked = [(abs(_bin(place) - wanted), abs(place - (wanted + 0.5)), i) for i, place in left.items()]
            bins_away, _, best = min(ranked, default=(_BINS + 1, 0.0, -1))
            if bins_away <= reach:
                del left[best]
            else:
                unserved.append(wanted)
        waiting = unserved
    return sorted(places.keys() - left.keys())


def _bin(place: float) -> int:
    return min(int(place), _BINS - 1)  # just below the upper edge may round up to it


def _finite(values: ArrayLike, name: str) -> NDArray[np.float64]:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise ValueError(f"scores of {name}: one a text, shape is {vector.shape}")
    if not np.isfinite(vector).all():
        raise ValueError(f"scores of {name}: number {int((~np.isfinite(vector)).argmax())} is not finite")
    return vector


def _bare(word: str) -> str:
    """A word as it is compared with the query's: no case, no punctuation around it."""
    return re.sub(r"^\W+|\W+$", "", word.casefold())


def _stream(seed: int, query_id: str, kind: Kind, number: int) -> np.random.PCG64:
    """Raw PCG64 output is what NumPy promises to keep across versions (see lists.Row.sample)."""
    digest = sha256(f"{seed}\x1f{query_id}\x1f{kind}\x1f{number}".encode()).digest()
    return np.random.PCG64(int.from_bytes(digest, "big"))


def _uniform(stream: np.random.PCG64, low: float, high: float) -> float:
    return low + (high - low) * (int(stream.random_raw()) >> 11) * 2.0**-53  # 53 bits, as many as a double has


def _shuffled(stream: np.random.PCG64, size: int) -> list[int]:
    order: list[int] = np.argsort(stream.random_raw(size), kind="stable").tolist()
    return order


def _weighted(stream: np.random.PCG64, weights: list[float]) -> int:
    """A place, as likely as its weight; never one of weight zero."""
    sums = np.cumsum(weights)
    return int(np.searchsorted(sums, _uniform(stream, 0.0, float(sums[-1])), side="right"))
