"""Entries of a space that set the same place: the last one would win, and nobody would be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raydrd.errors import InputError
from raydrd.sweeping.spec import Entry


def check_overlaps(space: Mapping[str, Entry]) -> None:
    """Refuse an entry that sets again what one above it sets, or sets something below a null of one above it.

    Entries whose conditions never hold together may set the same place; so may `curriculum.0.x` below `curriculum.*.x`.

    Raises:
        InputError: one line: the entry, what it overwrites, and what to write instead.
    """
    names = list(space)
    for place, name in enumerate(names):
        for other in names[:place]:
            if not _apart(space[name], space[other]):
                _check(space, name, other)


def _check(space: Mapping[str, Entry], name: str, other: str) -> None:
    for above in space[other].places(other):
        for own in space[name].places(name):
            mine, theirs = own.split("."), above.split(".")
            if len(mine) <= len(theirs) and all(a in ("*", b) for a, b in zip(mine, theirs, strict=False)):
                more = "write one of the two" if len(mine) == len(theirs) else f"write {other} below {name}, or one of the two"
                raise InputError(f"space.{name}: {own} sets again what {above} of space.{other} sets; {more}")
            if len(mine) > len(theirs) and all(a == b or "*" in (a, b) for a, b in zip(mine, theirs, strict=False)):
                _check_below(space, name, mine[len(theirs) : -1], other, above)


def _check_below(space: Mapping[str, Entry], name: str, parts: list[str], other: str, above: str) -> None:
    found = space[other]
    values = list((found.named or {}).items()) or [(value, value) for value in found.choice or ()]
    for label, value in values:
        if _null(value[above] if found.paths else value, parts) and _met(space, name, other, label):
            fine = ", ".join(str(one) for one, _ in values if one != label)
            raise InputError(
                f"space.{name}: with {other}: {'null' if label is None else label} there is nothing to set it in, {above} is "
                f"null there; write when: {{{other}: [{fine}]}}"
            )


def _null(value: Any, parts: list[str]) -> bool:
    """Whether something on the way through a value is null."""
    if value is None or not parts:
        return value is None
    if isinstance(value, list):
        chosen = value if parts[0] == "*" else value[int(parts[0]) :][:1] if parts[0].isdigit() else []
        return any(_null(one, parts[1:]) for one in chosen)
    return isinstance(value, dict) and parts[0] in value and _null(value[parts[0]], parts[1:])


def _apart(one: Entry, two: Entry) -> bool:
    """Whether the conditions of two entries never hold together."""
    a, b = one.when or {}, two.when or {}
    return any(not any(value in _listed(b[key]) for value in _listed(a[key])) for key in a if key in b)


def _met(space: Mapping[str, Entry], name: str, other: str, label: Any) -> bool:
    """Whether an entry can be there while one above it has this value."""
    return all(
        label in _listed(wanted) if key == other else _met(space, key, other, label)
        for key, wanted in (space[name].when or {}).items()
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
