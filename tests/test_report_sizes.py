"""The curve of sizes as a picture, a table and lines of the terminal."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from raydrd.report import sizes
from raydrd.report.table import final_table
from tests.reports import a_report, plain, read

DIMS, BYTES = (384, 96), {"float32": 4.0, "int8": 1.0, "binary": 0.125}


@pytest.fixture
def told() -> dict[str, Any]:
    """Two widths of three types; the whole float32 vectors first, 96 int8 ship."""
    rows = [
        {
            "dim": dim,
            "type": type_,
            "bytes": int(dim * each),
            "ms": 0.5 * dim * each / 1536,
            "means": {"nDCG@10": 0.6 + 0.00001 * dim * each, "RR@10": 0.5, "R@100": 0.9},
            "change": {"nDCG@10": [-0.01, -0.02, 0.001], "R@100": [0.0, -0.01, 0.01]},
            "ships": (dim, type_) == (96, "int8"),
        }
        for dim in DIMS
        for type_, each in BYTES.items()
    ]
    rows[0]["change"] = {"nDCG@10": [0.0, 0.0, 0.0], "R@100": [0.0, 0.0, 0.0]}
    metrics = ["nDCG@10", "RR@10", "R@100"]
    return {"rows": rows, "metrics": metrics, "trained": [384, 96], "queries": 300, "passages": 12345}


def test_the_terminal_has_a_line_a_size(told: dict[str, Any]) -> None:
    lines = final_table({**a_report(), "sizes": told}).splitlines()
    at = lines.index("")
    assert lines[at + 1] == "vectors      bytes  nDCG@10   change [95 % interval]  R@100  ms/query"
    assert lines[at + 2] == "384 float32  1,536    0.615                           0.900       0.5"
    assert lines[at + 6] == "96 int8 *       96    0.601  -0.010 [-0.020, +0.001]  0.900    0.0312"
    assert len(lines) == at + 8 and lines[:at] == final_table(a_report()).splitlines()


def test_the_picture_has_a_line_a_type_on_a_logarithmic_axis(told: dict[str, Any]) -> None:
    drawn = sizes.plot(told, width=820)
    assert drawn is not None and [line.title for line in drawn.lines] == ["float32", "int8", "binary"]
    at = {dot.title.split(":")[0]: (dot.x, dot.y) for dot in drawn.dots}
    assert len(at) == 6
    # Equal steps to the right for equal factors: 1,536 to 384 bytes and 384 to 96.
    assert at["384 float32"][0] - at["96 float32"][0] == pytest.approx(at["384 int8"][0] - at["96 int8"][0], abs=0.3)
    assert at["96 float32"][0] == at["384 int8"][0], "both take 384 bytes"
    right, left = at["384 float32"], at["96 binary"]
    share = (at["384 int8"][0] - left[0]) / (right[0] - left[0])
    assert share == pytest.approx(math.log(384 / 12) / math.log(1536 / 12), abs=0.002)
    assert right[1] < left[1], "better is higher"
    assert all(drawn.left <= x <= drawn.right and drawn.top <= y <= drawn.bottom for x, y in at.values())
    assert [dot.title for dot in drawn.dots if "ships" in dot.kind] == ["96 int8: 96 bytes a passage, nDCG@10 0.601, ships"]


def test_the_page_holds_picture_table_and_what_the_numbers_are(told: dict[str, Any]) -> None:
    page = read({**a_report(), "sizes": told})
    text = plain(page.text)
    for piece in (
        "Size of the vectors",
        "96 int8ships",
        "-0.010[-0.020, +0.001]",
        "1,536",
        "300 test queries, 12,345 passages; trained at 384, 96 dimensions.",
        "the large dot is what ships",
    ):
        assert piece in text, piece
    without = read(a_report())
    assert "Size of the vectors" not in without.text
    assert page.tags.count("circle") - without.tags.count("circle") == 12, "six dots, on a wide and on a narrow screen"
    whole = {**told, "trained": [384]}
    assert "trained whole, cut afterwards" in read({**a_report(), "sizes": whole}).text


def test_numbers_that_are_missing_break_nothing(told: dict[str, Any]) -> None:
    for one in (None, {}, {"rows": [], "metrics": []}):
        assert (sizes.plot(one, width=400), sizes.table(one), sizes.terminal(one), sizes.note(one)) == (None, [], [], "")
    less = copy.deepcopy(told)
    for row in less["rows"]:
        row |= {"ms": None, "means": {}, "change": {}}
    page = read({**a_report(), "sizes": less})
    assert "Size of the vectors" in page.text and "None" not in page.text and sizes.plot(less, width=400) is None
    assert final_table({**a_report(), "sizes": less}).isascii()
    only = {**told, "rows": told["rows"][:1], "metrics": ["nDCG@10"]}
    drawn = sizes.plot(only, width=350)
    assert drawn is not None and not drawn.lines and len(drawn.dots) == 1 and sizes.columns(only) == ["nDCG@10"]
