"""What `raydrd ablate` found, for people: terminal text, Markdown and the HTML page. Numbers are those of `ablating`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from raydrd.report import summary, versus
from raydrd.report.template import template
from raydrd.report.versus import ALPHA, aligned, is_clear, p_text
from raydrd.spine.storage import Folder

_NAMED = 3  # variants of one kind that the verdict names


def write(found: Mapping[str, Any], *, out: Folder) -> None:
    """The page, the Markdown table and, last, the numbers."""
    out.write_bytes("ablation.html", render(found).encode("utf-8", errors="backslashreplace"))
    out.write_bytes("ablation.md", markdown(found).encode("utf-8", errors="backslashreplace"))
    out.write_bytes("ablation.json", (json.dumps(found, indent=2) + "\n").encode())


def verdict(found: Mapping[str, Any]) -> str:
    """One sentence on the main metric: which variants the whole recipe is better than, and how sure that is."""
    effects = found["effects"]
    if not effects:
        return f"No variant of {found['name']} could be run, so nothing is known of its ideas."
    groups = {"clearly better than": [e for e in effects if is_clear(e) and e["difference"] > 0]}
    groups["clearly worse than"] = [e for e in effects if is_clear(e) and e["difference"] < 0]
    groups["not clearly different from"] = [e for e in effects if not is_clear(e)]
    parts = [f"{word} {len(members)} ({_differences(members)})" for word, members in groups.items() if members]
    whole = f"On {found['metric']} {found['name']} with all ideas, against {_many(len(effects), 'variant', 'variants')}, is"
    return f"{whole} {', '.join(parts)}; {_basis(found)}."


def _differences(effects: Sequence[Mapping[str, Any]]) -> str:
    ordered = sorted(effects, key=lambda e: -abs(e["difference"]))
    told = [f"{e['without']} {e['difference']:+.3f}" for e in ordered[:_NAMED]]
    return "; ".join([*told, *(["..."] if len(ordered) > _NAMED else [])])


def _many(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"


def _seeds(found: Mapping[str, Any]) -> str:
    return _many(found["seeds"], "seed", "seeds")


def _basis(found: Mapping[str, Any]) -> str:
    queries = _many(found["queries"], "test query", "test queries")
    return f"{queries}, {_seeds(found)}, Holm's correction for {_many(len(found['effects']), 'test', 'tests')}"


def pairs_line(found: Mapping[str, Any]) -> str:
    """`pairs scored by the teacher: whole run 1,440; variants: +0; made by this command: 1,440`."""
    of = {row["kind"]: row["pairs"]["needed"] for row in found["rows"] if row["kind"] == "whole"}
    total = found["teacher_pairs"]
    return (
        f"pairs scored by the teacher: whole run {of['whole']:,}; variants: +{total['needed'] - of['whole']:,}; "
        f"made by this command: {total['made']:,}"
    )


def _pairs(row: Mapping[str, Any]) -> str:
    if row["pairs"] is None:
        return "-"
    return f"{'+' if row['kind'] == 'variant' else ''}{row['pairs']['needed']:,}"


def _updates(row: Mapping[str, Any]) -> str:
    return " / ".join(f"{n:,}" for n in dict.fromkeys(row["updates"])) or "-"


def _unequal(found: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    whole = next(other for other in found["rows"] if other["kind"] == "whole")
    return row["kind"] == "variant" and row["refusal"] is None and row["updates"] != whole["updates"]


def _refused(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in found["rows"] if row["refusal"] is not None]


# -- the terminal -----------------------------------------------------------------------------------


def terminal(found: Mapping[str, Any]) -> str:
    """The rows, the effects, then what to know and the verdict. ASCII but for names. No trailing newline."""
    blocks = [_rows(found), *([_effects(found)] if found["effects"] else [])]
    told = [f"refused: {row['label']}: {row['refusal']}" for row in _refused(found)]
    told += [f"WARNING: {line}" for line in found["warnings"]] + [f"note: {line}" for line in found["notes"]]
    return versus.printable("\n\n".join([*blocks, "\n".join([*told, pairs_line(found)]), verdict(found)]))


def _rows(found: Mapping[str, Any]) -> str:
    main = found["metric"]
    rows = [["", *(part for name in found["metrics"] for part in _head(name, main)), "updates", "teacher pairs"]]
    for row in found["rows"]:
        cells = [part for name in found["metrics"] for part in _cells(row, name, main)]
        if row["refusal"] is not None:
            cells[0] = "refused"
        mark = "!" if _unequal(found, row) else ""
        rows.append([row["label"], *cells, f"{_updates(row)}{mark}", _pairs(row)])
    return "\n".join(aligned(rows))


def _head(name: str, main: str) -> tuple[str, ...]:
    return (name, "sd") if name == main else (name,)


def _cells(row: Mapping[str, Any], name: str, main: str) -> tuple[str, ...]:
    """The mean; of the main metric also the standard deviation over seeds."""
    mean, std = row["mean"].get(name), row["std"].get(name)
    text = "-" if mean is None else f"{mean:.3f}"
    return (text, "-" if std is None else f"{std:.3f}") if name == main else (text,)


def _effects(found: Mapping[str, Any]) -> str:
    rows = [["without", "effect", "[95 % interval]", "p", "p, Holm", "", "win/tie/loss"]]
    for e in found["effects"]:
        interval = f"[{e['low']:+.3f}, {e['high']:+.3f}]"
        counts = f"{e['wins']}/{e['ties']}/{e['losses']}"
        mark = "*" if is_clear(e) else ""
        rows.append([e["without"], f"{e['difference']:+.3f}", interval, p_text(e["p"]), p_text(e["p_holm"]), mark, counts])
    over = f"{found['queries']:,} queries, {_seeds(found)}"
    head = f"effect on {found['metric']}: all ideas less the recipe without this one, by query; {over}"
    foot = f"* p below {ALPHA} after Holm's correction; paired randomisation test, {found['samples']:,} samples"
    return "\n".join([f"{head}:", *aligned(rows), foot])


# -- Markdown ---------------------------------------------------------------------------------------


def escape_markdown(text: str) -> str:
    """The text as Markdown prints it, on one line and inside a table's cell."""
    return re.sub(r"([\\`*_\[\]<>|~#&])", r"\\\1", versus.printable(" ".join(text.split())))


def markdown(found: Mapping[str, Any]) -> str:
    """One table to paste, with what its numbers are below it. Ends with a newline."""
    main, effects = found["metric"], {e["without"]: e for e in found["effects"]}
    spread = found["seeds"] > 1
    columns = ["", main, *(["sd"] if spread else []), f"effect on {main}", "p (Holm)", "win / tie / loss"]
    columns += [*(name for name in found["metrics"] if name != main), "updates", "teacher pairs"]
    lines = [_line([escape_markdown(c) for c in columns]), _line([":--", *["--:"] * (len(columns) - 1)])]
    for row in found["rows"]:
        mean, std = _cells(row, main, main)
        cells = [mean, *([std] if spread else []), *_effect_cells(effects.get(row["label"]))]
        cells += [_cells(row, name, main)[0] for name in found["metrics"] if name != main]
        name = escape_markdown(row["label"]) + (" (refused)" if row["refusal"] is not None else "")
        lines.append(_line([name, *cells, _updates(row) + (" (!)" if _unequal(found, row) else ""), _pairs(row)]))
    told = [f"Refused: {row['label']}: {row['refusal']}" for row in _refused(found)]
    told += [f"Warning: {line}" for line in found["warnings"]] + [f"Note: {line}" for line in found["notes"]]
    about = [
        f"Effect: all ideas less the recipe without this one, with a 95 % paired bootstrap interval; {_basis(found)}.",
        f"{pairs_line(found)}.".capitalize(),
        *told,
    ]
    return "\n".join([*lines, "", *(f"{escape_markdown(line)}  " for line in about), ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _effect_cells(effect: Mapping[str, Any] | None) -> list[str]:
    if effect is None:
        return ["", "", ""]
    value = f"{effect['difference']:+.3f} [{effect['low']:+.3f}, {effect['high']:+.3f}]"
    return [
        f"**{value}**" if is_clear(effect) else value,
        escape_markdown(p_text(effect["p_holm"])),
        f"{effect['wins']} / {effect['ties']} / {effect['losses']}",
    ]


# -- the page ---------------------------------------------------------------------------------------


def render(found: Mapping[str, Any]) -> str:
    """The page as text: one file, nothing fetched, everything escaped (Jinja2 autoescape)."""
    return template("ablation.html").render(
        found=found,
        verdict=verdict(found),
        pairs_line=pairs_line(found),
        rows=[
            {**row, "pairs_text": _pairs(row), "updates_text": _updates(row), "unequal": _unequal(found, row)}
            for row in found["rows"]
        ],
        alpha=ALPHA,
        scale=versus.strip_scale(found["effects"]),
        strip=versus.strip,
        clear=is_clear,
        p_text=p_text,
        decimal=summary.decimal,
        signed=summary.signed,
        span=summary.span,
        counts=summary.counts,
        duration=summary.duration,
    )
