"""What of a sweep's spread a field explains, on an equal footing, and which students nobody beats."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from raydrd.report.trials import columns, fence, footing, short_names, value_of
from raydrd.sweeping.importance import importance
from raydrd.sweeping.pareto import front, pareto
from tests.sweep_results import RECOVERED, ended, field, result, trial

SCALE = field("loss.score_scale", "choice", ["10", "20", "40"])
RATE = field("train.learning_rate", "loguniform", low=1e-5, high=1e-4)
NAMES = field("curriculum", "named", ["paper", "exact", "reversed"])


def _sweep(count: int = 24, seed: int = 0) -> dict[str, Any]:
    """The scale decides, the rate helps a little, the name does nothing."""
    rng = np.random.default_rng(seed)
    points = [
        {"loss.score_scale": int(s), "train.learning_rate": float(r), "curriculum": str(c)}
        for s, r, c in zip(
            rng.choice([10, 20, 40], count), 10 ** rng.uniform(-5, -4, count), rng.choice(NAMES["values"], count), strict=True
        )
    ]
    noise = rng.normal(0, 0.004, count)
    values = [
        0.5 + 0.002 * p["loss.score_scale"] + 0.01 * np.log10(p["train.learning_rate"] / 1e-5) + n
        for p, n in zip(points, noise, strict=True)
    ]
    return result([SCALE, RATE, NAMES], ended([float(v) for v in values], points))


def _rows(found: dict[str, Any], **also: Any) -> dict[str, dict[str, Any]]:
    return {row["field"]: row for row in importance(found, **also)}


def _epsilon(y: Sequence[float], groups: Sequence[Any]) -> float:
    """Epsilon squared by its textbook sums: (SSB - (k - 1) MSW) / SST."""
    mean, kinds = sum(y) / len(y), sorted(set(groups))
    between = within = 0.0
    for kind in kinds:
        own = [v for v, g in zip(y, groups, strict=True) if g == kind]
        centre = sum(own) / len(own)
        between += len(own) * (centre - mean) ** 2
        within += sum((v - centre) ** 2 for v in own)
    return (between - (len(kinds) - 1) * within / (len(y) - len(kinds))) / (between + within)


def _line(y: Sequence[float], x: Sequence[float]) -> float:
    """R squared of a line over ranks, adjusted for its one slope."""
    r = stats.pearsonr(stats.rankdata(x), y).statistic
    return float(1 - (1 - r**2) * (len(y) - 1) / (len(y) - 2))


def test_the_shares_are_those_of_the_textbook() -> None:
    found = _sweep()
    y = [one["dev"]["nDCG@10"] for one in found["trials"]]
    x = {name: [one["point"][name] for one in found["trials"]] for name in found["trials"][0]["point"]}
    rows = _rows(found)
    ranks = stats.rankdata(x["train.learning_rate"])
    thirds = _epsilon(y, [int((rank - 1) * 3 // len(y)) for rank in ranks])
    assert rows["train.learning_rate"]["share"] == pytest.approx(max(0, _line(y, x["train.learning_rate"]), thirds))
    assert rows["curriculum"]["share"] == pytest.approx(max(0.0, _epsilon(y, x["curriculum"])))
    # A choice of numbers is in an order too: a line over ranks with ties, if that explains more for fewer free numbers.
    assert rows["loss.score_scale"]["share"] == pytest.approx(
        max(_line(y, x["loss.score_scale"]), _epsilon(y, x["loss.score_scale"]))
    )


def test_a_field_that_decides_is_found_and_noise_is_not() -> None:
    rows = importance(_sweep())
    assert rows[0]["field"] == "loss.score_scale" and rows[0]["share"] > 0.8 and rows[0]["p_holm"] < 0.01
    noise = next(row for row in rows if row["field"] == "curriculum")
    assert noise["share"] < 0.2 and noise["p"] > 0.05
    assert all(row["p_holm"] >= row["p"] and row["points"] == 24 and row["updates"] is None for row in rows)
    assert importance(_sweep()) == rows  # the same draws every time


def test_p_is_the_share_of_all_orders_that_explain_as_much() -> None:
    values = [0.50, 0.53, 0.51, 0.58, 0.57, 0.60]
    points = [{"curriculum": "paper"}] * 3 + [{"curriculum": "exact"}] * 3
    row = _rows(result([NAMES], ended(values, points)), draws=20_000)["curriculum"]
    observed = _epsilon(values, "aaabbb")
    as_much = [_epsilon(order, "aaabbb") >= observed - 1e-12 for order in itertools.permutations(values)]
    assert 0 < np.mean(as_much) < 0.2
    assert row["p"] == pytest.approx(np.mean(as_much), abs=0.01)


def test_under_chance_p_is_small_as_rarely_as_it_says() -> None:
    small = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        points = [{"train.learning_rate": float(r)} for r in 10 ** rng.uniform(-5, -4, 12)]
        found = result([RATE], ended([float(v) for v in rng.normal(0.6, 0.01, 12)], points))
        small += importance(found, draws=300)[0]["p"] <= 0.1
    assert 1 <= small <= 13  # 6 are expected; the better of two models would give some 11 if p did not know of the choice


def test_a_peak_in_the_middle_is_seen_by_thirds() -> None:
    rates = np.geomspace(1e-5, 1e-4, 12)
    values = [0.6 - 0.02 * abs(n - 5.5) for n in range(12)]
    row = importance(result([RATE], ended(values, [{"train.learning_rate": float(r)} for r in rates])))[0]
    assert row["how"] == "thirds" and row["share"] > 0.5 and row["p"] < 0.03


def test_equal_numbers_share_a_rank() -> None:
    depth = field("lists.negatives", "int", low=1, high=9)
    drawn = [1, 1, 1, 1, 1, 2, 3, 9, 9, 4]
    values = [0.5 + 0.01 * rank + 0.002 * (n % 2) for n, rank in enumerate(stats.rankdata(drawn))]
    row = importance(result([depth], ended(values, [{"lists.negatives": n} for n in drawn])))[0]
    assert row["how"] == "line" and row["share"] == pytest.approx(_line(values, drawn), abs=1e-12) and row["share"] > 0.9


def test_stopped_trials_are_compared_where_all_reached() -> None:
    # Without that the scale would seem to decide: what was stopped is lower because it was stopped.
    points = [{"loss.score_scale": scale, "curriculum": name} for scale in (10, 40) for name in ("paper", "exact") * 3]
    trials = []
    for n, point in enumerate(points):
        at_80 = (0.55 if point["curriculum"] == "paper" else 0.56) + 0.0001 * (n % 5)
        # A report at 70 and 90, none at 80; the line between them is at `at_80`.
        curve = [*RECOVERED, (70, at_80 - 0.01), (90, at_80 + 0.01), (120, 0.7)]
        if point["loss.score_scale"] == 10:
            curve = [*RECOVERED, (80, at_80)]
        trials.append(trial(n, point, curve, "stopped" if point["loss.score_scale"] == 10 else "finished"))
    found = result([SCALE, NAMES], trials)
    compared = footing(found)
    assert compared.updates == 80
    assert [compared.values[n] for n in (0, 6)] == pytest.approx([0.55, 0.5501])
    rows = _rows(found)
    assert rows["curriculum"]["share"] > 0.9 and rows["curriculum"]["updates"] == 80
    assert rows["loss.score_scale"]["p"] > 0.5


def test_one_diverged_trial_does_not_hide_the_rest() -> None:
    found = _sweep()
    worst = next(one for one in found["trials"] if one["point"]["loss.score_scale"] == 40 and one["number"])
    plain = _rows(found)["loss.score_scale"]["share"]
    trials = [
        one if one is not worst else trial(one["number"], one["point"], [*RECOVERED, (120, 0.01)]) for one in found["trials"]
    ]
    diverged = result(found["fields"], trials)
    lowest = fence(list(footing(diverged).values.values()))
    assert lowest == sorted(footing(diverged).values.values())[1] == min(footing(diverged).held.values()) > 0.5
    values = [one["dev"]["nDCG@10"] for one in trials]
    unheld = _epsilon(values, [one["point"]["loss.score_scale"] for one in trials])
    assert unheld < 0.2 and 0.5 < _rows(diverged)["loss.score_scale"]["share"] < plain


def test_a_condition_limits_the_points_and_seeds_count_once() -> None:
    alpha = field("dark.alpha", "uniform", low=0.0, high=1.0, when={"dark": "on"})
    trials = []
    for n in range(10):
        point = {"dark.alpha": n / 10} if n < 7 else {}
        for seed in range(2):
            value = 0.5 + 0.01 * n + (0.001 if seed else -0.001)
            own = trial(2 * n + seed, point, [*RECOVERED, (120, value)], point_number=n, seed=seed)
            trials.append(own)
    found = result([alpha], trials, seeds=2)
    row = importance(found)[0]
    assert row["points"] == 7 and row["share"] > 0.9
    assert footing(found).values[3] == pytest.approx(0.53)


def test_where_nothing_can_be_known_the_reason_is_told() -> None:
    few = importance(result([SCALE], ended([0.5, 0.6], [{"loss.score_scale": 10}, {"loss.score_scale": 20}])))
    assert few[0]["share"] is None and few[0]["p_holm"] is None and few[0]["reason"].startswith("only 2 with a value")
    same = importance(result([SCALE], ended([0.5] * 8, [{"loss.score_scale": 10 * (1 + n % 2)} for n in range(8)])))
    assert same[0]["reason"] == "all points have the same dev metric"
    one = importance(result([SCALE], ended([0.5 + n / 100 for n in range(8)], [{"loss.score_scale": 10}] * 8)))
    assert one[0]["reason"] == "all points have the same value"
    names = field("model", "choice", [f"m{n}" for n in range(8)])
    own = importance(result([names], ended([0.5 + n / 100 for n in range(8)], [{"model": f"m{n}"} for n in range(8)])))
    assert own[0]["reason"] == "nearly every point has a value of its own"
    found = _sweep()
    found["scheduler"] = {"kind": "pbt", "every": 20}
    assert all(row["share"] is None and row["reason"].startswith("pbt") for row in importance(found))


def test_failed_and_refused_trials_have_no_value() -> None:
    trials = ended([0.5, 0.6], [{"loss.score_scale": 10}] * 2)
    trials += [trial(2, {"loss.score_scale": 20}, RECOVERED, "failed"), trial(3, {"loss.score_scale": 40}, [], "refused")]
    found = footing(result([SCALE], trials))
    assert found.values == {0: 0.5, 1: 0.6} and found.updates is None


def test_columns_name_fields_shortly_and_read_points() -> None:
    mixture = field("mixture", "shares", parts=["dark.reinforced", "dark.noisy"], total=8)
    three = field("blend", "shares", parts=["a.one", "a.two", "a.three"], total=1.0)
    rate = field("curriculum.*.train.learning_rate", "loguniform", low=1e-5, high=1e-4)
    flag = field("recover", "choice", ["True", "[1,2]", "0.5"])
    made = columns(result([mixture, three, rate, flag], ended([0.5], [{}])))
    assert [one.title for one in made] == ["reinforced", "one", "two", "three", "learning_rate", "recover"]
    point = {"mixture": {"dark.reinforced": 2, "dark.noisy": 6}, "recover": [1, 2]}
    assert [value_of(one, point) for one in made] == [0.25, None, None, None, None, "[1,2]"]
    assert value_of(made[-1], {"recover": True}) == "True" and value_of(made[-1], {"recover": 0.5}) == "0.5"
    assert short_names(["a.scale", "b.scale", "*.x"]) == ["a.scale", "b.scale", "x"]


def test_the_front_is_what_no_other_beats() -> None:
    rng = np.random.default_rng(1)
    rows = [tuple(float(v) for v in row) for row in rng.integers(0, 5, (40, 3))]
    slow = [not any(all(b >= a for a, b in zip(row, other, strict=True)) and other != row for other in rows) for row in rows]
    assert front(rows) == slow and any(slow) and not all(slow)


def test_pareto_weighs_quality_speed_and_bytes() -> None:
    def size(dim: int, layers: int, speed: float | None) -> dict[str, Any]:
        return {"layers": layers, "dim": dim, "index": "exact", "bytes_per_passage": 4.0 * dim, "passages_per_second": speed}

    points = [{"student.layers": n} for n in (2, 2, 1, 6)]
    trials = ended([0.60, 0.59, 0.55, 0.54], points)
    sizes = [size(384, 2, 800.0), size(192, 2, 800.0), size(384, 1, 1500.0), size(384, 6, 300.0)]
    trials = [{**one, "size": own} for one, own in zip(trials, sizes, strict=True)]
    found = pareto(result([field("student.layers", "choice", ["1", "2", "6"])], trials))
    assert [(row["point"], row["front"]) for row in found] == [(1, True), (0, True), (2, True), (3, False)]
    # Without one timing, speed says nothing: the faster student of 1 layer is no longer on the front.
    trials[3]["size"]["passages_per_second"] = None
    found = pareto(result([SCALE], trials))
    assert [row["point"] for row in found if row["front"]] == [1, 0]
    same = [{**one, "size": size(384, 2, None)} for one in trials]
    assert pareto(result([SCALE], same)) == []


def test_a_point_that_was_drawn_twice_counts_once() -> None:
    found = _sweep()
    twice = {**found["trials"][3], "number": 24, "point_number": 24}
    again = result([SCALE, RATE, NAMES], [*found["trials"], twice])
    rows = importance(again)
    assert rows == importance(found) and {row["points"] for row in rows} == {24}
