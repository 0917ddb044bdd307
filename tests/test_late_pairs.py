"""MaxSim of given pairs by token vectors one after the other, against the rectangle of the pure function."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from raydrd.methods.maxsim import maxsim
from raydrd.spine.ragged import rectangle
from raydrd.stages.late.pairs import AT_ONCE, scores_of

WIDTH = 8


class Stored:
    """Texts of 0 to 6 float16 vectors; the first, some in the middle and the last have none."""

    width = WIDTH

    def __init__(self, count: int) -> None:
        draw = np.random.default_rng(3)
        lengths = draw.integers(0, 7, count)
        lengths[[0, 5, 6, -1]] = 0
        self.texts = [draw.standard_normal((n, WIDTH)).astype(np.float16) for n in lengths]

    def take(self, rows: NDArray[np.int64]) -> list[NDArray[np.floating]]:
        return [self.texts[row] for row in rows]


def test_flat_and_rectangular_maxsim_agree_and_a_text_without_tokens_scores_0() -> None:
    stored = Stored(2 * AT_ONCE + 9)
    rows = np.random.default_rng(4).permutation(len(stored.texts))
    query = np.random.default_rng(5).standard_normal((4, WIDTH)).astype(np.float32)
    wanted = maxsim(torch.from_numpy(query)[None], torch.from_numpy(rectangle(stored.take(rows), WIDTH)))[0].numpy()
    found = scores_of(query, stored, rows)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    empty = [len(stored.texts[row]) == 0 for row in rows]
    assert sum(empty) >= 4 and not found[empty].any() and found[~np.array(empty)].all()


def test_no_passages_and_only_empty_ones_are_no_trouble() -> None:
    stored, query = Stored(10), np.ones((2, WIDTH), dtype=np.float32)
    assert scores_of(query, stored, np.empty(0, dtype=np.int64)).shape == (0,)
    assert scores_of(query, stored, np.array([5, 6])).tolist() == [0.0, 0.0]
