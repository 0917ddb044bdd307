"""What `raydrd compare` found, for people: terminal text, LaTeX and the HTML page. Numbers are those of `comparing`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from raydrd.report import summary
from raydrd.report.page import excerpt
from raydrd.report.template import template

ALPHA = 0.05  # a difference is called clear when p, after Holm's correction, is below this
_ACROSS = 3  # metrics side by side on a terminal: with intervals they fill 70 columns
_SHOWN = 3  # queries most improved, and most hurt, of a pair on a terminal
_WIDE, _TEXT = 100, 60  # characters of a rule, and of a query, on a terminal


def is_clear(found: Mapping[str, Any]) -> bool:
    return float(found["p_holm"]) < ALPHA


def p_text(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def range_text(by: str, low: float, high: float) -> str:
    """The range of a bin as `3`, `3-5` or, where it is a share, `0.25-0.50`."""
    ends = [f"{end:.2f}" if by == "overlap" else f"{end:g}" for end in (low, high)]
    return ends[0] if ends[0] == ends[1] else "-".join(ends)


def verdict(found: Mapping[str, Any]) -> str:
    """One sentence on the main metric: who differs from the first run, and how sure that is."""
    base, metric = found["systems"][0]["label"], found["metric"]
    made = [c for c in found["comparisons"] if c["metric"] == metric and c["b"] == base]
    basis = f"Holm's correction for {len(found['comparisons'])} comparisons, {found['queries']:,} queries"
    groups = {"better": [c for c in made if is_clear(c) and c["difference"] > 0]}
    groups["worse"] = [c for c in made if is_clear(c) and c["difference"] < 0]
    groups["not clearly different"] = [c for c in made if c not in groups["better"] and c not in groups["worse"]]
    if len(made) == 1:
        only = made[0]
        word = next(word for word, members in groups.items() if members)
        link = "from" if word.startswith("not") else "than"
        p = summary.p_value(only["p_holm"]).replace("\u00a0", " ")
        return f"{only['a']} is {word} {link} {base} on {metric}: {_change(only)}, {p} after {basis}."
    parts = [
        f"{len(members)} {'is' if len(members) == 1 else 'are'} {word}{_names(members)}"
        for word, members in groups.items()
        if members
    ]
    return f"Of {len(made)} systems compared with {base} on {metric}, {', '.join(parts)}; {basis}."


def _change(found: Mapping[str, Any]) -> str:
    return f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def _names(members: Sequence[Mapping[str, Any]]) -> str:
    ordered = sorted(members, key=lambda c: -abs(c["difference"]))
    return " (" + ", ".join(f"{c['a']} {c['difference']:+.3f}" for c in ordered) + ")"


# -- the terminal -----------------------------------------------------------------------------------


def terminal(found: Mapping[str, Any]) -> str:
    """Tables one below the other, then notes and the verdict. No trailing newline.

    ASCII but for names and queries; what cannot be printed in those is shown as `?`.
    """
    blocks = [*_results(found), _differences(found), *_slices(found), *_changed(found)]
    blocks += ["\n".join(f"note: {note}" for note in found["notes"])] if found["notes"] else []
    return printable("\n\n".join([*blocks, verdict(found)]))


def printable(text: str) -> str:
    """Without what could steer a terminal: queries and names are other people's texts."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def aligned(rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Columns two spaces apart, the first `left` of them to the left; a rule below the head."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(w) if n < left else cell.rjust(w) for n, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return [lines[0].rstrip(), "-" * min(_WIDE, max(map(len, lines))), *(line.rstrip() for line in lines[1:])]


def _results(found: Mapping[str, Any]) -> list[str]:
    blocks = []
    for start in range(0, len(found["metrics"]), _ACROSS):
        names = found["metrics"][start : start + _ACROSS]
        rows = [["", *(part for name in names for part in (name, "[95 % interval]"))]]
        for system in found["systems"]:
            cells = [system["metrics"][name] for name in names]
            rows.append(
                [system["label"], *(t for c in cells for t in (f"{c['mean']:.3f}", f"[{c['low']:.3f}, {c['high']:.3f}]"))]
            )
        blocks.append("\n".join(aligned(rows)))
    return blocks


def _differences(found: Mapping[str, Any]) -> str:
    rows = [["difference", "metric", "", "[95 % interval]", "p", "p, Holm", "", "win/tie/loss"]]
    last: tuple[str, str] | None = None
    for c in found["comparisons"]:
        low_high = f"[{c['low']:+.3f}, {c['high']:+.3f}]"
        counts = f"{c['wins']}/{c['ties']}/{c['losses']}"
        mark = "*" if is_clear(c) else ""
        pair = "" if (c["a"], c["b"]) == last else f"{c['a']} - {c['b']}"
        last = (c["a"], c["b"])
        rows.append([pair, c["metric"], f"{c['difference']:+.3f}", low_high, p_text(c["p"]), p_text(c["p_holm"]), mark, counts])
    foot = f"* p below {ALPHA} after Holm's correction for {len(found['comparisons'])} comparisons; "
    return "\n".join([*aligned(rows, left=2), f"{foot}paired randomisation test, {found['samples']:,} samples"])


def _slices(found: Mapping[str, Any]) -> list[str]:
    blocks = []
    for cut in found["slices"]:
        rows = [["", "queries", "system", found["metric"], "difference", "[95 % interval]"]]
        for part in cut["bins"]:
            for n, s in enumerate(part["systems"]):
                change = [f"{s['difference']:+.3f}", f"[{s['low']:+.3f}, {s['high']:+.3f}]"] if "difference" in s else ["", ""]
                place = ["", ""] if n else [range_text(cut["by"], part["low"], part["high"]), f"{part['queries']:,}"]
                rows.append([*place, s["label"], f"{s['mean']:.3f}", *change])
        blocks.append("\n".join([f"by {cut['title']}:", *aligned(rows, left=3)]))
    return blocks


def _changed(found: Mapping[str, Any]) -> list[str]:
    blocks = []
    base = found["systems"][0]["label"]
    for pair in found["changed"]:
        queries = [*pair["improved"][:_SHOWN], *pair["hurt"][:_SHOWN]]
        if pair["b"] != base or not queries:
            continue
        rows = [["", pair["b"], pair["a"], "change", "query"]]
        for n, q in enumerate(queries):
            kind = "improved" if n < len(pair["improved"][:_SHOWN]) else "hurt"
            text = f"{q['query_id']}  {excerpt(q['query'] or '', _TEXT).replace('…', '...')}".strip()
            rows.append([kind, f"{q['b']:.3f}", f"{q['a']:.3f}", f"{q['a'] - q['b']:+.3f}", text])
        widest = max(len(row[-1]) for row in rows)
        padded = [[*row[:-1], row[-1].ljust(widest)] for row in rows]
        blocks.append("\n".join([f"most changed by {found['metric']}:", *aligned(padded)]))
    return blocks


# -- LaTeX ------------------------------------------------------------------------------------------

_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
}


def escape_latex(text: str) -> str:
    """The text as LaTeX prints it, on one line; every special character is escaped, control characters become `?`."""
    escaped = "".join(_LATEX.get(c, c) for c in printable(" ".join(text.split())))
    return re.sub("-(?=-)", "-{}", escaped)  # two hyphens in a row would print as a dash


def latex(found: Mapping[str, Any]) -> str:
    """A booktabs table: means with intervals, letters for what a system is clearly better than, then the differences.

    A letter in superscript names a system that this one is better than with p below `ALPHA` after Holm's correction.
    """
    names = found["metrics"]
    letters = {s["label"]: _letter(n) for n, s in enumerate(found["systems"])}
    lines = [
        "% needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{escape_latex(_caption(found))}}}",
        f"\\begin{{tabular}}{{l{'c' * len(names)}}}",
        "\\toprule",
        _row("", [escape_latex(name) for name in names]),
        "\\midrule",
    ]
    for system in found["systems"]:
        label = system["label"]
        cells = [system["metrics"][name] for name in names]
        above = [",".join(letters[other] for other in _beaten(found, label, name)) for name in names]
        marks = [f"\\textsuperscript{{{mark}}}" if mark else "" for mark in above]
        values = [f"{c['mean']:.3f}{mark}" for c, mark in zip(cells, marks, strict=True)]
        lines.append(_row(f"({letters[label]}) {escape_latex(label)}", values))
        lines.append(_row("", [f"{{\\scriptsize [{c['low']:.3f}, {c['high']:.3f}]}}" for c in cells]))
    lines.append("\\midrule")
    by_pair: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for c in found["comparisons"]:
        by_pair.setdefault((c["a"], c["b"]), {})[c["metric"]] = c
    for (a, b), made in by_pair.items():
        rows = [made[name] for name in names]
        lines.append(_row(f"({letters[a]}) $-$ ({letters[b]})", [f"${c['difference']:+.3f}$" for c in rows]))
        lines.append(_row("", [f"{{\\scriptsize [${c['low']:+.3f}$, ${c['high']:+.3f}$]}}" for c in rows]))
        lines.append(_row("", [f"{{\\scriptsize $p{_relation(c['p_holm'])}$}}" for c in rows]))
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}", ""])


def _row(head: str, cells: Sequence[str]) -> str:
    # The empty group keeps a `[` or `*` that begins the next line from being read as an argument of the line's end.
    return f"{' & '.join([head or '{}', *cells])} \\\\"


def _relation(p: float) -> str:
    return p_text(p) if p < 0.001 else f"={p_text(p)}"


def _letter(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    return (_letter(number // 26 - 1) if number >= 26 else "") + chr(ord("a") + number % 26)


def _beaten(found: Mapping[str, Any], label: str, metric: str) -> list[str]:
    """The systems that this one is clearly better than."""
    made = [c for c in found["comparisons"] if c["metric"] == metric and is_clear(c)]
    ahead = {c["b"] for c in made if c["a"] == label and c["difference"] > 0}
    ahead |= {c["a"] for c in made if c["b"] == label and c["difference"] < 0}
    return [s["label"] for s in found["systems"] if s["label"] in ahead]


def _caption(found: Mapping[str, Any]) -> str:
    test = f"two-sided paired randomisation test, {found['samples']:,} samples"
    return (
        f"Means over {found['queries']:,} queries with 95 % bootstrap intervals. A letter marks a system that is better than "
        f"the one of that letter with p < {ALPHA} ({test}, Holm's correction for {len(found['comparisons'])} comparisons). "
        "Below: differences with paired intervals and corrected p."
    )


# -- the page ---------------------------------------------------------------------------------------


def render(found: Mapping[str, Any]) -> str:
    """The page as text: one file, nothing fetched, everything escaped (Jinja2 autoescape)."""
    parts = [s for cut in found["slices"] for part in cut["bins"] for s in part["systems"] if "difference" in s]
    return template("versus.html").render(
        title=" / ".join(s["label"] for s in found["systems"]),
        verdict=verdict(found),
        found=found,
        alpha=ALPHA,
        scale=strip_scale(found["comparisons"]),
        slice_scale=strip_scale(parts),
        strip=strip,
        clear=is_clear,
        p_text=p_text,
        excerpt=excerpt,
        range_text=range_text,
        decimal=summary.decimal,
        signed=summary.signed,
        span=summary.span,
        counts=summary.counts,
    )


def strip_scale(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """From the lowest to the highest end of these intervals, 0 among them."""
    low = min([0.0, *(row["low"] for row in rows)])
    high = max([0.0, *(row["high"] for row in rows)])
    return (low, high) if high > low else (-1.0, 1.0)


def strip(row: Mapping[str, Any], scale: tuple[float, float]) -> dict[str, float]:
    """Where an interval, its middle and 0 lie on a strip from 2 to 98."""
    low, high = scale
    ends = {"low": row["low"], "high": row["high"], "mean": row["difference"], "zero": 0.0}
    return {name: round(2 + 96 * (value - low) / (high - low), 2) for name, value in ends.items()}
