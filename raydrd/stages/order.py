"""order: candidates put in order by a language model that reads several at once; their scores are grades.

A grade depends on the whole list and on the order in which it came, so no score book holds it: what is kept is this
stage's result, list by list.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydrd.methods.permutation import grades, read_order, windows
from raydrd.models.prompts import Ids, ListPrompt, assemble
from raydrd.spine.parts import Chain, Parts, TokenReader
from raydrd.spine.precision import Precision
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Located, Work, stage
from raydrd.stages.score import queries_per_shard, with_scores
from raydrd.stages.shards import chain_of, parts_of, pending, total_counts, write_counted

COUNTS = ("windows", "unread", "missing", "repeated", "unknown")


class Orderer:
    """A language model that slides its window over the lists of a block of queries, all lists at once, window by window."""

    def __init__(
        self,
        *,
        candidates: Parts,
        out: Folder,
        model: Folder,
        prompt: ListPrompt,
        queries: Parts,
        passages: Parts | Chain,
        window: int,
        stride: int,
        max_length: int,
        precision: Precision,
        tokens_per_batch: int | None,
    ) -> None:
        from raydrd.models.orders import OrderModel

        self.model = OrderModel(model.local_folder(), prompt=prompt, precision=precision, tokens_per_batch=tokens_per_batch)
        self.candidates, self.out, self.window, self.stride, self.max_length = candidates, out, window, stride, max_length
        self.queries, self.passages = TokenReader(queries), TokenReader(passages)

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        candidates = self.candidates.slice(shard["lo"], shard["hi"])
        lists = [np.array(docs, dtype=np.int64) for docs in candidates["doc_rows"].to_pylist()]
        orders, counts = self.ordered(candidates["query_row"].to_numpy(), lists)
        scores = [np.empty(len(order), dtype=np.float32) for order in orders]
        for own, order in zip(scores, orders, strict=True):
            own[order] = grades(len(order))
        flat = np.concatenate([np.empty(0, dtype=np.float32), *scores])
        return write_counted(self.out, shard["name"], with_scores(candidates, flat), pairs=len(flat), **counts)

    def ordered(
        self, query_rows: NDArray[np.int64], lists: list[NDArray[np.int64]]
    ) -> tuple[list[NDArray[np.int64]], dict[str, int]]:
        """Places of each query's passages (rows in `lists`), best first, and what there was to mend."""
        orders = [np.arange(len(docs)) for docs in lists]
        turns = [windows(len(docs), window=self.window, stride=self.stride) for docs in lists]
        queries, counts = self.queries.take(query_rows), dict.fromkeys(COUNTS, 0)
        for turn in range(max(map(len, turns), default=0)):
            # Answers of one length together: so many passages, so many tokens.
            by_count: dict[int, list[tuple[int, int, int]]] = {}
            for number, own in enumerate(turns):
                if turn < len(own):
                    lo, hi = own[turn]
                    by_count.setdefault(hi - lo, []).append((number, lo, hi))
            for count, asked in by_count.items():
                prompts = [self._prompt(queries[number], lists[number][orders[number][lo:hi]]) for number, lo, hi in asked]
                for (number, lo, hi), answer in zip(asked, self.model.answers(prompts, count=count), strict=True):
                    read = read_order(answer, count)
                    orders[number][lo:hi] = orders[number][lo:hi][read.places]
                    found = (1, int(read.unread), read.missing, read.repeated, read.unknown)
                    counts = {name: counts[name] + more for name, more in zip(COUNTS, found, strict=True)}
        return orders, counts

    def _prompt(self, query: Ids, docs: NDArray[np.int64]) -> Ids:
        texts = {f"p{number}": ids for number, ids in enumerate(self.passages.take(docs), 1)}
        return assemble(self.model.pieces(len(docs)), {"query": query, **texts}, max_length=self.max_length)


@stage(version=1)
def score_lists(
    work: Work,
    *,
    candidates: Artifact,
    query_tokens: Artifact,
    passage_tokens: Artifact | list[Artifact],
    teacher: Located,
    prompt: ListPrompt,
    window: int,
    stride: int,
    max_length: int,
    precision: Precision,
) -> dict[str, Any]:
    """Candidates with grades in place of scores: N - 1 for the first in the teacher's order, 0 for the last.

    windows: answers that were read. unread: those that named no passage, and changed nothing. missing, repeated, unknown:
    passages over all answers, see `read_order`.
    """
    pool = parts_of(candidates)
    work.cluster.map(
        Orderer,
        {
            "candidates": pool,
            "out": work.shards,
            "model": teacher.where,
            "prompt": prompt,
            "queries": parts_of(query_tokens),
            "passages": chain_of(passage_tokens),
            "window": window,
            "stride": stride,
            "max_length": max_length,
            "precision": precision,
            "tokens_per_batch": work.cluster.resources.tokens_per_batch,
        },
        pending(work, pool.rows, queries_per_shard(work, pool), "parquet"),
        label=work.label,
        unit="queries",
        marks=work.shards / "attempts",
        inline=pool.rows <= 8,
    )
    return {"rows": pool.rows, "unit": "queries", **total_counts(work, "pairs", *COUNTS)}
