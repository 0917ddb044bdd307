"""race: how fast several encoders are, timed side by side on the same passages by one worker."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from raydrd.models.latelayout import is_late
from raydrd.rounds import alternate
from raydrd.spine.parts import Parts
from raydrd.spine.precision import Precision
from raydrd.spine.storage import Folder
from raydrd.spine.store import Artifact, Work, stage
from raydrd.stages.adopt import model_folder
from raydrd.stages.embed import Embedder
from raydrd.stages.late.embed import TokenEmbedder
from raydrd.stages.shards import parts_of


class Racer:
    """All encoders in one process, in alternating rounds."""

    def __init__(
        self,
        *,
        models: list[Folder],
        tokens: list[Parts],
        precision: Precision,
        texts: int,
        rounds: int,
        out: Folder,
        tokens_per_batch: int | None,
    ) -> None:
        self.rounds = rounds
        self.rows = np.unique(np.linspace(0, tokens[0].rows - 1, min(texts, tokens[0].rows)).astype(np.int64))
        self.encoders = [
            (TokenEmbedder if is_late(model.local_folder()) else Embedder)(
                model=model, role="passage", tokens=own, out=out, precision=precision, storage="float16",
                tokens_per_batch=tokens_per_batch,
            )
            for model, own in zip(models, tokens, strict=True)
        ]  # fmt: skip

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        contestants: dict[str, Any] = {str(n): partial(one.encode, self.rows) for n, one in enumerate(self.encoders)}
        found = alternate(contestants, self.rounds)
        return {"texts": len(self.rows), "per_second": [len(self.rows) / found.median(name) for name in contestants]}


@stage(version=1)
def race(
    work: Work, *, models: list[Artifact], tokens: list[Artifact], precision: Precision, texts: int = 256, rounds: int = 5
) -> dict[str, Any]:
    """Passages a second of each model on the same texts, evenly spaced in the corpus; each with its own token store.

    The median over alternating rounds, after one that warms up: what slows the machine for a while slows all of them.
    """
    results = work.cluster.map(
        Racer,
        {
            "models": [model_folder(one) for one in models], "tokens": [parts_of(one) for one in tokens],
            "precision": precision, "texts": texts, "rounds": rounds, "out": work.shards,
            "tokens_per_batch": work.cluster.resources.tokens_per_batch,
        },
        [{"name": "race", "rows": len(models)}],
        label=work.label,
        unit="models",
        marks=work.shards / "attempts",
    )  # fmt: skip
    speeds = results[0]["per_second"]
    work.shards.write_json("race.json", {"texts": results[0]["texts"], "per_second": speeds})
    return {"rows": len(models), "unit": "models", "texts": results[0]["texts"], "per_second": speeds}
