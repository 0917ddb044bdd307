"""The space of a sweep: flat draws, each in a plain domain, become the values that a config has changed. Pure.

Every searcher sees flat domains only: a place in a list for choices, a number in a range, and for k shares k - 1 numbers
from 0 to 1, which break the total like a stick. A flat draw always holds all of them; what a condition leaves out is
drawn and not used.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from raydrd.config import override
from raydrd.errors import InputError
from raydrd.sweeping.spec import Entry

Flat = dict[str, int | float]  # by the name of a domain
Point = dict[str, Any]  # by entry: a value, a name, or by path the values of shares

DIGITS = 4  # of drawn numbers: enough to tell them apart, few enough to read


@dataclass(frozen=True)
class Domain:
    """One flat dimension: whole numbers 0..size - 1, or real numbers from low to high."""

    name: str
    size: int | None = None
    low: float = 0.0
    high: float = 1.0
    log: bool = False


# -- flat domains ---------------------------------------------------------------------------------------


def domains(space: Mapping[str, Entry]) -> list[Domain]:
    """The flat dimensions of a space, in its order."""
    return [one for name, entry in space.items() for one in _domains(name, entry)]


def _domains(name: str, entry: Entry) -> list[Domain]:
    if entry.kind == "shares":
        return [Domain(f"{name}/{number}") for number in range(len(entry.shares or ()) - 1)]
    if (count := _count(entry)) is not None:
        return [Domain(name, size=count)]
    low, high = entry.range
    return [Domain(name, low=low, high=high, log=entry.kind == "loguniform")]


def _count(entry: Entry) -> int | None:
    """How many values an entry with so many has; None of a continuous one."""
    if entry.kind in ("choice", "named"):
        return len(entry.choice or entry.named or ())
    if entry.kind == "shares" or (entry.kind != "int" and entry.step is None):
        return None
    low, high = entry.range
    return math.floor((high - low) / (entry.step or 1) + 1e-9) + 1


def draw(space: Mapping[str, Entry], rng: np.random.Generator) -> Flat:
    """One draw, uniform over each domain (its logarithm where it says so)."""
    return {one.name: _draw(one, rng) for one in domains(space)}


def _draw(one: Domain, rng: np.random.Generator) -> int | float:
    if one.size is not None:
        return int(rng.integers(one.size))
    if one.log:
        return float(math.exp(rng.uniform(math.log(one.low), math.log(one.high))))
    return float(rng.uniform(one.low, one.high))


def within(space: Mapping[str, Entry], flat: Mapping[str, int | float]) -> Flat:
    """A flat draw that was changed, back in its domains."""
    ends = {one.name: (0, one.size - 1) if one.size is not None else (one.low, one.high) for one in domains(space)}
    return {name: min(max(flat[name], low), high) for name, (low, high) in ends.items()}


def grid(space: Mapping[str, Entry]) -> Iterator[Point]:
    """Every point of a space whose entries all have a number of values; the last entry varies fastest."""
    names = list(space)
    for values in itertools.product(*(_values(entry) for entry in space.values())):
        yield _conditioned(space, dict(zip(names, values, strict=True)))


def _values(entry: Entry) -> list[Any]:
    if entry.kind == "shares":
        parts, units = len(entry.shares or ()), round(_free(entry) / (entry.step or 1))
        return [_shared(entry, counts) for counts in _compositions(units, parts)]
    count = _count(entry)
    assert count is not None
    return [_value(entry, number) for number in range(count)]


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)


# -- from flat draws to points ---------------------------------------------------------------------------


def point_of(space: Mapping[str, Entry], flat: Mapping[str, int | float]) -> Point:
    """What a flat draw says of each entry whose condition holds."""
    found: Point = {}
    for name, entry in space.items():
        numbers = [flat[one.name] for one in _domains(name, entry)]
        found[name] = _broken(entry, numbers) if entry.kind == "shares" else _value(entry, numbers[0])
    return _conditioned(space, found)


def _conditioned(space: Mapping[str, Entry], point: Point) -> Point:
    kept: Point = {}
    for name, entry in space.items():
        if all(_holds(kept, other, wanted) for other, wanted in (entry.when or {}).items()):
            kept[name] = point[name]
    return kept


def _holds(point: Point, other: str, wanted: Any) -> bool:
    return other in point and (point[other] in wanted if isinstance(wanted, list) else point[other] == wanted)


def _value(entry: Entry, number: int | float) -> Any:
    if entry.choice is not None:
        return entry.choice[int(number)]
    if entry.named is not None:
        return list(entry.named)[int(number)]
    low, high = entry.range
    if _count(entry) is None:
        return min(max(_short(number), low), high)
    if entry.kind == "int":
        return int(low + int(number) * (entry.step or 1))
    return _short(low + int(number) * (entry.step or 1), 10)


def _short(number: float, digits: int = DIGITS) -> float:
    return float(f"{number:.{digits}g}")


def _broken(entry: Entry, cuts: list[int | float]) -> dict[str, int | float]:
    """Shares by stick breaking: uniform over all ways to share, for uniform `cuts` in [0, 1]."""
    parts = len(entry.shares or ())
    if entry.step is not None:
        left, counts = round(_free(entry) / entry.step), []
        for place, cut in enumerate(cuts):
            counts.append(_count_at(left, parts - place, float(cut)))
            left -= counts[-1]
        return _shared(entry, (*counts, left))
    rest, found = _free(entry), []
    for place, cut in enumerate(cuts):
        found.append(_short(rest * (1 - (1 - float(cut)) ** (1 / (parts - 1 - place)))))
        rest = max(0.0, rest - found[-1])
    drawn = zip(entry.shares or (), [*found, rest], strict=True)
    return {path: _short(one + entry.least.get(path, 0.0), 10) for path, one in drawn}


def _free(entry: Entry) -> float:
    """What of a total is shared: all but what parts have at least."""
    return entry.total - sum(entry.least.values())


def _count_at(total: int, parts: int, cut: float) -> int:
    """The first of `parts` counts, such that for a uniform `cut` every composition of `total` is as likely."""
    ways = [math.comb(total - first + parts - 2, parts - 2) for first in range(total + 1)]
    reached, place = 0, cut * sum(ways)
    for first, count in enumerate(ways):
        reached += count
        if place < reached:
            return first
    return total


def _shared(entry: Entry, counts: tuple[int, ...]) -> dict[str, int | float]:
    step = entry.step or 1.0
    whole = step == int(step)
    found = {
        path: _short(count * step + entry.least.get(path, 0.0), 10)
        for path, count in zip(entry.shares or (), counts, strict=True)
    }
    return {path: int(one) if whole else one for path, one in found.items()}


# -- from points to configs ------------------------------------------------------------------------------


def overrides(space: Mapping[str, Entry], point: Point, values: dict[str, Any], done: list[Point] | None = None) -> list[str]:
    """The assignments (`a.b=value`) that make a point of `values`, a config's, in the order of the space.

    done: values that the first items under a `*` keep in place of the point's (what a population's trial has behind it).

    Raises:
        InputError: a path with `*` through something that is no list, or an empty one.
    """
    made: list[str] = []
    here = values
    for name, value in point.items():
        entry = space[name]
        meant = entry.named[value] if entry.named is not None else value
        pairs = list(meant.items()) if entry.shares or entry.paths else [(name, meant)]
        own: list[str] = []
        for path, one in pairs:
            for place, concrete in enumerate(_expanded(path, here)):
                kept = done[place].get(name, one) if done and place < len(done) else one
                own.append(f"{concrete}={as_yaml(kept)}")
        here = override(here, own)
        made += own
    return made


def _expanded(path: str, values: Any) -> list[str]:
    """The path with every `*` replaced by each number of the list there."""
    before, star, after = path.partition("*")
    if not star:
        return [path]
    here = values
    for part in [p for p in before.split(".") if p]:
        here = here[int(part)] if isinstance(here, list) else (here or {}).get(part)
    if not isinstance(here, list) or not here:
        raise InputError(f"space: {path}: {before.rstrip('.')} is no list with items, so * has nothing to stand for")
    return [one for number in range(len(here)) for one in _expanded(f"{before}{number}{after}", values)]


def as_yaml(value: Any) -> str:
    """A value on one line of YAML, as an override takes it."""
    text: str = yaml.safe_dump(plain(value), default_flow_style=True, width=math.inf, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    return {key: plain(one) for key, one in value.items()} if isinstance(value, dict) else value
