"""One query's ranking with known ranks, for the tests of list rules."""

from __future__ import annotations

from typing import Any

import numpy as np

from raydrd.methods.lists import Row


def row(size: int = 200, *, positives: tuple[int, ...] = (), query_id: Any = "q1") -> Row:
    """Passage row 1000 + r is at teacher rank r; candidates come shuffled, the student's order reversed."""
    ranks = np.random.Generator(np.random.PCG64(0)).permutation(np.arange(1, size + 1))
    return Row(
        query_id=query_id,
        query_row=0,
        doc_rows=1000 + ranks.astype(np.int64),
        scores=ranks.astype(np.float32),
        teacher_scores=-ranks.astype(np.float32),
        positives=positives,
    )


def ranks(rows: Any) -> list[int]:
    return [int(r) - 1000 for r in rows]
