"""How much of a sweep's spread each field explains, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydrd.report.trials import Column, columns, footing, value_of
from raydrd.statistics import holm

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FEWEST = 6  # points below which a share of variance says nothing
_DRAWS = 2000
_BINS = 3
_SAME = 1e-12  # a spread, or a difference of two shares, that is rounding


def importance(result: Mapping[str, Any], *, seed: int = 0, draws: int = _DRAWS) -> list[dict[str, Any]]:
    """For each field the share of the variance of the dev metric, over the points, that it explains; the greatest first.

    Names and choices: epsilon squared, which is eta squared less what so many groups explain by chance. Numbers: the
    better of a straight line over ranks and of thirds (as many points in each, ties together), adjusted likewise; choices
    that are all numbers: the better of line and groups. Never below 0. p: how often the metric, shuffled among
    the points, is explained as well (the same choice of the better one made anew each time); Holm's correction over the fields.

    A point counts once, by its mean over seeds, also if a searcher drew it twice. What is compared is told by
    `report.trials.footing`: the end of training, or, where trials were stopped, the number of updates that all reached.
    There a field that acts later seems to do nothing. What lies far below the rest (a diverged trial;
    `report.trials.fence`) counts as the lowest of the rest: else one of them would be most of the variance. A field with a
    condition is judged among the points where it is active. Shares with more than two parts have a row a part, and these
    rows are not independent.

    It cannot see interactions (a field that helps only beside a value of another), a peak that thirds do not
    catch, or which of two fields that were drawn together did it. A searcher that draws where it is good (optuna) does not
    draw evenly, so its shares are of what it tried.

    Returns:
        A list of {field, share, p, p_holm, points, updates, how: line|groups|thirds|None, reason}: share and both p are
        None, with the reason, of fewer than six points, without spread, or for trials that changed their values (pbt).
    """
    compared = footing(result)
    changing = (result.get("scheduler") or {}).get("kind") == "pbt"
    values = {key: value for key, value in compared.held.items() if key in _distinct(result)}
    rows = [_row(result, column, values, seed, draws, changing) for column in columns(result)]
    tested = [row for row in rows if row["p"] is not None]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = p
    ordered = sorted(rows, key=lambda row: -1.0 if row["share"] is None else row["share"], reverse=True)
    return [{**row, "updates": compared.updates} for row in ordered]


def _distinct(result: Mapping[str, Any]) -> set[int]:
    """Numbers of the points, of those with the same config the first."""
    keys = {int(trial["number"]): str(trial["key"]) for trial in result["trials"]}
    first: dict[str, int] = {}
    for point in result["points"]:
        first.setdefault(keys[point["trials"][0]], int(point["number"]))
    return set(first.values())


def _row(
    result: Mapping[str, Any], column: Column, values: Mapping[int, float], seed: int, draws: int, changing: bool
) -> dict[str, Any]:
    points = {int(point["number"]): value_of(column, point["point"]) for point in result["points"]}
    drawn = {key: value for key, value in points.items() if value is not None and key in values}
    row: dict[str, Any] = {"field": column.name, "points": len(drawn), "how": None, "reason": None}
    row |= {"share": None, "p": None, "p_holm": None}
    y = np.array([values[key] for key in drawn], dtype=np.float64)
    x = list(drawn.values())
    if changing:
        return row | {"reason": "pbt changes values while it trains, so no trial stands for one value"}
    if len(drawn) < FEWEST:
        return row | {"reason": f"only {len(drawn)} with a value and a dev metric; {FEWEST} are needed"}
    if float(y.max() - y.min()) <= _SAME:
        return row | {"reason": "all points have the same dev metric"}
    if len(set(x)) == 1:
        return row | {"reason": "all points have the same value"}
    models = _models(x)
    if not models:
        return row | {"reason": "nearly every point has a value of its own"}
    shuffled = np.random.default_rng(seed).permuted(np.tile(y, (draws, 1)), axis=1)
    found = {how: float(_explained(y[None], one)[0]) for how, one in models.items()}
    how = max(found, key=lambda name: found[name])
    chance = np.max([_explained(shuffled, one) for one in models.values()], axis=0)
    p = (1 + int((chance >= found[how] - _SAME).sum())) / (draws + 1)
    return row | {"share": max(0.0, found[how]), "how": how, "p": p}


def _models(values: Sequence[float | str]) -> dict[str, Floats]:
    """What may explain the metric, each as a design [points, free numbers] with a column for the mean."""
    numbers = _numbers(values)
    made: dict[str, Ints] = {}
    if numbers is None or any(isinstance(value, str) for value in values):
        made["groups"] = np.unique(np.array([str(value) for value in values]), return_inverse=True)[1]
    ranks = None if numbers is None else _ranks(numbers)
    if ranks is not None and "groups" not in made:
        made["thirds"] = np.minimum(_BINS - 1, np.floor(_BINS * (ranks - 0.5) / ranks.size)).astype(np.int64)
    designs = {name: _dummies(groups) for name, groups in made.items()}
    if ranks is not None:
        designs["line"] = np.stack([np.ones_like(ranks), ranks], axis=1)
    return {name: one for name, one in designs.items() if 1 < one.shape[1] <= len(values) // 2}


def _numbers(values: Sequence[float | str]) -> Floats | None:
    try:
        found = np.array([float(value) for value in values])
    except ValueError:
        return None
    return found if bool(np.isfinite(found).all()) else None


def _ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last: Floats = np.cumsum(count).astype(np.float64)
    found: Floats = (last - (count - 1) / 2)[place]
    return found


def _dummies(groups: Ints) -> Floats:
    found: Floats = (groups[:, None] == np.unique(groups)[None]).astype(np.float64)
    return found


def _explained(y_RN: Floats, design_NK: Floats) -> Floats:
    """Adjusted R squared [R] of each row of y by the design: 1 - (SSE / (N - K)) / (SST / (N - 1))."""
    points, free = design_NK.shape
    basis, _ = np.linalg.qr(design_NK)
    centred = y_RN - y_RN.mean(axis=1, keepdims=True)
    total = (centred**2).sum(axis=1)
    rest = total - ((centred @ basis) ** 2).sum(axis=1)
    found: Floats = 1 - (rest / (points - free)) / (total / (points - 1))
    return found
