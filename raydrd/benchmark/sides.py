"""The two comparisons: `SentenceTransformer.encode` and `CrossEncoder.predict` against our workers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raydrd.benchmark.arithmetic import Cost, counting
from raydrd.benchmark.inputs import Texts
from raydrd.models.layout import read_layout
from raydrd.rounds import Rounds, alternate
from raydrd.spine.precision import Precision
from raydrd.spine.storage import Folder
from raydrd.stages.embed import Embedder
from raydrd.stages.scorers import CrossEncoderScorer

THEIRS, TOKENS = "theirs fp32", "tokenise"
OURS: tuple[Precision, ...] = ("fp32", "bf16")


@dataclass(frozen=True)
class Compared:
    """Times of all sides, what they gave, and what the work is in operations and tokens."""

    rounds: Rounds
    rows: int
    real_tokens: int
    padded_tokens: dict[str, int]
    flops: float
    shapes: list[tuple[int, int, int]]
    facts: dict[str, float]

    def share(self, name: str, peaks: dict[Precision, float]) -> float:
        """Operations on real tokens a second, as a share of what a plain matmul reaches in the same precision."""
        return self.flops / self.rounds.median(name) / peaks["bf16" if "bf16" in name else "fp32"]


def embedding(model: Path, texts: list[str], *, work: Folder, rounds: int) -> Compared:
    """Vectors of the same texts: sentence-transformers with its default settings, and ours in fp32 and bf16."""
    from sentence_transformers import SentenceTransformer

    layout = read_layout(model)
    made = Texts.of(texts, work / "embedding")
    tokenise = made.tokenizer(model, layout)
    tokenise()
    theirs = SentenceTransformer(str(model), local_files_only=True)
    ours = {p: embedder(model, made, out=work / f"vectors-{p}", precision=p) for p in OURS}
    rows = np.arange(len(texts))
    counts: dict[str, int] = {}
    first: Any = theirs[0]

    def encode() -> Any:
        return theirs.encode(texts, prompt=layout.passage_prompt or None, show_progress_bar=False)

    contestants = {
        THEIRS: counting(first.auto_model.get_input_embeddings(), encode, counts, THEIRS),
        TOKENS: tokenise,
        **{
            f"ours {p}": counting(o.tower.backbone.get_input_embeddings(), partial(o.encode, rows), counts, f"ours {p}")
            for p, o in ours.items()
        },
    }
    found = _alternate(contestants, rounds)
    one = ours["fp32"]
    lengths = one.special.single_lengths(one.tokens.lengths(rows), one.max_len)
    vectors = {name: np.asarray(found.results[name], dtype=np.float32) for name in (THEIRS, "ours fp32", "ours bf16")}
    return Compared(
        rounds=found,
        rows=len(texts),
        real_tokens=int(lengths.sum()),
        padded_tokens=counts,
        flops=Cost.of(one.tower.backbone).flops(lengths),
        shapes=shapes(one.tower.backbone, one.budget.tokens),
        facts={
            "largest difference in fp32": float(np.abs(vectors["ours fp32"] - vectors[THEIRS]).max()),
            **closeness(vectors["ours bf16"], vectors[THEIRS]),
        },
    )


def scoring(
    model: Path,
    queries: list[str],
    passages: list[str],
    query_rows: NDArray[np.int64],
    passage_rows: NDArray[np.int64],
    *,
    work: Folder,
    rounds: int,
) -> Compared:
    """Raw logits of the same pairs: `CrossEncoder.predict` with its default settings, and ours in fp32 and bf16."""
    from sentence_transformers import CrossEncoder

    sides = {"query": Texts.of(queries, work / "queries"), "passage": Texts.of(passages, work / "passages")}
    tokenise = [side.tokenizer(model) for side in sides.values()]
    for side in tokenise:
        side()
    theirs = CrossEncoder(str(model), local_files_only=True)
    ours = {
        p: CrossEncoderScorer(
            Folder.of(model),
            queries=sides["query"].tokens,
            passages=sides["passage"].tokens,
            max_length=int(theirs.max_length or 512),
            precision=p,
            tokens_per_batch=None,
        )
        for p in OURS
    }
    pairs = [(queries[q], passages[p]) for q, p in zip(query_rows.tolist(), passage_rows.tolist(), strict=True)]
    raw = torch.nn.Identity()
    counts: dict[str, int] = {}
    their_model: Any = theirs.model

    def predict() -> Any:
        return theirs.predict(pairs, activation_fn=raw, show_progress_bar=False)

    contestants = {
        THEIRS: counting(their_model.get_input_embeddings(), predict, counts, THEIRS),
        TOKENS: lambda: [side() for side in tokenise],
        **{
            f"ours {p}": counting(
                o.model.get_input_embeddings(), partial(o.scores, query_rows, passage_rows), counts, f"ours {p}"
            )
            for p, o in ours.items()
        },
    }
    found = _alternate(contestants, rounds)
    one = ours["fp32"]
    lengths = one.special.pair_lengths(one.queries.lengths(query_rows), one.passages.lengths(passage_rows), one.max_length)
    scores = {name: np.asarray(found.results[name], dtype=np.float32) for name in (THEIRS, "ours fp32", "ours bf16")}
    spread = float(scores[THEIRS].std())
    return Compared(
        rounds=found,
        rows=len(pairs),
        real_tokens=int(lengths.sum()),
        padded_tokens=counts,
        flops=Cost.of(one.model.base_model).flops(lengths),
        shapes=shapes(one.model.base_model, one.budget.tokens),
        facts={
            "largest difference in fp32": float(np.abs(scores["ours fp32"] - scores[THEIRS]).max()),
            "largest difference in bf16": float(np.abs(scores["ours bf16"] - scores[THEIRS]).max()),
            "standard deviation of the scores": spread,
        },
    )


def embedder(model: Path, texts: Texts, *, out: Folder, precision: Precision, role: str = "passage") -> Embedder:
    """Our worker over these texts, as the embed stage builds it."""
    return Embedder(
        model=Folder.of(model),
        role=role,
        tokens=texts.tokens,
        out=out,
        precision=precision,
        storage="float32",
        tokens_per_batch=None,
    )


def _alternate(contestants: dict[str, Any], rounds: int) -> Rounds:
    found = alternate(contestants, rounds)
    for p in OURS:
        found.sum_of(f"ours {p} + tokenise", (f"ours {p}", TOKENS))
    return found


def shapes(backbone: Any, rows: int) -> list[tuple[int, int, int]]:
    """The encoder's own matrix products (m, k, n), to take the machine's peak from."""
    width, inner = int(backbone.config.hidden_size), int(getattr(backbone.config, "intermediate_size", 0))
    return [(rows, width, width)] + ([(rows, width, inner), (rows, inner, width)] if inner else [])


def closeness(found: NDArray[np.float32], true: NDArray[np.float32]) -> dict[str, float]:
    """Cosine of each vector [N, D] with its true one, and how many of the 10 nearest others stay the same."""
    cosines = (found * true).sum(1) / (np.linalg.norm(found, axis=1) * np.linalg.norm(true, axis=1))
    k = min(10, len(true) - 1)
    same = [len(set(a) & set(b)) / k for a, b in zip(_nearest(found, k), _nearest(true, k), strict=True)]
    return {
        "bf16 cosine, mean": float(cosines.mean()),
        "bf16 cosine, least": float(cosines.min()),
        f"bf16 top-{k} overlap": float(np.mean(same)),
    }


def _nearest(vectors: NDArray[np.float32], k: int) -> list[list[int]]:
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    nearest: list[list[int]] = np.argpartition(-scores, k - 1, axis=1)[:, :k].tolist()
    return nearest
