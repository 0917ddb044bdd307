"""ADAM on the toy world: it learns, and its dark examples teach without ever leaving the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from raydrd.methods.dark import band
from raydrd.methods.lists import DARK, POSITIVE
from raydrd.stages.shards import parts_of
from tests.recipes import (
    LISTS,
    SCALE,
    artifact,
    artifact_of,
    assert_found_again,
    assert_learns,
    assert_negatives_are_unlabelled,
    fact,
    journal,
    open_store,
    rows,
    run_recipe,
    run_toy,
    settings,
    steps,
)

DARK_RULE = {"built": 6, "reinforced": 3, "noisy": 3}
LABEL = "dark examples"


@pytest.fixture(scope="module")
def values(toy: Path) -> dict[str, Any]:
    return settings(toy, "adam", lists=LISTS, dark=DARK_RULE, train=steps(30), loss=SCALE)


@pytest.fixture(scope="module")
def report(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_toy(tmp_path_factory.mktemp("adam"), values)


def test_it_learns_and_is_found_again(report: dict[str, Any], tmp_path: Path) -> None:
    better = assert_learns(report, by=0.25)
    assert better["p"] < 0.05
    assert_found_again(report, tmp_path)


def test_the_teachers_lists_hold_more_dark_knowledge(report: dict[str, Any]) -> None:
    plain = fact(report, LABEL, "entropy of the teacher's list (nats)")
    assert fact(report, LABEL, "with dark examples") > plain + 0.1
    assert 24 < fact(report, LABEL, "kept") <= 24 * 6 < fact(report, LABEL, "dark examples built") <= 24 * 12
    inside = fact(report, LABEL, "dark examples in the band")
    assert fact(report, LABEL, "kept") <= inside <= fact(report, LABEL, "dark examples built")


def test_every_kept_example_is_of_moderate_relevance(report: dict[str, Any]) -> None:
    kept = 0
    for made_list in rows(artifact(report, f"lists of {LABEL}")):
        flags, scores = np.array(made_list["flags"]), np.array(made_list["teacher_scores"])
        dark, positive = (flags & DARK) != 0, (flags & POSITIVE) != 0
        assert not (dark & positive).any() and (np.array(made_list["doc_rows"])[dark] >= 60).all()
        if dark.any():
            low, high = band(scores[positive][0], scores[~dark & ~positive].max(), 0.05)
            assert ((scores[dark] > low) & (scores[dark] < high)).all()
        kept += int(dark.sum())
    assert kept == fact(report, LABEL, "kept")


def test_mined_negatives_are_no_labelled_positives(report: dict[str, Any]) -> None:
    lists = rows(artifact(report, f"lists of {LABEL}"))
    assert len(lists) == 24 and all(len(one["relevant"]) == 5 for one in lists)
    assert_negatives_are_unlabelled(lists)


def test_nothing_after_training_knows_of_dark_passages(report: dict[str, Any]) -> None:
    """They are read by teacher and student in training; no vector, search, index or table of a result holds one."""
    store = open_store(report["store"])
    written = artifact(report, f"write dark examples ({LABEL})")
    readers = {name for name, one in journal(report, store) if f"write_dark/{written.id}" in json.dumps(one.manifest["inputs"])}
    assert readers == {"score_pairs", "tokenize", "assemble"}
    tokens = next(
        one for name, one in journal(report, store) if name == "tokenize" and written.id in json.dumps(one.manifest["inputs"])
    )
    assert {name for name, one in journal(report, store) if f"tokenize/{tokens.id}" in json.dumps(one.manifest["inputs"])} == {
        "score_pairs",
        "train",
    }
    for name, one in journal(report, store):
        if name == "embed":
            assert parts_of(one).rows <= 60
        if name in ("search", "bm25_search", "rerank"):
            assert max(d for found in rows(one) for d in found["doc_rows"]) < 60
    home = report["folder"]
    known = set(pq.read_table(home / "index" / "ids.parquet")["doc_id"].to_pylist())
    assert len(known) == 60 and not any(i.startswith("dark") for i in known)
    assert {line.split()[2] for line in (home / "run.trec").read_text().splitlines()} <= known
    assert "dark:" not in str(pq.read_table(home / "per_query.parquet").to_pylist())


def test_rounds_mine_anew_from_the_corpus_and_unlabelled_queries_go_without(values: dict[str, Any], tmp_path: Path) -> None:
    more = values | {"rounds": 2, "queries": {"count": 10, "sentences": 1}, "train": steps(8)}
    _, lab = run_recipe(more, tmp_path)
    searched = [r for r in lab.store.journal if r.label.startswith("search train")]
    assert [r.label for r in searched] == ["search train (round 1)", "search train (round 2)"]
    for record in searched:
        assert max(d for one in rows(lab.store.find("search", record.id)) for d in one["doc_rows"]) < 60
    for number in (1, 2):
        lists = rows(artifact_of(lab, f"lists of round {number}"))
        assert len(lists) == 34
        unlabelled = [one for one in lists if not one["relevant"]]
        assert len(unlabelled) == 10 and all(np.isnan(one["confidence"]) for one in unlabelled)
        assert not any(flag & DARK for one in unlabelled for flag in one["flags"])
        assert any(flag & DARK for one in lists for flag in one["flags"])
