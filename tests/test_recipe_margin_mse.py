"""Margin-MSE on the toy world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.recipes import (
    LISTS,
    SCALE,
    artifact,
    artifact_of,
    assert_found_again,
    assert_learns,
    assert_negatives_are_unlabelled,
    rows,
    run_recipe,
    run_toy,
    settings,
    steps,
)


@pytest.fixture(scope="module")
def values(toy: Path) -> dict[str, Any]:
    return settings(toy, "margin_mse", lists=LISTS, train=steps(30), loss=SCALE)


@pytest.fixture(scope="module")
def report(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_toy(tmp_path_factory.mktemp("margin"), values)


def test_it_learns_and_is_found_again(report: dict[str, Any], tmp_path: Path) -> None:
    assert_learns(report, by=0.15)
    assert_found_again(report, tmp_path)


def test_mined_negatives_are_no_labelled_positives(report: dict[str, Any]) -> None:
    lists = rows(artifact(report, "lists of margins"))
    assert len(lists) == 24 and not any(np.isnan(one["teacher_scores"]).any() for one in lists)
    assert_negatives_are_unlabelled(lists)


def test_queries_without_labels_take_the_teachers_best_as_positive(values: dict[str, Any], tmp_path: Path) -> None:
    """And candidates that are fewer than the rule asks for are what there is."""
    more = values | {"queries": {"labelled": 4, "count": 8, "sentences": 1}, "candidates": {"sources": ["bm25"], "depth": 5}}
    student, lab = run_recipe(more | {"train": steps(2)}, tmp_path)
    lists = rows(artifact_of(lab, "lists of margins"))
    unlabelled = [one for one in lists if not one["relevant"]]
    assert len(lists) - len(unlabelled) <= 4 and len(unlabelled) == 8
    for one in unlabelled:
        assert len(one["doc_rows"]) == 5 and one["teacher_scores"][0] == max(one["teacher_scores"])
    assert student.metrics["last_loss"] > 0
    assert any("4 of 24 labelled training queries" in note for note in lab.notes)
