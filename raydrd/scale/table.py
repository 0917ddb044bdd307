"""Two sizes side by side: what stayed flat, and what did not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

LIMIT = 0.10  # of growth in memory or loss of rate, beyond which something is not flat
MB = 1e6

Sizes = list[dict[str, Any]]  # results of `steps.measure`, by size


def largest(line: dict[str, Any], kind: str = "anonymous") -> int:
    """Peak bytes of this kind in the worker that had most."""
    return max((int(one[kind]) for one in line["workers"]), default=0)


def shared(sizes: Sizes) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(name, its lines) of all work that the smallest and the largest size have; one line where there is one size."""
    ends = sizes[:1] if len(sizes) == 1 else [sizes[0], sizes[-1]]
    known = [{line["name"]: line for line in size["lines"]} for size in ends]
    for name in known[0]:
        if all(name in lines for lines in known):
            yield name, [lines[name] for lines in known]


def unflat(sizes: Sizes) -> list[str]:
    """One line for each memory that grew and each rate that fell by more than `LIMIT` from the smallest size to the largest."""
    found = []
    for name, lines in shared(sizes):
        small, large = lines[0], lines[-1]
        memory = {
            "heap of the driver": (small["driver"]["anonymous"], large["driver"]["anonymous"]),
            "heap of the largest worker": (largest(small), largest(large)),
        }
        for what, (before, after) in memory.items():
            if before and after > before * (1 + LIMIT):
                grown = f"{name}: {what} {before / MB:,.0f} -> {after / MB:,.0f} MB ({after / before:.2f}x)"
                found.append(grown + _filled(small, large))
        if large["rate"] < small["rate"] * (1 - LIMIT):
            change = f"{large['rate'] / small['rate']:.2f}x"
            found.append(f"{name}: {number(small['rate'])} -> {number(large['rate'])} {large['unit']}/s ({change})")
        if large["spilled"]:
            found.append(f"{name}: {large['spilled'] / MB:,.0f} MB of Ray's object store spilled to disk")
    return found


def number(value: float) -> str:
    """`12,345`, `3.4`, `1.2 G`."""
    for limit, sign in ((1e12, " T"), (1e9, " G")):
        if value >= limit:
            return f"{value / limit:.1f}{sign}"
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _filled(small: dict[str, Any], large: dict[str, Any]) -> str:
    """That a shard of the smaller size was not full yet: its memory is bounded by the shard, not by the corpus."""
    rows = [round(line["rows"] * line["share"]) for line in (small, large)]
    if large["unit"] == "dot products" or rows[1] <= rows[0]:
        return ""
    return f"; the largest shard had {rows[0]:,}, then {rows[1]:,} {large['unit']} of {large['rows']:,}"


def _across(values: list[float], digits: int = 0) -> list[str]:
    """Megabytes at each size."""
    return [f"{value / MB:,.{digits}f}" for value in values]


def _ratio(values: list[float]) -> list[str]:
    """Largest size over smallest, where there are two."""
    if len(values) == 1:
        return []
    return [f"{values[-1] / values[0]:.2f}" if values[0] else ""]


def _heads(what: str, sizes: Sizes, ratio: bool = True) -> list[str]:
    ends = sizes[:1] if len(sizes) == 1 else [sizes[0], sizes[-1]]
    named = [f"{what}, {ends[0]['passages']:,}", *(f"{size['passages']:,}" for size in ends[1:])]
    return [*named, "ratio"] if ratio and len(ends) > 1 else named


def speed(sizes: Sizes) -> list[list[str]]:
    """Header and rows: how fast each size went, and what it wrote."""
    heads = [
        *_heads("rows a CPU second", sizes),
        *_heads("wall s", sizes, ratio=False),
        *_heads("bytes a row", sizes, ratio=False),
    ]
    rows = [["work", "unit", *heads, *_heads("files", sizes, ratio=False)]]
    for name, lines in shared(sizes):
        rates = [line["rate"] for line in lines]
        wall = [f"{line['seconds']:,.1f}" for line in lines]
        a_row = [number(line["bytes"] / line["rows"]) if "bytes" in line else "" for line in lines]
        if lines[0]["unit"] == "dot products":
            a_row = [""] * len(lines)
        files = [f"{line['files']:,}" if "files" in line else "" for line in lines]
        rows.append([name, lines[0]["unit"], *map(number, rates), *_ratio(rates), *wall, *a_row, *files])
    return rows


def memory(sizes: Sizes) -> list[list[str]]:
    """Header and rows: peak MB of the driver and of the largest worker."""
    heads = [
        *_heads("driver heap MB", sizes),
        *_heads("worker heap MB", sizes),
        *_heads("worker mapped MB", sizes, ratio=False),
    ]
    rows = [["work", *heads, *_heads("object store MB", sizes, ratio=False), *_heads("spilled MB", sizes, ratio=False)]]
    for name, lines in shared(sizes):
        driver = [float(line["driver"]["anonymous"]) for line in lines]
        worker = [float(largest(line)) for line in lines]
        mapped = [float(largest(line, "mapped")) for line in lines]
        heaps = [*_across(driver), *_ratio(driver), *_across(worker), *_ratio(worker)]
        ray = [*_across([line["stored"] for line in lines], 1), *_across([line["spilled"] for line in lines])]
        rows.append([name, *heaps, *_across(mapped), *ray])
    return rows


def markdown(rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def plain(rows: list[list[str]]) -> str:
    """The same for a terminal: columns under one another."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    aligned = [
        [cell.ljust(w) if not at else cell.rjust(w) for at, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    ]
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def page(sizes: Sizes, *, as_markdown: bool) -> str:
    """Both tables, the score book, and what is not flat."""
    show = markdown if as_markdown else plain
    book = sizes[-1]["book"]
    kept = f"{book['pairs']:,} pairs, {book['bytes'] / MB:,.0f} MB, {book['files']:,} files"
    parts = [show(speed(sizes)), show(memory(sizes)), f"Score book at {sizes[-1]['passages']:,} passages: {kept}."]
    if len(sizes) > 1:
        found = unflat(sizes)
        flat = "Flat within 10 %: heaps of driver and workers, and rows a CPU second; nothing was spilled."
        parts.append("Not flat:\n\n" + "\n".join(f"- {line}" for line in found) if found else flat)
    return "\n\n".join(parts)
