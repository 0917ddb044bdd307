"""A query asked of a run's index of token vectors, as `raydrd search` does."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raydrd.errors import InputError
from raydrd.spine.parts import Parts
from raydrd.spine.storage import Folder

By = Literal["tokens", "pooled"]


def ask_late(
    run: Folder, meta: dict[str, Any], stamp: str, query: str, *, k: int, by: By | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows and scores of the k best passages, best first.

    by: tokens, their MaxSim over the candidates that the index was laid out for; pooled, a hybrid's one vector a text.

    Raises:
        InputError: `pooled` of a student that has no such vectors.
    """
    import torch

    from raydrd.flow.servelate import POOLED_INDEX, TOKEN_INDEX
    from raydrd.models.latelayout import TOKENS
    from raydrd.stages.indexfile import opened
    from raydrd.stages.late.lookup import Lookup
    from raydrd.stages.late.pack import CODEC

    index = run / "index"
    hybrid = meta["kind"] == "hybrid"
    if by == "pooled" and not hybrid:
        raise InputError(f"--by pooled: {run} holds a {meta['kind']} student, which gives no vector a text; write --by tokens")
    made = _encoded((run / "model").local_folder(stamp), query)
    pooled: NDArray[np.float32] | None = made[""][0].numpy() if hybrid else None
    if by == "pooled":
        assert pooled is not None
        scores, rows = opened(index.local(POOLED_INDEX, stamp)).search(pooled[None], k)
        return rows[0][rows[0] >= 0], scores[0][rows[0] >= 0]
    vectors = made[TOKENS if hybrid else ""][0]
    names = list((index / "tokens").files())
    lookup = Lookup(
        passages=Parts.of(index / "tokens", names),
        codec=index if index.exists(CODEC) else None,
        candidates=meta["candidates"],
        k=k,
        index=index,
        name=TOKEN_INDEX if meta["candidates"] == "tokens" else POOLED_INDEX,
        each=meta.get("each", 0),
        depth=meta.get("depth", 0),
        probes=meta.get("probes", 1),
        stamp=stamp,
    )
    return lookup(vectors[torch.ne(vectors, 0).any(1)].numpy(), pooled)


def _encoded(path: Any, query: str) -> dict[str, Any]:
    """What the encoder of a folder gives of one query, in float32."""
    import torch

    from raydrd.models.late import Reading, load_late, load_tokenizer
    from raydrd.models.latelayout import read_late

    layout, late = read_late(path)
    assert late is not None
    tokenizer = load_tokenizer(path, layout)
    text = layout.query_prompt + (query.lower() if layout.lowercase else query)
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
    reading = Reading.of(tokenizer, layout, late)
    with torch.inference_mode():
        return load_late(path).encode(reading.inputs("query", [reading.single("query", ids)]))
