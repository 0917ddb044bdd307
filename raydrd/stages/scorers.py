"""scorers: loaded teachers. A teacher is anything that scores (query, passage), or (query, passage, passage), by row."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raydrd.errors import StageError
from raydrd.models.batching import SpecialTokens
from raydrd.models.prompts import Prompt, assemble
from raydrd.spine.parts import Chain, Parts, TokenReader
from raydrd.spine.precision import Precision
from raydrd.spine.storage import Folder
from raydrd.stages.known import pair_name


class Scorer(Protocol):
    """A loaded teacher: raw scores of rows (query, passage), or of (query, passage a, passage b): how much a is better."""

    def scores(self, query_rows: NDArray[np.int64], *doc_rows: NDArray[np.int64]) -> NDArray[np.float32]: ...


class CrossEncoderScorer:
    """A cross-encoder over rows: ids joined from the token store, raw float32 logits out."""

    def __init__(
        self,
        model: Folder,
        *,
        queries: Parts,
        passages: Parts | Chain,
        max_length: int,
        precision: Precision,
        tokens_per_batch: int | None,
    ) -> None:
        from torch import nn
        from transformers import AutoTokenizer

        from raydrd.models.devices import TokenBudget, inference, keep_freed_memory, prepare, skip_padding, this_device
        from raydrd.models.rerankers import load_reranker

        path = model.local_folder()
        self.device = this_device()
        keep_freed_memory()
        self.model = load_reranker(path).body.to(self.device)
        # The layer that gives the logit, whatever the family calls it.
        last = tuple(m for m in self.model.modules() if isinstance(m, nn.Linear) and m.out_features == 1)
        prepare(self.model, precision, exact=last)
        skip_padding(self.model, self.device, precision)
        self.special = SpecialTokens.of(AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False))
        limit = self.special.max_length or max_length
        self.max_length = min(max_length, limit)
        self.budget = TokenBudget(self.device, tokens_per_batch)
        self.queries, self.passages = TokenReader(queries), TokenReader(passages)
        self.inference: Callable[[], AbstractContextManager[None]] = lambda: inference(self.device, precision)

    def scores(self, query_rows: NDArray[np.int64], *doc_rows: NDArray[np.int64]) -> NDArray[np.float32]:
        lengths = np.asarray(sum(self.passages.lengths(rows) for rows in doc_rows))
        lengths = self.special.pair_lengths(self.queries.lengths(query_rows), lengths, self.max_length)
        q, texts = self.queries.take(query_rows), [self.passages.take(rows) for rows in doc_rows]
        join: Any = self.special.pair if len(texts) == 1 else self.special.duel
        result = np.empty(len(query_rows), dtype=np.float32)

        def run(batch: NDArray[np.int64]) -> None:
            pairs = [join(q[i], *(text[i] for text in texts), self.max_length) for i in batch]
            inputs = {name: t.to(self.device) for name, t in self.special.model_inputs(pairs).items()}
            result[batch] = self.model(**inputs).logits[:, 0].float().cpu().numpy()

        with self.inference():
            self.budget.each(lengths, run)
        return result


class PromptScorer:
    """A language model that answers with a token; its score is the logit of the positive answer minus the other's."""

    def __init__(
        self,
        model: Folder,
        *,
        prompt: Prompt,
        queries: Parts,
        passages: Parts | Chain,
        max_length: int,
        precision: Precision,
        tokens_per_batch: int | None,
    ) -> None:
        from raydrd.models.answers import AnswerModel

        self.model = AnswerModel(model.local_folder(), prompt=prompt, precision=precision, tokens_per_batch=tokens_per_batch)
        self.max_length = max_length
        self.queries, self.passages = TokenReader(queries), TokenReader(passages)

    def scores(self, query_rows: NDArray[np.int64], *doc_rows: NDArray[np.int64]) -> NDArray[np.float32]:
        from raydrd.models.answers import pointwise_scores

        names = ("passage",) if len(doc_rows) == 1 else ("a", "b")
        texts = {"query": self.queries.take(query_rows)}
        texts |= {name: self.passages.take(rows) for name, rows in zip(names, doc_rows, strict=True)}
        prompts = [
            assemble(self.model.pieces, {name: ids[i] for name, ids in texts.items()}, max_length=self.max_length)
            for i in range(len(query_rows))
        ]
        named = partial(pair_name, query_rows, doc_rows)
        return pointwise_scores(self.model.logits(prompts, alike=query_rows, named=named))


class Answered:
    """A teacher that has answered everything already, by an engine of its own: see `raydrd.stages.engine`."""

    def scores(self, query_rows: NDArray[np.int64], *doc_rows: NDArray[np.int64]) -> NDArray[np.float32]:
        raise StageError(
            f"{len(query_rows)} prompts have no answer in the score book, the first is {pair_name(query_rows, doc_rows, 0)}; "
            "run the same command again"
        )


def open_scorer(
    kind: str,
    model: Folder,
    *,
    prompt: Prompt | None,
    queries: Parts,
    passages: Parts | Chain,
    max_length: int,
    precision: Precision,
    tokens_per_batch: int | None,
) -> Scorer:
    """The teacher in this folder, loaded."""
    if kind == "answered":
        return Answered()
    if kind == "prompted":
        assert prompt is not None
        return PromptScorer(
            model, prompt=prompt, queries=queries, passages=passages, max_length=max_length, precision=precision,
            tokens_per_batch=tokens_per_batch,
        )  # fmt: skip
    return CrossEncoderScorer(
        model, queries=queries, passages=passages, max_length=max_length, precision=precision,
        tokens_per_batch=tokens_per_batch,
    )  # fmt: skip
