"""A sweep over the index: each student is measured in the index that it would ship in, on dev as on test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydrd.flow.lab import open_lab
from raydrd.flow.serve import as_shipped, searched_exactly
from raydrd.spine.cluster import Cluster
from raydrd.spine.storage import Folder
from raydrd.spine.store import Store
from raydrd.stages.shards import parts_of
from raydrd.sweeping.main import sweep
from raydrd.sweeping.plan import read_plan
from tests.recipes import METRIC
from tests.sweeps import EXACT, records, step, toy_sweep

LISTS = "IVF8,Flat"  # of which a search looks into one


def test_an_index_in_the_space_is_what_dev_and_the_front_are_of(tmp_path: Path, toy_config: dict[str, Any]) -> None:
    file = toy_sweep(
        tmp_path, toy_config, base={"curriculum": [step(EXACT, 3)]}, search="grid",
        space={"index": {"choice": ["Flat", LISTS, "IVF50,Flat"]}},
    )  # fmt: skip
    small = ["evaluation.dev_passages=20", "evaluation.dev_queries=3"]
    result = sweep(file, small, out=str(tmp_path / "out"), store=str(tmp_path / "store"))
    flat, lists, many = result["trials"]
    assert flat["student"] == lists["student"] and flat["dev"][METRIC] != lists["dev"][METRIC]
    assert flat["dev"]["R@100"] == 1.0 > lists["dev"]["R@100"], "an eighth of the passages is looked at"
    assert [row["index"] for row in result["pareto"]] == ["Flat", LISTS]
    assert many["status"] == "failed"
    assert many["reason"].startswith("index: 'IVF50,Flat' learns from at least 50 vectors, and the dev sample has 20 passages")
    made = [{one["name"] for one in record["journal"]} for record in records(tmp_path / "out").values()]
    assert "search_index" not in made[0] and "search_index" in made[1]


@pytest.mark.parametrize("dim", [None, 16])
def test_what_an_index_does_not_find_is_left_out_and_exact_search_is_still_there(
    dim: int | None, tmp_path: Path, toy_config: dict[str, Any]
) -> None:
    changes = [f"index={LISTS}", *([f"vectors.dim={dim}"] if dim else [])]
    file = toy_sweep(tmp_path, toy_config, space={"loss.score_scale": {"choice": [40]}})
    cfg = read_plan(file, changes).cfg
    lab = open_lab(cfg, Store(Folder.of(tmp_path / "store"), Cluster(cfg.resources)))
    found, exact = (
        next(iter(parts_of(one(lab, lab.start, lab.data, "queries/test", k=60, label=one.__name__)).each()))[1]
        for one in (as_shipped, searched_exactly)
    )
    rows, whole = (one["doc_rows"].to_pylist() for one in (found, exact))
    assert {len(one) for one in whole} == {60} and all(0 < len(one) < 60 for one in rows)
    assert all(min(one) >= 0 and len(set(one)) == len(one) for one in rows)
    for mine, scores, true, values in zip(rows, found["scores"].to_pylist(), whole, exact["scores"].to_pylist(), strict=True):
        known = dict(zip(true, values, strict=True))
        np.testing.assert_allclose(scores, [known[row] for row in mine], atol=2e-3)
