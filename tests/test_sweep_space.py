"""The space of a sweep: what is drawn, what it makes of a config, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from raydrd.config import override
from raydrd.errors import InputError
from raydrd.sweeping.overlaps import check_overlaps
from raydrd.sweeping.rungs import Rungs
from raydrd.sweeping.space import domains, draw, grid, overrides, point_of, within
from raydrd.sweeping.spec import Entry, read_sweep
from raydrd.sweeping.words import about, at, label, words

LEARNING = "curriculum.*.train.learning_rate"
VALUES: dict[str, Any] = {
    "curriculum": [{"train": {"learning_rate": 1.0, "max_steps": 5}} for _ in range(2)],
    "loss": {"tau": 1.0},
}


def space(**entries: dict[str, Any]) -> dict[str, Entry]:
    return {name: Entry.model_validate(entry) for name, entry in entries.items()}


def drawn(entries: dict[str, Entry], count: int = 200, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [point_of(entries, draw(entries, rng)) for _ in range(count)]


def test_every_kind_stays_in_its_range_and_reaches_its_ends() -> None:
    entries = space(
        a={"choice": [10, 20.0, "x", None]},
        b={"uniform": [0.0, 1.0], "step": 0.25},
        c={"loguniform": [1e-5, 1e-3]},
        d={"int": [2, 8], "step": 3},
        e={"uniform": [-1.0, 1.0]},
        f={"named": {"one": [1], "two": [1, 2]}},
    )
    points = drawn(entries, 2000)
    assert {point["a"] for point in points} == {10, 20.0, "x", None}
    assert {point["b"] for point in points} == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert {point["d"] for point in points} == {2, 5, 8} and all(type(point["d"]) is int for point in points)
    assert {point["f"] for point in points} == {"one", "two"}
    rates = np.log10([point["c"] for point in points])
    assert -5 <= rates.min() < -4.98 and -3.02 < rates.max() <= -3
    assert abs(np.mean(rates) + 4) < 0.05, "as many below as above the middle of its logarithm"
    assert all(-1 <= point["e"] <= 1 for point in points) and abs(np.mean([point["e"] for point in points])) < 0.05


def test_draws_are_those_of_the_seed() -> None:
    entries = space(a={"choice": [1, 2, 3]}, b={"uniform": [0, 1]}, c={"shares": ["x", "y"], "step": 0.125})
    assert drawn(entries, 20) == drawn(entries, 20) != drawn(entries, 20, seed=1)


@pytest.mark.parametrize("step", [1, None])
def test_shares_sum_to_their_total_and_each_way_to_share_is_as_likely(step: float | None) -> None:
    entries = space(mix={"shares": ["x", "y", "z"], "total": 4, **({"step": step} if step else {})})
    points = [point["mix"] for point in drawn(entries, 6000)]
    assert all(abs(sum(one.values()) - 4) < 1e-9 and min(one.values()) >= 0 for one in points)
    assert all(abs(np.mean([one[part] for one in points]) - 4 / 3) < 0.06 for part in "xyz")
    if step:
        assert all(type(value) is int for one in points for value in one.values())
        counts = Counter(tuple(one.values()) for one in points)
        assert len(counts) == 15  # C(4 + 2, 2) compositions
        assert max(counts.values()) < 1.3 * 6000 / 15 and min(counts.values()) > 0.7 * 6000 / 15
    else:  # uniform on the triangle: half of it has x below 4 (1 - sqrt(1/2))
        assert abs(np.mean([one["x"] < 4 * (1 - 0.5**0.5) for one in points]) - 0.5) < 0.03


def test_shares_keep_the_least_of_each() -> None:
    entries = space(mix={"shares": ["x", "y"], "total": 1.0, "step": 0.1, "least": {"x": 0.3}})
    found = {tuple(point["mix"].values()) for point in drawn(entries, 500)}
    assert min(x for x, _ in found) == 0.3 and max(x for x, _ in found) == 1.0 and len(found) == 8
    assert len(list(grid(entries))) == 8


def test_an_entry_with_a_condition_is_there_only_where_it_holds() -> None:
    entries = space(
        kind={"choice": ["a", "b", "c"]},
        depth={"int": [1, 2], "when": {"kind": ["a", "b"]}},
        deeper={"int": [3, 4], "when": {"depth": 2}},
    )
    for point in drawn(entries):
        assert ("depth" in point) == (point["kind"] != "c")
        assert ("deeper" in point) == (point.get("depth") == 2)
    assert len({tuple(point.items()) for point in grid(entries)}) == 2 * 3 + 1


def test_a_grid_has_every_point_once() -> None:
    entries = space(a={"choice": [1, 2]}, b={"int": [0, 2]}, c={"shares": ["x", "y"], "total": 2, "step": 1})
    points = list(grid(entries))
    assert len(points) == 2 * 3 * 3 == len({repr(point) for point in points})
    assert points[0] == {"a": 1, "b": 0, "c": {"x": 0, "y": 2}}


def test_a_star_stands_for_every_item_also_of_a_list_that_was_just_drawn() -> None:
    long = {"train": {"learning_rate": 9.0}}
    entries = space(**{"curriculum": {"named": {"three": [long] * 3, "one": [long]}}, LEARNING: {"choice": [0.5]}})
    for name, count in (("three", 3), ("one", 1)):
        made = override(VALUES, overrides(entries, {"curriculum": name, LEARNING: 0.5}, VALUES))
        assert [one["train"]["learning_rate"] for one in made["curriculum"]] == [0.5] * count
    kept = overrides(space(**{LEARNING: {"choice": [0.5]}}), {LEARNING: 0.5}, VALUES)
    assert kept == ["curriculum.0.train.learning_rate=0.5", "curriculum.1.train.learning_rate=0.5"]
    with pytest.raises(InputError, match=r"loss\.\*\.x: loss is no list"):
        overrides(space(**{"loss.*.x": {"choice": [1]}}), {"loss.*.x": 1}, VALUES)


def test_a_population_keeps_the_values_of_finished_steps() -> None:
    made = overrides(space(**{LEARNING: {"choice": [0.5]}}), {LEARNING: 0.5}, VALUES, done=[{LEARNING: 0.25}])
    assert made == ["curriculum.0.train.learning_rate=0.25", "curriculum.1.train.learning_rate=0.5"]


def test_an_alternative_may_set_several_paths() -> None:
    entries = space(pair={"named": {"low": {"loss.tau": 0.5, "x": [1]}}, "paths": ["loss.tau", "x"]})
    assert override(VALUES, overrides(entries, {"pair": "low"}, VALUES))["loss"] == {"tau": 0.5}
    assert about(entries)[0]["paths"] == ["loss.tau", "x"]


def test_small_numbers_stay_numbers_on_their_way_through_an_override() -> None:
    entries = space(rate={"loguniform": [1e-6, 1e-5]})
    made = override({}, overrides(entries, {"rate": 1e-06}, {}))
    assert made == {"rate": 1e-06}, "PyYAML reads 1e-06 as a word"


def test_what_differs_in_words() -> None:
    default = {"loss.tau": 1.0, LEARNING: [1.0, 2.0], "mix": {"x": 1, "y": 1}}
    assert words({"loss.tau": 1.0, LEARNING: 3.1e-05, "mix": {"x": 0, "y": 2}}, default) == "learning_rate=3.1e-05, mix=0:2"
    assert words({"loss.tau": 1.0}, default) == "as the default"
    assert [label(one) for one in (10, 0.5, "a", None, [1, 2])] == ["10", "0.5", "a", "None", "[1,2]"]
    assert at({"a": [{"b": 1}, {"b": 1}]}, "a.*.b") == 1 and at({"a": [{"b": 1}, {"b": 2}]}, "a.*.b") == [1, 2]
    with pytest.raises(KeyError):
        at({"a": None}, "a.b")


def test_a_change_that_leaves_its_range_is_taken_back() -> None:
    entries = space(a={"choice": [1, 2]}, b={"loguniform": [1, 10]})
    assert within(entries, {"a": 5, "b": 12.0}) == {"a": 1, "b": 10} and within(entries, {"a": 0, "b": 0.5})["b"] == 1


def test_domains_are_flat_numbers() -> None:
    entries = space(
        a={"choice": [1, 2]}, b={"loguniform": [1, 10]}, c={"shares": ["x", "y", "z"]}, d={"int": [1, 9], "step": 4}
    )
    assert [(one.name, one.size) for one in domains(entries)] == [("a", 2), ("b", None), ("c/0", None), ("c/1", None), ("d", 3)]


REFUSED = {
    "two kinds": ({"space": {"a": {"choice": [1], "int": [1, 2]}}}, "space.a: value error, write one of choice"),
    "no kind": ({"space": {"a": {"step": 1}}}, "space.a: value error, write one of choice"),
    "backwards": ({"space": {"a": {"uniform": [2, 1]}}}, r"\[2, 1\]: write the lower end first"),
    "log of 0": ({"space": {"a": {"loguniform": [0, 1]}}}, "lies above 0"),
    "unknown field": ({"space": {"a": {"chioce": [1]}}}, "did you mean 'choice'"),
    "uneven shares": ({"space": {"a": {"shares": ["x", "y"], "step": 0.3}}}, "no multiple of 0.3"),
    "recipe": ({"space": {"recipe": {"choice": ["mix"]}}}, "recipe cannot be swept"),
    "resources": ({"space": {"resources.num_workers": {"choice": [1]}}}, "resources cannot be swept"),
    "nothing": ({"space": {}}, "nothing differs between trials"),
    "condition": ({"space": {"a": {"choice": [1], "when": {"b": 1}}, "b": {"choice": [1]}}}, "no entry above this one"),
    "never": ({"space": {"b": {"choice": [1]}, "a": {"choice": [1], "when": {"b": 2}}}}, "b is never 2"),
    "grid": ({"space": {"a": {"uniform": [0, 1]}}, "search": "grid"}, "a grid needs a number of values; give a step"),
    "seeds": (
        {"space": {"a": {"choice": [1]}}, "search": "optuna", "seeds": 2},
        "search: optuna learns from one trial a point",
    ),
    "workers": ({"space": {"a": {"choice": [1]}}, "scheduler": "asha", "trial": {"workers": 2}}, "write scheduler: fifo"),
    "pbt": ({"space": {"a": {"uniform": [0, 1]}}, "scheduler": "pbt"}, r"paths with \* over the steps"),
    "scheduler": ({"space": {"a": {"choice": [1]}}, "scheduler": "hyper"}, "scheduler"),
    "tracker": ({"space": {"a": {"choice": [1]}}, "tracking": ["neptune"]}, "tracking.0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_sweep_file_is_refused_by_field(case: str, tmp_path: Path) -> None:
    fields, expected = REFUSED[case]
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"base": "base.yaml", **fields}, sort_keys=False))
    with pytest.raises(InputError, match=expected) as raised:
        read_sweep(str(file), [])
    assert all(line.startswith(f"{file}: ") for line in str(raised.value).splitlines())


def test_overrides_go_to_the_sweep_or_to_its_base(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"base": "base.yaml", "set": {"data.limit": 5}, "space": {"a": {"choice": [1]}}}))
    found = read_sweep(str(file), ["samples=4", "data.limit=7", "set.keep=best", "scheduler=asha", "x.0.y=[1, 2]"])
    assert (found.samples, found.scheduler.kind) == (4, "asha")
    assert found.set == {"data.limit": 7, "keep": "best", "x.0.y": [1, 2]}


THREE = {"named": {"none": None, "few": {"keep": 1}, "many": {"keep": 9}}}
CLASH = {
    "whole after part": (
        {LEARNING: {"choice": [1]}, "curriculum": {"named": {"a": []}}},
        f"space.curriculum: curriculum sets again what {LEARNING} of space.{LEARNING} sets; write {LEARNING} below curriculum",
    ),
    "any after one": (
        {"curriculum.0.train.learning_rate": {"choice": [1]}, LEARNING: {"choice": [2]}},
        f"space.{LEARNING}: .* sets again what curriculum.0.train.learning_rate .*; write one of the two",
    ),
    "share": (
        {"mix": {"shares": ["a.x", "a.y"]}, "a.y": {"uniform": [0, 1]}},
        "space.a.y: a.y sets again what a.y of space.mix sets",
    ),
    "path": (
        {"a.y": {"choice": [1]}, "both": {"paths": ["b", "a"], "named": {"one": {"a": {}, "b": 1}}}},
        "space.both: a sets again what a.y of space.a.y sets",
    ),
    "null": (
        {"filter": THREE, "filter.keep": {"choice": [1, 2]}},
        "space.filter.keep: with filter: none there is nothing to set it in, filter is null there; write "
        r"when: {filter: \[few, many\]}",
    ),
    "null of an item": (
        {"steps": {"named": {"a": [{"t": None}], "b": [{"t": {"x": 1}}]}}, "steps.*.t.x": {"choice": [1]}},
        r"with steps: a .*when: {steps: \[b\]}",
    ),
    "null of a choice": (
        {"a": {"choice": [None, {"b": 1}]}, "a.b": {"choice": [1]}},
        "with a: null there is nothing to set it in",
    ),
    "condition that allows it": (
        {"filter": THREE, "filter.keep": {"choice": [1, 2], "when": {"filter": ["none", "few"]}}},
        "with filter: none",
    ),
}


@pytest.mark.parametrize("case", CLASH)
def test_entries_that_overwrite_one_another_are_refused(case: str) -> None:
    entries, expected = CLASH[case]
    with pytest.raises(InputError, match=expected) as raised:
        check_overlaps(space(**entries))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "entries",
    [
        {"curriculum": {"named": {"a": [], "b": []}}, LEARNING: {"choice": [1]}},
        {LEARNING: {"choice": [1]}, "curriculum.0.train.learning_rate": {"choice": [2]}},
        {"filter": THREE, "filter.keep": {"choice": [1], "when": {"filter": ["few", "many"]}}},
        {"filter": THREE, "n": {"int": [1, 2], "when": {"filter": "few"}}, "filter.keep": {"choice": [1], "when": {"n": 2}}},
        {"k": {"choice": [1, 2]}, "m": {"shares": ["x", "y"], "when": {"k": 1}}, "x": {"choice": [1], "when": {"k": 2}}},
        {"a.x": {"choice": [1]}, "a.xy": {"choice": [1]}},
        {"pacing": {"named": {"off": None}}, "train.seed": {"choice": [1]}},
    ],
)
def test_entries_beside_or_below_one_another_are_fine(entries: dict[str, Any]) -> None:
    check_overlaps(space(**entries))


def test_halving_compares_after_as_many_updates_only() -> None:
    rungs = Rungs(grace=20, reduction=3.0)
    assert not rungs.stops("a", 0, 0.0) and not rungs.stops("a", 10, 0.0), "below the first rung nothing is looked at"
    assert not rungs.stops("a", 20, 0.5)
    assert not rungs.stops("long", 40, 0.4), "nobody else's first report in this rung came after 40 updates"
    assert rungs.stops("b", 20, 0.4), "a's was better after as many"
    assert not rungs.stops("c", 20, 0.9) and not rungs.stops("c", 40, 0.0), "once a rung: the next one begins at 60"
    assert rungs.stops("d", 20, 0.6), "below the best third of 0.4, 0.5, 0.9"
    assert not rungs.stops("c", 60, 0.1) and rungs.stops("a", 60, 0.0)
    assert rungs.stops("longer", 40, 0.3) and not rungs.stops("longest", 40, 0.45)
