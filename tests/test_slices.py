"""Slices of queries: the bins, and the traits that a run keeps for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raydrd import slices
from raydrd.slices import bins, overlap
from raydrd.spine.parts import Parts, part_name
from raydrd.spine.storage import Folder
from raydrd.spine.tables import CORPUS, QUERIES


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 1, 1], [(1, 1)]),
        ([1, 2], [(1, 1), (2, 2)]),
        ([1] * 90 + [2, 3, 4], [(1, 1), (2, 4)]),  # equal values stay together
        (list(range(9)), [(0, 2), (3, 5), (6, 8)]),
        ([0.5, 0.0, 1.0], [(0, 0), (0.5, 0.5), (1, 1)]),
    ],
)
def test_bins(values: list[float], expected: list[tuple[float, float]]) -> None:
    assert bins(np.array(values)) == expected


def test_overlap_is_of_the_best_passage_and_of_distinct_words() -> None:
    assert overlap("The cat, the DOG", ["a dog", "cat dog bird"]) == pytest.approx(2 / 3)
    assert overlap("cat", []) == 0.0
    assert overlap("?!", ["anything"]) == 0.0
    assert overlap("Straße é", ["STRASSE É"]) == 0.5  # lower-cased, not folded


@pytest.mark.parametrize("block", [1, 3, 8192])
def test_traits_are_the_same_in_blocks_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(slices, "_PASSAGES", block)
    home = Folder.of(tmp_path)
    texts = ["red fox", "blue whale song", "green tree", "red tree"]
    for lo in (0, 2):  # two parts, so that a block reads from both
        rows = pa.table([[f"d{n}" for n in (lo, lo + 1)], texts[lo : lo + 2]], schema=CORPUS)
        home.write_table(f"corpus/{part_name(lo, lo + 2, 'parquet')}", rows)
    judged = pa.table(
        [
            ["q0", "q1", "q2", "q3"],
            ["red tree", "unjudged", "blue song at sea", "a green fox"],
            [[3, 0], [], [2, 1], [0, 2, 1]],
            [[1, 1], [], [0, 2], [1, 1, 0]],
        ],
        schema=QUERIES,
    )
    home.write_table(f"queries/{part_name(0, 4, 'parquet')}", judged)
    tables = [Parts.of(home / name, list((home / name).files())) for name in ("queries", "corpus")]
    found = slices.traits(*tables, rows=np.array([0, 2, 3]))
    assert found.to_pydict() == {
        "query_id": ["q0", "q2", "q3"],
        "query": ["red tree", "blue song at sea", "a green fox"],
        "query_words": [2, 4, 3],
        "overlap": [1.0, 0.5, pytest.approx(1 / 3)],  # q2: grade 0 is not relevant
        "judged": [2, 2, 3],
    }
