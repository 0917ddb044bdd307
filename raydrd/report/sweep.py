"""What `raydrd sweep` found, for people: terminal text, Markdown and the HTML page. Numbers are those of `sweeping`."""

from __future__ import annotations

import base64
import hashlib
import json
import textwrap
from collections.abc import Mapping
from importlib import resources
from typing import Any

from raydrd.report import fieldplots, pictures, summary, sweeptext, versus
from raydrd.report.ablation import escape_markdown
from raydrd.report.sweeptext import Row, noun
from raydrd.report.template import template
from raydrd.report.trials import footing
from raydrd.report.versus import ALPHA, aligned, p_text
from raydrd.spine.storage import Folder

_WIDE = 118  # characters of the terminal's tables
_ACROSS = 4  # metrics side by side on a terminal
_SHOWN = 20  # rows on a terminal; the files have all
_LINES = 3  # of a label on a terminal


def write(result: Mapping[str, Any], *, out: Folder) -> None:
    """The page, the Markdown table and, last, the numbers."""
    out.write_bytes("sweep.html", render(result).encode("utf-8", errors="backslashreplace"))
    out.write_bytes("sweep.md", markdown(result).encode("utf-8", errors="backslashreplace"))
    out.write_bytes("sweep.json", (json.dumps(result, indent=2) + "\n").encode())


# -- the terminal -----------------------------------------------------------------------------------


def terminal(result: Mapping[str, Any]) -> str:
    """Trials, what matters, the confirmation, what was shared, the verdict. At most 120 columns, ASCII but for names."""
    blocks = [_trials(result)]
    told = [f"WARNING: {line}" for line in result["warnings"]] + [f"note: {line}" for line in result["notes"]]
    told = [*sweeptext.troubles(result)[:_SHOWN], *told]
    blocks += ["\n".join(_wrapped(told))] if told else []
    blocks += [block for block in (_importance(result), _confirmation(result)) if block]
    blocks.append("\n".join(sweeptext.work_lines(result)))
    last = [*filter(None, [sweeptext.chosen(result)]), sweeptext.verdict(result)]
    if result["best_file"]:
        last.append(f"best config, ready to run: {result['best_file']}")
    blocks.append("\n".join(_wrapped(last)))
    return versus.printable("\n\n".join(blocks).translate(_PLAIN))


_PLAIN = str.maketrans({"−": "-", "–": "-", "’": "'", "…": "...", "\u00a0": " "})


def _wrapped(lines: list[str]) -> list[str]:
    return [part for line in lines for part in textwrap.wrap(line, _WIDE, subsequent_indent="  ") or [""]]


def _trials(result: Mapping[str, Any]) -> str:
    found = sweeptext.rows(result)
    shown = [row for n, row in enumerate(found) if n < _SHOWN or row.default or row.best]
    names, spread = sweeptext.metrics(result)[:_ACROSS], result["seeds"] > 1
    head = [noun(result), "", *(part for n, name in enumerate(names) for part in _head(name, spread and not n))]
    table = [[*head, "updates", "seconds", "status"]]
    cells = [[f"{row.number}{'*' if row.best else ''}", *_cells(row, names, spread)] for row in shown]
    widths = [max(len(line[n]) for line in [[table[0][0], *table[0][2:]], *cells]) for n in range(len(cells[0]))]
    room = max(20, _WIDE - sum(widths) - 2 * len(widths))
    for row, own in zip(shown, cells, strict=True):
        parts = textwrap.wrap(row.label, room, max_lines=_LINES, placeholder=" ...") or [""]
        table.append([own[0], parts[0].ljust(1), *own[1:]])
        table += [["", part, *[""] * (len(own) - 1)] for part in parts[1:]]
    lines = aligned(table, left=2)
    foot = f"* best on dev. {sweeptext.tally(result)}; {sweeptext.searched(result)}"
    more = [f"... {len(found) - len(shown):,} more in sweep.md"] if len(found) > len(shown) else []
    early = any("stopped" in row.status for row in shown)
    read = ["stopped: dev of its last report, after fewer updates than others: not comparable with theirs"] if early else []
    return "\n".join([*lines, *more, *_wrapped([foot, *read])])


def _head(name: str, spread: bool) -> list[str]:
    return [f"dev {name}", "[95 % t-interval]"] if spread else [f"dev {name}"]


def _cells(row: Row, names: list[str], spread: bool) -> list[str]:
    found = []
    for n, name in enumerate(names):
        mean, low, high = row.cells.get(name, (None, None, None))
        found.append("-" if mean is None else f"{mean:.3f}")
        if spread and not n:
            found.append("-" if low is None or high is None else f"[{low:.3f}, {high:.3f}]")
    return [*found, row.updates, f"{row.seconds:,.0f}", row.status]


def _importance(result: Mapping[str, Any]) -> str:
    rows = result["importance"]
    if not rows:
        return ""
    known = [row for row in rows if row["share"] is not None]
    lines = [f"what matters: {sweeptext.importance_basis(result)}"]
    if known:
        table = [["field", "explains", "p", "p, Holm", "", f"{noun(result)}s"]]
        for row in known:
            mark = "*" if row["p_holm"] < ALPHA else ""
            table.append([summary_name(row["field"]), *sweeptext.judged(row), mark, f"{row['points']:,}"])
        lines += aligned(table)
    lines += [f"{row['field']}: not known: {row['reason']}" for row in rows if row["share"] is None]
    return "\n".join([*_wrapped(lines[:1]), *lines[1 : 3 + len(known)], *_wrapped(lines[3 + len(known) :])])


def summary_name(name: str, most: int = 60) -> str:
    """A field's name in at most `most` letters: its end stays."""
    return name if len(name) <= most else f"...{name[len(name) - most + 3 :]}"


def _confirmation(result: Mapping[str, Any]) -> str:
    found = result["confirmation"]
    if not found:
        skipped = result["confirmation_skipped"]
        return "\n".join(_wrapped([f"not confirmed on test: {skipped}"])) if skipped else ""
    names = sweeptext.metrics(result)[:_ACROSS]
    table = [["test", *(part for name in names for part in (name, "sd"))]]
    for row in found["rows"]:
        sd = {name: row["std"].get(name) for name in names}
        cells = [(f"{row['mean'][n]:.3f}", "-" if sd[n] is None else f"{sd[n]:.3f}") for n in names]
        table.append([str(row["label"]), *(part for pair in cells for part in pair)])
    effects = [["best - default", "", "[95 % interval]", "p"]]
    for name in names:
        effect = found["effect"].get(name)
        if effect is not None:
            interval = f"[{effect['low']:+.3f}, {effect['high']:+.3f}]"
            effects.append([name, f"{effect['difference']:+.3f}", interval, p_text(effect["p"])])
    foot = f"{sweeptext.confirmed_how(result)}. p: paired randomisation test, not corrected for the {len(effects) - 1} metrics."
    return "\n".join([*aligned(table), "", *aligned(effects), *_wrapped([foot])])


# -- Markdown ---------------------------------------------------------------------------------------


def markdown(result: Mapping[str, Any]) -> str:
    """All trials as a table to paste, then what matters and the confirmation. Ends with a newline."""
    names, spread = sweeptext.metrics(result), result["seeds"] > 1
    head = [noun(result), "differs from the default", *(f"dev {n}" for n in names), "updates", "seconds", "status"]
    lines = [_line([escape_markdown(cell) for cell in head]), _line(["--:", ":--", *["--:"] * (len(head) - 3), ":--"])]
    for row in sweeptext.rows(result):
        values = []
        for name in names:
            mean, low, high = row.cells.get(name, (None, None, None))
            text = "" if mean is None else f"{mean:.3f}"
            values.append(f"{text} [{low:.3f}, {high:.3f}]" if spread and low is not None and high is not None else text)
        strong = [f"**{value}**" if row.best and value else value for value in values]
        cells = [str(row.number), escape_markdown(row.label), *strong, row.updates, f"{row.seconds:,.0f}", row.status]
        lines.append(_line(cells))
    if result["importance"]:
        lines += ["", _line(["field", "explains", "p", "p (Holm)", f"{noun(result)}s"]), _line([":--", *["--:"] * 4])]
        for row in result["importance"]:
            texts = [escape_markdown(text) for text in sweeptext.judged(row)]
            why = escape_markdown(row["field"]) + (f" ({escape_markdown(row['reason'])})" if row["reason"] else "")
            lines.append(_line([why, *texts, f"{row['points']:,}"]))
    if found := result["confirmation"]:
        lines += ["", _line(["test", *map(escape_markdown, names)]), _line([":--", *["--:"] * len(names)])]
        for row in found["rows"]:
            lines.append(_line([escape_markdown(row["label"]), *(_mean(row, name) for name in names)]))
        effects = [found["effect"].get(name) for name in names]
        cells = [
            f"{e['difference']:+.3f} [{e['low']:+.3f}, {e['high']:+.3f}], p {p_text(e['p'])}" if e else "" for e in effects
        ]
        lines.append(_line(["best - default", *map(escape_markdown, cells)]))
    about = [*filter(None, [sweeptext.chosen(result)])]
    about += [f"{sweeptext.verdict(result)} {sweeptext.tally(result)}; {sweeptext.searched(result)}."]
    about += [f"Confirmation: {sweeptext.confirmed_how(result)}."] if result["confirmation"] else []
    about += [f"Not confirmed: {result['confirmation_skipped']}"] if result["confirmation_skipped"] else []
    about += [f"Importance: {sweeptext.importance_basis(result)}."] if result["importance"] else []
    about += [*sweeptext.work_lines(result), *sweeptext.troubles(result)]
    about += [f"Warning: {line}" for line in result["warnings"]] + [f"Note: {line}" for line in result["notes"]]
    return "\n".join([*lines, "", *(f"{escape_markdown(line)}  " for line in about), ""])


def _mean(row: Mapping[str, Any], name: str) -> str:
    std = row["std"].get(name)
    return f"{row['mean'][name]:.3f}" + (f" ± {std:.3f}" if std is not None else "")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


# -- the page ---------------------------------------------------------------------------------------


def render(result: Mapping[str, Any]) -> str:
    """The page as text: one file, nothing fetched, everything escaped (Jinja2 autoescape).

    Its one script marks a trial in all pictures and lets axes be brushed; the page is whole without it. The policy in the
    page's head lets no other script run.
    """
    script = resources.files("raydrd.report").joinpath("sweep.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    strips = fieldplots.strips(result)
    changes = [row["change"] for strip in strips for row in strip["rows"] if row["change"]]
    confirmed = result["confirmation"]
    return template("sweep.html").render(
        result=result,
        verdict=sweeptext.verdict(result),
        chosen=sweeptext.chosen(result),
        tally=sweeptext.tally(result),
        searched=sweeptext.searched(result),
        noun=noun(result),
        stopped=any(trial["status"] == "stopped" for trial in result["trials"]),
        early=any(trial["status"] in ("stopped", "failed") and trial["reports"] for trial in result["trials"]),
        metrics=sweeptext.metrics(result),
        rows=sweeptext.rows(result),
        troubles=sweeptext.troubles(result),
        parallel=pictures.parallel(result),
        curves=pictures.curves(result),
        updates=footing(result).updates,
        field_plots=fieldplots.field_plots(result),
        below=fieldplots.below(result),
        importance={row["field"]: row for row in result["importance"]},
        basis=sweeptext.importance_basis(result),
        judged=sweeptext.judged,
        strips=strips,
        strip_scale=versus.strip_scale(changes),
        front=fieldplots.front_plot(result),
        effect_scale=versus.strip_scale(list(confirmed["effect"].values())) if confirmed else (-1.0, 1.0),
        confirmed_how=sweeptext.confirmed_how(result) if confirmed else "",
        work=sweeptext.work_lines(result),
        script=script,
        digest=digest,
        alpha=ALPHA,
        strip=versus.strip,
        clear=sweeptext.is_clear,
        p_text=p_text,
        decimal=summary.decimal,
        signed=summary.signed,
        span=summary.span,
        quantity=summary.quantity,
        duration=summary.duration,
    )
