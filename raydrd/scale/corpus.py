"""A synthetic collection with MS MARCO's length mix: as many passages as asked for, written part by part by workers.

Lengths are log-normal around the published means (56 words a passage, 6 a query); their spread is ours. Words come from a
tokenizer's own vocabulary, by a Zipf law in its order. Every block of passages is drawn by (seed, block) alone: a larger
collection begins with the smaller one, and no process holds more than a block.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from raydrd.config import Frozen
from raydrd.spine.parts import found_ranges, part_name, ranges
from raydrd.spine.storage import Folder
from raydrd.spine.store import Located, Work, stage
from raydrd.spine.tables import CORPUS, QUERIES

BLOCK = 20_000  # passages drawn at once, and rows of a part: as `load` writes them
SENTENCE = 14  # words from one full stop to the next
JOINED_WORDS = 60_000  # rare words made of two pieces, so that a word is more than one token now and then


class Shape(Frozen):
    """What is drawn."""

    passages: int = Field(ge=1, description="rows of the corpus")
    queries_per_passages: float = Field(0.1, gt=0, le=1, description="queries for each passage; each has one positive")
    words: float = Field(56.0, gt=0, description="mean words of a passage")
    most_words: int = Field(300, ge=1, description="no passage is longer")
    query_words: float = Field(6.0, gt=0, description="mean words of a query, drawn from its positive")
    seed: int = Field(0, description="seed of all draws")

    @property
    def queries(self) -> int:
        return self.queries_until(self.passages)

    def queries_until(self, passage: int) -> int:
        """Queries whose positive lies before this passage: one in every 1 / queries_per_passages."""
        return int(np.floor(passage * self.queries_per_passages + 1e-9))


def lengths(rng: np.random.Generator, count: int, *, mean: float, spread: float, least: int, most: int) -> NDArray[np.int64]:
    """Log-normal whole numbers [count] of this mean, inside least..most. `spread` is the deviation of their logarithm."""
    drawn = rng.lognormal(np.log(mean) - spread**2 / 2, spread, count)
    return np.clip(np.rint(drawn), least, most).astype(np.int64)


@lru_cache(maxsize=2)
def words_of(tokenizer: Path) -> tuple[str, ...]:
    """Whole words of a WordPiece vocabulary in its order (the commonest first), then words joined of two pieces."""
    from transformers import AutoTokenizer

    vocabulary = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True, trust_remote_code=False).get_vocab()
    ordered = sorted(vocabulary, key=vocabulary.__getitem__)
    whole = [word for word in ordered if word.isascii() and word.isalpha() and len(word) > 1]
    ends = [word[2:] for word in ordered if word.startswith("##") and word[2:].isascii() and word[2:].isalpha()]
    rng = np.random.default_rng(0)
    pairs = zip(rng.integers(0, len(whole), JOINED_WORDS), rng.integers(0, len(ends), JOINED_WORDS), strict=True)
    return (*whole, *(whole[a] + ends[b] for a, b in pairs)) if ends else tuple(whole)


def zipf(words: int) -> NDArray[np.float64]:
    """Probabilities of words by rank, summed up: Mandelbrot's form of Zipf's law, as English follows it."""
    weights = 1.0 / (np.arange(words) + 2.7)
    return np.asarray(np.cumsum(weights) / weights.sum())


def block(shape: Shape, words: tuple[str, ...], lo: int, hi: int) -> tuple[pa.Table, pa.Table]:
    """Passages lo..hi-1 and the queries whose positives are among them. `lo` is a multiple of `BLOCK`."""
    # All of a block is drawn before it is cut: where a corpus ends changes nothing before its end.
    rng = np.random.default_rng([shape.seed, lo // BLOCK])
    counts = lengths(rng, BLOCK, mean=shape.words, spread=0.45, least=8, most=shape.most_words)
    chosen = np.searchsorted(zipf(len(words)), rng.random(int(counts.sum())))
    chosen = np.minimum(chosen, len(words) - 1)
    starts = np.concatenate([[0], np.cumsum(counts)])
    stops = np.arange(len(chosen)) % SENTENCE == SENTENCE - 1
    spelled = pa.array([*words, *(f"{word}." for word in words)]).take(pa.array(chosen + stops * len(words)))
    texts = pc.binary_join(pa.ListArray.from_arrays(pa.array(starts, pa.int32()), spelled), " ")[: hi - lo]
    corpus = pa.table([pa.array([f"p{row}" for row in range(lo, hi)]), texts], schema=CORPUS)

    first, last = shape.queries_until(lo), shape.queries_until(hi)
    positives = np.array([at for at in range(lo, hi) if shape.queries_until(at + 1) > shape.queries_until(at)], np.int64)
    wanted = lengths(rng, BLOCK, mean=shape.query_words, spread=0.4, least=2, most=30)
    asked = []
    for row in positives - lo:
        passage = chosen[starts[row] : starts[row + 1]]
        # The rarest words say what a passage is about; which of them, and where they begin, the passage decides.
        rare = np.sort(np.argsort(-passage, kind="stable")[: wanted[row]])
        asked.append(" ".join(words[word] for word in passage[rare]))
    offsets = pa.array(np.arange(len(asked) + 1), pa.int32())
    queries = pa.table(
        [
            pa.array([f"q{row}" for row in range(first, last)], pa.string()),
            pa.array(asked, pa.string()),
            pa.ListArray.from_arrays(offsets, pa.array(positives)),
            pa.ListArray.from_arrays(offsets, pa.array(np.ones(len(asked)), pa.int32())),
        ],
        schema=QUERIES,
    )
    return corpus, queries


class Writer:
    """Draws blocks and writes them as the tables that `load` writes."""

    def __init__(self, *, shape: Shape, tokenizer: Path, out: Folder) -> None:
        self.shape, self.words, self.out = shape, words_of(tokenizer), out

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        lo, hi = shard["lo"], shard["hi"]
        corpus, queries = block(self.shape, self.words, lo, hi)
        first = self.shape.queries_until(lo)
        if len(queries):  # before the corpus part, which says that the block is there
            self.out.write_table(f"queries/train/{part_name(first, first + len(queries), 'parquet')}", queries)
        self.out.write_table(f"corpus/{part_name(lo, hi, 'parquet')}", corpus)
        return {}


@stage(version=1)
def synthesize(work: Work, *, shape: Shape, tokenizer: Located) -> dict[str, Any]:
    """A collection of this shape, with the words of a tokenizer (a folder); its tables are `corpus` and `queries/train`."""
    there = set(found_ranges([name for name in work.shards.files() if name.startswith("corpus/")]))
    work.cluster.map(
        Writer,
        {"shape": shape, "tokenizer": tokenizer.where, "out": work.shards},
        [
            {"name": f"block-{lo // BLOCK}", "lo": lo, "hi": hi, "rows": hi - lo}
            for lo, hi in ranges(shape.passages, BLOCK)
            if (lo, hi) not in there
        ],
        label=work.label,
        unit="passages",
        marks=work.shards / "attempts",
        models=False,
    )
    return {"rows": shape.passages, "unit": "passages", "passages": shape.passages, "train": shape.queries}
