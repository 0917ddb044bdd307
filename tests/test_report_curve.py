"""The chart puts points where its axes say, whatever was recorded."""

from __future__ import annotations

import re
from typing import Any

import pytest

from raydrd.report import curve
from raydrd.report.page import render
from tests.reports import a_report, points, read


@pytest.fixture
def report() -> dict[str, Any]:
    return a_report()


def test_the_chart_puts_points_where_the_axes_say(report: dict[str, Any]) -> None:
    drawn = curve.chart(report["curve"], width=800, names=["nDCG@10"])
    assert drawn is not None
    first, second = drawn.bands
    assert (first.label, second.label) == ("1 easy lists", "2 hard lists")
    assert second.x == pytest.approx((drawn.left + drawn.right) / 2, abs=0.2)
    line = points(drawn.lines[0].points)
    assert [x for x, _ in line] == pytest.approx([drawn.left, second.x, drawn.right], abs=0.2)

    at = {float(tick.text): tick.at for tick in drawn.dev_ticks}
    assert 0.0 in at and len(at) >= 3
    unit = (at[0.0] - at[max(at)]) / max(at)
    assert [(at[0.0] - y) / unit for _, y in line] == pytest.approx([0.2, 0.5, 0.6], abs=0.005)

    for band, start in ((first, 0), (second, 50)):
        loss = points(band.line)
        assert len(loss) == 50
        scale = {float(tick.text): tick.at for tick in band.ticks}
        (v0, y0), *_, (v1, y1) = scale.items()
        values = [v0 + (y - y0) * (v1 - v0) / (y1 - y0) for _, y in loss]
        assert values == pytest.approx([2.0 - step / 100 for step in range(start, start + 50)], abs=0.01)
    assert drawn.binned == 1 and drawn.bad == 0


def test_a_long_curve_is_binned_and_bad_losses_are_counted() -> None:
    loss = [[step, float("nan") if step == 3 else 1.0 + step % 2, 0] for step in range(10_000)]
    drawn = curve.chart({"loss": loss}, width=400, names=[])
    assert drawn is not None
    assert drawn.bad == 1 and drawn.binned > 50 and len(points(drawn.bands[0].line)) <= 200
    assert "1 recorded losses were not finite" in read({"curve": {"loss": loss}}).text


def test_charts_of_almost_nothing() -> None:
    assert curve.chart({}, width=400, names=[]) is None and curve.chart(None, width=400, names=[]) is None
    assert curve.chart({"loss": [], "dev": [], "segments": []}, width=400, names=[]) is None
    for part in (
        {"loss": [[0, 1.0, 0]]},
        {"dev": [[5, {"nDCG@10": 0.5}]]},
        {"dev": [[5, {"nDCG@10": None}]]},
    ):
        assert curve.chart(part, width=400, names=["nDCG@10"]) is not None
        assert not re.search(r"\bnan\b", render({"curve": part}))
    segments = [{"label": "a", "start": 0, "end": 5}, {"label": "b", "start": 0, "end": 5}]
    narrow = [{"label": "a long label", "start": i, "end": i + 1} for i in range(40)]
    drawn = curve.chart({"segments": narrow, "loss": [[i, 1.0, i] for i in range(40)]}, width=350, names=[])
    assert drawn is not None and [band.label for band in drawn.bands][:2] == ["1", "2"]
    backwards = [{**segments[0], "start": 5}, segments[1]]
    with pytest.raises(ValueError, match="count over the whole run"):
        curve.chart({"segments": backwards, "loss": [[0, 1.0, 0]]}, width=350, names=[])


def test_ticks_are_round_and_inside() -> None:
    assert curve.nice_ticks(0, 1500, 7) == [0, 500, 1000, 1500]
    assert curve.nice_ticks(0.13, 0.68, 5) == pytest.approx([0.2, 0.4, 0.6])
    assert curve.nice_ticks(0.5, 0.5, 5) == [0.5]
    assert curve.nice_ticks(-0.03, 0.03, 3) == pytest.approx([-0.02, 0.0, 0.02])
