"""Run folders with values by query, and only what `raydrd compare` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SAMPLES = 500
QUERIES_N = 30

RNG = np.random.default_rng(3)
BASE = RNG.random(QUERIES_N)
BETTER = np.minimum(1, BASE + 0.2 * RNG.random(QUERIES_N))
NOISY = np.clip(BASE + 0.2 * (RNG.random(QUERIES_N) - 0.5), 0, 1)
RECALL = RNG.random(QUERIES_N)


def make_run(
    folder: Path,
    values: dict[str, Any],
    *,
    ids: list[str] | None = None,
    texts: list[str] | None = None,
    digest: str | None = "d1",
    traits: bool = True,
) -> str:
    """A run folder with per-query `values` by `SYSTEM METRIC`, and only what compare reads."""
    count = len(next(iter(values.values())))
    names = ids or [f"q{n:02d}" for n in range(count)]
    columns: dict[str, Any] = {"query_id": names, **{name: np.asarray(v) for name, v in values.items()}}
    if traits:
        columns["query"] = texts or [f"words of {name}" for name in names]
        columns["query_words"] = [1 + n % 9 for n in range(count)]
        columns["overlap"] = [(n % 4) / 3 for n in range(count)]
        columns["judged"] = [1] * count
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "per_query.parquet")
    provenance = {"data_digest": digest} if digest else {}
    (folder / "report.json").write_text(json.dumps({"name": folder.name, "provenance": provenance}))
    return str(folder)


def three_runs(home: Path) -> list[str]:
    """Runs base, better and noisy over 30 queries; base holds a second system and all of them a second metric."""
    base = {"student nDCG@10": BASE, "student R@100": RECALL, "teacher nDCG@10": BETTER, "teacher R@100": RECALL}
    found = [make_run(home / "base", base)]
    for name, values in (("better", BETTER), ("noisy", NOISY)):
        found.append(make_run(home / name, {"student nDCG@10": values, "student R@100": RECALL[::-1]}))
    return found
