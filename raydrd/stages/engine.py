"""engine: prompts answered by vLLM, by way of the teacher's score book.

A prompt's score belongs to its pair alone. So the engine is given every pair that the book lacks, in whatever order it likes,
and adds what it says to the book; the stage that wanted the scores then finds them there as if another run had paid. What a
killed run was told is kept, and only failed prompts are asked again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydrd.errors import StageError
from raydrd.models.prompts import Prompt, answer_ids, assemble, pieces_of
from raydrd.models.requests import engine_options, request, score_of
from raydrd.spine.parts import Chain, Parts, TokenReader, ranges
from raydrd.spine.precision import Precision
from raydrd.spine.scorebook import ENTRIES, Book
from raydrd.spine.storage import Folder
from raydrd.spine.store import Work
from raydrd.stages.known import Ask, Asked, Keys, Known, KnownScores, look_up, pair_name

TURNS = 3  # times that a prompt is asked before the stage gives up
KEPT = 4096  # answers a file of the book


class Requester:
    """Turns a block of asked pairs into prompts, but for those that the book knows."""

    def __init__(
        self, *, asked: Parts, ask: Ask, known: Known, model: Folder, prompt: Prompt, queries: Parts, passages: Parts | Chain,
        max_length: int,
    ) -> None:  # fmt: skip
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model.local_folder(), local_files_only=True, trust_remote_code=False)
        self.pieces = pieces_of(tokenizer, prompt, closed=False)
        self.answers = answer_ids(tokenizer, prompt, closed=False)
        self.asked, self.ask, self.known, self.max_length = asked, ask, KnownScores(known), max_length
        self.queries, self.passages, self.keys = TokenReader(queries), TokenReader(passages), Keys(queries, passages)

    def __call__(self, shard: dict[str, Any]) -> Iterator[dict[str, Any]]:
        every = self.ask(self.asked.slice(shard["lo"], shard["hi"]), shard["lo"])
        left = every.at(np.isnan(self._known(every)))
        keys = self.keys.entries(left, np.zeros(len(left.places), dtype=np.float32)).to_pylist()
        texts = {"query": self.queries.take(left.query_rows)}
        names = ("passage",) if len(left.doc_rows) == 1 else ("a", "b")
        texts |= {name: self.passages.take(rows) for name, rows in zip(names, left.doc_rows, strict=True)}
        for number, key in enumerate(keys):
            ids = assemble(self.pieces, {name: own[number] for name, own in texts.items()}, max_length=self.max_length)
            about = {"pair": pair_name(left.query_rows, left.doc_rows, number), "answers": list(self.answers)}
            yield {**{name: key[name] for name in ("query", "left", "right")}, **about, **request(ids, self.answers)}

    def _known(self, every: Asked) -> NDArray[np.float32]:
        """Scores by ascending place, as the book's files hold them, in the order of the pairs."""
        order = np.argsort(every.places, kind="stable")
        found = np.empty(len(order), dtype=np.float32)
        found[order] = self.known.of(every.at(order))
        return found


def read_answer(row: dict[str, Any]) -> dict[str, Any]:
    """An answered row as an entry of the book, or with its `problem`."""
    kept = {name: row[name] for name in ("query", "left", "right", "pair")}
    try:
        return {**kept, "score": score_of(row, tuple(row["answers"])), "problem": ""}
    except ValueError as error:
        return {**kept, "score": float("nan"), "problem": str(error)}


class Keeper:
    """Adds answers to the book; how many there were, and what failed."""

    def __init__(self, *, book: Book, label: str) -> None:
        self.book, self.label = book, label

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        failed = [row for row in rows if row.get("__inference_error__") or row.get("problem")]
        bad = {id(row) for row in failed}
        good = [{name: row[name] for name in ENTRIES.names} for row in rows if id(row) not in bad]
        # A name of its own: an answer that comes twice stands there twice, and the first counts.
        self.book.add(f"{self.label}-{uuid4().hex[:12]}", pa.Table.from_pylist(good, schema=ENTRIES))
        told = [f"{row['pair']}: {row.get('__inference_error__') or row['problem']}" for row in failed[:1]]
        return {"kept": len(good), "failed": len(failed), "told": told[0] if told else ""}


def fill_book(
    work: Work,
    *,
    asked: Parts,
    ask: Ask,
    pairs: int,
    queries: Parts,
    passages: Parts | Chain,
    book: Book,
    model: Folder,
    prompt: Prompt,
    max_length: int,
    precision: Precision,
) -> int:
    """Have vLLM answer every pair that `asked` asks for and the book lacks; how many it answered now.

    Raises:
        StageError: prompts failed in every turn; names the first one's pair and its error.
        InputError: no vLLM here, or no GPU for it.
    """
    texts: dict[str, Any] = {"queries": queries, "passages": passages}
    size = max(1, (work.cluster.resources.pairs_per_shard or 4096) * asked.rows // max(1, pairs))
    answered, told = 0, ""
    for _ in range(TURNS):
        # Looked up anew also by a run that goes on: what the killed one was told is in the book.
        known = look_up(work, asked=asked, ask=ask, pairs=pairs, book=book, turn=f"asked-{uuid4().hex[:8]}", **texts)
        if known.left == 0:  # nothing to start an engine for
            return answered
        results = work.cluster.ask(
            Requester,
            {"asked": asked, "ask": ask, "known": known, "model": model, "prompt": prompt, "max_length": max_length, **texts},
            [{"lo": lo, "hi": hi} for lo, hi in ranges(asked.rows, size)],
            model=model,
            options=lambda gpus: engine_options(max_length=max_length, precision=precision, gpus=gpus),
            read=read_answer,
            keeper=Keeper,
            kept={"book": book, "label": work.id},
            rows=KEPT,
            label=f"ask {work.label}",
            total=pairs,
        )
        answered += sum(int(one["kept"]) for one in results)
        told = next((str(one["told"]) for one in results if one["failed"]), "")
        if not told:
            return answered
    raise StageError(f"{work.label}: prompts failed {TURNS} times; {told}")
